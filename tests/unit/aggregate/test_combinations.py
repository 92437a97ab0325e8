"""Records are one combination exactly when they are alike in all fields that count, in whatever batches they come."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from llmio_probe.aggregate import combinations
from llmio_probe.aggregate.combinations import LEFT_OUT, MOST, PIECE, Combinations, Combined
from llmio_probe.kernel.records import REQUEST, Records
from tests.singly import singly
from tests.unit.aggregate.conftest import requests

NAMES: tuple[str, ...] = REQUEST.names or ()


def without_left_out(records: Records) -> Records:
    kept: Records = records.copy()
    for name in LEFT_OUT:
        kept[name] = 0
    return kept


def check(batch: Combined, records: Records) -> None:
    """Against a dictionary."""
    kept = without_left_out(records)
    expected = Counter(record.tobytes() for record in kept)
    samples = [sample.tobytes() for sample in batch.samples]
    assert dict(zip(samples, batch.counts.tolist(), strict=True)) == expected
    assert len(samples) == len(expected)
    spread = batch.spread(np.arange(len(samples)))
    assert np.array_equal(batch.samples[spread], kept)
    assert batch.records is records


def mixed(random: np.random.Generator, count: int, files: int) -> Records:
    return requests(
        count,
        **{name: random.integers(0, 1 << 40, count) for name in ("made_ns", "issued_ns", "done_ns", "sector")},
        hw_queue=random.integers(0, 1 << 16, count),
        tgid=random.integers(1, 5, count),
        owner_start_ns=random.integers(0, 3, count) << 40,
        inode=random.integers(0, files, count),
        bytes=random.choice([512, 4096, 131072, 1 << 20], count),
        op=random.integers(0, 6, count),
    )


@pytest.mark.parametrize("files", [1, 20, 20_000])
def test_they_are_those_of_a_dictionary(files: int) -> None:
    random = np.random.default_rng(files)
    found = Combinations()
    for count in (1, 10_000, 40_000, 3):
        records = mixed(random, count, files)
        check(found.find(records), records)


@pytest.mark.parametrize("longest", [2, 9, 200, 50_000])
def test_those_that_follow_each_other_are_counted_like_any(longest: int) -> None:
    random = np.random.default_rng(longest)
    alike = mixed(random, 100_000 // longest + 2, 20)
    found = Combinations()
    for _ in range(3):
        records = np.repeat(alike, random.integers(1, longest + 1, len(alike)))[:40_000]
        for name in LEFT_OUT:
            records[name] = random.integers(0, 1 << 16, len(records))
        check(found.find(records), records)


@pytest.mark.parametrize("count", [1, 2, 500])
def test_the_records_stay_as_they_were(count: int) -> None:
    records = mixed(np.random.default_rng(count), count, 3)
    before = records.copy()
    Combinations().find(records)
    assert np.array_equal(records, before)


@pytest.mark.parametrize(("in_a_row", "runs"), [(1, None), (100, 41), (PIECE, 3)])
def test_runs_are_told_where_there_are_fewer_of_them_than_records(in_a_row: int, runs: int | None) -> None:
    """A run ends with a piece."""
    records = requests(41 * 100 if in_a_row < PIECE else 2 * PIECE + 7, inode=1)
    records["inode"] += np.arange(len(records), dtype=np.uint64) // in_a_row
    lengths = Combinations().find(records).lengths
    assert (None if lengths is None else len(lengths)) == runs
    assert lengths is None or lengths.sum() == len(records)


def test_an_empty_batch_has_none() -> None:
    batch = Combinations().find(requests(0))
    assert (len(batch.samples), len(batch.counts), len(batch.spread(batch.counts))) == (0, 0, 0)


def test_a_record_of_zeros_is_one_like_any_other() -> None:
    found = Combinations()
    for records in (np.zeros(3, REQUEST), requests(2), np.concatenate([np.zeros(2, REQUEST), requests(5)])):
        check(found.find(records), records)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in LEFT_OUT])
def test_what_differs_in_one_field_is_another(name: str) -> None:
    records = requests(2)
    last = records[name][1:].view(np.uint8)
    last[-1] ^= 0x80
    assert len(Combinations().find(records).samples) == 2


@pytest.mark.parametrize("name", LEFT_OUT)
def test_what_differs_in_a_field_that_is_left_out_is_the_same(name: str) -> None:
    records = requests(2)
    records[name] = [0, np.iinfo(records[name].dtype).max]
    batch = Combinations().find(records)
    assert batch.counts.tolist() == [2]
    assert batch.samples[name].tolist() == [0]


def test_all_fields_that_are_left_out_are_fields() -> None:
    assert set(LEFT_OUT) < set(NAMES)


def test_those_that_are_known_are_found_again_and_not_added() -> None:
    found, records = Combinations(), mixed(np.random.default_rng(1), 5000, 50)
    found.find(records)
    known = len(found)
    again = records[::-1].copy()
    check(found.find(again), again)
    assert len(found) == known


@pytest.mark.parametrize("mixing", ["all alike", "two kinds"])
def test_it_is_right_even_when_all_lead_to_one_place(mixing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def poorly(keys: Any) -> Any:
        return keys[:, 1] & np.uint64(mixing == "two kinds")

    monkeypatch.setattr(combinations, "_mixed", poorly)
    found, random = Combinations(), np.random.default_rng(2)
    for _ in range(3):
        records = mixed(random, 20, 5)
        check(found.find(records), records)


def test_it_does_not_grow_without_end() -> None:
    found = Combinations()
    largest = 0
    for batch in range(8):
        records = requests(MOST // 2, inode=np.arange(MOST // 2) + batch * MOST)
        assert found.find(records).counts.tolist() == [1] * (MOST // 2)
        largest = max(largest, len(found))
    assert largest <= MOST + MOST // 2 + 1


def test_a_batch_larger_than_what_is_kept_is_counted_whole() -> None:
    records = requests(3 * MOST, inode=np.arange(3 * MOST))
    found = Combinations()
    for _ in range(2):
        assert found.find(records).counts.tolist() == [1] * 3 * MOST


def test_singly_each_record_stands_for_itself() -> None:
    records = requests(3)
    batch = singly(records)
    assert batch.counts.tolist() == [1, 1, 1]
    assert batch.spread(np.array([7, 8, 9])).tolist() == [7, 8, 9]
    assert batch.samples is records
