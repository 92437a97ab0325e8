"""What the host says of a process at one moment, behind one protocol, so that all else here runs on made-up facts.

Only reading and parsing may go in here: what the facts mean is decided in containers.py, frameworks.py and owners.py.
A process is its tgid and its start time in clock ticks: a tgid alone is used again, a wall-clock start time drifts.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar, overload

import psutil
from numpy.typing import NDArray

from llmio_probe.identity.environ import environ_from_memory

T = TypeVar("T")


@dataclass(frozen=True)
class ProcessId:
    tgid: int
    start_ticks: int


@dataclass(frozen=True)
class ProcessFacts:
    """environ and cmdline are empty when unreadable, as for a kernel thread or a zombie."""

    id: ProcessId
    comm: str
    cmdline: tuple[str, ...] = ()
    environ: Mapping[str, str] = field(default_factory=dict)
    cgroup: str | None = None  # the text of /proc/PID/cgroup
    parent_pid: int | None = None
    exiting: bool = False  # at the end of reading all this


class FactSource(Protocol):
    def facts(self, pid: int) -> ProcessFacts | None:
        """None: no such process. A zombie still has its comm and cgroup."""

    def maps(self, pid: int) -> frozenset[str]:
        """Base names of the files that it maps; empty when unreadable."""

    def children(self, pid: int) -> list[int]:
        """All descendants."""

    def start_ticks(self, pid: int) -> int | None:
        """Of a process that runs. None: there is none, only a zombie to be reaped, or it is hidden from us."""

    def exists(self, pid: int) -> bool:
        """Is there any process of that number, hidden or not?"""


@overload
def ns_to_ticks(start_ns: int, tick_ns: int) -> int: ...


@overload
def ns_to_ticks(start_ns: NDArray[Any], tick_ns: int) -> NDArray[Any]: ...


def ns_to_ticks(start_ns: int | NDArray[Any], tick_ns: int) -> int | NDArray[Any]:
    """task->start_boottime as /proc/PID/stat shows it: the kernel divides and rounds down (nsec_to_clock_t)."""
    return start_ns // tick_ns


def clock_tick_ns() -> int:
    return 1_000_000_000 // os.sysconf("SC_CLK_TCK")


_PF_EXITING = 0x00000004  # include/linux/sched.h
_PF_KTHREAD = 0x00200000


@dataclass(frozen=True)
class _Stat:
    comm: str
    state: str
    parent_pid: int
    flags: int
    threads: int
    start_ticks: int


def _parse_stat(text: str) -> _Stat:
    """A comm may hold spaces and parentheses, so the fields are counted from the last ')' on."""
    opening, closing = text.index("("), text.rindex(")")
    rest = text[closing + 1 :].split()  # rest[0] is field 3 of proc(5)
    return _Stat(text[opening + 1 : closing], rest[0], int(rest[1]), int(rest[6]), int(rest[17]), int(rest[19]))


def _parse_maps(text: str) -> frozenset[str]:
    fields = (line.split(None, 5) for line in text.splitlines())
    paths = (f[5].removesuffix(" (deleted)") for f in fields if len(f) == 6 and f[5].startswith("/"))
    return frozenset(path.rpartition("/")[2] for path in paths)


class PsutilSource:
    """The running host: psutil for what it knows to read with care, /proc for what it lacks or reads slowly."""

    def __init__(self, proc_root: str = "/proc", process: Callable[[int], psutil.Process] = psutil.Process) -> None:
        self._proc = proc_root
        self._process = process

    def facts(self, pid: int) -> ProcessFacts | None:
        stat = self._stat(pid)
        if stat is None:
            return None
        # First: a process that exits shows cgroup v1's roots at once, and loses its command line later.
        cgroup = self._read(pid, "cgroup") or None
        environ = self._ask(pid, lambda process: process.environ())
        if environ is None:
            environ = environ_from_memory(pid, self._read(pid, "stat") or "()")
        cmdline = tuple(self._ask(pid, lambda process: process.cmdline()) or ())
        after = self._stat(pid)
        # The pid may have gone to another process between two of these reads: then nothing of it can be trusted.
        if after is None or after.start_ticks != stat.start_ticks:
            return None
        return ProcessFacts(
            id=ProcessId(pid, stat.start_ticks),
            comm=stat.comm,
            cmdline=cmdline,
            environ=environ,
            cgroup=cgroup,
            parent_pid=stat.parent_pid or None,
            exiting=bool(after.flags & _PF_EXITING),
        )

    def maps(self, pid: int) -> frozenset[str]:
        # psutil.memory_maps() parses smaps, for which the kernel walks all page tables: 20 times slower here.
        return _parse_maps(self._read(pid, "maps") or "")

    def children(self, pid: int) -> list[int]:
        return [child.pid for child in self._ask(pid, lambda process: process.children(recursive=True)) or []]

    def group_leader(self, pid: int) -> int | None:
        """The process that a thread id belongs to: pid itself for a process; None when there is no such thread."""
        lines = (self._read(pid, "status") or "").splitlines()
        return next((int(line.split()[1]) for line in lines if line.startswith("Tgid:")), None)

    def is_kernel_thread(self, pid: int) -> bool:
        stat = self._stat(pid)
        return stat is not None and bool(stat.flags & _PF_KTHREAD)

    def start_ticks(self, pid: int) -> int | None:
        stat = self._stat(pid)
        # A leader that left by pthread_exit is a zombie too, while its other threads go on.
        if stat is None or (stat.state in "ZX" and stat.threads <= 1):
            return None
        return stat.start_ticks

    def exists(self, pid: int) -> bool:
        try:
            os.kill(pid, 0)  # psutil.pid_exists looks into /proc, too, and there it may be hidden
        except ProcessLookupError:
            return False
        except PermissionError:
            pass
        return True

    def _ask(self, pid: int, question: Callable[[psutil.Process], T]) -> T | None:
        try:
            return question(self._process(pid))
        except (psutil.Error, OSError):  # gone, a zombie, or not ours to read
            return None

    def _stat(self, pid: int) -> _Stat | None:
        text = self._read(pid, "stat")
        return _parse_stat(text) if text else None

    def _read(self, pid: int, name: str) -> str | None:
        try:
            # Not pathlib: a sweep reads one such file for each process, and it costs half.
            with open(f"{self._proc}/{pid}/{name}", "rb", buffering=0) as file:
                return file.readall().decode("utf-8", "surrogateescape")
        except OSError:  # ESRCH when the process ends between open and read
            return None
