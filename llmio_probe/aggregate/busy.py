"""For how long was at least one request under way? The union of intervals that come roughly in order of their ends."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

KEPT_INTERVALS = 4096
"""So many idle gaps can a late, long interval still close: a 1 s request beside 4,000 others a second is exact."""


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

    @property
    def nanoseconds(self) -> int:
        return self._settled + int((self._ends - self._starts).sum())
