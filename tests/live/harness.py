"""What the live tests share: running llmio-probe from the outside, known fio jobs, their own counts."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import jsonschema
import pytest

from llmio_probe.outputs import document

Document = dict[str, Any]

PROBE = [sys.executable, "-m", "llmio_probe"]
HANG = 120 * int(os.environ.get("LLMIO_PATIENCE", "1"))
"""Seconds after which something hangs; nothing here takes a tenth of it. In emulated guests (tests/vm) it is longer."""


def run(*argv: str | Path, **options: Any) -> str:
    """A helper program that has to succeed. Returns what it printed."""
    done = subprocess.run([str(a) for a in argv], capture_output=True, text=True, timeout=HANG, **options)
    assert done.returncode == 0, f"{argv}: {done.stderr}"
    return str(done.stdout)


def tracing_programs() -> set[int]:
    """The ids of all loaded programs of the kinds that we load."""
    kinds = {"tracing", "tracepoint", "raw_tracepoint"}
    return {program["id"] for program in json.loads(run("bpftool", "-j", "prog", "show")) if program["type"] in kinds}


@dataclass(frozen=True)
class Disk:
    """Something to do I/O to. path: a block device or a file; device: the disk whose requests are watched."""

    path: Path
    device: str
    size: int


def check(report: Document) -> Document:
    """Every document that a test reads: as its schema says, and its accounts add up."""
    jsonschema.validate(report, document.schema())
    a = report["accounting"]
    assert a["started"] == a["finished"] + a["merged"] + a["in_flight"] + a["expired"], a
    assert report["losses"]["records_lost"] == 0, report["losses"]
    return report


@dataclass
class Watched:
    """A session, and what else was seen of it. pid, told: of the workload, and what it said of itself at its end."""

    report: Document
    status: int = 0
    stderr: str = ""
    pid: int | None = None
    told: dict[str, int] = field(default_factory=dict)

    @property
    def whole(self) -> bool:
        """Has everything that began been seen to end, or at least to have ended?"""
        return bool(self.report["accounting"]["in_flight"] == 0)

    def streams(self, **labels: object) -> list[Document]:
        return [s for s in self.report["streams"] if all(s[name] == value for name, value in labels.items())]

    def kinds(self, pid: int) -> dict[tuple[str, str | None, str | None], int]:
        """Bytes read and written by a process, by op, engine and path."""
        mine = (s for s in self.streams(pid=pid) if s["op"] in ("read", "write"))
        return {(s["op"], s["engine"], s["path"]): s["bytes"] for s in mine}

    def total(self, what: str, **labels: object) -> int:
        return sum(s[what] for s in self.streams(**labels))


def watch(command: Sequence[str | Path], *options: str) -> Watched:
    """``llmio-probe --json OPTIONS -- COMMAND``."""
    with tempfile.NamedTemporaryFile(suffix=".json") as output:
        done = subprocess.run(
            [*PROBE, "--json", "--output", output.name, *options, "--", *map(str, command)],
            capture_output=True, text=True, timeout=HANG,
        )  # fmt: skip
        assert "Traceback" not in done.stderr, done.stderr
        text = Path(output.name).read_text()
    assert text, done.stderr
    return Watched(check(json.loads(text)), done.returncode, done.stderr)


def completed(device: str) -> int:
    """Reads, writes and discards that a disk has completed, by its own statistics."""
    statistics = disk_statistics(device)
    return statistics["reads"] + statistics["writes"] + statistics["discards"]


def whole(device: str, measure: Callable[[], Watched]) -> Watched:
    """A measurement at whose end nothing was in flight any more.

    On our workplace's machines the kernel runs no tracing program while the sandbox's own agent (threads of PID 1) is
    on the CPU, nor in interrupts on top of it (docs/kernel.md): up to 64 completions at once are not seen. Most show
    later, as expired, and are in all totals; the very last ones cannot. That it is the host, and not the probe, that
    missed them is checked each time: the block layer's own statistics counted as many more as we say are in flight.
    """
    for _ in range(8):
        before = completed(device)
        watched = measure()
        accounts = watched.report["accounting"]
        ended = accounts["finished"] + accounts["expired"] + accounts["in_flight"] - flushes(watched.report)
        assert completed(device) - before >= ended, "the probe, not the host, has lost a completion"
        if watched.whole:
            return watched
    pytest.fail("eight measurements in a row whose last completions the kernel did not show")


def flushes(report: Document) -> int:
    """Not among the reads, writes and discards that diskstats counts."""
    return sum(stream["requests"] for stream in report["streams"] if stream["op"] == "flush")


class Repeatable(Protocol):
    """What was measured, with its session."""

    @property
    def watched(self) -> Watched: ...


Measured = TypeVar("Measured", bound=Repeatable)


def undisturbed(measure: Callable[[], Measured | None]) -> Measured:
    """A measurement in which the kernel showed every completion, see ``whole``: one that it does not show is counted in
    full, but wholly for the request's first owner. Nor has anybody dropped the page cache, so that the workload had to
    read again. None from measure: it was disturbed otherwise. Never compared with what is expected here: a mistake of
    the probe does not go away by repeating.
    """
    for _ in range(6):
        dropped = page_cache_drops()
        measured = measure()
        if page_cache_drops() != dropped:
            print("disturbed: somebody has dropped the page cache")
        elif measured is None:
            print("disturbed: the disk was not at rest, or as said above")
        elif not measured.watched.whole or measured.watched.report["accounting"]["expired"]:
            print("disturbed:", measured.watched.report["accounting"])
        else:
            return measured
    pytest.fail("six measurements in a row were disturbed by the host")


def page_cache_drops() -> int:
    """How often somebody wrote to /proc/sys/vm/drop_caches."""
    with open("/proc/vmstat") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("drop_pagecache "))


def disk_statistics(device: str) -> dict[str, int]:
    """What the block layer itself counts for a disk: /proc/diskstats."""
    with open("/proc/diskstats") as file:
        fields = next(line.split() for line in file if line.split()[2] == device)
    names = (
        "reads", "read_merges", "read_sectors", "read_ms", "writes", "write_merges", "write_sectors", "write_ms",
        "in_flight", "busy_ms", "weighted_ms", "discards", "discard_merges", "discard_sectors", "discard_ms", "flushes",
        "flush_ms",
    )  # fmt: skip
    return dict(zip(names, map(int, fields[3:]), strict=True))


def transferred(device: str) -> dict[str, int]:
    """Bytes that a disk has read and written, by its own statistics."""
    statistics = disk_statistics(device)
    return {op: statistics[f"{op}_sectors"] * 512 for op in ("read", "write")}


class Depth:
    """How many requests a disk had in flight at once, while it is entered, by the kernel's own account.

    most: whenever one looked. mean: while there were any, as exact as the kernel's ticks.
    """

    def __init__(self, device: str) -> None:
        self.most = 0
        self.mean = 0.0
        self._device = device
        self._path = f"/sys/block/{device}/inflight"
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def _watch(self) -> None:
        fd = os.open(self._path, os.O_RDONLY)
        while not self._stop.wait(0.0002):
            self.most = max(self.most, sum(map(int, os.pread(fd, 64, 0).split())))
        os.close(fd)

    def __enter__(self) -> Depth:
        self._before = disk_statistics(self._device)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        after = disk_statistics(self._device)
        total, busy = (after[name] - self._before[name] for name in ("weighted_ms", "busy_ms"))
        self.mean = total / max(busy, 1)


@dataclass
class Observed:
    """A session on a disk, what the kernel counted for the disk meanwhile, and what the scenario told of itself."""

    watched: Watched
    transferred: dict[str, int]
    told: Any = None

    def bytes_of(self, path: Path | str) -> dict[int | None, tuple[int, int]]:
        """Read and written, by pid, of the file with that path."""
        return {f["pid"]: (f["read_bytes"], f["write_bytes"]) for f in self.files(path)}

    def files(self, path: Path | str) -> list[Document]:
        """The entries of the file with that path, one a process."""
        return [f for f in self.watched.report["files"] if f["path"] == str(path)]

    def entry(self, path: Path | str) -> Document:
        found = self.files(path)
        assert len(found) == 1, found
        return found[0]

    def kinds(self, pid: int) -> dict[tuple[str, str | None, str | None], int]:
        """Bytes read and written by a process, by op, engine and path."""
        return self.watched.kinds(pid)

    def check_totals(self) -> None:
        """All that the disk did is in the document, nothing of it is unknown, and files have what processes have."""
        report = self.watched.report
        for op, size in self.transferred.items():
            assert self.watched.total("bytes", op=op) == size, op
        attribution, [device] = report["attribution"], report["devices"]
        total = sum(self.transferred.values())
        assert (device["session_bytes"], device["others_bytes"]) == (total, 0)
        total *= device["layer"] == "disk"  # what an upper layer does counts on the disk below
        found = (attribution["data_bytes"], attribution["file_bytes"], attribution["unknown_bytes"])
        assert found == (total, total, 0), (attribution, device)
        by_pid = {pid: (self._sum(pid, "read"), self._sum(pid, "write")) for pid in {f["pid"] for f in report["files"]}}
        for pid, (read, written) in by_pid.items():
            if pid is not None:
                assert read == self.watched.total("bytes", pid=pid, op="read")
                assert written == self.watched.total("bytes", pid=pid, op="write")

    def _sum(self, pid: int | None, op: str) -> int:
        return sum(f[f"{op}_bytes"] for f in self.watched.report["files"] if f["pid"] == pid)


Observe = Callable[[Any, Callable[[], Any]], Observed]
"""The fixture: a Disk or Volume, and what shall happen on it."""


def stir(disk: Disk) -> dict[int, int]:
    """Use each of a disk's requests again: one whose completion the host did not show ends for us when its struct does.

    Returns the bytes read, by pid.
    """
    requests = int(Path(f"/sys/block/{disk.device}/queue/nr_requests").read_text())
    with Actor() as actor:
        return {actor.pid: actor.do("submit", disk.path, "read", 4096, 4 * requests, 0, 8192)}


def fio(disk: Disk, *arguments: str, requests: int, report: Path) -> list[str]:
    """A fio job on the disk whose requests never touch each other (every second block), so that none can merge."""
    return [
        "fio", "--name=known", f"--filename={disk.path}", f"--size={disk.size}", f"--number_ios={requests}",
        "--thread", "--norandommap", "--randrepeat=1", f"--output={report}", "--output-format=json", *arguments,
    ]  # fmt: skip


def fio_totals(report: Path) -> dict[str, tuple[int, int]]:
    """fio's own count: {"read": (requests, bytes), "write": …}."""
    text = report.read_text()
    jobs = json.loads(text[text.index("{") :])["jobs"]
    return {
        op: (sum(j[op]["total_ios"] for j in jobs), sum(j[op]["io_bytes"] for j in jobs)) for op in ("read", "write")
    }


@dataclass
class Live:
    """A running llmio-probe without a COMMAND."""

    process: subprocess.Popen[str]
    output: Path

    def interrupt(self) -> Document:
        """Ctrl-C, and the document that it gives."""
        self.process.send_signal(signal.SIGINT)
        return self.finish()

    def finish(self) -> Document:
        """Wait for its own end."""
        _, errors = self.process.communicate(timeout=HANG)
        assert self.process.returncode == 0, errors
        return check(json.loads(self.output.read_text()))

    def __enter__(self) -> Live:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()


def start_probe(output: Path, *options: str) -> Live:
    """Start ``llmio-probe --json OPTIONS`` and return once it watches, which it may say after warnings."""
    process = subprocess.Popen([*PROBE, "--json", "--output", str(output), *options], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    said = []
    for line in process.stderr:
        if line.startswith("llmio-probe: watching"):
            return Live(process, output)
        said.append(line)
    process.wait()
    pytest.fail("".join(said))


def task_io(pid: int) -> dict[str, int]:
    """/proc/PID/io: what the kernel itself counts for a process, its threads that ended included; also for a zombie."""
    lines = Path(f"/proc/{pid}/io").read_text().splitlines()
    return {name: int(value) for name, value in (line.split(": ") for line in lines)}


class Actor:
    """A process of tests/live/workloads/actor.py: does one step at a time, and can be asked what the kernel counted.

    within: a command that puts it where it shall be and becomes it by exec.
    """

    def __init__(self, *within: str | Path) -> None:
        self._process = subprocess.Popen(
            [*within, sys.executable, Path(__file__).parent / "workloads" / "actor.py"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.pid = int(self.answer())

    def begin(self, step: str, *arguments: object) -> None:
        assert self._process.stdin
        words = [os.fspath(word) if isinstance(word, Path) else word for word in arguments]
        self._process.stdin.write(json.dumps([step, *words]) + "\n")
        self._process.stdin.flush()

    def answer(self) -> Any:
        assert self._process.stdout
        return json.loads(self._process.stdout.readline())

    def do(self, step: str, *arguments: object) -> Any:
        """The step has to succeed."""
        self.begin(step, *arguments)
        return self.answer()["done"]

    def fail(self, step: str, *arguments: object) -> int:
        """The step has to fail: its errno."""
        self.begin(step, *arguments)
        return int(self.answer()["errno"])

    def io(self) -> dict[str, int]:
        return task_io(self.pid)

    def end(self) -> None:
        self._process.communicate(timeout=HANG)
        assert self._process.returncode == 0

    def __enter__(self) -> Actor:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()
