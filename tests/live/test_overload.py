"""The reader stands still under load: when it goes on, every counter, name and role is what fio itself counted.

While it is stopped its rings fill up, and the kernel adds up what finds no room (bpf/overflow.h). Processes and files
that are new then are named all the same.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.live.daemons import Daemon
from tests.live.harness import (
    HANG,
    Disk,
    Document,
    Live,
    Observed,
    Watched,
    fio_totals,
    run,
    stir,
    transferred,
)
from tests.live.system import Volume

STOPPED_SECONDS = 10
FILE_BYTES = 64 << 20
RING_RECORDS = 90_000
"""More than fit into all rings of requests together."""
WORKERS = ("fio", "fio#2")
"""The second one's slot is the first one's if that has ended when the reader looks."""


@dataclass
class Job:
    """fio reading a file at random and directly, as fast as it can, until its time is over."""

    path: Path
    process: subprocess.Popen[str]
    report: Path

    @property
    def requests(self) -> int:
        return fio_totals(self.report)["read"][0]


def start_job(path: Path, seconds: float, report: Path) -> Job:
    command = [
        "fio", "--name=job", f"--filename={path}", f"--size={FILE_BYTES}", "--rw=randread", "--direct=1", "--bs=4k",
        "--blockalign=8k", "--ioengine=libaio", "--iodepth=32", "--norandommap", "--thread", "--time_based",
        f"--runtime={seconds:.0f}", f"--output={report}", "--output-format=json",
    ]  # fmt: skip
    return Job(path, subprocess.Popen(command, text=True), report)


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def overrun(reader: int, volume: Volume, reports: Path) -> list[Job]:
    """A job begins while the reader looks, one on another file while it is stopped; both end before it goes on."""
    paths = [volume.folder / "model.safetensors", volume.folder / "model.gguf"]
    first = start_job(paths[0], STOPPED_SECONDS + 1, reports / "first.json")
    with first.process:
        time.sleep(1)
        with stopped(reader):
            second = start_job(paths[1], STOPPED_SECONDS - 2, reports / "second.json")
            for job in (second, first):
                assert job.process.wait(HANG) == 0
    return [first, second]


def prepared(volume: Volume) -> None:
    for name in ("model.safetensors", "model.gguf"):
        run("dd", "if=/dev/zero", f"of={volume.folder / name}", "bs=1M", f"count={FILE_BYTES >> 20}", "conv=fsync")
    volume.settle()


def test_a_session_whose_reader_stood_still_has_every_request_byte_name_and_role(
    live: Callable[..., Live], ext4_volume: Volume, tmp_path: Path
) -> None:
    disk = ext4_volume.disk
    prepared(ext4_volume)

    before = transferred(disk.device)
    session = live("--all", "--device", disk.device)
    jobs = overrun(session.process.pid, ext4_volume, tmp_path)
    stir(disk)  # a completion that the host did not show (docs/kernel.md) is told now, with its owner and its bytes
    after = transferred(disk.device)
    seen = Observed(Watched(session.interrupt()), {op: after[op] - before[op] for op in before}, jobs)
    report = seen.watched.report
    assert report["losses"]["overflowed_requests"] > 0
    assert sum(job.requests for job in jobs) > RING_RECORDS
    for job in jobs:
        pid = job.process.pid
        assert seen.watched.total("requests", pid=pid, op="read", engine="libaio", path="direct") == job.requests
        assert seen.watched.total("bytes", pid=pid, op="read") == job.requests * 4096
        assert {stream["role"] for stream in seen.watched.streams(pid=pid, op="read")} == {"weights"}
        entry = seen.entry(job.path)
        assert (entry["pid"], entry["requests"], entry["read_bytes"]) == (pid, job.requests, job.requests * 4096)
        [stream] = seen.watched.streams(pid=pid, op="read", engine="libaio")
        assert not stream["exact"]
        assert stream["worker"] in WORKERS
        assert stream["size_bytes"] == {"p50": 4096, "p90": 4096, "p99": 4096, "max": 4096, "sum": stream["bytes"]}
        assert stream["latency_seconds"]["total"]["max"] >= stream["latency_seconds"]["device"]["p50"] > 0
        asked = submission(report, pid)
        assert (asked["requests"], asked["bytes"]) == (job.requests, job.requests * 4096)
    assert seen.watched.total("bytes", op="read") == seen.transferred["read"]
    assert 0 < report["devices"][0]["busy_seconds"] <= report["duration_seconds"]


def submission(report: Document, pid: int) -> Document:
    found: list[Document] = [s for s in report["submissions"] if s["pid"] == pid and s["op"] == "read"]
    assert len(found) == 1
    return found[0]


def test_the_daemons_counters_and_histograms_are_fios_when_it_goes_on(
    daemon: Callable[..., Daemon],
    ext4_volume: Volume,
    tmp_path: Path,
) -> None:
    prepared(ext4_volume)
    device = {"device": ext4_volume.disk.device}
    running = daemon()
    jobs = overrun(running.process.pid, ext4_volume, tmp_path)
    requests = sum(job.requests for job in jobs)
    assert requests > RING_RECORDS
    stirred = sum(stir(ext4_volume.disk).values())  # what the host did not show complete ends now
    reads = {**device, "op": "read", "role": "weights"}
    running.eventually("llmio_requests_total", requests, 0, **reads)
    assert stirred
    assert running.value("llmio_bytes_total", **reads) == requests * 4096
    assert running.value("llmio_request_size_bytes_count", **reads) == requests
    assert running.value("llmio_request_size_bytes_sum", **reads) == requests * 4096
    assert running.value("llmio_request_size_bytes_bucket", le="4096", **reads) == requests
    assert running.value("llmio_request_size_bytes_bucket", le="512", **reads) == 0
    expired = running.value("llmio_requests_expired_total", **device)
    for stage in ("queue", "device", "total"):
        counted = sum(
            running.value("llmio_request_latency_seconds_count", **device, op="read", stage=stage, worker=worker)
            for worker in WORKERS
        )
        assert requests - expired <= counted <= requests
    assert sum(running.value("llmio_submit_requests_sum", worker=w, engine="libaio") for w in WORKERS) == requests
    assert running.value("llmio_overflowed_requests_total") > 0
    assert running.value("llmio_records_lost_total") == 0
    check_accounts(running, ext4_volume.disk)


def check_accounts(running: Daemon, disk: Disk) -> None:
    """started = finished + merged + in flight + expired; all but merged and in flight are in llmio_requests_total."""
    totals: dict[str, float] = {}
    for family in running.families().values():  # of one scrape
        for sample in family.samples:
            if sample.labels.get("device") == disk.device:
                totals[sample.name] = totals.get(sample.name, 0) + sample.value
    started, merged, unowned = (totals[f"llmio_requests_{what}_total"] for what in ("started", "merged", "unowned"))
    assert totals["llmio_requests_total"] == started - merged - totals["llmio_requests_in_flight"] + unowned
