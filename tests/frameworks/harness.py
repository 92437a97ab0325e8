"""What the frameworks' tests share: workloads that stop at gates, and what the probe and the kernel say of them."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.frameworks.environment import Environment
from tests.live.harness import Document, Observed, Watched, start_probe, stir, task_io, transferred, undisturbed
from tests.live.system import Volume, drop

WORKLOADS = Path(__file__).parent / "workloads"
HANG = 240
"""Seconds from one gate to the next, after which a workload hangs."""
PAGE = 4096


class Workload:
    """A program of tests/frameworks/workloads under the frameworks' own Python, which stops at its gates.

    launcher: what stands between Python and the script. within: a command that becomes Python.
    """

    def __init__(
        self, environment: Environment, script: str, *arguments: object,
        variables: Mapping[str, str] | None = None, launcher: tuple[str, ...] = (),
    ) -> None:  # fmt: skip
        self._folder = Path(tempfile.mkdtemp(prefix="llmio-"))
        for name in ("told", "go"):
            os.mkfifo(self._folder / name)
        # Both ends of each, so that neither side waits for the other to open.
        self._told = os.open(self._folder / "told", os.O_RDWR)
        self._go = os.open(self._folder / "go", os.O_RDWR)
        self._log = self._folder / "log"
        own = {**environment.variables(), **(variables or {}), "LLMIO_GATE": str(self._folder)}
        with open(self._log, "wb") as log:
            self.process = subprocess.Popen(
                [environment.python, *launcher, WORKLOADS / script, *map(str, arguments)],
                cwd=self._folder, env={**os.environ, **own}, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip
        self._script = script
        self._rest = b""

    @property
    def pid(self) -> int:
        return self.process.pid

    def told(self) -> dict[str, Any]:
        """What it says at its next gate."""
        deadline = time.monotonic() + HANG
        while b"\n" not in self._rest:
            if select.select([self._told], [], [], 0.1)[0]:
                self._rest += os.read(self._told, 1 << 16)
            elif self.process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"{self._script} did not get to its gate:\n{self._log.read_text()[-3000:]}")
        line, _, self._rest = self._rest.partition(b"\n")
        return dict(json.loads(line))

    def go(self) -> None:
        os.write(self._go, b"\n")

    def next(self) -> dict[str, Any]:
        self.go()
        return self.told()

    def end(self) -> None:
        """Past its last gate."""
        self.go()
        assert self.process.wait(HANG) == 0, self._log.read_text()[-3000:]

    def __enter__(self) -> Workload:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        os.close(self._told)
        os.close(self._go)
        shutil.rmtree(self._folder)


@dataclass
class Seen(Observed):
    """An observed run of a framework."""

    def check(self) -> None:
        """To the byte what the disk did, nothing of it without an owner, and at most 1 % without a file.

        A filesystem reads blocks of its own for the process that opens a file: those have an owner and no file.
        """
        report = self.watched.report
        for op, size in self.transferred.items():
            assert self.watched.total("bytes", op=op) == size, op
        attribution, [device] = report["attribution"], report["devices"]
        total = sum(self.transferred.values())
        assert (device["session_bytes"], device["others_bytes"]) == (total, 0)
        assert (attribution["data_bytes"], attribution["unknown_bytes"]) == (total, 0)
        assert attribution["file_bytes"] >= 0.99 * total

    def worker(self, pid: int) -> Document:
        [worker] = [w for w in self.watched.report["workers"] if w["pid"] == pid]
        return dict(worker)

    def submissions(self, pid: int, op: str) -> Document:
        [found] = [s for s in self.watched.report["submissions"] if s["pid"] == pid and s["op"] == op]
        return dict(found)

    def roles(self, pid: int) -> dict[str, str]:
        return {f["path"]: f["role"] for f in self.watched.report["files"] if f["pid"] == pid}

    def by_role(self, pid: int) -> dict[tuple[str, str], int]:
        """Bytes by op and role, of a process's streams."""
        found: dict[tuple[str, str], int] = {}
        for s in self.watched.streams(pid=pid):
            if s["op"] in DATA:
                found[s["op"], s["role"]] = found.get((s["op"], s["role"]), 0) + s["bytes"]
        return found

    def ways(self, pid: int) -> set[tuple[str, str, str]]:
        """op, engine and path of a process's data."""
        return {(s["op"], s["engine"], s["path"]) for s in self.watched.streams(pid=pid) if s["op"] in DATA}


DATA = ("read", "write")


def observe(place: Volume, start: Callable[[], Workload], scenario: Callable[[Workload], Any]) -> Seen:
    """A session on the volume's disk, from a workload's first gate on; again when the host disturbed it.

    The scenario returns what to keep as ``told``. What is on the volume before is removed first.
    """

    def measure() -> Seen | None:
        for left in place.folder.iterdir():
            if left.name != "lost+found":
                shutil.rmtree(left) if left.is_dir() else left.unlink()
        disk = place.disk
        with start() as workload, tempfile.TemporaryDirectory(prefix="llmio-") as folder:
            workload.told()
            place.settle()
            before = transferred(disk.device)
            with start_probe(Path(folder) / "session.json", "--all", "--device", disk.device) as session:
                idle = transferred(disk.device) == before
                told = scenario(workload)
                place.settle()
                stir(disk)
                after = transferred(disk.device)
                watched = Watched(session.interrupt())
        if not idle or transferred(disk.device) != after:
            return None
        return Seen(watched, {op: after[op] - before[op] for op in before}, told)

    return undisturbed(measure)


def pages(size: int) -> int:
    """Bytes of the pages that hold so many bytes from a page's begin on."""
    return -(-size // PAGE) * PAGE


def forget(folder: Path) -> None:
    """The clean pages of all files in a folder leave the page cache."""
    for path in folder.rglob("*"):
        if path.is_file():
            drop(path)


__all__ = ["DATA", "PAGE", "Seen", "Workload", "forget", "observe", "pages", "task_io"]
