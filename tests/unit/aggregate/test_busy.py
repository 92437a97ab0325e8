"""Busy time is the length of the union of all intervals, in whatever batches they come."""

from __future__ import annotations

import numpy as np
import pytest

from llmio_probe.aggregate.busy import KEPT_INTERVALS, BusyTime, chains


def add(busy: BusyTime, *intervals: tuple[int, int]) -> int:
    starts, ends = np.array(intervals).T
    busy.add(starts, ends)
    return busy.nanoseconds


def union(starts: np.ndarray, ends: np.ndarray) -> int:
    """Marks every nanosecond."""
    covered = np.zeros(int(ends.max()) + 1, bool)
    for start, end in zip(starts, ends, strict=True):
        covered[start:end] = True
    return int(covered.sum())


def test_nothing_is_no_time() -> None:
    busy = BusyTime()
    busy.add(np.empty(0, np.int64), np.empty(0, np.int64))
    assert busy.nanoseconds == 0


def test_overlaps_count_once_and_gaps_not_at_all() -> None:
    assert add(BusyTime(), (10, 20), (15, 30), (30, 31), (40, 50), (42, 43), (60, 60)) == 31


def test_a_late_long_interval_closes_the_gaps_of_earlier_batches() -> None:
    busy = BusyTime()
    assert add(busy, (10, 11), (20, 21), (30, 31)) == 3
    assert add(busy, (40, 41)) == 4
    assert add(busy, (5, 50)) == 45


def test_as_many_gaps_as_are_kept_can_still_be_closed() -> None:
    busy = BusyTime()
    starts = np.arange(KEPT_INTERVALS) * 10
    busy.add(starts, starts + 1)
    assert busy.nanoseconds == KEPT_INTERVALS
    assert add(busy, (0, KEPT_INTERVALS * 10)) == KEPT_INTERVALS * 10


def test_what_is_settled_stays_counted() -> None:
    busy = BusyTime()
    for batch in range(5):
        starts = (batch * 2 * KEPT_INTERVALS + np.arange(2 * KEPT_INTERVALS)) * 10
        busy.add(starts, starts + 3)
    assert busy.nanoseconds == 10 * KEPT_INTERVALS * 3


@pytest.mark.parametrize("batches", [1, 7, 100])
@pytest.mark.parametrize("longest", [5, 300, 20_000])
def test_it_is_the_union_however_the_intervals_are_batched(batches: int, longest: int) -> None:
    random = np.random.default_rng(longest)
    ends = np.sort(random.integers(longest, 100_000, 3000))
    starts = ends - random.integers(0, longest + 1, len(ends))
    busy = BusyTime()
    for part in np.array_split(np.arange(len(ends)), batches):
        busy.add(starts[part].astype(np.uint64), ends[part].astype(np.uint64))
    assert busy.nanoseconds == union(starts, ends)


def test_busy_time_never_exceeds_the_time_that_passed() -> None:
    """More idle gaps than are kept, then one interval over all of them: settled ones are not counted twice."""
    busy = BusyTime()
    starts = np.arange(20_000) * 50_000
    for chunk in np.array_split(starts, 20):
        busy.add(chunk, chunk + 30_000)
    busy.add(np.array([0]), np.array([10**9]))
    assert 20_000 * 30_000 <= busy.nanoseconds <= 10**9


@pytest.mark.parametrize("order", ["made", "done", "none"])
@pytest.mark.parametrize("longest", [1, 30, 3000])
@pytest.mark.parametrize("in_a_row", [1, 50])
def test_joining_neighbours_changes_no_union_whatever_their_order(order: str, longest: int, in_a_row: int) -> None:
    random = np.random.default_rng(longest)
    starts = np.sort(random.integers(0, 50_000, 2000))
    ends = starts + random.integers(0, longest + 1, 2000)
    groups = random.integers(0, 3, 2000 // in_a_row).astype(np.uint16).repeat(in_a_row)
    chosen = {"made": np.arange(2000), "done": np.argsort(ends), "none": random.permutation(2000)}[order]
    found, first, last = chains(groups[chosen], starts[chosen], ends[chosen])
    for group in range(3):
        mine, joined = groups == group, found == group
        assert union(first[joined], last[joined]) == union(starts[mine], ends[mine])


def test_a_busy_device_leaves_one_interval() -> None:
    ends = np.arange(1000) * 10
    groups, starts, ends = chains(np.full(1000, 7, np.uint16), ends - 15, ends)
    assert (groups.tolist(), starts.tolist(), ends.tolist()) == ([7], [-15], [9990])


def test_nothing_is_joined_to_nothing() -> None:
    nothing = np.empty(0, np.int64)
    assert [len(array) for array in chains(nothing.astype(np.uint16), nothing, nothing)] == [0, 0, 0]
