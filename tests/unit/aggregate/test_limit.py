"""Whatever number of workers comes: so many series, all counts there, none twice, none ever smaller than before."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import numpy as np
import pytest

from llmio_probe.aggregate.calls import CALL_SERIES
from llmio_probe.aggregate.limit import LATE_SHARE, SeriesLimit
from llmio_probe.aggregate.rows import OTHER_DEVICE, STAGES, Distribution
from llmio_probe.aggregate.series import (
    ERROR_SERIES,
    LATENCY_SERIES,
    PROMISED_WORKERS,
    SIZE_SERIES,
    STREAM_SERIES,
    WORKER_SERIES,
    Series,
)
from llmio_probe.identity.owners import OTHER, UNKNOWN
from llmio_probe.identity.roles import ROLES
from llmio_probe.kernel.records import Engine, Op, Path, RequestFlag
from tests.singly import add_requests
from tests.unit.aggregate.conftest import DISK, calls, owned, requests

ONE = SIZE_SERIES + LATENCY_SERIES
"""Distributions of a worker that only reads files of one role on one disk."""
COUNTED = STREAM_SERIES + WORKER_SERIES
KEPT = 2 * COUNTED + ONE + CALL_SERIES + 2 * ERROR_SERIES
"""What is always kept: counters of "other" and the unknown, distributions of "other", without device and op."""
FURTHER = (PROMISED_WORKERS + 1) * STREAM_SERIES
PROMISED = (PROMISED_WORKERS + 1) * WORKER_SERIES + FURTHER
"""What is promised to counters once a device and an op were seen, and with each further one."""


def room(series: int) -> int:
    """For so many, beside what is always kept and what only last resorts may take."""
    return next(most for most in range(10_000) if most - int(most * LATE_SHARE) - KEPT >= series)


def anybody(owner: int) -> bool:
    return True


def read(series: Series, owner: int, count: int = 1, **fields: int) -> None:
    records = requests(count, **fields)
    add_requests(series, records, owned(records, owner))


def ask(series: Series, owner: int, count: int) -> None:
    records = calls(count)
    series.add_calls(records, owned(records, owner))


def by_owner(series: Series) -> dict[int, int]:
    found: Counter[int] = Counter()
    for stream in series.streams():
        found[stream.owner] += stream.requests
    return dict(found)


def sizes_by_owner(series: Series) -> dict[int, int]:
    found: Counter[int] = Counter()
    for row in series.request_distributions():
        found[row.owner] += row.size_bytes.count
    return dict(found)


@pytest.fixture
def series() -> Series:
    """Room for the distributions of two workers beside other's, and for the counters of many."""
    return Series(detail=False, most_series=room(PROMISED + 3 * ONE), preferred=anybody)


@pytest.fixture
def all_last_resorts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Room for each, however little there is in all."""
    monkeypatch.setattr("llmio_probe.aggregate.limit.LAST_SHARE", 1.0)


@pytest.fixture
def narrow() -> Series:
    """Room for the counters of two workers beside other's, and for no distributions but other's."""
    return Series(detail=False, most_series=room(3 * COUNTED), preferred=anybody)


# What gives way


def test_distributions_that_find_no_room_are_under_other_and_the_counters_stay_their_own(series: Series) -> None:
    for owner, count in ((2, 3), (3, 5), (4, 7), (5, 11), (4, 13)):
        read(series, owner, count)
    assert by_owner(series) == {2: 3, 3: 5, 4: 20, 5: 11}
    assert sizes_by_owner(series) == {2: 3, 3: 5, OTHER: 31}
    assert series.folded == 2


def test_size_and_latency_of_a_request_are_in_the_same_place(series: Series) -> None:
    for owner in (2, 3, 4, 5):
        read(series, owner, 2)
    latencies = {row.owner: row.latency_seconds["total"].count for row in series.request_distributions()}
    assert latencies == sizes_by_owner(series) == {2: 2, 3: 2, OTHER: 4}


def test_where_there_is_no_room_for_counters_they_are_under_other_too(narrow: Series) -> None:
    for owner, count in ((2, 3), (3, 5), (4, 7), (5, 11), (4, 13)):
        read(narrow, owner, count)
    assert by_owner(narrow) == {2: 3, 3: 5, OTHER: 31}
    assert sizes_by_owner(narrow) == {OTHER: 39}


def test_who_has_room_keeps_it_and_a_new_kind_of_request_may_go_to_other(all_last_resorts: None) -> None:
    series = Series(detail=False, most_series=room(PROMISED + FURTHER + 4 * ONE), preferred=anybody)
    read(series, 2)
    read(series, 3, op=Op.WRITE)
    read(series, 2, 5)
    read(series, 2, 7, op=Op.WRITE)
    shown = {(row.owner, row.op): row.size_bytes.count for row in series.request_distributions()}
    assert shown == {(2, Op.READ): 6, (3, Op.WRITE): 1, (OTHER, Op.WRITE): 7}


def test_what_is_counted_under_other_stays_when_its_worker_is_forgotten(series: Series) -> None:
    for owner in (2, 3, 4, 5):
        read(series, owner)
    series.forget([2, 4])
    assert sizes_by_owner(series) == {3: 1, OTHER: 2}
    read(series, 3)
    read(series, 5)
    read(series, 6)  # in the room of 2
    read(series, 7)
    assert sizes_by_owner(series) == {3: 2, OTHER: 4, 6: 1}
    assert by_owner(series) == {3: 2, 5: 2, 6: 1, 7: 1}


def test_counters_of_the_unknown_are_never_hidden_under_other(narrow: Series) -> None:
    for owner in (2, 3, 4, UNKNOWN):
        read(narrow, owner)
    assert by_owner(narrow) == {2: 1, 3: 1, OTHER: 1, UNKNOWN: 1}


def test_calls_share_the_room_with_requests(all_last_resorts: None) -> None:
    series = Series(detail=False, most_series=room(PROMISED + 2 * ONE + 2 * CALL_SERIES), preferred=anybody)
    for owner in (2, 3):
        read(series, owner)
        ask(series, owner, 4)
    assert sizes_by_owner(series) == {2: 1, OTHER: 1}
    assert {row.owner: row.submit_requests.count for row in series.call_distributions()} == {2: 4, OTHER: 4}


def test_no_limit_folds_nothing() -> None:
    series = Series(detail=False)
    for owner in range(2, 200):
        read(series, owner)
    assert len(by_owner(series)) == len(sizes_by_owner(series)) == 198
    assert series.folded == 0


def test_a_role_for_which_there_is_no_room_is_other_under_other() -> None:
    """Never are the device and the op, and never the counts."""
    series = Series(detail=False, most_series=room(PROMISED + ONE + 2 * SIZE_SERIES), preferred=anybody)
    for role in (0, 1, 2, 3):
        records = requests(2)
        add_requests(series, records, owned(records), np.full(2, role))
    shown = {(row.owner, row.device, row.op, row.role): row.size_bytes.count for row in series.request_distributions()}
    assert shown == {
        (OTHER, DISK, Op.READ, ROLES[0]): 2,
        (OTHER, DISK, Op.READ, ROLES[1]): 2,
        (OTHER, DISK, Op.READ, "other"): 4,
    }


def test_an_engine_for_which_there_is_no_room_is_unknown_under_other() -> None:
    series = Series(detail=False, most_series=room(COUNTED + STREAM_SERIES), preferred=anybody)
    for engine in (Engine.LIBAIO, Engine.IO_URING, Engine.POSIX):
        read(series, 2, engine=engine)
    read(series, UNKNOWN, engine=Engine.LIBAIO)
    shown = {(row.owner, row.device, row.engine, row.path): row.requests for row in series.streams()}
    assert shown == {
        (OTHER, DISK, Engine.LIBAIO, Path.DIRECT): 1,
        (OTHER, DISK, Engine.UNKNOWN, Path.UNKNOWN): 2,
        (UNKNOWN, OTHER_DEVICE, Engine.UNKNOWN, Path.UNKNOWN): 1,
    }


def test_what_has_not_even_a_last_resort_is_shown_without_device_and_op() -> None:
    """A host with hundreds of devices: the room is what it is, and the counts are there."""
    series = Series(detail=False, most_series=1000, preferred=anybody)
    for device in range(1000):
        read(series, 2, device=device, status=10)
    assert sum(by_owner(series).values()) == sum(sizes_by_owner(series).values()) == 1000
    for rows in (series.streams(), series.request_distributions(), series.errors()):
        assert {(row.owner, row.op) for row in rows if row.device == OTHER_DEVICE} == {(OTHER, Op.OTHER)}
    assert series_shown(series) <= 1000
    assert [use.requests for use in series.device_use()] == [1] * 1000
    assert {use.in_flight_seconds for use in series.device_use()} == {110e-6}


def test_devices_that_came_and_went_leave_room_for_who_comes_later() -> None:
    """As volumes of a cluster do, for months."""
    series = Series(detail=False, most_series=4700, preferred=anybody)
    for device in range(500):
        read(series, 2 + device, device=device)
        series.forget([2 + device])
    for owner in range(1000, 1008):
        read(series, owner, device=1000)
        read(series, owner, device=1000, op=Op.WRITE)
    found = sizes_by_owner(series)
    assert {owner: found[owner] for owner in range(1000, 1008)} == dict.fromkeys(range(1000, 1008), 2)
    assert series_shown(series) <= 4700


def test_many_disks_that_the_kernel_touches_leave_room_for_frameworks() -> None:
    series = Series(detail=False, most_series=4700, preferred=lambda owner: owner >= 14)
    for device in range(36):
        for op in (Op.READ, Op.WRITE, Op.FLUSH):
            read(series, 2, device=device, op=op)
    for owner in range(14, 20):
        read(series, owner, device=0)
        read(series, owner, device=0, op=Op.WRITE)
    found = sizes_by_owner(series)
    assert {owner: found[owner] for owner in range(14, 20)} == dict.fromkeys(range(14, 20), 2)
    assert sum(found.values()) == 36 * 3 + 12


def test_more_devices_than_there_are_places_are_one_other() -> None:
    series = Series(detail=False, most_series=4700, preferred=anybody)
    for first in range(0, 5000, 500):
        records = requests(500, device=np.arange(first, first + 500))
        add_requests(series, records, owned(records, 2))
    assert by_owner(series).keys() <= {2, OTHER}
    assert sum(by_owner(series).values()) == sum(sizes_by_owner(series).values()) == 5000


# Frameworks first


def test_plain_commands_leave_the_last_quarter_to_distributions_of_frameworks() -> None:
    series = Series(detail=False, most_series=4700, preferred=lambda owner: owner >= 14)
    uses = [(device, op) for device in (DISK, DISK + 1, DISK + 2) for op in (Op.READ, Op.WRITE)]
    for owner in range(2, 14):
        for device, op in uses:
            read(series, owner, device=device, op=op)
    assert 0.75 * 4700 - 2 * ONE < series_shown(series) + PROMISED < 0.75 * 4700
    plain = sizes_by_owner(series)
    for owner in range(14, 26):
        for device, op in uses:
            read(series, owner, device=device, op=op)
    found = sizes_by_owner(series)
    assert sum(count for owner, count in found.items() if owner >= 14) > 0.2 * 4700 // ONE
    assert {owner: found[owner] for owner in plain if owner != OTHER} == {o: c for o, c in plain.items() if o != OTHER}
    assert by_owner(series) == dict.fromkeys(range(2, 26), 6)


def test_24_plain_commands_that_read_and_write_one_disk_are_all_shown() -> None:
    series = Series(detail=False, most_series=4700)
    for owner in range(2, 26):
        read(series, owner)
        read(series, owner, op=Op.WRITE)
    assert set(sizes_by_owner(series)) == set(by_owner(series)) == set(range(2, 26))


@pytest.mark.parametrize("disks", [1, 2, 4, 8])
def test_counters_of_24_workers_stay_their_own_on_up_to_8_disks(disks: int) -> None:
    """Whoever came first, and has distributions where there is room."""
    series = Series(detail=False, most_series=4700, preferred=anybody)
    for owner in range(2, 26):
        for disk in range(disks):
            read(series, owner, device=DISK + disk)
            read(series, owner, device=DISK + disk, op=Op.WRITE)
    assert by_owner(series) == dict.fromkeys(range(2, 26), 2 * disks)
    assert {row.device for row in series.request_distributions()} == set(range(DISK, DISK + disks))
    assert series_shown(series) <= 4700


# All of it at once


def labels_of(series: Series) -> Counter[Any]:
    """Each counter and bucket that is shown, by what it is and its labels; those of the same labels added up."""
    found: Counter[Any] = Counter()
    for stream in series.streams():
        labels = (stream.owner, stream.device, stream.op, stream.engine, stream.path, stream.role)
        found.update({("requests", *labels): stream.requests, ("bytes", *labels): stream.bytes})
    for row in series.request_distributions():
        where = (row.owner, row.device, row.op)
        add_buckets(found, ("size", *where, row.role), row.size_bytes)
        for stage in STAGES:
            add_buckets(found, (stage, *where), row.latency_seconds[stage])
    for error in series.errors():
        found["errors", error.owner, error.device, error.op, error.status] += error.requests
    for call in series.call_distributions():
        add_buckets(found, ("calls", call.owner, call.engine), call.submit_requests)
    return found


def add_buckets(found: Counter[Any], labels: tuple[Any, ...], distribution: Distribution) -> None:
    counts = distribution.counts
    found.update({(*labels, bucket): int(counts[bucket]) for bucket in np.flatnonzero(counts).tolist()})


def series_shown(series: Series) -> int:
    """As outputs/prometheus.py shows rows: histograms of which nothing is known are not there."""
    streams, distributions = series.streams(), series.request_distributions()
    timed = [row for row in distributions if any(row.latency_seconds[stage].count for stage in STAGES)]
    return (
        STREAM_SERIES * len({(row.owner, row.device, row.op, row.engine, row.path, row.role) for row in streams})
        + WORKER_SERIES * len({row.owner for row in streams} - {OTHER, UNKNOWN})
        + SIZE_SERIES * len({(d.owner, d.device, d.op, d.role) for d in distributions if d.size_bytes.count})
        + LATENCY_SERIES * len({(row.owner, row.device, row.op) for row in timed})
        + ERROR_SERIES * len({(row.owner, row.device, row.op, row.status) for row in series.errors()})
        + CALL_SERIES * len({(row.owner, row.engine) for row in series.call_distributions()})
    )


def by_name(values: dict[Any, int]) -> Counter[str]:
    found: Counter[str] = Counter()
    for (name, *_), value in values.items():
        found[name] += value
    return found


@pytest.mark.parametrize("most_series", [700, 1500, 4700])
@pytest.mark.parametrize("seed", range(2))
def test_while_owners_come_and_go_nothing_is_lost_and_no_counter_falls(seed: int, most_series: int) -> None:
    random = np.random.default_rng(seed)
    limited = Series(detail=False, most_series=most_series, preferred=lambda owner: owner % 3 == 0)
    unlimited = Series(detail=False)
    alive, new = [OTHER, UNKNOWN, *range(2, 12)], itertools.count(12)
    gone: Counter[str] = Counter()
    before: dict[Any, int] = {}
    for turn in range(30):
        records = requests(
            40, device=DISK + random.integers(0, 1 + turn // 5, 40), bytes=random.integers(1, 1 << 20, 40),
            op=random.choice([Op.READ, Op.WRITE, Op.FLUSH], 40), engine=random.integers(0, len(Engine), 40),
            path=random.integers(0, len(Path), 40), status=random.choice([0] * 7 + [10], 40),
            flags=np.where(random.random(40) < 0.1, RequestFlag.PART, 0), done_ns=random.integers(2 << 20, 1 << 30, 40),
        )  # fmt: skip
        owners, roles = random.choice(alive, 40).astype(np.int32), random.integers(0, len(ROLES), 40)
        asked = calls(3, engine=random.choice([Engine.LIBAIO, Engine.IO_URING], 3))
        for series in (limited, unlimited):
            add_requests(series, records, owners, roles)
            series.add_calls(asked, owners[:3])
        now = labels_of(limited)
        assert series_shown(limited) <= most_series
        assert by_name(now) + gone == by_name(labels_of(unlimited))
        assert not [labels for labels, value in before.items() if value > now[labels]]
        ended = [owner for owner in alive if owner > OTHER and random.random() < 0.1]
        gone += by_name({labels: value for labels, value in now.items() if labels[1] in ended})
        limited.forget(ended)
        before = {labels: value for labels, value in now.items() if labels[1] not in ended}
        alive = [owner for owner in alive if owner not in ended] + [next(new) for _ in ended]
    assert limited.folded > 0
    assert repr(limited.device_use()) == repr(unlimited.device_use())
    assert limited.device_busy_seconds() == unlimited.device_busy_seconds()


# The room by itself


@pytest.fixture
def limit() -> SeriesLimit:
    return SeriesLimit(1000, lambda owner: owner == 2)


def test_series_that_several_rows_need_are_counted_once(limit: SeriesLimit) -> None:
    assert limit.admit("counters", [("a", 4)], 2)
    assert limit.admit("counters", [("a", 4), ("b", 6)], 2)
    assert limit.used == 10
    limit.release("counters", [("a", 4), ("b", 6)])
    assert limit.used == 4
    limit.release("counters", [("a", 4)])
    assert limit.used == 0


def test_what_is_needed_already_needs_no_room(limit: SeriesLimit) -> None:
    assert limit.admit("counters", [("a", 1000)], None)
    assert not limit.admit("counters", [("b", 1)], None)
    assert limit.admit("counters", [("a", 1000)], 3)


def test_room_is_promised_to_counters_and_kept_for_last_resorts(limit: SeriesLimit) -> None:
    limit.keep([("other", 40)])
    limit.promise(100)
    late = int(1000 * LATE_SHARE)
    assert not limit.admit("distributions", [("plain", 750 - 100 + 1)], 3)
    assert limit.admit("distributions", [("plain", 750 - 100)], 3)
    assert not limit.admit("distributions", [("framework", 210 - late + 1)], 2)
    assert limit.admit("distributions", [("framework", 210 - late)], 2)
    assert limit.admit("counters", [("promised", 100)], 3)
    assert not limit.admit("counters", [("more", 1)], 2)
    assert not limit.admit("distributions", [("late", 1)], None)
    assert limit.admit("counters", [("late", late)], None)
    assert limit.used == 1000 - 40


def test_no_more_than_a_quarter_is_promised(limit: SeriesLimit) -> None:
    for _ in range(10):
        limit.promise(100)
    assert limit.admit("distributions", [("framework", 750 - int(1000 * LATE_SHARE))], 2)
