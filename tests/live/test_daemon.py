"""The daemon from the outside: a real scrape over HTTP, a real Prometheus, its numbers against fio's own."""

from __future__ import annotations

import itertools
import mmap
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.live.daemons import Daemon, configuration, running_daemon, running_prometheus
from tests.live.harness import HANG, PROBE, Disk, Live, fio, fio_totals, watch
from tests.live.system import Volume

REQUESTS = 20011

NAMES = {
    "llmio_requests_total", "llmio_bytes_total", "llmio_request_errors_total", "llmio_requeues_total",
    "llmio_request_size_bytes", "llmio_request_latency_seconds", "llmio_requests_in_flight",
    "llmio_in_flight_seconds_total", "llmio_device_busy_seconds_total", "llmio_submit_requests", "llmio_submit_seconds",
    "llmio_wait_seconds", "llmio_attributed_bytes_total", "llmio_file_known_bytes_total",
    "llmio_shared_writers_bytes_total",
    "llmio_requests_started_total", "llmio_requests_merged_total", "llmio_requests_expired_total",
    "llmio_requests_unowned_total", "llmio_records_lost_total", "llmio_overflowed_requests_total",
    "llmio_introductions_repeated_total",
    "llmio_missed_probes_total", "llmio_program_cost_seconds", "llmio_worker_info", "llmio_device_info",
    "llmio_series_folded_total", "llmio_kernel_memory_bytes", "llmio_ring_peak_ratio", "llmio_build_info",
    "llmio_config_last_reload_successful", "llmio_config_last_reload_success_timestamp_seconds",
    "process_cpu_seconds_total", "process_resident_memory_bytes", "process_virtual_memory_bytes",
    "process_start_time_seconds", "process_open_fds", "process_max_fds",
}  # fmt: skip
"""The names that are promised (docs/metrics.md), and what any exporter tells of its own process."""


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
    labels: dict[str, Any] = {**device, "worker": "fio", "op": "read"}
    ways = {"engine": "libaio", "path": "direct", "role": "other", **labels}
    running.eventually("llmio_requests_total", requests, 1, **ways)
    running.eventually("llmio_bytes_total", size, 4096, **ways)
    in_flight = running.value("llmio_requests_in_flight", **device)
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


def test_a_scrape_shows_what_was_done_before_it(daemon: Callable[..., Daemon], loop_disk: Disk) -> None:
    """Once a process is known nothing wakes the pipeline for its few requests, and it sleeps longer and longer."""
    running = daemon()
    fd, block = os.open(loop_disk.path, os.O_RDONLY | os.O_DIRECT), mmap.mmap(-1, 4096)
    try:
        for number in range(1, 4):
            time.sleep(number)
            for _ in range(7):
                os.preadv(fd, [block], 0)
            found = running.value("llmio_requests_total", device=loop_disk.device)
            found += running.value("llmio_requests_in_flight", device=loop_disk.device)
            assert found == 7 * number
    finally:
        os.close(fd)


def test_the_names_are_those_of_the_design(daemon: Callable[..., Daemon], loop_disk: Disk, tmp_path: Path) -> None:
    running = daemon()
    job = fio(
        loop_disk, "--direct=1", "--rw=randread", "--bs=4k", "--ioengine=libaio", requests=101, report=tmp_path / "f"
    )
    subprocess.run(job, check=True, timeout=HANG)
    time.sleep(3)  # the cost of the programs is measured in the first two seconds
    families = running.families()
    found = {name + "_total" if f.type == "counter" else name for name, f in families.items()}
    assert found == NAMES
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
    assert running.process.wait(HANG) == 0
    assert running.log.read_text() == f"INFO serving http://{running.address}/metrics\n"


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
    running.eventually("llmio_requests_total", REQUESTS, 1, device=loop_disk.device, worker="fio")


def test_what_the_daemon_and_sessions_write_is_ours_for_each_other(
    live: Callable[..., Live], ext4_volume: Volume, open_folder: Path
) -> None:
    """The daemon its log, one session its live lines; another session and the daemon see both, and as no worker."""
    log, lines = (ext4_volume.folder / name for name in ("log", "lines"))
    witness = live("--all", "--device", ext4_volume.disk.device)
    with running_daemon(open_folder, log=log) as running:
        with lines.open("w") as stream:
            session = subprocess.Popen([*PROBE, "--all", "--interval", "0.1"], stdout=stream, stderr=stream)
        try:
            for _ in range(3):
                before = lines.stat().st_size
                while lines.stat().st_size == before and session.poll() is None:
                    time.sleep(0.05)
                running.reload()
                ext4_volume.settle()
        finally:
            session.terminate()
            session.wait(HANG)
        ext4_volume.settle()
        written = [
            stream for stream in witness.interrupt()["streams"] if stream["op"] == "write" and stream["pid"] is not None
        ]
        assert {(stream["worker"], stream["pid"]) for stream in written} == {
            ("llmio-probe", running.process.pid), ("llmio-probe", session.pid),
        }  # fmt: skip
        here = {"device": ext4_volume.disk.device, "op": "write", "worker": "llmio-probe"}
        running.eventually("llmio_bytes_total", sum(stream["bytes"] for stream in written), **here)


def test_a_real_prometheus_scrapes_it(daemon: Callable[..., Daemon], loop_disk: Disk, tmp_path: Path) -> None:
    running = daemon()
    with running_prometheus(tmp_path, running.address) as query:
        report = tmp_path / "fio.json"
        job = fio(
            loop_disk, "--direct=1", "--rw=randread", "--bs=4k", "--ioengine=libaio", requests=REQUESTS, report=report
        )
        subprocess.run(job, check=True, timeout=HANG)
        mine = {"worker": "fio", "device": loop_disk.device}
        running.eventually("llmio_bytes_total", fio_totals(report)["read"][1], 4096, **mine)
        expected = running.value("llmio_bytes_total", **mine)
        deadline = time.monotonic() + 30
        found = 0.0
        while found != expected and time.monotonic() < deadline:
            time.sleep(0.5)
            result = query(f'sum(llmio_bytes_total{{worker="fio",device="{loop_disk.device}"}})')
            found = float(result[0]["value"][1]) if result else 0.0
        assert found == expected
        assert float(query("up")[0]["value"][1]) == 1


def test_a_restart_is_an_ordinary_counter_reset(loop_disk: Disk, open_folder: Path, tmp_path: Path) -> None:
    """What Prometheus makes of two lives of the daemon, as its rate() does: a value that falls began at 0 again."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    read = 0.0
    with running_prometheus(tmp_path, address) as query:
        mine = f'llmio_bytes_total{{worker="fio",device="{loop_disk.device}",op="read"}}'
        for requests in (REQUESTS, 10007):
            with running_daemon(open_folder, listen=address) as running:
                report = tmp_path / "fio.json"
                job = fio(
                    loop_disk, "--direct=1", "--rw=randread", "--bs=4k", "--ioengine=libaio",
                    requests=requests, report=report,
                )  # fmt: skip
                subprocess.run(job, check=True, timeout=HANG)
                labels = {"worker": "fio", "device": loop_disk.device, "op": "read"}
                running.eventually("llmio_bytes_total", fio_totals(report)["read"][1], 4096, **labels)
                life = running.value("llmio_bytes_total", **labels)
                read += life
                deadline = time.monotonic() + 30
                while time.monotonic() < deadline:
                    now = query(mine)
                    if now and float(now[0]["value"][1]) == life:
                        break
                    time.sleep(0.2)
                running.end()
        [series] = query(f"{mine}[10m]")
        values = [float(value) for _, value in series["values"]]
    increase = values[0] + sum(b - a if b >= a else b for a, b in itertools.pairwise(values))
    assert increase == read
