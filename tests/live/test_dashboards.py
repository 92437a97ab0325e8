"""Every query of every dashboard and every rule against a real Prometheus, while fio runs: data, and fio's own numbers.

One run for all of it: first a host that offloads nothing (plain reads and writes of one file), then the demo's load on
the real disk beside a job on a loop device whose bytes are known. A rate can only be as exact as the scrapes are dense,
so what a panel shows is added up over the run and compared within what two scrapes may hold; counters are exact.
"""

from __future__ import annotations

import json
import math
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from llmio_probe import __version__, demo
from tests.live import pictures
from tests.live.daemons import Daemon, running_daemon
from tests.live.harness import HANG, Disk, disk_statistics, fio, fio_totals
from tests.live.prometheus import RATE_SECONDS, REPOSITORY, SCRAPE_SECONDS, Prometheus, Series, ask, panels

PICTURES = REPOSITORY / ".ci" / "out" / "dashboards"
PANELS = panels()
PLAIN_SECONDS, LOAD_SECONDS = 6, 16
WEIGHTS_BYTES, KV_BYTES = 128 << 20, 32 << 20
REQUESTS = 20011
REQUEST_BYTES = 4096

Times = tuple[float, float]


@dataclass
class Run:
    """Start and end of each part, seconds since the epoch, and what fio and the kernel counted meanwhile."""

    daemon: Daemon
    prometheus: Prometheus
    loop: str
    disk: str
    plain: Times
    loaded: Times
    busy: Times
    """The same until the last request's scrape only, so that what is shown of this moment has something to show."""
    known: tuple[int, int]
    """Requests and bytes of the job on the loop device, by fio."""
    weights: int
    """Bytes of the demo's weights, by fio."""
    disk_bytes: dict[str, int]
    """Read and written on the demo's disk while it was loaded, by the block layer's own statistics."""

    def ask(self, panel: str, times: Times | None = None) -> list[Series]:
        return ask(self.prometheus, PANELS[panel], *(times or self.loaded))

    def integral(self, panel: str, *legends: str) -> float:
        """Of a rate: all that was, in the series whose legends hold these words."""
        return sum(s.integral() for s in self.ask(panel) if all(word in s.legend.split() for word in legends))


@pytest.fixture(scope="module")
def run(loop_disk: Disk, ext4_disk: Disk, ext4_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    folder = tmp_path_factory.mktemp("dashboards")
    # So many that fio has series of its own, however busy others keep this host.
    with running_daemon(folder, "workers: 400\n") as daemon, Prometheus(folder, daemon.address) as prometheus:
        began = time.time()
        plain_load(ext4_folder, folder)
        plain = (began, time.time())
        # The series of all that comes are there before it is measured: a rate misses what a series begins with.
        load(ext4_folder, loop_disk, folder, 2, 101)
        time.sleep(RATE_SECONDS + 2 * SCRAPE_SECONDS)
        before, start = disk_statistics(ext4_disk.device), time.time()
        weights = load(ext4_folder, loop_disk, folder, LOAD_SECONDS, REQUESTS)
        subprocess.run(["sync", "-f", ext4_folder], check=True, timeout=HANG)
        busy = (start, time.time() + SCRAPE_SECONDS)
        time.sleep(RATE_SECONDS + 2 * SCRAPE_SECONDS)
        after = disk_statistics(ext4_disk.device)
        moved = {op: 512 * (after[f"{op}_sectors"] - before[f"{op}_sectors"]) for op in ("read", "write")}
        known = fio_totals(folder / "known.json")["read"]
        yield Run(
            daemon,
            prometheus,
            loop_disk.device,
            ext4_disk.device,
            plain,
            (start, time.time()),
            busy,
            known,
            weights,
            moved,
        )


def plain_load(files: Path, folder: Path) -> None:
    """Plain reads and writes of one file, by system calls, neither weights nor KV cache."""
    subprocess.run(
        ["fio", "--name=plain", f"--filename={files / 'plain'}", "--size=16m", "--ioengine=psync", "--direct=1",
         "--rw=rw", "--bs=64k", "--rate_iops=100,100", "--time_based", f"--runtime={PLAIN_SECONDS}",
         f"--output={folder / 'plain.txt'}"],
        check=True, timeout=HANG,
    )  # fmt: skip


def load(files: Path, known_disk: Disk, folder: Path, seconds: int, requests: int) -> int:
    """The demo's load, and so many requests on the other disk beside it. Returns fio's bytes of weights."""
    for name, size in ((demo.WEIGHTS, WEIGHTS_BYTES), (demo.KV_CACHE, KV_BYTES)):
        (files / name).unlink(missing_ok=True)
        demo.write_file(str(files / name), size)
    command = [*demo.fio_command(str(files), KV_BYTES, seconds), "--output-format=json"]
    job = fio(
        known_disk, "--direct=1", "--rw=randread", f"--bs={REQUEST_BYTES}", "--blockalign=8k", "--ioengine=libaio",
        "--iodepth=8", f"--rate_iops={requests // seconds}", requests=requests, report=folder / "known.json",
    )  # fmt: skip
    running = [subprocess.Popen(argv) for argv in (command, job)]
    try:
        assert [process.wait(HANG) for process in running] == [0, 0]
    finally:
        for process in running:
            process.kill()
            process.wait()
    text = (files / demo.LOG).read_text()
    jobs = json.loads(text[text.index("{") :])["jobs"]
    return int(next(job["read"]["io_bytes"] for job in jobs if job["jobname"] == "weights"))


def within(total: float) -> float:
    """What may be missing at either end: a scrape, the snapshot that it saw, and how a rate is extrapolated there."""
    return total * 2 * (SCRAPE_SECONDS + 1) / LOAD_SECONDS


def has_data(answers: list[Series]) -> bool:
    return any(math.isfinite(value) for series in answers for value in series.values)


@pytest.mark.parametrize("panel", PANELS)
def test_every_panel_has_data_while_a_model_is_offloaded(run: Run, panel: str) -> None:
    assert has_data(run.ask(panel, run.busy))


@pytest.mark.parametrize("panel", PANELS)
def test_no_panel_is_empty_on_a_host_with_plain_io_only(run: Run, panel: str) -> None:
    """A large number may say instead why there is none."""
    words = PANELS[panel]["fieldConfig"]["defaults"].get("noValue")
    assert words or has_data(run.ask(panel, run.plain))


def test_the_counters_in_prometheus_are_fios(run: Run) -> None:
    """Over the whole time, the first short load included."""
    in_flight = run.daemon.value("llmio_requests_in_flight", device=run.loop)
    mine = f'{{device="{run.loop}", worker="fio", op="read"}}'
    start, end = run.loaded

    def increased(metric: str) -> float:
        [after], [before] = (run.prometheus.now(f"sum({metric}{mine})", at) for at in (end, start))
        return after.values[0] - before.values[0]

    requests, size = run.known
    assert requests - in_flight <= increased("llmio_requests_total") <= requests + 64  # earlier ones, expired by now
    assert increased("llmio_bytes_total") == REQUEST_BYTES * increased("llmio_requests_total")
    assert increased("llmio_request_size_bytes_count") == increased("llmio_requests_total")
    assert size == REQUEST_BYTES * requests


BANDWIDTHS: dict[str, Callable[[Run], tuple[float, tuple[str, ...]]]] = {
    "host: Bandwidth by device and op": lambda run: (run.known[1], (run.loop, "read")),
    "worker: Bandwidth by engine and path": lambda run: (run.weights + run.known[1], ("read", "libaio", "direct")),
    "host: Bandwidth by role and op": lambda run: (run.weights, ("weights", "read")),
    "offload: Weights": lambda run: (run.weights, ("read",)),
    "offload: Weights read": lambda run: (run.weights, ()),
    "offload: Bandwidth by engine": lambda run: (run.weights, ("libaio", "read")),
}
"""Panels of bytes a second: what fio says of the series with these words in their legend."""


@pytest.mark.parametrize("panel", BANDWIDTHS)
def test_a_bandwidth_adds_up_to_fios_bytes(run: Run, panel: str) -> None:
    expected, words = BANDWIDTHS[panel](run)
    assert run.integral(panel, *words) == pytest.approx(expected, abs=within(expected))


@pytest.mark.parametrize("op", ["read", "write"])
def test_the_bandwidth_of_the_disk_is_that_of_the_block_layer(run: Run, op: str) -> None:
    expected = run.disk_bytes[op]
    shown = run.integral("host: Bandwidth by device and op", run.disk, op)
    assert shown == pytest.approx(expected, abs=within(expected))
    workers = sum(s.integral() for s in run.ask(f"host: {op.capitalize()}s by worker"))
    by_role = run.integral("host: Bandwidth by role and op", op)
    others = run.known[1] if op == "read" else 0
    for total in (workers, by_role):
        assert total == pytest.approx(expected + others, abs=within(expected + others))


def test_requests_and_sizes_are_those_of_the_job(run: Run) -> None:
    requests, _ = run.known
    sizes = [s for s in run.ask("host: Mean size of a request") if s.legend == f"{run.loop} read"]
    assert {value for s in sizes for value in s.values if math.isfinite(value)} == {REQUEST_BYTES}
    assert run.integral("host: Requests by worker", "fio") > requests - within(requests)
    buckets = {s.legend: s.integral() for s in run.ask("worker: Sizes of reads")}
    assert requests - within(requests) < buckets["4096"] < buckets["+Inf"]


def test_shares_are_shares(run: Run) -> None:
    answers = run.ask("worker: Share of each role")
    for at in {t for series in answers for t in series.times}:
        parts = [series.values[series.times.index(at)] for series in answers if at in series.times]
        assert math.isnan(sum(parts)) or sum(parts) == pytest.approx(1)
    for panel in ("probe: Bytes with a known owner", "probe: Bytes with a known file", "offload: Busiest device"):
        assert all(-1e-9 <= value <= 1.05 for s in run.ask(panel) for value in s.values)


def test_queue_and_device_are_the_total(run: Run) -> None:
    found = {
        stage: run.prometheus.value(f'sum(llmio_request_latency_seconds_sum{{device="{run.loop}", stage="{stage}"}})')
        for stage in ("queue", "device", "total")
    }
    assert found["queue"] + found["device"] == pytest.approx(found["total"], rel=1e-3)
    depth = run.prometheus.value(f'llmio_in_flight_seconds_total{{device="{run.loop}", op="read"}}')
    assert depth == pytest.approx(found["total"], rel=1e-3), "Little's law: the summed time is the mean depth"


def test_every_rule_is_evaluated_and_what_is_recorded_agrees_with_fio(run: Run) -> None:
    groups = run.prometheus.get("rules")["groups"]
    rules = {rule["name"]: rule for group in groups for rule in group["rules"]}
    assert len(rules) == 16
    assert {rule["health"] for rule in rules.values()} == {"ok"}
    start, end = run.loaded
    for name, rule in rules.items():
        if rule["type"] == "recording":
            assert has_data(run.prometheus.over(name, start, end)), name
    firing = {name for name, rule in rules.items() if rule.get("state") == "firing"}
    assert not firing, "nothing was wrong"
    recorded = run.prometheus.over('instance_role_op:llmio_bytes:rate5m{role="weights", op="read"}', end - 1, end)
    raw = run.prometheus.now('sum(rate(llmio_bytes_total{role="weights", op="read"}[5m]))', end)
    assert recorded[0].values[-1] == pytest.approx(raw[0].values[0], rel=0.1)


def test_the_fleet_has_the_host_and_of_its_disks_what_fio_says(run: Run) -> None:
    """Rates over five minutes hold all that there was: the run is shorter."""
    assert [s.values[-1] for s in run.ask("fleet: Hosts") + run.ask("fleet: Hosts down")] == [1, 0]
    assert [s.labels["version"] for s in run.ask("fleet: Probes")] == [__version__]
    assert {s.labels["instance"] for s in run.ask("fleet: Bytes with an unknown owner")} == {run.prometheus.target}

    def shown(panel: str) -> dict[str, float]:
        answers = run.ask(f"fleet: {panel}")
        assert {s.legend for s in answers} == {f"{run.prometheus.target} {s.labels['device']}" for s in answers}
        return {s.labels["device"]: s.values[-1] for s in answers}

    read, disks = shown("Most bandwidth"), {run.loop, run.disk}
    assert 300 * read[run.loop] == pytest.approx(run.known[1], abs=within(run.known[1]))
    for disk in disks:
        raw_bytes = f'sum(rate(llmio_bytes_total{{device="{disk}", op=~"read|write"}}[5m]))'
        [raw] = run.prometheus.now(raw_bytes, run.loaded[1])
        assert read[disk] == pytest.approx(raw.values[0], rel=0.1)
    busy, queued, errors = shown("Busiest"), shown("Longest queue time"), shown("Most errors")
    for disk in disks:
        assert 0 < busy[disk] <= 1
        assert queued[disk] > 0
        assert errors[disk] == 0


@pytest.mark.parametrize("name", ["fleet", "host", "worker", "offload", "probe"])
@pytest.mark.parametrize("part", ["loaded", "plain"])
def test_the_dashboards_can_be_looked_at(run: Run, name: str, part: str) -> None:
    dashboard = json.loads((REPOSITORY / "grafana" / "dashboards" / f"{name}.json").read_text())
    # While it goes on: afterwards the large numbers are all 0.
    times = run.plain if part == "plain" else (run.loaded[0], run.loaded[0] + LOAD_SECONDS)
    path = PICTURES / f"{name}-{part}.png"
    path.unlink(missing_ok=True)
    pictures.draw(dashboard, lambda panel: ask(run.prometheus, panel, *times), path)
    assert path.stat().st_size > 10_000


def test_a_probe_that_does_not_answer_is_an_alert(run: Run) -> None:
    """Runs last: it ends the daemon. The alert waits two minutes before it fires; that, promtool has tested."""
    run.daemon.process.terminate()
    run.daemon.process.wait(HANG)
    deadline = time.monotonic() + HANG
    down: list[dict[str, Any]] = []
    while not down and time.monotonic() < deadline:
        time.sleep(SCRAPE_SECONDS / 2)
        alerts = run.prometheus.get("alerts")["alerts"]
        down = [alert for alert in alerts if alert["labels"]["alertname"] == "LlmioProbeDown"]
    assert [alert["state"] for alert in down] == ["pending"]
    assert run.daemon.address in down[0]["annotations"]["summary"]
