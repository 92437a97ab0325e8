"""Fine histograms of latencies, for percentiles: every octave of the bucket rule cut in 64 equal parts.

A percentile read from one is the upper edge of its part, so at most 1/64 above the true value and never below it. Two
exceptions: all up to 520 ns share one part, and what is longer than 2^35 ns (34 s) is given as the largest of all.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmio_probe.aggregate.buckets import LATENCY_EXPONENTS
from llmio_probe.aggregate.rows import Percentiles

PARTS = 64
_FIRST, _LAST = LATENCY_EXPONENTS
COLUMNS = (_LAST - _FIRST + 1) * PARTS + 1
"""One more than there are parts: the last holds what is longer than 2^35 ns."""


def column(nanoseconds: NDArray[Any]) -> NDArray[np.int64]:
    """The part that each latency falls in, shape as given."""
    lowered = np.maximum(nanoseconds.astype(np.int64), 1) - 1
    mantissa, exponent = np.frexp(lowered.astype(np.float64))  # lowered = mantissa * 2^exponent, 0.5 <= mantissa < 1
    part = ((2 * mantissa - 1) * PARTS).astype(np.int64)
    columns = (exponent.astype(np.int64) - _FIRST) * PARTS + part
    return np.clip(np.where(exponent < _FIRST, 0, columns), 0, COLUMNS - 1)


def percentiles(counts: NDArray[Any], largest: int) -> Percentiles | None:
    """Of one histogram, shape (COLUMNS,), in seconds; None without values. largest: nanoseconds, exact."""
    total = int(counts.sum())
    if total == 0:
        return None
    ranks = [-(-total * p // 100) for p in (50, 90, 99)]  # nearest rank: the smallest value with p % at or below it
    found = np.searchsorted(np.cumsum(counts), ranks)
    p50, p90, p99 = (min(_upper_edge(int(c)), largest) / 1e9 if c < COLUMNS - 1 else largest / 1e9 for c in found)
    return Percentiles(p50, p90, p99, largest / 1e9)


def _upper_edge(index: int) -> int:
    octave, part = divmod(index, PARTS)
    base = 1 << (octave + _FIRST - 1)
    return base + base * (part + 1) // PARTS
