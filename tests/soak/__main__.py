"""`make soak`: the daemon for an hour under load that comes and goes. Flat memory, exact counters, nothing left behind.

`python -m tests.soak MINUTES`. On a loop device of its own fio reads without a pause, while workers with ever new names
read a little each and end. It prints a line a minute, and at the end what was promised and how it came out; exit
status 1 when something did not hold.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.live.daemons import Daemon, running_daemon
from tests.live.harness import HANG, Disk, completed, fio, fio_totals, stir
from tests.live.system import loop_device

DISK_BYTES = 256 << 20
BLOCK = 4096
FIO_REQUESTS = 5003
WORKER_REQUESTS = 101
WORKERS_A_ROUND = 3
GRACE_SECONDS = 10
LOAD = ("--direct=1", "--rw=randread", "--bs=4k", "--blockalign=8k", "--ioengine=libaio", "--iodepth=32")
WARM_UP = 0.25
"""The part of the time after which memory and series have to stay what they are: by then workers have gone, too."""
MEMORY_ALLOWED = 64 << 20
"""Bytes beside the rings, as DESIGN promises."""
GROWTH_ALLOWED = 4 << 20
"""Bytes, over all the rest, and not a round: what the allocator goes to and fro where nothing grows."""
FEWEST = 8
"""Samples after the warm-up; fewer, where the machine is slow, tell nothing about a trend."""


@dataclass(frozen=True)
class Sample:
    """The daemon at one moment. memory: bytes of its own. beside_rings: with those of mapped files, libraries'."""

    seconds: float
    memory: int
    beside_rings: int
    descriptors: int
    threads: int
    series: int


@dataclass
class Load:
    """What was asked of the disk so far, by the account of those who asked."""

    fio_requests: int = 0
    worker_requests: int = 0
    workers: int = 0


@dataclass(frozen=True)
class Promise:
    text: str
    holds: bool


def main(minutes: float) -> int:
    with scene() as (running, disk, folder):
        before = completed(disk.device)
        load, samples = carry_load(running, disk, folder, minutes * 60)
        promises = judge(running, disk, load, samples, before)
    for promise in promises:
        print(f"{'ok  ' if promise.holds else 'FAIL'}  {promise.text}")
    return 0 if all(promise.holds for promise in promises) else 1


@contextmanager
def scene() -> Iterator[tuple[Daemon, Disk, Path]]:
    with tempfile.TemporaryDirectory(prefix="llmio-soak-", dir="/var/tmp") as name, loop_device(DISK_BYTES) as disk:
        folder = Path(name)
        folder.chmod(0o755)
        subprocess.run(["dd", "if=/dev/zero", f"of={disk.path}", "bs=1M", "oflag=direct"], stderr=subprocess.DEVNULL)
        with running_daemon(folder, f"grace_seconds: {GRACE_SECONDS}\ndevices: [{disk.device}]\n") as running:
            yield running, disk, folder


def carry_load(running: Daemon, disk: Disk, folder: Path, seconds: float) -> tuple[Load, Sequence[Sample]]:
    load, samples = Load(), [sample(running, 0)]
    begin = time.monotonic()
    told = 0.0
    report = folder / "fio.json"
    while (now := time.monotonic() - begin) < seconds:
        with subprocess.Popen(fio(disk, *LOAD, requests=FIO_REQUESTS, report=report)) as job:
            for _ in range(WORKERS_A_ROUND):
                load.workers += 1
                load.worker_requests += short_worker(disk, folder / f"soaker-{load.workers}")
            assert job.wait(HANG) == 0
        load.fio_requests += fio_totals(report)["read"][0]
        samples.append(sample(running, time.monotonic() - begin))
        if now >= told:
            print(describe(samples[-1], load), flush=True)
            told = now + 60
    return load, samples


def short_worker(disk: Disk, program: Path) -> int:
    """A command that nobody has heard of before, and never will again."""
    program.symlink_to("/usr/bin/dd")
    command: list[str | Path] = [
        program,
        f"if={disk.path}",
        "of=/dev/null",
        f"bs={BLOCK}",
        f"count={WORKER_REQUESTS}",
        "iflag=direct",
    ]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL, timeout=HANG)
    program.unlink()
    return WORKER_REQUESTS


def sample(running: Daemon, seconds: float) -> Sample:
    process = Path(f"/proc/{running.process.pid}")
    status = dict(re.findall(r"^(\w+):\s+(\d+)", (process / "status").read_text(), re.MULTILINE))
    lines = [line for line in running.scrape().splitlines() if not line.startswith("#")]
    areas = psutil.Process(running.process.pid).memory_maps()
    return Sample(
        seconds,
        int(status["RssAnon"]) << 10,
        sum(area.rss for area in areas if "bpf-map" not in area.path),
        len(os.listdir(process / "fd")),
        int(status["Threads"]),
        len(lines),
    )


def describe(found: Sample, load: Load) -> str:
    return (
        f"{found.seconds / 60:5.1f} min: {found.memory / (1 << 20):5.1f} MiB, {found.descriptors} descriptors, "
        f"{found.threads} threads, {found.series} series; {load.fio_requests:,} requests of fio's, "
        f"{load.workers} workers have come and gone"
    )


def judge(
    running: Daemon, disk: Disk, load: Load, samples: Sequence[Sample], completed_before: int
) -> Sequence[Promise]:
    # Requests whose end the host did not show are told when their place is used again (tests/live/harness.py).
    load.worker_requests += sum(stir(disk).values()) // BLOCK
    counted = list(counters(running, load))  # at once: a moment later they are forgotten, as was asked for
    warm = [found for found in samples if found.seconds >= WARM_UP * samples[-1].seconds]
    return [
        *counted,
        totals(running, disk, load, completed(disk.device) - completed_before),
        most_memory(samples),
        memory(warm),
        flat("descriptors", [found.descriptors for found in warm]),
        flat("series", [found.series for found in warm]),
        left_behind(running),
    ]


def counters(running: Daemon, load: Load) -> Iterator[Promise]:
    for name, each in (("llmio_requests_total", 1), ("llmio_bytes_total", BLOCK)):
        expected = each * load.fio_requests
        deadline = time.monotonic() + GRACE_SECONDS / 4
        while (found := running.value(name, worker="fio", op="read")) != expected and time.monotonic() < deadline:
            time.sleep(0.1)
        yield Promise(f"{name} of fio's: {found:,.0f} counted, {expected:,} by fio's own account", found == expected)
    lost = running.value("llmio_records_lost_total")
    yield Promise(f"records lost: {lost:.0f}", lost == 0)


def totals(running: Daemon, disk: Disk, load: Load, disks: int) -> Promise:
    """disks: what the block layer itself says the disk has done, whoever asked."""
    asked = load.fio_requests + load.worker_requests
    deadline = time.monotonic() + HANG
    while (counted := ended(running, disk)) < disks and time.monotonic() < deadline:
        time.sleep(0.2)
    text = f"requests of all: {asked:,} asked for, {disks:,} by the disk's account, {counted:,.0f} counted"
    return Promise(text, counted == disks >= asked)


def ended(running: Daemon, disk: Disk) -> float:
    started, merged = (
        running.value(f"llmio_requests_{what}_total", device=disk.device) for what in ("started", "merged")
    )
    return started - merged


def most_memory(samples: Sequence[Sample]) -> Promise:
    most = max(found.beside_rings for found in samples)
    text = f"memory beside the rings: at most {most / (1 << 20):.1f} MiB, {MEMORY_ALLOWED >> 20} are allowed"
    return Promise(text, most <= MEMORY_ALLOWED)


def memory(samples: Sequence[Sample]) -> Promise:
    """The last quarter against the first of those after the warm-up."""
    if len(samples) < FEWEST:
        return Promise(f"memory: {len(samples)} samples are too few to tell", True)
    quarter = len(samples) // 4
    first, last = (sum(found.memory for found in part) / quarter for part in (samples[:quarter], samples[-quarter:]))
    text = f"memory: {first / (1 << 20):.1f} MiB after the warm-up, {last / (1 << 20):.1f} MiB at the end"
    return Promise(text, last - first <= GROWTH_ALLOWED)


def flat(name: str, values: Sequence[int]) -> Promise:
    """The most of the second half is not above the most of the first by more than a fifth."""
    if len(values) < FEWEST:
        return Promise(f"{name}: {len(values)} samples are too few to tell", True)
    half = len(values) // 2
    first, last = max(values[:half]), max(values[half:])
    return Promise(f"{name}: at most {first} in the first half, {last} in the second", last <= first * 1.2)


def left_behind(running: Daemon) -> Promise:
    deadline = time.monotonic() + 3 * GRACE_SECONDS
    while (names := set(re.findall(r'worker="((?:fio|soaker)[^"]*)"', running.scrape()))) and (
        time.monotonic() < deadline
    ):
        time.sleep(1)
    return Promise(f"workers with series after their grace time: {', '.join(sorted(names)) or 'none'}", not names)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # what was made for it is removed then, too
    sys.exit(main(float(sys.argv[1]) if len(sys.argv) > 1 else 60))
