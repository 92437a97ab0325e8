"""A made-up host: processes as facts, kernel records for them, a clock that the test moves. No fake may know a rule."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmio_probe.identity.facts import ProcessFacts, ProcessId
from llmio_probe.identity.frameworks import Rule, builtin_rules
from llmio_probe.identity.mounts import Mounts
from llmio_probe.identity.owners import Identity
from llmio_probe.kernel.records import CALL, PROCESS, REQUEST, Op, OwnerKind, ProcessFlag, Records

TICK_NS = 10_000_000


@dataclass
class Host:
    """The FactSource of the tests, and the kernel that names its processes."""

    now: float = 1000.0
    processes: dict[int, ProcessFacts] = field(default_factory=dict)
    mapped: dict[int, frozenset[str]] = field(default_factory=dict)
    zombies: set[int] = field(default_factory=set)
    hidden: set[int] = field(default_factory=set)
    looks: list[int] = field(default_factory=list)

    def run(self, pid: int, *argv: str, cgroup: str | None = "0::/user.slice", **more: Any) -> None:
        """A process that started pid seconds after boot, or an exec in one that runs."""
        start = more.pop("start_ticks", pid * 100)
        self.zombies.discard(pid)
        self.hidden: set[int] = set()
        comm = more.pop("comm", argv[0].rpartition("/")[2][:15] if argv else "")
        self.processes[pid] = ProcessFacts(ProcessId(pid, start), comm, argv, more.pop("environ", {}), cgroup, **more)

    def end(self, pid: int) -> None:
        del self.processes[pid]

    def facts(self, pid: int) -> ProcessFacts | None:
        self.looks.append(pid)
        facts = self.processes.get(pid)
        return replace(facts, cmdline=(), environ={}) if facts is not None and pid in self.zombies else facts

    def maps(self, pid: int) -> frozenset[str]:
        return self.mapped.get(pid, frozenset())

    def children(self, pid: int) -> list[int]:
        return []

    def start_ticks(self, pid: int) -> int | None:
        facts = self.processes.get(pid)
        return None if facts is None or pid in self.zombies else facts.id.start_ticks

    def exists(self, pid: int) -> bool:
        return pid in self.processes or pid in self.hidden

    def clock(self) -> float:
        return self.now


def start_ns(pid: int, start_ticks: int | None = None) -> int:
    """Not a whole number of ticks, as in the kernel."""
    return (pid * 100 if start_ticks is None else start_ticks) * TICK_NS + 1234


def requests(*pids: int, kind: OwnerKind = OwnerKind.PROCESS, op: Op = Op.READ, flags: int = 0, **more: int) -> Records:
    records = np.zeros(len(pids), REQUEST)
    records["tgid"] = pids
    records["owner_start_ns"] = [start_ns(pid, more.get("start_ticks")) if pid else 0 for pid in pids]
    records["owner"], records["op"], records["flags"] = kind, op, flags
    return records


def calls(*pids: int) -> Records:
    records = np.zeros(len(pids), CALL)
    records["tgid"] = pids
    records["owner_start_ns"] = [start_ns(pid) for pid in pids]
    return records


def announced(pid: int, comm: str = "", parent: int = 0, flags: ProcessFlag | int = 0, **more: int) -> Records:
    record = np.zeros(1, PROCESS)
    record["tgid"], record["start_ns"] = pid, start_ns(pid, more.get("start_ticks"))
    record["parent_tgid"], record["parent_start_ns"] = parent, start_ns(parent)
    record["comm"], record["flags"] = comm.encode(), flags
    return record


@pytest.fixture
def host() -> Host:
    return Host()


@pytest.fixture(scope="session")
def rules() -> tuple[Rule, ...]:
    return builtin_rules()


MakeIdentity = Callable[..., Identity]


@pytest.fixture
def make_identity(host: Host, rules: tuple[Rule, ...]) -> MakeIdentity:
    def make(*, per_process: bool = False, limit: int | None = 24, grace: float = 300.0) -> Identity:
        return Identity(host, rules, host.clock, tick_ns=TICK_NS, per_process=per_process, limit=limit, grace=grace)

    return make


@pytest.fixture
def session(make_identity: MakeIdentity) -> Identity:
    return make_identity(per_process=True, limit=None)


@pytest.fixture
def daemon(make_identity: MakeIdentity) -> Identity:
    return make_identity()


WriteTree = Callable[[dict[str, str]], Path]


@pytest.fixture
def write_tree(tmp_path: Path) -> WriteTree:
    """Files by relative path below tmp_path; a value that starts with "-> " makes a symlink."""

    def write(files: dict[str, str]) -> Path:
        for name, content in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if content.startswith("-> "):
                path.symlink_to(content.removeprefix("-> "))
            else:
                path.write_text(content)
        return tmp_path

    return write


OURS, THEIRS = "mnt:[4026531832]", "mnt:[4026532177]"
"""Mount namespaces as /proc/PID/ns/mnt names them."""
TOP = "27 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard"
"""A mountinfo line: the host's root."""


@dataclass
class Proc:
    """A made-up /proc with what it says of mounts, and a clock."""

    root: Path
    write: WriteTree
    now: float = 1000.0

    def mounts(self) -> Mounts:
        return Mounts(str(self.root / "proc"), lambda: self.now)

    def host(self, *lines: str) -> None:
        self.process("self", OURS, *lines)

    def process(self, pid: int | str, namespace: str, *lines: str, root: str = "/") -> None:
        shutil.rmtree(self.root / f"proc/{pid}", ignore_errors=True)
        mountinfo = "".join(f"{line}\n" for line in lines)
        links = {f"proc/{pid}/ns/mnt": f"-> {namespace}", f"proc/{pid}/root": f"-> {root}"}
        self.write({f"proc/{pid}/mountinfo": mountinfo, **links})

    def end(self, pid: int) -> None:
        shutil.rmtree(self.root / f"proc/{pid}")


@pytest.fixture
def proc(write_tree: WriteTree, tmp_path: Path) -> Proc:
    proc = Proc(tmp_path.resolve(), write_tree)
    proc.host(TOP)
    return proc
