"""The reader stands still under load: when it goes on, every counter, name and role is what fio itself counted.

While it is stopped its rings fill up, and the kernel adds up what finds no room (bpf/overflow.h). Processes and files
that are new then are named all the same.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from llmio_probe.kernel.loading import SLOTS
from tests.live.daemons import Daemon
from tests.live.harness import (
    HANG,
    Actor,
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
WRITTEN_BYTES = 5003 * 4096


@dataclass
class Job:
    """fio reading a file at random and directly, as fast as it can, until its time is over."""

    path: Path
    process: subprocess.Popen[str]
    report: Path
    worker: str

    @property
    def requests(self) -> int:
        return fio_totals(self.report)["read"][0]


def start_job(path: Path, seconds: float, folder: Path, worker: str) -> Job:
    """worker: what fio is called here."""
    program, report = folder / worker, folder / f"{worker}.json"
    program.symlink_to(str(shutil.which("fio")))
    command = [
        str(program), "--name=job", f"--filename={path}", f"--size={FILE_BYTES}", "--rw=randread", "--direct=1",
        "--bs=4k", "--blockalign=8k", "--ioengine=libaio", "--iodepth=32", "--norandommap", "--thread", "--time_based",
        f"--runtime={seconds:.0f}", f"--output={report}", "--output-format=json",
    ]  # fmt: skip
    return Job(path, subprocess.Popen(command, text=True), report, worker)


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def overrun(reader: int, volume: Volume, folder: Path, meanwhile: Callable[[], object] = lambda: None) -> list[Job]:
    """A job begins while the reader looks, one on another file while it is stopped; both end before it goes on.

    meanwhile: called when both have been at it for a while.
    """
    paths = [volume.folder / "model.safetensors", volume.folder / "model.gguf"]
    first = start_job(paths[0], STOPPED_SECONDS + 1, folder, "first")
    with first.process:
        time.sleep(1)
        with stopped(reader):
            second = start_job(paths[1], STOPPED_SECONDS - 2, folder, "second")
            time.sleep(STOPPED_SECONDS / 2)
            meanwhile()
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
    written = ext4_volume.folder / "offload.swp"
    with Actor() as writer:

        def write() -> None:
            writer.do("write", written, 0, WRITTEN_BYTES)
            ext4_volume.settle()

        jobs = overrun(session.process.pid, ext4_volume, tmp_path, write)
    stir(disk)  # a completion that the host did not show (docs/kernel.md) is told now, with its owner and its bytes
    after = transferred(disk.device)
    seen = Observed(Watched(session.interrupt()), {op: after[op] - before[op] for op in before}, jobs)
    report = seen.watched.report
    assert report["losses"]["overflowed_requests"] > 0
    assert sum(job.requests for job in jobs) > SLOTS
    for job in jobs:
        pid = job.process.pid
        assert seen.watched.total("requests", pid=pid, op="read", engine="libaio", path="direct") == job.requests
        assert seen.watched.total("bytes", pid=pid, op="read") == job.requests * 4096
        assert {stream["role"] for stream in seen.watched.streams(pid=pid, op="read")} == {"weights"}
        entry = seen.entry(job.path)
        assert (entry["pid"], entry["requests"], entry["read_bytes"]) == (pid, job.requests, job.requests * 4096)
        [stream] = seen.watched.streams(pid=pid, op="read", engine="libaio")
        assert not stream["exact"]
        assert stream["worker"] == job.worker
        assert stream["size_bytes"] == {"p50": 4096, "p90": 4096, "p99": 4096, "max": 4096, "sum": stream["bytes"]}
        assert stream["latency_seconds"]["total"]["max"] >= stream["latency_seconds"]["device"]["p50"] > 0
        asked = submission(report, pid)
        assert (asked["requests"], asked["bytes"]) == (job.requests, job.requests * 4096)
    assert seen.watched.total("bytes", pid=writer.pid, op="write", engine="posix", path="writeback") == WRITTEN_BYTES
    assert seen.watched.total("bytes", pid=writer.pid) == WRITTEN_BYTES
    assert seen.bytes_of(written) == {writer.pid: (0, WRITTEN_BYTES)}
    for op in ("read", "write"):
        assert seen.watched.total("bytes", op=op) == seen.transferred[op]
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
    assert sum(job.requests for job in jobs) > SLOTS  # more than all rings hold
    assert stir(ext4_volume.disk)  # what the host did not show complete ends now
    for job in jobs:
        check_job(running, device, job)
    assert running.value("llmio_overflowed_requests_total") > 0
    assert running.value("llmio_records_lost_total") == 0
    check_accounts(running, ext4_volume.disk)


def check_job(running: Daemon, device: dict[str, str], job: Job) -> None:
    """Every counter and histogram of a worker has fio's own count."""
    mine, requests = {**device, "worker": job.worker}, job.requests
    reads = {**mine, "op": "read", "role": "weights"}
    running.eventually("llmio_requests_total", requests, 0, **reads, engine="libaio", path="direct")
    families = running.families()  # of one scrape

    def total(name: str, **labels: str) -> float:
        samples = [sample for family in families.values() for sample in family.samples if sample.name == name]
        return sum(sample.value for sample in samples if labels.items() <= sample.labels.items())

    assert total("llmio_requests_total", **mine, op="read") == requests
    assert total("llmio_bytes_total", **mine, op="read") == total("llmio_bytes_total", **reads) == requests * 4096
    assert total("llmio_request_size_bytes_count", **reads) == requests
    assert total("llmio_request_size_bytes_sum", **reads) == requests * 4096
    assert total("llmio_request_size_bytes_bucket", **reads, le="4096") == requests
    assert total("llmio_request_size_bytes_bucket", **reads, le="2048") == 0
    expired = total("llmio_requests_expired_total", **device)
    for stage in ("queue", "device", "total"):
        latencies = {**mine, "op": "read", "stage": stage}
        counted = total("llmio_request_latency_seconds_count", **latencies)
        assert requests - expired <= counted <= requests
        assert total("llmio_request_latency_seconds_bucket", **latencies, le="+Inf") == counted
        assert total("llmio_request_latency_seconds_sum", **latencies) > 0
    asked = {"worker": job.worker, "engine": "libaio"}
    assert total("llmio_submit_requests_sum", **asked) == requests
    assert total("llmio_submit_seconds_count", **asked) == total("llmio_submit_requests_count", **asked) > 0
    assert total("llmio_wait_seconds_count", **asked) > 0


def check_accounts(running: Daemon, disk: Disk) -> None:
    """started = finished + merged + in flight + expired; all but merged and in flight are in llmio_requests_total."""
    totals: dict[str, float] = {}
    for family in running.families().values():  # of one scrape
        for sample in family.samples:
            if sample.labels.get("device") == disk.device:
                totals[sample.name] = totals.get(sample.name, 0) + sample.value
    started, merged, unowned = (totals[f"llmio_requests_{what}_total"] for what in ("started", "merged", "unowned"))
    assert totals["llmio_requests_total"] == started - merged - totals["llmio_requests_in_flight"] + unowned
