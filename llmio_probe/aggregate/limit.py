"""How many series the daemon may show, and what is counted under worker="other" because it finds no room.

A label set that comes when all room is taken is added up in the row of "other" from its first record on, as long as its
owner is known: so no counter ever falls, and nothing is counted twice. Only this bookkeeping may go in here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import DTypeLike, NDArray

from llmio_probe.aggregate.table import Rows
from llmio_probe.identity.owners import OTHER, UNKNOWN

Need = tuple[Hashable, int]
"""Series that one or more rows need: what they are, by a key of their own, and how many."""


class SeriesLimit:
    """The room that the tables share. most: series, those of workers, the kernel, "other" and unknown together."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._users: Counter[Hashable] = Counter()
        self.used = 0

    def admit(self, needs: Sequence[Need]) -> bool:
        """Take the room if it is there."""
        more = sum(series for key, series in needs if not self._users[key])
        if more and self.used + more > self._most:
            return False
        self.take(needs)
        return True

    def take(self, needs: Iterable[Need]) -> None:
        """Whether there is room or not."""
        for key, series in needs:
            self.used += 0 if self._users[key] else series
            self._users[key] += 1

    def release(self, needs: Iterable[Need]) -> None:
        """What was taken once is needed once less."""
        for key, series in needs:
            self._users[key] -= 1
            if not self._users[key]:
                del self._users[key]
                self.used -= series


class LimitedRows(Rows):
    """Rows whose keys begin with an owner; one that finds no room leads to the same labels of "other", and where these
    find none either, to its coarse labels: for those room is kept from the first record on. The unknown has coarse
    labels of its own, since "other" would hide it.

    owner_shift: where in a key the owner begins; below are the labels. needs: the series that a key needs, a few.
    coarse: labels to those of which there are so few that they always have room.
    """

    def __init__(
        self, fields: Mapping[str, tuple[DTypeLike, tuple[int, ...]]], limit: SeriesLimit, owner_shift: int,
        needs: Callable[[int], Sequence[Need]], coarse: Callable[[int], int] = lambda labels: labels,
    ) -> None:  # fmt: skip
        super().__init__(fields)
        self._limit = limit
        self._owner_shift = owner_shift
        self._needs = needs
        self._coarse = coarse
        self._last_resorts: set[int] = set()
        self._leads_to = np.empty(0, np.int64)
        """The row in which each row's key is counted: itself, or one of "other"."""
        self._all_own = True
        self.folded = 0
        """Rows so far that found no room."""

    def find(self, keys: NDArray[np.int64]) -> NDArray[np.int64]:
        rows = super().find(keys)
        if len(self._leads_to) < len(self):
            self._place()
        return rows if self._all_own else self._leads_to[rows]

    @property
    def shown(self) -> NDArray[np.int64]:
        return np.flatnonzero(self._own())

    def keep(self, mask: NDArray[np.bool_]) -> None:
        """As of Rows. The rows of "other" have to stay."""
        for key in self.keys[~mask & self._own()].tolist():
            self._limit.release(self._needs(key))
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
        owner, labels = key >> self._owner_shift, key & ((1 << self._owner_shift) - 1)
        last = (UNKNOWN if owner == UNKNOWN else OTHER) << self._owner_shift | self._coarse(labels)
        if last not in self._last_resorts:
            self._last_resorts.add(last)
            self._limit.take(self._needs(last))
        if key == last or self._limit.admit(self._needs(key)):
            return key
        others = OTHER << self._owner_shift | labels
        return others if owner != UNKNOWN and self._limit.admit(self._needs(others)) else last


def rows_within(most_series: int | None) -> Callable[..., Rows]:
    """Makes tables that share so much room, from the arguments of LimitedRows without the limit; None: no limit."""
    if most_series is None:
        return lambda fields, *_: Rows(fields)
    limit = SeriesLimit(most_series)
    return lambda fields, *more: LimitedRows(fields, limit, *more)


def folded(rows: Rows) -> int:
    """Rows so far that found no room."""
    return rows.folded if isinstance(rows, LimitedRows) else 0
