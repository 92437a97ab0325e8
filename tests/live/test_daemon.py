"""The daemon from the outside: a real scrape over HTTP, a real Prometheus, its numbers against fio's own."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from tests.live.harness import HANG, PROBE, Disk, fio, fio_totals, watch

REQUESTS = 20011

NAMES = {
    "llmio_requests_total", "llmio_bytes_total", "llmio_request_errors_total", "llmio_requeues_total",
    "llmio_request_size_bytes", "llmio_request_latency_seconds", "llmio_requests_in_flight",
    "llmio_in_flight_seconds_total", "llmio_device_busy_seconds_total", "llmio_submit_requests", "llmio_submit_seconds",
    "llmio_wait_seconds", "llmio_attributed_bytes_total", "llmio_file_known_bytes_total",
    "llmio_shared_writers_bytes_total",
    "llmio_requests_started_total", "llmio_requests_merged_total", "llmio_requests_expired_total",
    "llmio_requests_unowned_total", "llmio_records_lost_total", "llmio_overflowed_requests_total",
    "llmio_missed_probes_total", "llmio_program_cost_seconds", "llmio_worker_info", "llmio_device_info",
    "llmio_series_folded_total", "llmio_kernel_memory_bytes", "llmio_build_info",
}  # fmt: skip
"""The names of DESIGN.md."""


@dataclass
class Daemon:
    process: subprocess.Popen[str]
    address: str

    def scrape(self) -> str:
        with urllib.request.urlopen(f"http://{self.address}/metrics", timeout=HANG) as answer:
            return str(answer.read().decode())

    def families(self) -> dict[str, Metric]:
        return {family.name: family for family in text_string_to_metric_families(self.scrape())}

    def value(self, name: str, **labels: str) -> float:
        """The sum over all samples of that name that carry the labels."""
        samples = [s for f in self.families().values() for s in f.samples if s.name == name]
        return sum(s.value for s in samples if labels.items() <= s.labels.items())

    def eventually(self, name: str, value: float, **labels: str) -> None:
        """Snapshots are taken every 0.2 s here."""
        deadline = time.monotonic() + 10
        while (found := self.value(name, **labels)) != value and time.monotonic() < deadline:
            time.sleep(0.1)
        assert found == value


def configuration(folder: Path, listen: str = "127.0.0.1:0", more: str = "") -> Path:
    path = folder / "llmio-probe.yaml"
    path.write_text(f'listen: "{listen}"\ninterval_seconds: 0.2\n{more}')
    return path


@contextmanager
def serving(folder: Path, more: str = "") -> Iterator[Daemon]:
    """A daemon on a free port, its configuration in the folder."""
    process = subprocess.Popen(
        [*PROBE, "daemon", "--config", str(configuration(folder, more=more))], stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stderr
        line = process.stderr.readline()
        found = re.search(r"serving http://(\S+)/metrics", line)
        assert found, line + process.stderr.read()
        yield Daemon(process, found[1])
    finally:
        process.kill()
        process.communicate()


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Callable[..., Daemon]]:
    with ExitStack() as running:
        yield lambda more="": running.enter_context(serving(tmp_path, more))


def test_the_counters_are_fios(daemon: Callable[..., Daemon], loop_disk: Disk, tmp_path: Path) -> None:
    """Over two jobs: a completion that the host did not show in the first is counted as expired by the second."""
    running = daemon()
    report = tmp_path / "fio.json"
    requests = size = 0
    for number in (1, 2):
        job = fio(
            loop_disk, "--direct=1", "--rw=randread", "--bs=4k", "--blockalign=8k", "--ioengine=libaio", "--iodepth=32",
            requests=REQUESTS * number, report=report,
        )  # fmt: skip
        subprocess.run(job, check=True, timeout=HANG)
        requests += fio_totals(report)["read"][0]
        size += fio_totals(report)["read"][1]
    device = {"device": loop_disk.device}
    time.sleep(1.5)
    in_flight = running.value("llmio_requests_in_flight", **device)
    labels = {**device, "worker": "fio", "op": "read"}
    running.eventually(
        "llmio_requests_total", requests - in_flight, engine="libaio", path="direct", role="other", **labels
    )
    running.eventually("llmio_bytes_total", size - in_flight * 4096, engine="libaio", path="direct", **labels)
    running.eventually("llmio_request_size_bytes_count", requests - in_flight, **labels)
    running.eventually("llmio_request_size_bytes_bucket", requests - in_flight, le="4096", **labels)
    # Of an expired one it is known when it was made and issued, not when it was done.
    begun = requests - in_flight
    ended = begun - running.value("llmio_requests_expired_total", **device)
    for stage, count in (("queue", begun), ("device", ended), ("total", ended)):
        assert running.value("llmio_request_latency_seconds_count", stage=stage, **labels) == count
    assert running.value("llmio_submit_requests_sum", worker="fio", engine="libaio") == requests
    assert running.value("llmio_records_lost_total") == 0
    counts = {
        name: running.value(f"llmio_requests_{name}_total", **device)
        for name in ("started", "merged", "expired", "unowned")
    }
    finished = running.value("llmio_request_size_bytes_count", **device) - counts["unowned"] - counts["expired"]
    assert counts["started"] == finished + counts["merged"] + counts["expired"] + in_flight


def test_the_names_are_those_of_the_design(daemon: Callable[..., Daemon], loop_disk: Disk, tmp_path: Path) -> None:
    running = daemon()
    job = fio(
        loop_disk, "--direct=1", "--rw=randread", "--bs=4k", "--ioengine=libaio", requests=101, report=tmp_path / "f"
    )
    subprocess.run(job, check=True, timeout=HANG)
    time.sleep(3)  # the cost of the programs is measured in the first two seconds
    families = running.families()
    found = {name + "_total" if f.type == "counter" else name for name, f in families.items()}
    assert {name for name in found if not name.startswith("process_")} == NAMES
    assert {"process_cpu_seconds_total", "process_resident_memory_bytes"} <= found
    assert not [s.name for f in families.values() for s in f.samples if s.name.endswith("_created")]
    costs = {s.labels["program"]: s.value for s in families["llmio_program_cost_seconds"].samples}
    assert 0 < costs["block_rq_complete"] < 1e-3


def test_a_device_that_was_not_asked_for_is_not_counted(
    daemon: Callable[..., Daemon], loop_disk: Disk, tmp_path: Path
) -> None:
    running = daemon(f"devices: [{loop_disk.device}]\n")
    (tmp_path / "other").write_bytes(os.urandom(1 << 20))
    job = fio(
        loop_disk, "--direct=1", "--rw=randread", "--bs=4k", "--ioengine=libaio", requests=101, report=tmp_path / "f"
    )
    subprocess.run(job, check=True, timeout=HANG)
    os.sync()
    time.sleep(1)
    samples = [s for f in running.families().values() for s in f.samples if "device" in s.labels]
    assert {s.labels["device"] for s in samples} == {loop_disk.device}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_soon_and_cleanly(daemon: Callable[..., Daemon], number: signal.Signals) -> None:
    running = daemon()
    running.scrape()
    running.process.send_signal(number)
    _, errors = running.process.communicate(timeout=20)
    assert running.process.returncode == 0
    assert errors == ""


def test_a_port_that_is_taken_is_one_sentence(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = subprocess.run(
            [*PROBE, "daemon", "--config", str(configuration(tmp_path, address))],
            capture_output=True,
            text=True,
            timeout=HANG,
        )
    assert done.returncode == 1
    assert done.stderr.startswith(f"llmio-probe: cannot listen on {address}: address already in use;")
    assert done.stderr.count("\n") == 1


def test_a_wrong_configuration_names_file_and_line(tmp_path: Path) -> None:
    path = configuration(tmp_path, more="wrokers: 3\n")
    done = subprocess.run([*PROBE, "daemon", "--config", str(path)], capture_output=True, text=True, timeout=HANG)
    assert done.returncode == 1
    assert f"{path}:3" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_killed_daemon_leaves_nothing_attached(daemon: Callable[..., Daemon]) -> None:
    daemon().process.kill()


def test_a_session_beside_the_daemon_sees_the_same(
    daemon: Callable[..., Daemon], loop_disk: Disk, tmp_path: Path
) -> None:
    running = daemon()
    report = tmp_path / "fio.json"
    job = fio(
        loop_disk, "--direct=1", "--rw=randread", "--bs=4k", "--blockalign=8k", "--ioengine=libaio", "--iodepth=32",
        requests=REQUESTS, report=report,
    )  # fmt: skip
    watched = watch(job, "--device", loop_disk.device)
    assert watched.total("requests") + watched.report["accounting"]["in_flight"] == REQUESTS
    time.sleep(1)
    in_flight = running.value("llmio_requests_in_flight", device=loop_disk.device)
    running.eventually("llmio_requests_total", REQUESTS - in_flight, device=loop_disk.device, worker="fio")


def test_a_real_prometheus_scrapes_it(daemon: Callable[..., Daemon], loop_disk: Disk, tmp_path: Path) -> None:
    running = daemon()
    with socket.create_server(("127.0.0.1", 0)) as free:
        own = f"127.0.0.1:{free.getsockname()[1]}"
    (tmp_path / "prometheus.yml").write_text(
        "global: {scrape_interval: 1s}\n"
        f"scrape_configs: [{{job_name: llmio, static_configs: [{{targets: ['{running.address}']}}]}}]\n"
    )

    def query(text: str) -> Any:
        url = f"http://{own}/api/v1/query?" + urllib.parse.urlencode({"query": text})
        with urllib.request.urlopen(url, timeout=HANG) as answer:
            return json.load(answer)["data"]["result"]

    with subprocess.Popen(
        ["prometheus", f"--config.file={tmp_path / 'prometheus.yml'}", f"--storage.tsdb.path={tmp_path / 'tsdb'}",
         f"--web.listen-address={own}", "--log.level=error"], stderr=subprocess.DEVNULL,
    ) as prometheus:  # fmt: skip
        try:
            report = tmp_path / "fio.json"
            job = fio(
                loop_disk,
                "--direct=1",
                "--rw=randread",
                "--bs=4k",
                "--ioengine=libaio",
                requests=REQUESTS,
                report=report,
            )
            subprocess.run(job, check=True, timeout=HANG)
            deadline = time.monotonic() + 30
            found = 0.0
            while found != fio_totals(report)["read"][1] and time.monotonic() < deadline:
                time.sleep(0.5)
                try:
                    result = query(f'sum(llmio_bytes_total{{worker="fio",device="{loop_disk.device}"}})')
                except OSError:  # not up yet
                    continue
                found = float(result[0]["value"][1]) if result else 0.0
            in_flight = running.value("llmio_requests_in_flight", device=loop_disk.device)
            assert found == fio_totals(report)["read"][1] - 4096 * in_flight
            assert float(query("up")[0]["value"][1]) == 1
        finally:
            prometheus.terminate()
            prometheus.wait(HANG)
