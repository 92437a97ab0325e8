"""Latency percentiles are never below the true ones and at most 1/64 above them; the largest is exact."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from llmio_probe.aggregate.latencies import COLUMNS, PARTS, column, percentiles
from llmio_probe.aggregate.rows import Percentiles


def of(values: NDArray[np.int64]) -> Percentiles:
    found = percentiles(np.bincount(column(values), minlength=COLUMNS), int(values.max()), int(values.sum()))
    assert found is not None
    return found


def nearest_rank(values: NDArray[np.int64], percent: int) -> float:
    return float(np.sort(values)[-(-len(values) * percent // 100) - 1]) / 1e9


@pytest.mark.parametrize("count", [1, 2, 3, 99, 100, 101, 5000])
@pytest.mark.parametrize("seed", range(5))
def test_percentiles_are_at_most_a_64th_above_the_true_ones(count: int, seed: int) -> None:
    values = np.exp2(np.random.default_rng(seed).uniform(10, 35, count)).astype(np.int64)
    found = of(values)
    for percent, value in ((50, found.p50), (90, found.p90), (99, found.p99)):
        true = nearest_rank(values, percent)
        assert true <= value <= true * (1 + 1 / PARTS)
    assert found.max == values.max() / 1e9


def test_around_every_power_of_two_a_single_value_is_found() -> None:
    for n in range(10, 36):
        for value in ((1 << n) - 1, 1 << n, (1 << n) + 1):
            if value <= 1 << 35:
                values = np.array([value, 1 << 40])  # the largest is elsewhere, so that it cannot hide an error
                assert value / 1e9 <= of(values).p50 <= value * (1 + 1 / PARTS) / 1e9


def test_no_percentile_exceeds_the_largest_value() -> None:
    only = ((1 << 20) + 1) / 1e9
    assert of(np.full(10, (1 << 20) + 1)) == Percentiles(only, only, only, only, sum=10 * ((1 << 20) + 1) / 1e9)


def test_short_ones_share_a_part_of_520_ns() -> None:
    assert of(np.array([0, 1, 519, 1 << 20])).p50 == 520 / 1e9
    assert of(np.array([0, 0])) == Percentiles(0, 0, 0, 0, sum=0)


def test_what_is_longer_than_the_last_edge_is_given_as_the_largest_and_so_never_too_short() -> None:
    values = np.array([(1 << 35) + 1, 1 << 36, 90_000_000_000])
    assert of(values).p50 == of(values).max == 90.0


def test_without_values_there_are_no_percentiles() -> None:
    assert percentiles(np.zeros(COLUMNS, np.uint32), 0, 0) is None


def test_columns_rise_with_the_value_and_end_at_the_last() -> None:
    values = np.unique(np.exp2(np.linspace(0, 52, 20_000)).astype(np.int64))
    found = column(values)
    assert (np.diff(found) >= 0).all()
    assert (found[0], found[-1]) == (0, COLUMNS - 1)
    assert set(np.unique(found)) == set(range(COLUMNS))
