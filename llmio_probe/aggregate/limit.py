"""How many series the daemon may show, and what is counted under worker="other" because it finds no room.

There are counters, a few series each, and distributions, dozens each: where room gets short, distributions give way, so
that who does how much is known to the last. A label set that comes when there is no room for it is added up in a row of
"other" from its first record on, as long as its owner is known: so no counter ever falls, and nothing is counted twice.
Only this bookkeeping may go in here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import DTypeLike, NDArray

from llmio_probe.aggregate.table import Rows
from llmio_probe.identity.owners import OTHER, UNKNOWN

Kind = Literal["counters", "distributions"]
Need = tuple[Hashable, int]
"""Series that one or more rows need: what they are, by a key of their own, and how many."""
Fields = Mapping[str, tuple[DTypeLike, tuple[int, ...]]]

PLAIN_SHARE = 0.75
"""Of the room: further than that no distributions of plain commands and the kernel go. They are many and come first,
with the boot and by cron, and what is asked about is the frameworks. 24 that read and write one disk fit in."""
PROMISED_SHARE = 0.25
"""Of the room: more is never promised to counters that are still to come, or hundreds of loop devices would leave
nothing for distributions."""
LAST_SHARE = 0.25
"""Of the room: more is never kept for last resorts of distributions, which stay for good where devices come and go."""
LATE_SHARE = 1 / 64
"""Of the room: only last resorts may take it, so that a disk that comes when all is taken has counters of its own."""


@dataclass(frozen=True)
class Labels:
    """What a table's keys hold below their owner, and what they cost.

    bits: where in a key the owner begins. needs: the series that a key needs, a few. coarse: labels to those of which
    there are so few that each of them has a last resort under "other", and what that shows. none: labels of the one
    place for what has not even that. promised: series to keep for further owners with the same coarse labels.
    """

    kind: Kind
    bits: int
    needs: Callable[[int], Sequence[Need]]
    none: int
    coarse: Callable[[int], int] = lambda labels: labels
    promised: int = 0


class SeriesLimit:
    """The room that the tables share. most: series, those of workers, the kernel, "other" and unknown together.

    preferred: whether an owner's distributions may take the room that others' may not. promised: see promise.
    """

    def __init__(self, most: int, preferred: Callable[[int], bool], promised: int = 0) -> None:
        self._room = most
        self._preferred = preferred
        self._plain = int(most * PLAIN_SHARE)
        self._most_promised = int(most * PROMISED_SHARE)
        self._most_last = int(most * LAST_SHARE)
        self._late = int(most * LATE_SHARE)
        self._users: Counter[tuple[Kind, Hashable]] = Counter()
        self._used: dict[Kind, int] = {"counters": 0, "distributions": 0}
        self._last: dict[Kind, int] = {"counters": 0, "distributions": 0}
        """Of these what last resorts took."""
        self._promised = promised

    @property
    def used(self) -> int:
        return sum(self._used.values())

    def keep(self, needs: Sequence[Need]) -> None:
        """For good, whether it is used or not: before anything is admitted."""
        self._room -= sum(series for _, series in needs)

    def promise(self, series: int) -> None:
        """To counters, of which some may be there already."""
        self._promised = min(self._promised + series, self._most_promised)

    def admit(self, kind: Kind, needs: Sequence[Need], owner: int | None) -> bool:
        """Take the room if it is there. owner: whose it is; None: a last resort."""
        more = sum(series for key, series in needs if not self._users[kind, key])
        if more and more > self._free(kind, owner):
            return False
        self._used[kind] += more
        self._last[kind] += more if owner is None else 0
        for key, _ in needs:
            self._users[kind, key] += 1
        return True

    def release(self, kind: Kind, needs: Sequence[Need]) -> None:
        """What was taken once is needed once less."""
        for key, series in needs:
            self._users[kind, key] -= 1
            if not self._users[kind, key]:
                del self._users[kind, key]
                self._used[kind] -= series

    def _free(self, kind: Kind, owner: int | None) -> int:
        """As of admit."""
        counters, distributions = self._used["counters"], self._used["distributions"]
        if kind == "counters":
            return self._room - counters - distributions - (0 if owner is None else self._late)
        room = self._room - self._late
        if owner is not None and not self._preferred(owner):
            room = min(room, self._plain)
        free = room - max(counters, self._promised) - distributions
        return min(free, self._most_last - self._last[kind]) if owner is None else free


class LimitedRows(Rows):
    """Rows whose keys begin with an owner. One that finds no room leads to the same labels of "other", and where these
    find none either, to its last resort: the coarse labels of "other", for which room is kept from their first record
    on. Where there was none even then, these are shown as one with all others like them; their counts stay apart.

    Counters of the unknown have last resorts of their own, since "other" would hide them.
    """

    def __init__(self, fields: Fields, limit: SeriesLimit, labels: Labels) -> None:
        super().__init__(fields)
        self._limit = limit
        self._labels = labels
        self._shown_as: dict[int, int] = {}
        """Each last resort that was needed so far, and the key of what it is shown as."""
        self._heirs: dict[int, int] = {}
        """Each key of "other" that was asked for so far, and where it is counted: once and for all."""
        self._leads_to = np.empty(0, np.int64)
        """The row in which each row's key is counted: itself, or one of "other"."""
        self._all_own = True
        self.folded = 0
        """Rows so far that found no room."""
        for owner in {OTHER, self._heir_of(UNKNOWN)}:
            limit.keep(labels.needs(owner << labels.bits | labels.none))

    def find(self, keys: NDArray[np.int64]) -> NDArray[np.int64]:
        rows = super().find(keys)
        if len(self._leads_to) < len(self):
            self._place()
        return rows if self._all_own else self._leads_to[rows]

    @property
    def shown(self) -> NDArray[np.int64]:
        return np.flatnonzero(self._own())

    def rows(self) -> Iterator[tuple[int, int]]:
        """The keys are those of what is shown; some may come more than once, to be added up."""
        return ((row, self._shown_as.get(key, key)) for row, key in super().rows())

    def keep(self, mask: NDArray[np.bool_]) -> None:
        """As of Rows. The rows of "other" have to stay."""
        for key in self.keys[~mask & self._own()].tolist():
            self._limit.release(self._labels.kind, self._labels.needs(key))
        self._leads_to = (np.cumsum(mask) - 1)[self._leads_to[mask]]
        super().keep(mask)
        self._all_own = bool(self._own().all())

    def _own(self) -> NDArray[np.bool_]:
        return np.equal(self._leads_to, np.arange(len(self._leads_to)))

    def _place(self) -> None:
        first = len(self._leads_to)
        new = self.keys[first:].tolist()
        self._leads_to = np.concatenate([self._leads_to, np.arange(first, len(self))])
        folded = {row: place for row, key in enumerate(new, first) if (place := self._place_of(key)) != key}
        if folded:
            self.folded += len(folded)
            self._all_own = False
            self._leads_to[list(folded)] = self.find(np.array(list(folded.values())))

    def _place_of(self, key: int) -> int:
        """The key under which it is counted."""
        owner, labels = key >> self._labels.bits, key & ((1 << self._labels.bits) - 1)
        heir = self._heir_of(owner)
        last = self._last_resort(heir, labels)
        if owner != heir and self._limit.admit(self._labels.kind, self._labels.needs(key), owner):
            return key
        others = heir << self._labels.bits | labels
        if others not in self._heirs:
            has_room = others == last or self._limit.admit(self._labels.kind, self._labels.needs(others), owner)
            self._heirs[others] = others if has_room else last
        return self._heirs[others]

    def _last_resort(self, heir: int, labels: int) -> int:
        last = heir << self._labels.bits | self._labels.coarse(labels)
        if last not in self._shown_as:
            has_room = self._limit.admit(self._labels.kind, self._labels.needs(last), None)
            self._shown_as[last] = last if has_room else heir << self._labels.bits | self._labels.none
            self._limit.promise(self._labels.promised)
        return last

    def _heir_of(self, owner: int) -> int:
        """Who counts what of an owner's finds no room."""
        return UNKNOWN if owner == UNKNOWN and self._labels.kind == "counters" else OTHER


def tables_within(
    most_series: int | None, preferred: Callable[[int], bool], promised: int
) -> Callable[[Fields, Labels], Rows]:
    """Makes tables that share so much room, as of SeriesLimit; None: no limit."""
    if most_series is None:
        return lambda fields, _: Rows(fields)
    limit = SeriesLimit(most_series, preferred, promised)
    return lambda fields, labels: LimitedRows(fields, limit, labels)


def folded(rows: Rows) -> int:
    """Rows so far that found no room."""
    return rows.folded if isinstance(rows, LimitedRows) else 0
