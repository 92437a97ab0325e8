"""Whose a record is: processes from the kernel's ids, their worker slots, and one owner index for each record.

Only this bookkeeping may go in here: facts come from a FactSource, rules from frameworks.py, names from workers.py.
A record costs a few NumPy operations in a batch; Python runs once for each process that was not known before.
"""

from __future__ import annotations

import math
import mmap
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from llmio_probe.identity.containers import container_of, shows_v1_roots
from llmio_probe.identity.facts import FactSource, ProcessFacts, ProcessId, ns_to_ticks
from llmio_probe.identity.frameworks import Identification, Rule, identify, is_ourselves, is_python, worker_name
from llmio_probe.identity.workers import Slot, SlotKey, Slots, kernel_name, plain_name
from llmio_probe.kernel.records import Op, OwnerKind, Path, ProcessFlag, Records, RequestFlag

UNKNOWN = 0
"""The owner index of what nobody could be found for."""
OTHER = 1
"""The owner index of all workers that have no series of their own."""

OURSELVES = SlotKey("llmio-probe", None, None, None)
"""The one worker of the daemon and of all sessions beside it, wherever they run."""

_LONGEST_WAIT = 60.0
_LONGEST_WAIT_IN_SESSION = 2.0
"""Seconds between two looks at a Python process that may still show what it is. A session may be over before long."""

_LATE = 1 << 12
"""Forgotten processes whose owner is kept for records that come later still: some 0.8 MB, and at ten short processes
a second seven minutes of them.
"""

_PIDS = 1 << 22
"""No pid is higher (PID_MAX_LIMIT)."""

_RENEWED_AFTER = 1 << 12
"""Processes: their pids wander, and a page that was used once would be kept for good."""

_PIECE = 1 << 15
"""Records at once: arrays so small that malloc keeps their pages. Page faults cost more than the work itself."""


@dataclass
class Process:
    """What is not known is None: of a process that ended before anybody looked that may be all but its id."""

    id: ProcessId
    comm: str | None = None
    command: str | None = None  # argv joined by spaces, raw; comm when unreadable
    framework: str | None = None
    rank: str | None = None
    container: str | None = None
    pod: str | None = None
    followed: bool = False
    ended: bool = False


@dataclass
class Owner:
    index: int
    worker: str  # of a process in a session: the name of the slot that it is in now
    kind: Literal["worker", "kernel", "unknown"]
    process: Process | None  # in the daemon the newest of the slot


@dataclass(eq=False)
class _Known:
    """A (tgid, start time) that the kernel named. process is None for a kernel thread, and where no more than the owner
    is left of it.
    """

    tgid: int
    start_ns: int
    owner: int
    process: Process | None = None
    slot: Slot | None = None  # None: a kernel thread, or folded into "other"
    folded: SlotKey | None = None  # the slot that it would have
    cgroup: str | None = None
    ended_at: float | None = None
    wait: float = 1.0
    next_look: float | None = None  # None: all that could be found out has been
    row: int = 0  # in the table


class _Table:
    """The known processes as arrays. Row 0 is nobody's: its owner is -1.

    A new process is put in, and rows are used again: to make the arrays anew for each would take milliseconds where
    many came and went.
    """

    def __init__(self) -> None:
        self.known: list[_Known | None] = [None]
        self.owners = np.full(1024, -1, np.int32)
        self._starts = np.zeros(1024, np.uint64)
        self._free: list[int] = []
        # Not malloc's: what it has had back once it fills with zeros itself, and all 16 MB would be in memory.
        self._pages = mmap.mmap(-1, 4 * (_PIDS + 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._row_of_tgid = np.frombuffer(self._pages, np.int32)
        """The newest process that had it, and at the end one 0 more. Of these 16 MB only the pages that are used."""
        self._renew()

    def _renew(self) -> None:
        self._pages.madvise(mmap.MADV_DONTNEED)  # all 0 again, and no memory
        self._until_new = _RENEWED_AFTER
        for known in self.known:
            if known is not None:
                self._point_at(known)

    def rows(self, tgids: NDArray[np.uint32], starts: NDArray[np.uint64]) -> NDArray[np.int32]:
        """Each record's row; 0 for a process that is not known, or whose tgid a newer one has."""
        rows = self._row_of_tgid.take(tgids, mode="clip")
        rows[self._starts.take(rows) != starts] = 0
        return rows

    def put(self, known: _Known) -> None:
        if not self._free:
            self._free.append(len(self.known))
            self.known.append(None)
        row = known.row = self._free.pop()
        if row == len(self.owners):
            self.owners = np.concatenate([self.owners, np.full(row, -1, np.int32)])
            self._starts = np.concatenate([self._starts, np.zeros(row, np.uint64)])
        self.known[row], self.owners[row], self._starts[row] = known, known.owner, known.start_ns
        self._point_at(known)
        self._until_new -= 1
        if not self._until_new:
            self._renew()

    def _point_at(self, known: _Known) -> None:
        newest = self.known[self._row_of_tgid[known.tgid]]
        if newest is None or newest.start_ns <= known.start_ns:
            self._row_of_tgid[known.tgid] = known.row

    def remove(self, known: _Known) -> None:
        row = known.row
        self.known[row], self.owners[row], self._starts[row] = None, -1, 0
        if self._row_of_tgid[known.tgid] == row:
            self._row_of_tgid[known.tgid] = 0
        self._free.append(row)


class Identity:
    """per_process: each process is an owner of its own and all are kept, for a session that sums up at its end.

    It keeps its index for life. When it moves to another slot, by an exec or because its framework shows late, only
    the owner's name changes; ``limit`` and ``grace`` mean nothing.

    Otherwise each worker slot is an owner, at most ``limit`` of them. Plain commands may hold half of those (and one
    at least), so that no number of cron jobs shuts out a framework. Whoever finds no room is folded into "other" and
    stays there as long as it is called the same. Whose name comes late, who execs, and a command which turns out to be
    a framework's is placed once more; what it did until then stays with "other", so nothing is counted twice. A slot is
    given up ``grace`` seconds after its last process ended.
    """

    def __init__(
        self,
        source: FactSource,
        rules: Sequence[Rule],
        clock: Callable[[], float],
        *,
        tick_ns: int,
        per_process: bool,
        limit: int | None,
        grace: float = 300.0,
    ) -> None:
        self._source = source
        self._rules = rules
        self._clock = clock
        self._tick_ns = tick_ns
        self._per_process = per_process
        self._limit = limit
        self._grace = grace
        self._slots = Slots()
        self._known: dict[tuple[int, int], _Known] = {}
        self._late: dict[tuple[int, int], int] = {}  # owners of the newest that were forgotten, as long as these live
        self._table = _Table()
        self._folded: Counter[SlotKey] = Counter()  # known processes of each worker without a series
        self._worker_owners: dict[ProcessId | str, int] = {}  # by process in a session, else by the slot's name
        self._kernel_owners: dict[str, int] = {}
        self._next_index = OTHER + 1
        self.folded = 0
        self.owners: dict[int, Owner] = {
            UNKNOWN: Owner(UNKNOWN, "unknown", "unknown", None),
            OTHER: Owner(OTHER, "other", "worker", None),
        }

    def observe(self, processes: Records) -> None:
        """PROCESS records: a process at its first request, and again at the first one after an exec."""
        for record in processes:
            tgid, start_ns = int(record["tgid"]), int(record["start_ns"])
            comm = bytes(record["comm"]).decode("utf-8", "surrogateescape")
            if record["flags"] & ProcessFlag.KERNEL_THREAD:
                self._learn_kernel_thread(tgid, start_ns, comm)
                continue
            parent = (int(record["parent_tgid"]), int(record["parent_start_ns"]))
            known = self._learn(tgid, start_ns, comm, parent)
            if known.process is not None and record["flags"] & ProcessFlag.FOLLOWED:
                known.process.followed = True

    def resolve(self, records: Records) -> NDArray[np.int32]:
        """The owner index of each REQUEST or CALL record."""
        owners = np.empty(len(records), dtype=np.int32)
        for first in range(0, len(records), _PIECE):
            owners[first : first + _PIECE] = self._resolve_piece(records[first : first + _PIECE])
        return owners

    def _resolve_piece(self, records: Records) -> NDArray[np.int32]:
        tgids = np.ascontiguousarray(records["tgid"])
        starts = np.ascontiguousarray(records["owner_start_ns"])
        table = self._table
        rows = table.rows(tgids, starts)
        self._look_again(rows)
        owners = table.owners.take(rows)
        kernel = np.zeros(len(records), dtype=bool)
        if records.dtype.names is not None and "owner" in records.dtype.names:
            kernel = records["owner"] == OwnerKind.KERNEL
            owners[records["owner"] == OwnerKind.UNKNOWN] = UNKNOWN
        if not tgids.all():
            owners[(tgids == 0) & ~kernel] = UNKNOWN
            for name, chosen in _kernel_work(records, kernel & (tgids == 0)):
                if chosen.any():
                    owners[chosen] = self._kernel_owner(name)
        missing = np.flatnonzero(owners < 0)
        if len(missing):
            self._learn_missing(tgids[missing], starts[missing], kernel[missing])
            owners[missing] = table.owners.take(table.rows(tgids[missing], starts[missing]))
            # Still without an owner: an old process, late, whose tgid has gone to a newer one.
            for i in np.flatnonzero(owners < 0):
                owners[i] = self._known[int(tgids[i]), int(starts[i])].owner
        return owners

    def adjust(self, *, limit: int | None, grace: float) -> None:
        """From now on. Whoever has a series keeps it, and whoever was folded stays with "other"."""
        self._limit, self._grace = limit, grace

    def framework_of(self, owner: int) -> str | None:
        """Of an owner index: what its process, in the daemon its slot's newest, runs."""
        known = self.owners.get(owner)
        return None if known is None or known.process is None else known.process.framework

    def has_ended(self, tgid: int, start_ns: int) -> bool:
        """For certain: not only because it cannot be looked at (hidepid, ProtectProc=invisible)."""
        known = self._known.get((tgid, start_ns))
        if known is not None and known.ended_at is None:
            return False
        ticks = self._source.start_ticks(tgid)
        return ticks != ns_to_ticks(start_ns, self._tick_ns) if ticks is not None else not self._source.exists(tgid)

    def expire(self) -> list[int]:
        """Notice who ended. Returns and forgets the owner indexes of workers that ended more than grace seconds ago."""
        for known in self._known.values():
            if known.ended_at is None:
                self._check(known)
        if self._per_process:
            return []
        before = self._clock() - self._grace
        for key, known in list(self._known.items()):
            if known.ended_at is not None and known.ended_at < before:
                del self._known[key]
                self._table.remove(known)
                if known.folded is not None:
                    self._folded[known.folded] -= 1
                # An expired request is noticed when its memory is used again, and writeback may be slow.
                elif known.owner != OTHER:
                    self._late[key] = known.owner
        self._folded = +self._folded
        gone = [slot for slot in self._slots if slot.vacant_since is not None and slot.vacant_since < before]
        indexes = [self._worker_owners.pop(slot.worker) for slot in gone]
        for slot, index in zip(gone, indexes, strict=True):
            self._slots.close(slot)
            del self.owners[index]
        self._late = dict([late for late in self._late.items() if late[1] in self.owners][-_LATE:])
        return indexes

    # Learning about one process

    def _learn(self, tgid: int, start_ns: int, comm: str | None, parent: tuple[int, int] | None) -> _Known:
        """A process that is new, or that the kernel announced again since it exec'ed. comm is the kernel's word."""
        id = ProcessId(tgid, ns_to_ticks(start_ns, self._tick_ns))
        known = self._known.get((tgid, start_ns))
        facts = self._facts(id)
        if known is not None and known.process is not None and not _tells(facts):
            self._check(known)
            if comm is None or comm == known.process.comm:
                return known  # it keeps the name that it had
        if known is None or known.process is None:
            known = self._remember(_Known(tgid, start_ns, owner=-1, process=Process(id)))
        if facts is not None and _tells(facts):
            self._apply(known, facts)
            return known
        # It ended before we could look, or is about to.
        process = known.process
        assert process is not None
        comm = comm or (facts.comm if facts is not None else None)
        if comm is not None:
            process.comm = process.command = comm
        process.framework = process.rank = None
        self._set_cgroup(known, process, self._last_cgroup(known, facts, parent))
        self._check(known)
        name = plain_name("", comm or "")
        if name is None and not self._per_process:
            # Named by its id, each such process would take a series of its own.
            self._fold(known, SlotKey("", None, None, None))
        else:
            usual = SlotKey(name or f"pid{tgid}", None, None, known.cgroup)
            self._place(known, OURSELVES if name == OURSELVES.base else usual)
        return known

    def _apply(self, known: _Known, facts: ProcessFacts) -> None:
        process = known.process
        assert process is not None
        ours = is_ourselves(facts.cmdline)
        who = Identification(None, None) if ours else self._identify(facts)
        process.comm = facts.comm
        process.command = " ".join(facts.cmdline) or facts.comm
        process.framework, process.rank = who.framework, who.rank
        self._set_cgroup(known, process, facts.cgroup)
        if ours:
            known.next_look = None
            self._place(known, OURSELVES)
            return
        if who.framework is not None:
            base: str | None = worker_name(who.framework, who.rank)
        else:
            base = plain_name(facts.cmdline[0] if facts.cmdline else "", facts.comm)
        self._place(known, SlotKey(base or f"pid{known.tgid}", who.framework, who.rank, facts.cgroup))
        # Python code shows itself late: async_io.so is mapped and a vLLM worker gets its title after long imports.
        unfinished = is_python(facts.cmdline) and (who.framework is None or who.rank is None)
        if not unfinished:
            known.next_look = None
        elif known.next_look is None:
            known.wait = 1.0
            known.next_look = self._clock() + known.wait

    def _look_again(self, rows: NDArray[np.int32]) -> None:
        """Reads the facts of those processes in this batch that may have shown by now what they are."""
        now = self._clock()
        for known in [self._table.known[row] for row in np.flatnonzero(np.bincount(rows))]:
            if known is None or known.next_look is None or now < known.next_look:
                continue
            known.wait = min(2 * known.wait, _LONGEST_WAIT_IN_SESSION if self._per_process else _LONGEST_WAIT)
            known.next_look = now + known.wait
            facts = self._facts(ProcessId(known.tgid, ns_to_ticks(known.start_ns, self._tick_ns)))
            if facts is not None and _tells(facts):
                self._apply(known, facts)
            else:
                self._check(known)

    def _learn_missing(self, tgids: NDArray[np.uint32], starts: NDArray[np.uint64], kernel: NDArray[np.bool_]) -> None:
        """Records of processes that the kernel did not announce: its announcement was lost or is still to come."""
        for tgid, start_ns, is_kernel in set(zip(tgids.tolist(), starts.tolist(), kernel.tolist(), strict=True)):
            if (tgid, start_ns) in self._known:
                continue
            owner = self._late.pop((tgid, start_ns), None)
            if owner is not None:
                # Until the next sweep, which makes it the newest of the late ones.
                self._remember(_Known(tgid, start_ns, owner, ended_at=-math.inf))
            elif is_kernel:
                facts = self._facts(ProcessId(tgid, ns_to_ticks(start_ns, self._tick_ns)))
                self._learn_kernel_thread(tgid, start_ns, facts.comm if facts is not None else "")
            else:
                self._learn(tgid, start_ns, None, None)

    def _learn_kernel_thread(self, tgid: int, start_ns: int, comm: str) -> None:
        self._remember(_Known(tgid, start_ns, self._kernel_owner(kernel_name(comm))))

    def _remember(self, known: _Known) -> _Known:
        before = self._known.get((known.tgid, known.start_ns))
        if before is not None:
            self._table.remove(before)
        self._known[known.tgid, known.start_ns] = known
        self._table.put(known)
        return known

    def _facts(self, id: ProcessId) -> ProcessFacts | None:
        """None: it ended, and its tgid may by now be another's."""
        facts = self._source.facts(id.tgid)
        return facts if facts is not None and facts.id == id else None

    def _identify(self, facts: ProcessFacts) -> Identification:
        return identify(self._rules, facts, lambda: self._source.maps(facts.id.tgid))

    def _cgroup_of(self, tgid: int, start_ns: int) -> str | None:
        known = self._known.get((tgid, start_ns))
        if known is not None:
            return known.cgroup
        facts = self._facts(ProcessId(tgid, ns_to_ticks(start_ns, self._tick_ns)))
        return facts.cgroup if facts is not None and _tells(facts) else None

    def _last_cgroup(self, known: _Known, facts: ProcessFacts | None, parent: tuple[int, int] | None) -> str | None:
        """Of a process that exits. v1 shows the root by then, v2 still where it was. Otherwise it is where it was seen
        before, or where its parent is, unless it had changed that itself.
        """
        shown = facts.cgroup if facts is not None else None
        container = container_of(shown or "")
        if container != (None, None) and not shows_v1_roots(shown or ""):
            return shown
        before = known.cgroup if known.cgroup is not None or parent is None else self._cgroup_of(*parent)
        # With v1 and v2 beside each other the text has lost a part, but may show a container of its own.
        return before if container in ((None, None), container_of(before or "")) else shown

    def _set_cgroup(self, known: _Known, process: Process, cgroup: str | None) -> None:
        known.cgroup = cgroup
        process.container, process.pod = container_of(cgroup or "")

    # Slots and owners

    def _place(self, known: _Known, key: SlotKey) -> None:
        """Puts a process into the slot that it belongs to now, which mostly is the one that it is in."""
        if known.slot is not None and known.slot.key == key:
            return
        # A shell that does I/O before it execs must not make its child "other" for life.
        if known.folded is not None and (known.folded.base, known.folded.framework) == (key.base, key.framework):
            return
        slot = self._slots.join(key, self._is_vacant)
        if slot is None:
            # Ourselves there is always room for: what we cost must not depend on how many others there are.
            if not self._has_room(key) and key != OURSELVES:
                self._fold(known, key)
                return
            slot = self._slots.open(key)
        self._leave(known)
        process = known.process
        assert process is not None
        known.slot = slot
        slot.vacant_since = None
        slot.members.add(process.id)
        if known.ended_at is not None:
            self._vacate(slot, process.id)
        self._give(known, self._worker_owner(slot, process))

    def _has_room(self, key: SlotKey) -> bool:
        """Whether one more slot may be opened."""
        if self._per_process or self._limit is None:
            return True
        if len(self._slots) >= self._limit:
            return False
        plain = sum(slot.key.framework is None for slot in self._slots)
        return key.framework is not None or plain < max(1, self._limit // 2)

    def _fold(self, known: _Known, key: SlotKey) -> None:
        if known.folded == key:
            return
        self._leave(known)
        known.folded = key
        self._folded[key] += 1
        # A worker counts once, however many processes it has or starts anew.
        self.folded += self._folded[key] == 1
        self._give(known, OTHER)

    def _give(self, known: _Known, owner: int) -> None:
        known.owner = self._table.owners[known.row] = owner

    def _worker_owner(self, slot: Slot, process: Process) -> int:
        key = process.id if self._per_process else slot.worker
        if key not in self._worker_owners:
            self._worker_owners[key] = self._new_owner(slot.worker, "worker")
        owner = self.owners[self._worker_owners[key]]
        owner.worker = slot.worker
        if owner.process is None or owner.process.id.start_ticks <= process.id.start_ticks:
            owner.process = process
        return owner.index

    def _kernel_owner(self, name: str) -> int:
        if name not in self._kernel_owners:
            self._kernel_owners[name] = self._new_owner(name, "kernel")
        return self._kernel_owners[name]

    def _new_owner(self, worker: str, kind: Literal["worker", "kernel"]) -> int:
        index = self._next_index
        self._next_index += 1
        self.owners[index] = Owner(index, worker, kind, None)
        return index

    # Who lives

    def _is_vacant(self, slot: Slot) -> bool:
        """Looks at the slot's process now: a restart must not have to wait for the next sweep."""
        for known in [known for known in self._known.values() if known.slot is slot and known.ended_at is None]:
            self._check(known)
        return not slot.members

    def _check(self, known: _Known) -> None:
        if self._source.start_ticks(known.tgid) != ns_to_ticks(known.start_ns, self._tick_ns):
            self._end(known)

    def _end(self, known: _Known) -> None:
        if known.ended_at is None:
            known.ended_at = self._clock()
        known.next_look = None
        if known.process is None:
            return
        known.process.ended = True
        if known.slot is not None:
            self._vacate(known.slot, known.process.id)

    def _leave(self, known: _Known) -> None:
        """Out of where it is, into another slot or "other"."""
        if known.folded is not None:
            self._folded[known.folded] -= 1
            known.folded = None
        slot, process = known.slot, known.process
        if slot is None or process is None:
            return
        known.slot = None
        self._vacate(slot, process.id)
        if self._per_process:
            return
        owner = self.owners[self._worker_owners[slot.worker]]
        if owner.process is process:
            others = [k.process for k in self._known.values() if k.slot is slot and k.ended_at is None]
            living = [other for other in others if other is not None]
            owner.process = max(living, key=lambda other: other.id.start_ticks, default=None)

    def _vacate(self, slot: Slot, id: ProcessId) -> None:
        slot.members.discard(id)
        if not slot.members:
            slot.vacant_since = self._clock()


def _tells(facts: ProcessFacts | None) -> bool:
    """A process that is about to end has lost its place in cgroup v1, then its command line and environment, before it
    is gone, or even a zombie.
    """
    if facts is None or (facts.exiting and shows_v1_roots(facts.cgroup or "")):
        return False
    return bool(facts.cmdline)


def _kernel_work(records: Any, anonymous: NDArray[np.bool_]) -> list[tuple[str, NDArray[np.bool_]]]:
    """What the kernel did for itself outside of any thread of its own, by name: the first that fits."""
    if not anonymous.any():
        return []
    op, flags = records["op"], records["flags"]
    found = []
    for name, fits in (
        ("kernel:flush", op == Op.FLUSH),
        ("kernel:swap", records["path"] == Path.SWAP),
        ("kernel:discard", op == Op.DISCARD),
        # Marked as such or not: what it reads and writes beside swap are a filesystem's own blocks.
        ("kernel:metadata", (op == Op.READ) | (op == Op.WRITE) | (flags & RequestFlag.METADATA != 0)),
        ("kernel:other", anonymous),
    ):
        found.append((name, anonymous & fits))
        anonymous = anonymous & ~fits
    return found
