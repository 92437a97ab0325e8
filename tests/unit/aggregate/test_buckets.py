"""The one bucket rule: bucket n holds (2^(n-1), 2^n], for every edge and against the rule written the slow way."""

from __future__ import annotations

import random

import numpy as np
import pytest

from llmio_probe.aggregate.buckets import (
    LATENCY_EDGES,
    LATENCY_EXPONENTS,
    REQUESTS_EDGES,
    REQUESTS_EXPONENTS,
    SIZE_EDGES,
    SIZE_EXPONENTS,
    bucket,
    edges,
)

ALL = pytest.mark.parametrize(
    "exponents", [SIZE_EXPONENTS, LATENCY_EXPONENTS, REQUESTS_EXPONENTS], ids=["sizes", "latencies", "requests"]
)


def slow_bucket(value: int, exponents: tuple[int, int]) -> int:
    """The first edge that the value does not exceed, else one past the last."""
    upper = edges(exponents)
    return next((i for i, edge in enumerate(upper) if value <= edge), len(upper))


def check(values: list[int], exponents: tuple[int, int]) -> None:
    found = bucket(np.array(values, np.uint64), exponents).tolist()
    assert found == [slow_bucket(value, exponents) for value in values]


def test_131072_bytes_are_in_the_bucket_of_that_name_and_one_more_is_in_the_next() -> None:
    upper = [SIZE_EDGES[i] for i in bucket(np.array([131071, 131072, 131073]), SIZE_EXPONENTS)]
    assert upper == [131072, 131072, 262144]


@ALL
def test_each_power_of_two_and_its_neighbours_lie_where_the_rule_says(exponents: tuple[int, int]) -> None:
    check([max((1 << n) + d, 0) for n in range(52) for d in (-1, 0, 1)], exponents)


@ALL
def test_what_is_too_small_is_in_the_first_bucket_and_what_is_too_large_in_the_last(exponents: tuple[int, int]) -> None:
    first, last = exponents
    values = np.array([0, 1, 1 << first, 1 << last, (1 << last) + 1, (1 << 52)])
    infinite = len(edges(exponents))
    assert bucket(values, exponents).tolist() == [0, 0, 0, infinite - 1, infinite, infinite]


@ALL
def test_it_agrees_with_a_search_through_the_edges(exponents: tuple[int, int]) -> None:
    numbers = random.Random(1)
    check([numbers.randrange(1 << numbers.randrange(1, 53)) for _ in range(5000)], exponents)


def test_the_edges_are_those_that_the_design_promises() -> None:
    assert (SIZE_EDGES[0], SIZE_EDGES[-1]) == (512, 2 << 30)
    assert (LATENCY_EDGES[0], LATENCY_EDGES[-1]) == (1024 / 1e9, (1 << 35) / 1e9)
    assert (REQUESTS_EDGES[0], REQUESTS_EDGES[-1]) == (1, 4096)


def test_any_integer_type_and_shape_will_do() -> None:
    assert bucket(np.array([[512, 513]], np.uint16), SIZE_EXPONENTS).tolist() == [[0, 1]]
    assert bucket(np.empty(0, np.uint32), SIZE_EXPONENTS).tolist() == []
