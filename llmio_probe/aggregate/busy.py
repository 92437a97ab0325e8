"""For how long was at least one request under way? The union of intervals that come roughly in order of their ends."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

KEPT_INTERVALS = 4096
"""So many idle gaps can a late, long interval still close: a 1 s request beside 4,000 others a second is exact."""

_FEWER = 4
"""Runs of one group are joined before the sort where there are so many fewer of them than intervals."""


def chains(
    groups: NDArray[np.uint16], starts: NDArray[np.int64], ends: NDArray[np.int64]
) -> tuple[NDArray[np.uint16], NDArray[np.int64], NDArray[np.int64]]:
    """Fewer intervals with the same union, by group: neighbours that overlap are joined. Shape (n,) each.

    starts <= ends. They may come in any order; in that of their ends a busy device leaves few, and no times are sorted.
    """
    changes = np.count_nonzero(groups[1:] != groups[:-1])
    if changes and _FEWER * changes < len(groups):  # then there is little to sort
        groups, starts, ends = _joined(groups, starts, ends)
    if changes:
        order = np.argsort(groups, kind="stable")  # a radix sort, for 16 bits
        groups, starts, ends = groups.take(order), starts.take(order), ends.take(order)
    return _joined(groups, starts, ends)


def _joined(
    groups: NDArray[np.uint16], starts: NDArray[np.int64], ends: NDArray[np.int64]
) -> tuple[NDArray[np.uint16], NDArray[np.int64], NDArray[np.int64]]:
    """Neighbours of the same group that overlap are one."""
    if not len(groups):
        return groups, starts, ends
    apart = (groups[1:] != groups[:-1]) | (starts[1:] > ends[:-1]) | (ends[1:] < starts[:-1])
    first = np.flatnonzero(np.concatenate([[True], apart]))
    return groups[first], np.minimum.reduceat(starts, first), np.maximum.reduceat(ends, first)


class BusyTime:
    def __init__(self) -> None:
        self._settled = 0
        self._settled_until = 0
        self._starts = np.empty(0, np.int64)
        self._ends = np.empty(0, np.int64)

    def add(self, starts: NDArray[Any], ends: NDArray[Any]) -> None:
        """Count the intervals in. Shape (n,) each, nanoseconds, starts <= ends."""
        if not len(starts):
            return
        # What is settled cannot be counted again: an interval that begins before is counted from there on.
        starts = np.concatenate([self._starts, np.maximum(starts.astype(np.int64), self._settled_until)])
        ends = np.maximum(np.concatenate([self._ends, ends.astype(np.int64)]), starts)
        order = np.argsort(starts, kind="stable")  # timsort: nearly sorted already
        starts, ends = starts[order], np.maximum.accumulate(ends[order])
        first = np.flatnonzero(np.concatenate([[True], starts[1:] > ends[:-1]]))
        starts, ends = starts[first], ends[np.concatenate([first[1:] - 1, [len(ends) - 1]])]
        if len(starts) > KEPT_INTERVALS:
            self._settled += int((ends - starts)[:-KEPT_INTERVALS].sum())
            self._settled_until = int(ends[-KEPT_INTERVALS - 1])
        self._starts, self._ends = starts[-KEPT_INTERVALS:], ends[-KEPT_INTERVALS:]

    def add_total(self, nanoseconds: int, until: int) -> None:
        """Requests of which only this is known: how long they were under way together, and when the last one was done.

        The device was busy for at most so long, and at most since the last end that is known. The lesser of the two is
        counted: exact where one request followed the other, and where there always was one.
        """
        known = int(self._ends[-1]) if len(self._ends) else self._settled_until
        since = max(until - nanoseconds, known)
        if since < until:
            self.add(np.array([since]), np.array([until]))

    @property
    def nanoseconds(self) -> int:
        return self._settled + int((self._ends - self._starts).sum())
