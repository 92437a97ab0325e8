"""The role of each record: which rule holds for its file and its owner, looked up for whole batches.

Only this bookkeeping may go in here: what the rules are is for role_rules.py, what a header says for headers.py. A
record costs a few NumPy operations in a batch; Python runs once for each pair of file and owner in it, and judges a
pair only when it is new or something about it has changed.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from llmio_probe.identity.headers import npy_shape
from llmio_probe.identity.index import Index
from llmio_probe.identity.role_rules import ROLES as ROLES
from llmio_probe.identity.role_rules import Answer, Rule, RuleSet, decide, shape_behaviour
from llmio_probe.kernel.records import Engine, Op, OwnerKind, Records

OTHER_ROLE = ROLES.index("other")
FIRST_UNDECIDED = 8
"""Role ids from here on stand for one file and owner each, whose role may still change."""
MOST_UNDECIDED = 1000

SETTLE_NS = 60_000_000_000
"""How long after its first read what was written before may still be on its way: the kernel begins within 35 s."""

HEADERS_AT_ONCE = 100
HEADER_TRIES = 10
"""How often one file's header is looked for, the wait doubling from a second: for 17 minutes."""

_USE = np.dtype(
    [("start", "u8"), ("first_read", "i8"), ("mapped", "i8"), ("called", "i8"), ("longest", "i8"), ("rewritten", "?")]
)
"""What a pair's records did: start of the process, ns of the first read, bytes written by each way, and by calls in the
longest request; see BEHAVIOURS."""
_NEVER = np.iinfo(np.int64).max
_UNUSED = np.array((0, _NEVER, 0, 0, 0, False), _USE)

_SIGNS = {"rewritten": 1, "mapped": 2, "used": 4}
"""The behaviours that it tells, as bits."""

_ENDS = 2 * mmap.PAGESIZE
"""In two requests this is what NumPy's open_memmap writes by calls of a file that only mappings fill: the header's page
and the last one."""

_UNWATCHED, _KNOWN, _COUNTED = range(3)
"""What has to be watched of a pair: nothing; only whether its process is still the same; how its file is used."""

_BY_CALL = np.array([engine in (Engine.POSIX, Engine.LIBAIO, Engine.IO_URING) for engine in Engine])

_PIECE = 1 << 15
"""Records at once: arrays so small that malloc keeps their pages (as in owners.py)."""

ReadHeader = Callable[[str, int, int], "bytes | None"]
"""headers.cached_start, or what stands in for it."""

Alike = tuple[Records, Callable[[NDArray[np.int64]], NDArray[np.int64]]]
"""All records, and what gives each of them the value of its sample."""


class File(Protocol):
    """What a role depends on; identity/files.py has it."""

    @property
    def path(self) -> str | None: ...
    @property
    def device(self) -> int: ...
    @property
    def inode(self) -> int: ...


@dataclass(frozen=True)
class _NoFile:
    path: None = None
    device: int = 0
    inode: int = 0


_NO_FILE = _NoFile()
_OWNER = (1 << 32) - 1
"""The bits of a pair's key that are its owner; above them is its file."""


@dataclass(eq=False, slots=True)
class _Pair:
    """A file and an owner of requests for it, with what its role was judged by."""

    row: int
    number: int
    owner: int
    is_process: bool
    file: File
    path: str | None = None
    rules: tuple[Rule, ...] = ()
    header: str | None = None
    """Which behaviour it shows, "" when none of them; None: not known."""
    tries: int = 0
    """How often its header was looked for."""
    next_look: float = -math.inf
    """When it is judged anew even if nothing else has changed."""
    role: int = OTHER_ROLE
    id: int | None = None
    """The undecided one, if it was ever given one."""


class RoleBook:
    """undecided: a pair of file and owner whose role may still change gets an id of its own, until settle().

    rules: the user's first. files: by index; none is given to another file soon. framework_of: of an owner index.
    read_header: None where no header may be looked at.
    """

    def __init__(
        self,
        rules: Iterable[Rule],
        files: Mapping[int, File],
        framework_of: Callable[[int], str | None],
        *,
        undecided: bool,
        clock: Callable[[], float],
        read_header: ReadHeader | None,
    ) -> None:
        self._rules = RuleSet(rules)
        self._files = files
        self._framework_of = framework_of
        self._undecided = undecided
        self._clock = clock
        self._read_header = read_header
        # By row; row 0 is nobody's.
        self._index = Index(1)
        self._pairs = [_Pair(0, -1, -1, False, _NO_FILE)]
        self._ids = np.full(1, OTHER_ROLE, np.int64)
        self._watched = np.zeros(1, np.uint8)
        self._use = np.full(1, _UNUSED)
        self._signs = np.zeros(1, np.uint8)
        self._frameworks: dict[int, str | None] = {}  # by owner
        self._open: dict[int, _Pair] = {}  # by undecided id
        self._closed: dict[int, int] = {}  # of those that were dropped, their role
        self._sweep_at = 1000

    def __len__(self) -> int:
        """How many pairs are kept."""
        return len(self._pairs) - 1

    def resolve(
        self, records: Records, owners: NDArray[np.int32], files: NDArray[np.int32], alike: Alike | None = None
    ) -> NDArray[np.int64]:
        """The role id of each REQUEST record, shape (n,): an index into ROLES, or an undecided one.

        alike: of what records these are samples that stand for several each; None: they are all. How a file is used
        depends on when, which is not the same for those.
        """
        if len(self._pairs) > self._sweep_at:
            self._drop([pair.row for pair in self._pairs[1:] if pair.number and pair.number not in self._files])
            self._sweep_at = 2 * len(self._pairs) + 1000
        keys = _keys(files, owners)
        rows = np.empty(len(keys), np.int64)
        for first in range(0, len(keys), _PIECE):
            rows[first : first + _PIECE] = self._index.find(keys[first : first + _PIECE])
        if not rows.all():
            new = np.flatnonzero(rows == 0)
            self._learn(keys, records, new)
            rows[new] = self._index.find(keys[new])
        touched = np.flatnonzero(np.bincount(rows))
        self._look(touched.tolist())
        if self._watched[touched].any():
            every, spread = alike or (records, _itself)
            self._watch(every, spread(rows), touched)
        return self._ids.take(rows)

    def settle(self) -> dict[int, int]:
        """Every undecided id that was given, to the index into ROLES that it turned out to be."""
        for pair in self._open.values():
            pair.next_look = -math.inf
        self._look([pair.row for pair in self._open.values()], headers=MOST_UNDECIDED)
        return {**self._closed, **{id: pair.role for id, pair in self._open.items()}}

    def role(self, file: int, owner: int) -> str:
        """What is known now, which after settle() is the role of the whole session."""
        row = int(self._index.find(_keys(np.array([file]), np.array([owner])))[0])
        if row:
            self._look([row])
            return ROLES[self._pairs[row].role]
        known = self._files.get(file)
        rules = () if known is None or known.path is None else self._rules.for_path(known.path)
        return decide(rules, self._framework_of(owner), lambda _: Answer(False, False)).role

    def forget(self, files: Collection[int] = (), owners: Collection[int] = ()) -> None:
        """Drop what is kept of files and of owners that will not come again. Files no longer in ``files`` go anyway."""
        gone, ended = frozenset(files), frozenset(owners)
        self._drop([pair.row for pair in self._pairs if pair.number in gone or pair.owner in ended])
        for owner in ended:
            self._frameworks.pop(owner, None)

    def use(self, rules: Iterable[Rule], read_header: ReadHeader | None) -> None:
        """Other rules from now on: every pair is judged anew when it is met again."""
        self._rules = RuleSet(rules)
        self._read_header = read_header
        for pair in self._pairs[1:]:
            pair.path, pair.rules, pair.header, pair.tries, pair.next_look = None, (), None, 0, -math.inf

    def _learn(self, keys: NDArray[np.uint64], records: Records, new: NDArray[np.int64]) -> None:
        keys, first = np.unique(keys[new], return_index=True)
        first = new[first]
        processes = records["owner"][first] == OwnerKind.PROCESS
        self._pairs += [
            _Pair(row, key >> 32, key & _OWNER, is_process, self._files.get(key >> 32, _NO_FILE))
            for row, (key, is_process) in enumerate(
                zip(keys.tolist(), processes.tolist(), strict=True), len(self._pairs)
            )
        ]
        self._index.add(keys)
        self._ids = np.append(self._ids, np.full(len(keys), OTHER_ROLE))
        self._watched = np.append(self._watched, np.zeros(len(keys), np.uint8))
        use = np.full(len(keys), _UNUSED)
        use["start"] = records["owner_start_ns"][first]
        self._use = np.append(self._use, use)
        self._signs = np.append(self._signs, np.zeros(len(keys), np.uint8))

    def _look(self, rows: Collection[int], *, headers: int = HEADERS_AT_ONCE) -> None:
        """Judge those pairs anew of which something has changed: the file's name, the owner's framework, its header."""
        for owner in {self._pairs[row].owner for row in rows}:
            framework = self._framework_of(owner)
            if framework != self._frameworks.get(owner):
                self._frameworks[owner] = framework
                for pair in self._pairs:
                    if pair.owner == owner:
                        pair.next_look = -math.inf
        now, pairs = self._clock(), self._pairs
        due = [pair for row in rows if (pair := pairs[row]).next_look <= now or pair.file.path is not pair.path]
        for pair in due:
            path = pair.file.path
            if path != pair.path:
                pair.path, pair.rules = path, () if path is None else self._rules.for_path(path)
                pair.header, pair.tries, pair.next_look = None, 0, -math.inf
            pair.path = path  # an equal string of a later sight: else it would be looked at in every pass
            if self._wants_header(pair):
                if headers:
                    headers -= 1
                    self._look_for_header(pair, now)
                elif pair.next_look > -math.inf:
                    continue
                else:
                    pair.next_look = now
            else:
                pair.next_look = math.inf
            self._judge(pair)

    def _judge(self, pair: _Pair) -> None:
        framework = self._framework(pair)
        unknown = pair.is_process and framework is None
        verdict = decide(pair.rules, framework, lambda name: self._behaves(pair, name), may_show=unknown)
        pair.role = ROLES.index(verdict.role)
        by_use = any(rule.behaviour and rule.is_for(framework) for rule in pair.rules)
        self._watched[pair.row] = _UNWATCHED if not by_use else _COUNTED if verdict.open else _KNOWN
        is_open = self._undecided and pair.number != 0 and (verdict.open or pair.path is None)
        given = len(self._open) + len(self._closed)
        # Files without a name must not use up the ids of those whose use is being watched.
        if is_open and pair.id is None and given < MOST_UNDECIDED // (1 if pair.rules else 2):
            pair.id = FIRST_UNDECIDED + given
            self._open[pair.id] = pair
        self._ids[pair.row] = pair.id if is_open and pair.id is not None else pair.role

    def _behaves(self, pair: _Pair, behaviour: str) -> Answer:
        if behaviour in _SIGNS:
            shown = bool(self._signs[pair.row] & _SIGNS[behaviour])
            return Answer(shown, shown and behaviour == "rewritten")
        return Answer(pair.header == behaviour, not self._wants_header(pair))

    def _framework(self, pair: _Pair) -> str | None:
        return self._frameworks.get(pair.owner) if pair.is_process else None

    def _wants_header(self, pair: _Pair) -> bool:
        """Whether the header may be found out, and would say anything."""
        if self._read_header is None or pair.header is not None or pair.tries == HEADER_TRIES:
            return False
        if pair.path is None or not pair.path.startswith("/"):  # only the end of it is known
            return False
        framework = self._framework(pair)
        return any((rule.behaviour or "").startswith("npy-") and rule.is_for(framework) for rule in pair.rules)

    def _look_for_header(self, pair: _Pair, now: float) -> None:
        assert self._read_header is not None
        assert pair.path is not None
        pair.next_look = now + 2.0**pair.tries
        pair.tries += 1
        try:
            start = self._read_header(pair.path, pair.file.device, pair.file.inode)
        except PermissionError:
            pair.tries = HEADER_TRIES  # that will not change
            return
        except OSError:
            return
        if start is not None and start.strip(b"\0"):  # a new file is full of zeros until it is written
            shape = npy_shape(start)
            pair.header = "" if shape is None else shape_behaviour(shape)

    def _watch(self, records: Records, rows: NDArray[np.int64], touched: NDArray[np.int64]) -> None:
        """What these records say about how files are used, where that can decide."""
        use = self._use
        touched = touched[self._watched[touched] != _UNWATCHED]
        last = np.zeros(len(use), np.int64)
        last[rows] = np.arange(len(rows))
        starts = records["owner_start_ns"][last[touched]]
        for row in touched[use["start"][touched] != starts].tolist():
            # Another process: what one before it did, or the header was then, says nothing about the file now.
            use[row], self._signs[row] = _UNUSED, 0
            pair = self._pairs[row]
            pair.header, pair.tries, pair.next_look = None, 0, -math.inf
            self._judge(pair)
        use["start"][touched] = starts
        touched = touched[self._watched[touched] == _COUNTED]
        if not len(touched):
            return
        counted = self._watched.take(rows) == _COUNTED
        unread = np.zeros(len(use), bool)
        unread[touched] = use["first_read"][touched] == _NEVER
        if unread.any():
            self._count_reads(records, rows, np.flatnonzero((records["op"] == Op.READ) & unread.take(rows)))
        self._count_writes(records, rows, np.flatnonzero((records["op"] == Op.WRITE) & counted))
        signs = _signs(use[touched])
        changed = touched[signs != self._signs[touched]]
        self._signs[touched] = signs
        for row in changed.tolist():
            self._judge(self._pairs[row])

    def _count_reads(self, records: Records, rows: NDArray[np.int64], chosen: NDArray[np.int64]) -> None:
        np.minimum.at(self._use["first_read"], rows[chosen], _times(records, "done_ns")[chosen])

    def _count_writes(self, records: Records, rows: NDArray[np.int64], chosen: NDArray[np.int64]) -> None:
        if not len(chosen):
            return
        use, written, bytes_ = self._use, rows[chosen], records["bytes"][chosen]
        engine = records["engine"][chosen]
        calls = _BY_CALL[engine]
        for name, ways in (("mapped", engine == Engine.MMAP), ("called", calls)):
            use[name] += np.bincount(written[ways], bytes_[ways], len(use)).astype(np.int64)
        np.maximum.at(use["longest"], written[calls], bytes_[calls])
        late = _times(records, "made_ns")[chosen] - use["first_read"][written] >= SETTLE_NS
        use["rewritten"][written[late]] = True

    def _drop(self, rows: Collection[int]) -> None:
        if not rows:
            return
        stays = np.ones(len(self._pairs), bool)
        stays[list(rows)] = False
        for row in rows:
            pair = self._pairs[row]
            if pair.id is not None:
                self._closed[pair.id] = self._open.pop(pair.id).role
        self._pairs = [pair for pair in self._pairs if stays[pair.row]]
        for row, pair in enumerate(self._pairs):
            pair.row = row
        self._index.keep(stays)
        self._ids, self._watched = self._ids[stays], self._watched[stays]
        self._use, self._signs = self._use[stays], self._signs[stays]


def _keys(files: NDArray[Any], owners: NDArray[Any]) -> NDArray[np.uint64]:
    keys: NDArray[np.uint64] = files.astype(np.uint64) << np.uint64(32) | owners.astype(np.uint64)
    return keys


def _itself(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    return rows


def _signs(use: NDArray[Any]) -> NDArray[np.uint8]:
    """Which of _SIGNS each use shows."""
    called = use["called"]
    shown = {
        "rewritten": use["rewritten"],
        "mapped": use["mapped"] > called,
        "used": (use["first_read"] < _NEVER) | (called > _ENDS) | ((called > 0) & (called == use["longest"])),
    }
    signs = np.zeros(len(use), np.uint8)
    for name, bit in _SIGNS.items():
        signs[shown[name]] |= bit
    return signs


def _times(records: Records, name: str) -> NDArray[np.int64]:
    """As good as they are known: a part of a request has none of its own."""
    times: NDArray[np.int64] = records[name].astype(np.int64)
    return np.where(times > 0, times, records["done_ns"].max())
