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


def bucket(values: NDArray[Any], exponents: tuple[int, int]) -> NDArray[np.int64]:
    """The bucket of each value: an index into ``edges(exponents)``, or their number for +Inf.

    values: any shape, non-negative integers below 2^53 (larger ones are in +Inf with every exponent used here).
    """
    first, last = exponents
    # frexp gives value = m * 2^e with 0.5 <= m < 1, so e is the bit length; of value - 1 it is n for (2^(n-1), 2^n].
    lowered = np.maximum(values.astype(np.int64), 1) - 1
    n = np.frexp(lowered.astype(np.float64))[1].astype(np.int64)
    return np.clip(n, first, last + 1) - first
