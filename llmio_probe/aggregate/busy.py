"""For how long was at least one request under way? The union of intervals that come roughly in order of their ends."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

KEPT_INTERVALS = 4096
"""So many idle gaps can a late, long interval still close: a 1 s request beside 4,000 others a second is exact."""

MOST_GATHERED = 64
"""Batches whose intervals are counted in at one go: for the few of a batch it takes as long as for many."""

Ints = NDArray[np.int64]


def chains(groups: NDArray[np.uint16], starts: Ints, ends: Ints) -> tuple[NDArray[np.uint16], Ints, Ints]:
    """Fewer intervals with the same union, by group: neighbours that overlap are joined. Shape (n,) each.

    starts <= ends. They may come in any order; in that of their ends a busy device leaves few, and no times are sorted.
    """
    if not len(groups):
        return groups, starts, ends
    if (groups[1:] != groups[:-1]).any():
        order = np.argsort(groups, kind="stable")  # a radix sort, for 16 bits
        groups, starts, ends = groups.take(order), starts.take(order), ends.take(order)
    first, starts, ends = joined((groups[1:] != groups[:-1]).nonzero()[0] + 1, starts, ends)
    return groups[first], starts, ends


def joined(between: Ints, starts: Ints, ends: Ints) -> tuple[Ints, Ints, Ints]:
    """Neighbours that overlap as one, but for those at ``between`` and before: where each begins, and its times.

    between: indices above 0. starts, ends: shape (n,), n > 0.
    """
    apart = (starts[1:] > ends[:-1]) | (ends[1:] < starts[:-1])
    apart[between - 1] = True
    first = np.concatenate([[0], apart.nonzero()[0] + 1])
    return first, np.minimum.reduceat(starts, first), np.maximum.reduceat(ends, first)


class BusyTime:
    """Of one device or use. Intervals are gathered and counted in when there are some, or somebody asks."""

    def __init__(self) -> None:
        self._settled = 0
        self._settled_until = 0
        self._starts = np.empty(0, np.int64)
        self._ends = np.empty(0, np.int64)
        self._gathered: list[tuple[Ints, Ints]] = []
        self._room = KEPT_INTERVALS

    def add(self, starts: NDArray[Any], ends: NDArray[Any]) -> None:
        """Count the intervals in. Shape (n,) each, nanoseconds, starts <= ends."""
        if not len(starts):
            return
        self._gathered.append((starts.astype(np.int64, copy=False), ends.astype(np.int64, copy=False)))
        self._room -= len(starts)
        if self._room <= 0 or len(self._gathered) == MOST_GATHERED:
            self._count()

    def add_total(self, nanoseconds: int, until: int) -> None:
        """Requests of which only this is known: how long they were under way together, and when the last one was done.

        The device was busy for at most so long, and at most since the last end that is known. The lesser of the two is
        counted: exact where one request followed the other, and where there always was one.
        """
        self._count()
        known = int(self._ends[-1]) if len(self._ends) else self._settled_until
        since = max(until - nanoseconds, known)
        if since < until:
            self.add(np.array([since]), np.array([until]))

    @property
    def nanoseconds(self) -> int:
        self._count()
        return self._settled + int((self._ends - self._starts).sum())

    def _count(self) -> None:
        """What is settled cannot be counted again: an interval that begins before is counted from there on."""
        if not self._gathered:
            return
        new, self._gathered, self._room = self._gathered, [], KEPT_INTERVALS
        starts, ends = (np.concatenate(times) for times in zip(*new, strict=True))
        starts = np.concatenate([self._starts, np.maximum(starts, self._settled_until)])
        ends = np.maximum(np.concatenate([self._ends, ends]), starts)
        order = np.argsort(starts, kind="stable")  # timsort: nearly sorted already
        starts, ends = starts[order], np.maximum.accumulate(ends[order])
        first = np.flatnonzero(np.concatenate([[True], starts[1:] > ends[:-1]]))
        starts, ends = starts[first], ends[np.concatenate([first[1:] - 1, [len(ends) - 1]])]
        if len(starts) > KEPT_INTERVALS:
            self._settled += int((ends - starts)[:-KEPT_INTERVALS].sum())
            self._settled_until = int(ends[-KEPT_INTERVALS - 1])
        self._starts, self._ends = starts[-KEPT_INTERVALS:], ends[-KEPT_INTERVALS:]
