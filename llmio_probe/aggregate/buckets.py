"""The one bucket rule, shared by BPF, NumPy and Prometheus: bucket n holds (2^(n-1), 2^n].

So 131,072 bytes lie in le="131072". Sizes go from 512 B to 2 GiB, latencies from 2^10 ns to 2^35 ns; what is smaller
falls into the first bucket, what is larger into +Inf. Only bucket arithmetic may go in here.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmio_probe.kernel.records import BucketEdge

SIZE_EXPONENTS = int(BucketEdge.SIZE_FIRST), int(BucketEdge.SIZE_LAST)
LATENCY_EXPONENTS = int(BucketEdge.LATENCY_FIRST), int(BucketEdge.LATENCY_LAST)
REQUESTS_EXPONENTS = int(BucketEdge.CALL_FIRST), int(BucketEdge.CALL_LAST)

OCTAVES = 64
"""What is counted before it is known where the buckets begin and end: for an array of values, that costs less."""

MANTISSA_BITS = 52
BIAS = 1023
"""What IEEE 754 adds to the exponent of a float64."""


def edges(exponents: tuple[int, int]) -> tuple[int, ...]:
    """The upper edges 2^first … 2^last; +Inf is implied."""
    first, last = exponents
    return tuple(1 << n for n in range(first, last + 1))


SIZE_EDGES = edges(SIZE_EXPONENTS)
"""Bytes."""
LATENCY_EDGES = tuple(ns / 1e9 for ns in edges(LATENCY_EXPONENTS))
"""Seconds; the buckets themselves are of whole nanoseconds."""
REQUESTS_EDGES = edges(REQUESTS_EXPONENTS)
"""Requests a call."""


def octave(values: NDArray[Any]) -> NDArray[np.int64]:
    """The n of the rule for each value, without a first or a last one: 0 to 63.

    values: any shape, whole numbers; what is below 1 counts as 1. Exact up to 2^53.
    """
    if values.min(initial=1) < 1:
        values = np.maximum(values, 1)
    # The bits of a float64 are exponent, then mantissa. With one less, 2^n is with those below it, as the rule wants.
    n = float_bits(values) - ((BIAS - 1 << MANTISSA_BITS) + 1)
    n >>= MANTISSA_BITS
    return n


def bucket(values: NDArray[Any], exponents: tuple[int, int]) -> NDArray[np.int64]:
    """The bucket of each value: an index into ``edges(exponents)``, or their number for +Inf.

    values: any shape, whole numbers below 2^53 (larger ones are in +Inf with every exponent used here).
    """
    first, last = exponents
    n = octave(values)
    n -= first
    np.maximum(n, 0, out=n)
    return np.minimum(n, last + 1 - first, out=n)


def by_bucket(counts: NDArray[np.int64], exponents: tuple[int, int]) -> NDArray[np.int64]:
    """Counts by octave, shape (n, OCTAVES), as counts by bucket, shape (n, edges + 1)."""
    first, last = exponents
    folded: NDArray[np.int64] = np.add.reduceat(counts, [0, *range(first + 1, last + 2)], axis=1)
    return folded


def float_bits(values: NDArray[Any]) -> NDArray[np.int64]:
    """The bits of the values as float64, which are in the same order where none is negative."""
    return values.astype(np.float64, copy=False).view(np.int64)
