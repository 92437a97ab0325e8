"""fio's load on a disk or file: random direct reads, and how many there were. No measurement may go in here."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from signal import SIGCONT, SIGSTOP

from tests.live.harness import Disk, task_io

FOREVER = 3600.0
PATIENCE_SECONDS = 30
ENOUGH = 200
"""Reads: fio's own pages and its first look at a file are some, too."""
STEP_SECONDS = 0.05


def nothing() -> None:
    """What is done meanwhile, if nothing is."""


@dataclass(frozen=True)
class Job:
    block: int
    how: tuple[str, ...]
    jobs: int = 1

    def command(self, disk: Disk, seconds: float, *more: str) -> list[str]:
        return [
            "fio", "--name=bench", f"--filename={disk.path}", f"--size={disk.size}", "--rw=randread", "--direct=1",
            "--norandommap", "--time_based", f"--runtime={round(1000 * seconds)}ms", "--thread", f"--bs={self.block}",
            f"--numjobs={self.jobs}", *self.how, *more,
        ]  # fmt: skip


DEEP = Job(4096, ("--ioengine=libaio", "--iodepth=32"))
"""The job of all comparisons: one system call a request."""
FAST = Job(
    512,
    ("--ioengine=io_uring", "--iodepth=64", "--iodepth_batch=32", "--iodepth_batch_complete=32", "--fixedbufs",
     "--registerfiles"), jobs=2,
)  # fmt: skip
"""As many requests a second as this machine can make."""


class Load:
    """A fio that runs."""

    def __init__(self, process: subprocess.Popen[bytes], block: int) -> None:
        self._process = process
        self._block = block

    def reads(self) -> int:
        """So far, by the bytes that the kernel counts for the process."""
        return task_io(self._process.pid)["read_bytes"] // self._block

    def rate(self, seconds: float, meanwhile: Callable[[], object] = nothing) -> float:
        """Reads a second over that many from now on, or longer, until there were enough to tell.

        meanwhile: called every few milliseconds.
        """
        before, begin = self.reads(), time.monotonic()
        while True:
            time.sleep(STEP_SECONDS)
            meanwhile()
            count, passed = self.reads() - before, time.monotonic() - begin
            if passed >= seconds and count >= ENOUGH:
                return count / passed
            self._check(passed)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Nothing is asked for meanwhile, and what was is done."""
        self._process.send_signal(SIGSTOP)
        try:
            time.sleep(STEP_SECONDS)
            yield
        finally:
            self._process.send_signal(SIGCONT)

    def await_start(self) -> None:
        begin = time.monotonic()
        while self.reads() < ENOUGH:
            self._check(time.monotonic() - begin)
            time.sleep(STEP_SECONDS)

    def _check(self, passed: float) -> None:
        if self._process.poll() is not None or passed > PATIENCE_SECONDS:
            raise RuntimeError(f"fio does not read: {self._process.args!r}")


@contextmanager
def load(disk: Disk, job: Job = DEEP, *more: str) -> Iterator[Load]:
    """It reads all the time; more: further options for fio."""
    command = [*job.command(disk, FOREVER, *more), "--output=/dev/null"]
    with subprocess.Popen(command) as process:
        try:
            running = Load(process, job.block)
            running.await_start()
            yield running
        finally:
            process.kill()  # told to end, its threads complain


@dataclass(frozen=True)
class Reads:
    count: int
    per_second: float


def counted(disk: Disk, job: Job, seconds: float, meanwhile: Callable[[], object] = nothing) -> Reads:
    """fio for so long, and its own count."""
    command = [*job.command(disk, seconds), "--group_reporting", "--output-format=json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        while process.poll() is None:
            time.sleep(STEP_SECONDS)
            meanwhile()
        output, _ = process.communicate()
    read = json.loads(output)["jobs"][0]["read"]
    return Reads(read["total_ios"], read["iops"])
