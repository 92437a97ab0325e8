"""Whatever number of workers comes: so many series, all counts there, none twice, none ever smaller than before."""

from __future__ import annotations

from collections import Counter

import pytest

from llmio_probe.aggregate.calls import CALL_SERIES
from llmio_probe.aggregate.limit import SeriesLimit
from llmio_probe.aggregate.series import (
    ERROR_SERIES,
    LATENCY_SERIES,
    SIZE_SERIES,
    STREAM_SERIES,
    Series,
)
from llmio_probe.identity.owners import OTHER, UNKNOWN
from llmio_probe.kernel.records import Engine, Op, Path
from tests.singly import add_requests
from tests.unit.aggregate.conftest import calls, owned, requests

ONE = STREAM_SERIES + SIZE_SERIES + LATENCY_SERIES
"""Series of a worker that only reads files of one role on one disk."""


def read(series: Series, owner: int, count: int = 1, **fields: int) -> None:
    records = requests(count, **fields)
    add_requests(series, records, owned(records, owner))


def by_owner(series: Series) -> dict[int, int]:
    found: Counter[int] = Counter()
    for stream in series.streams():
        found[stream.owner] += stream.requests
    return dict(found)


@pytest.fixture
def series() -> Series:
    """Room for two workers beside other."""
    return Series(detail=False, most_series=3 * ONE)


def test_who_finds_no_room_is_counted_under_other(series: Series) -> None:
    for owner, count in ((2, 3), (3, 5), (4, 7), (5, 11), (4, 13)):
        read(series, owner, count)
    assert by_owner(series) == {2: 3, 3: 5, OTHER: 31}
    assert series.folded == 2


def test_all_that_is_shown_of_a_request_is_in_the_same_place() -> None:
    series = Series(detail=False, most_series=3 * (ONE + ERROR_SERIES))
    for owner in (2, 3, 4, 5):
        read(series, owner, 2, status=10)
    sizes = {row.owner: row.size_bytes.count for row in series.request_distributions()}
    latencies = {row.owner: row.latency_seconds["total"].count for row in series.request_distributions()}
    errors = {row.owner: row.requests for row in series.errors()}
    assert sizes == latencies == errors == by_owner(series) == {2: 2, 3: 2, OTHER: 4}


def test_who_has_room_keeps_it_and_a_new_kind_of_request_may_go_to_other(series: Series) -> None:
    for owner in (2, 3, 4):
        read(series, owner)
    read(series, 2, 5)
    read(series, 2, 7, op=Op.WRITE)
    shown = {(stream.owner, stream.op): stream.requests for stream in series.streams()}
    assert shown == {(2, Op.READ): 6, (3, Op.READ): 1, (OTHER, Op.READ): 1, (OTHER, Op.WRITE): 7}


def test_what_is_counted_under_other_stays_when_its_worker_is_forgotten(series: Series) -> None:
    for owner in (2, 3, 4, 5):
        read(series, owner)
    series.forget([2, 4])
    assert by_owner(series) == {3: 1, OTHER: 2}
    read(series, 3)
    read(series, 5)
    read(series, 6)  # in the room of 2
    read(series, 7)
    assert by_owner(series) == {3: 2, OTHER: 4, 6: 1}


def test_the_unknown_is_never_hidden_under_other(series: Series) -> None:
    for owner in (2, 3, UNKNOWN):
        read(series, owner)
    assert by_owner(series) == {2: 1, 3: 1, UNKNOWN: 1}


def test_calls_share_the_room_with_requests() -> None:
    series = Series(detail=False, most_series=2 * ONE + 2 * CALL_SERIES)
    for owner in (2, 3):
        read(series, owner)
        records = calls(4)
        series.add_calls(records, owned(records, owner))
    assert by_owner(series) == {2: 1, OTHER: 1}
    assert {row.owner: row.submit_requests.count for row in series.call_distributions()} == {2: 4, OTHER: 4}


def test_no_limit_folds_nothing() -> None:
    series = Series(detail=False)
    for owner in range(2, 200):
        read(series, owner)
    assert len(by_owner(series)) == 198
    assert series.folded == 0


def test_labels_for_which_even_other_has_no_room_are_dropped_last() -> None:
    """Never the device and the op, and never the counts."""
    series = Series(detail=False, most_series=ONE + STREAM_SERIES)
    for engine in (Engine.LIBAIO, Engine.IO_URING, Engine.POSIX):
        read(series, 2, engine=engine)
    read(series, UNKNOWN, engine=Engine.LIBAIO)
    shown = {(stream.owner, stream.engine, stream.path): stream.requests for stream in series.streams()}
    assert shown == {
        (OTHER, Engine.LIBAIO, Path.DIRECT): 1,
        (OTHER, Engine.UNKNOWN, Path.UNKNOWN): 2,
        (UNKNOWN, Engine.UNKNOWN, Path.UNKNOWN): 1,
    }


def test_series_that_several_rows_need_are_counted_once() -> None:
    limit = SeriesLimit(10)
    assert limit.admit([("a", 4)])
    assert limit.admit([("a", 4), ("b", 6)])
    assert limit.used == 10
    assert not limit.admit([("c", 1)])
    assert limit.admit([("a", 4)])
    limit.release([("a", 4), ("b", 6)])
    assert limit.used == 4
    limit.release([("a", 4)])
    limit.release([("a", 4)])
    assert limit.used == 0
