"""Fine histograms of latencies, for percentiles: every octave of the bucket rule cut in 64 equal parts.

A percentile read from one is the upper edge of its part, so at most 1/64 above the true value and never below it. Two
exceptions: all up to 520 ns share one part, and what is longer than 2^35 ns (34 s) is given as the largest of all.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmio_probe.aggregate.buckets import BIAS, LATENCY_EXPONENTS, MANTISSA_BITS, float_bits
from llmio_probe.aggregate.rows import Percentiles

_PART_BITS = 6
PARTS = 1 << _PART_BITS
_FIRST, _LAST = LATENCY_EXPONENTS
COLUMNS = (_LAST - _FIRST + 1) * PARTS + 1
"""One more than there are parts: the last holds what is longer than 2^35 ns."""


def column(nanoseconds: NDArray[Any]) -> NDArray[np.int64]:
    """The part that each latency falls in, shape as given."""
    # As in buckets.py, but with those bits of the mantissa kept that number an octave's parts; 0 is far below all.
    columns = float_bits(np.maximum(nanoseconds, 1) - 1)
    columns >>= MANTISSA_BITS - _PART_BITS
    columns -= (BIAS - 1 + _FIRST) * PARTS
    return np.clip(columns, 0, COLUMNS - 1, out=columns)


def percentiles(counts: NDArray[Any], largest: int, sum_ns: int) -> Percentiles | None:
    """Of one histogram, shape (COLUMNS,), in seconds; None without values. largest, sum_ns: nanoseconds, exact."""
    total = int(counts.sum())
    if total == 0:
        return None
    ranks = [-(-total * p // 100) for p in (50, 90, 99)]  # nearest rank: the smallest value with p % at or below it
    found = np.searchsorted(np.cumsum(counts), ranks)
    p50, p90, p99 = (min(_upper_edge(int(c)), largest) / 1e9 if c < COLUMNS - 1 else largest / 1e9 for c in found)
    return Percentiles(p50, p90, p99, largest / 1e9, sum_ns / 1e9)


def _upper_edge(index: int) -> int:
    octave, part = divmod(index, PARTS)
    base = 1 << (octave + _FIRST - 1)
    return base + base * (part + 1) // PARTS
