"""Rows of totals behave like a dictionary of totals, whatever the batches look like."""

from __future__ import annotations

from collections import Counter, defaultdict

import numpy as np
import pytest

from llmio_probe.aggregate.table import Rows

WIDE = 1000
"""Columns: enough that a small batch is added one by one, and few enough that a large one is not."""


@pytest.fixture
def rows() -> Rows:
    one, wide = (), (WIDE,)
    return Rows(
        {"count": ("i8", one), "seconds": ("f8", one), "largest": ("i8", one), "wide": ("u4", wide),
         "heavy": ("i8", (3,))}
    )  # fmt: skip


def test_nothing_is_there_at_first(rows: Rows) -> None:
    assert len(rows) == 0
    assert rows.keys.tolist() == []
    assert rows["wide"].shape == (0, WIDE)
    assert rows.find(np.empty(0, np.int64)).tolist() == []


def test_a_key_has_one_row_however_often_it_comes(rows: Rows) -> None:
    first = rows.find(np.array([7, 3, 7, 7]))
    assert first[0] == first[2] == first[3] != first[1]
    assert len(rows) == 2
    assert rows.keys[first].tolist() == [7, 3, 7, 7]


def test_rows_stay_where_they_are_while_others_are_added(rows: Rows) -> None:
    before = rows.find(np.array([500, 20]))
    rows.add("count", before, np.array([5, 2]))
    rows.find(np.arange(1000) * 3)
    assert rows.find(np.array([500, 20])).tolist() == before.tolist()
    assert rows["count"][before].tolist() == [5, 2]
    assert rows["count"].sum() == 7


@pytest.mark.parametrize("batch", [3, 400, 20_000])
def test_totals_are_those_of_a_dictionary(rows: Rows, batch: int) -> None:
    random = np.random.default_rng(batch)
    counts: Counter[int] = Counter()
    seconds: dict[int, float] = defaultdict(float)
    largest: Counter[int] = Counter()
    wide: Counter[tuple[int, int]] = Counter()
    heavy: Counter[tuple[int, int]] = Counter()
    for step in range(5):
        keys = random.integers(-1 << 60, 1 << 60, 1 + 8 * step)[random.integers(0, 1 + 8 * step, batch)]
        amounts, columns = random.integers(0, 1 << 32, batch), random.integers(0, WIDE, batch)
        found = rows.find(keys)
        rows.add("count", found)
        rows.add("seconds", found, amounts / 4)
        rows.raise_to("largest", found, amounts)
        rows.add_at("wide", found, columns)
        rows.add_at("heavy", found, columns % 3, amounts)
        for key, amount, column in zip(keys.tolist(), amounts.tolist(), columns.tolist(), strict=True):
            counts[key] += 1
            seconds[key] += amount / 4
            largest[key] = max(largest[key], amount)
            wide[key, column] += 1
            heavy[key, column % 3] += amount
    keys = rows.keys.tolist()
    assert dict(zip(keys, rows["count"].tolist(), strict=True)) == counts
    assert dict(zip(keys, rows["seconds"].tolist(), strict=True)) == seconds
    assert dict(zip(keys, rows["largest"].tolist(), strict=True)) == largest
    for field, expected in (("wide", wide), ("heavy", heavy)):
        row, column = np.nonzero(rows[field])
        where = [(keys[r], int(c)) for r, c in zip(row, column, strict=True)]
        assert dict(zip(where, rows[field][row, column].tolist(), strict=True)) == +expected


def test_adding_to_no_row_changes_nothing(rows: Rows) -> None:
    rows.find(np.array([1]))
    nothing = np.empty(0, np.int64)
    rows.add("count", nothing)
    rows.add("seconds", nothing, np.empty(0))
    rows.add_at("wide", nothing, nothing)
    rows.raise_to("largest", nothing, nothing)
    assert not any(rows[field].any() for field in ("count", "seconds", "largest", "wide"))


def test_a_batch_of_one_among_many_rows_is_exact(rows: Rows) -> None:
    """Far more rows than records: they are added one by one."""
    many = rows.find(np.arange(1000))
    for _ in range(3):
        rows.add("count", many[7:8])
        rows.add("seconds", many[7:8], np.array([1], np.uint16))
    assert (rows["count"].sum(), rows["count"][many[7]], rows["seconds"][many[7]]) == (3, 3, 3.0)


def test_rows_that_get_the_same_key_are_added_up_and_the_largest_of_them_stays(rows: Rows) -> None:
    found = rows.find(np.array([10, 20, 30, 40]))
    for field in ("count", "seconds", "largest"):
        rows.add(field, found, np.array([1, 2, 4, 8]))
    rows.add_at("wide", found, np.array([0, 0, 5, 5]))
    keys = np.array([7, 40, 7, 40])[np.argsort(found)]  # 10 and 30, 20 and 40
    merged, places = rows.merged(keys, largest=["largest"])
    assert sorted(merged.keys.tolist()) == [7, 40]
    assert merged.keys[places].tolist() == keys.tolist()
    first, second = merged.find(np.array([7, 40]))
    assert [merged[field][first] for field in ("count", "seconds", "largest")] == [5, 5.0, 4]
    assert [merged[field][second] for field in ("count", "seconds", "largest")] == [10, 10.0, 8]
    assert merged["wide"][first, [0, 5]].tolist() == [1, 1]
    assert merged["wide"].dtype == np.uint32
    assert rows["count"][found].tolist() == [1, 2, 4, 8]


def test_no_rows_are_merged_to_no_rows(rows: Rows) -> None:
    merged, places = rows.merged(np.empty(0, np.int64))
    assert (len(merged), len(places)) == (0, 0)


def test_what_is_not_kept_is_forgotten_and_its_key_begins_anew(rows: Rows) -> None:
    found = rows.find(np.array([10, 20, 30, 40]))
    rows.add("count", found, np.array([1, 2, 3, 4]))
    rows.add_at("wide", found, np.array([1, 2, 3, 4]))
    rows.keep(np.isin(rows.keys, [40, 20]))
    assert sorted(rows.keys.tolist()) == [20, 40]
    again = rows.find(np.array([20, 40, 10]))
    assert rows["count"][again].tolist() == [2, 4, 0]
    assert rows["wide"][again, [2, 4, 1]].tolist() == [1, 1, 0]
    rows.keep(np.zeros(3, bool))
    assert len(rows) == 0
    anew = rows.find(np.array([20]))
    assert rows["count"][anew].tolist() == [0]
