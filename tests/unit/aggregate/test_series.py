"""Series add up: what came in as records comes out as rows, exactly, however it was batched."""

from __future__ import annotations

import time
from collections import defaultdict
from typing import Any

import numpy as np
import pytest

from llmio_probe.aggregate.buckets import SIZE_EDGES
from llmio_probe.aggregate.rows import (
    STAGES,
    AttributedBytes,
    DeviceUse,
    ErrorCount,
    FileUse,
    Percentiles,
    Submission,
)
from llmio_probe.aggregate.series import Series
from llmio_probe.aggregate.table import Rows
from llmio_probe.identity.roles import FIRST_UNDECIDED, OTHER_ROLE, ROLES
from llmio_probe.kernel.records import CALL, REQUEST, Engine, Op, OwnerKind, Path, Records, RequestFlag
from tests.singly import add_requests
from tests.unit.aggregate.conftest import DISK, US, CallFlag, Count, calls, owned, parts, requests

MIB = 1 << 20


def about(seconds: float) -> Any:
    """Times are sums of fractions."""
    return pytest.approx(seconds)


def only(rows: list[Any]) -> Any:
    (row,) = rows
    return row


def everything(series: Series) -> dict[str, Any]:
    """All rows in an order of their own and as plain values, arrays included."""
    rows: dict[str, list[Any]] = {
        "streams": [(s.owner, s.device, s.op, s.engine, s.path, s.role, s) for s in series.streams()],
        "distributions": [
            (d.owner, d.device, d.op, d.role, plain(d.size_bytes), *(plain(d.latency_seconds[s]) for s in STAGES))
            for d in series.request_distributions()
        ],
        "errors": [(e.owner, e.device, e.op, e.status, e.requests) for e in series.errors()],
        "submissions": [(s.owner, s.engine, s.op is None, s.op, submission(s)) for s in series.submissions()],
        "calls": [
            (c.owner, c.engine, plain(c.submit_requests), plain(c.submit_seconds), plain(c.wait_seconds))
            for c in series.call_distributions()
        ],
        "use": [(u.device, u.op, u) for u in series.device_use()],
        "attributed": [(a.device, a.owner_kind, a.file_known, a) for a in series.attributed_bytes()],
        "files": [(f.owner, f.device, f.file, f) for f in series.file_use()],
    }
    keys = {"streams": 6, "distributions": 4, "errors": 4, "submissions": 4, "calls": 2, "use": 2}
    keys |= {"attributed": 3, "files": 3}
    ordered: dict[str, Any] = {name: sorted(rows[name], key=lambda row: row[:n]) for name, n in keys.items()}
    return ordered | {"busy": series.device_busy_seconds()}


def every_field(table: Rows) -> dict[int, Any]:
    """By key, as plain values."""
    rows = zip(*(table[name].tolist() for name in table._fields), strict=True)
    return dict(zip(table.keys.tolist(), rows, strict=True))


def plain(distribution: Any) -> tuple[list[int], Any]:
    return distribution.counts.tolist(), pytest.approx(distribution.sum)


def submission(row: Submission) -> Any:
    """Shares of a call's time are fractions: their sum depends on the order, in the last digit."""
    return (
        row.calls, row.requests, row.bytes, pytest.approx(row.submit_seconds), pytest.approx(row.wait_seconds)
    )  # fmt: skip


# Requests


def test_nothing_gives_no_rows(series: Series) -> None:
    add_requests(series, np.empty(0, REQUEST), np.empty(0, np.int32))
    series.add_calls(np.empty(0, CALL), np.empty(0, np.int32))
    series.forget([2])
    assert not any(everything(series).values())


def test_a_stream_says_who_where_and_how(series: Series, count: Count) -> None:
    count(owner=7, count=3, bytes=131072, op=Op.WRITE, engine=Engine.POSIX, path=Path.WRITEBACK)
    row = only(series.streams())
    assert (row.owner, row.device, row.op, row.engine, row.path) == (7, DISK, Op.WRITE, Engine.POSIX, Path.WRITEBACK)
    assert (row.role, row.requests, row.bytes, row.exact) == ("other", 3, 3 * 131072, True)
    assert (row.errors, row.requeues) == (0, 0)


@pytest.mark.parametrize(
    "different",
    [
        {"owner": 3},
        {"device": 8 << 20},
        {"op": Op.WRITE},
        {"engine": Engine.MMAP},
        {"path": Path.PAGE_CACHE},
    ],
)
def test_what_differs_in_one_thing_is_another_stream(series: Series, count: Count, different: dict[str, int]) -> None:
    count()
    count(count=2, **different)
    assert sorted(row.requests for row in series.streams()) == [1, 2]


def test_each_role_is_a_stream_of_its_own(series: Series) -> None:
    records = requests(len(ROLES))
    add_requests(series, records, np.full(len(records), 2, np.int32), np.arange(len(ROLES)))
    assert sorted(row.role for row in series.streams()) == sorted(ROLES)
    assert sorted(row.role for row in series.request_distributions()) == sorted(ROLES)


def test_the_largest_ids_do_not_run_into_each_other(series: Series, count: Count) -> None:
    biggest = {"op": max(Op), "engine": max(Engine), "path": max(Path), "device": (1 << 32) - 1}
    count(owner=(1 << 31) - 1, status=255, bytes=(1 << 32) - 1, **biggest)
    row = only(series.streams())
    assert (row.owner, row.device, row.op, row.engine, row.path) == (
        (1 << 31) - 1,
        (1 << 32) - 1,
        *list(biggest.values())[:3],
    )
    assert row.size_bytes == Percentiles(*[(1 << 32) - 1] * 5)
    assert only(series.errors()) == ErrorCount((1 << 31) - 1, (1 << 32) - 1, max(Op), 255, 1)


def test_size_percentiles_are_exact(series: Series, count: Count) -> None:
    sizes = np.random.default_rng(1).integers(1, MIB, 1000)
    count(count=1000, bytes=sizes)
    count(owner=3, bytes=512)
    ordered = np.sort(sizes)
    (first, second) = sorted(series.streams(), key=lambda row: row.owner)
    assert first.size_bytes == Percentiles(ordered[499], ordered[899], ordered[989], ordered[-1], sizes.sum())
    assert second.size_bytes == Percentiles(512, 512, 512, 512, sum=512)


def test_latencies_are_of_three_stages(series: Series, count: Count) -> None:
    count(made_ns=1000 * US, issued_ns=1004 * US, done_ns=1104 * US)
    latency = only(series.streams()).latency_seconds
    assert {stage: latency[stage].max for stage in STAGES} == {"queue": 4e-6, "device": 100e-6, "total": 104e-6}
    assert {stage: latency[stage].sum for stage in STAGES} == {"queue": 4e-6, "device": 100e-6, "total": 104e-6}
    sums = {stage: d.sum for stage, d in only(series.request_distributions()).latency_seconds.items()}
    assert sums == pytest.approx({"queue": 4e-6, "device": 100e-6, "total": 104e-6})


@pytest.mark.parametrize(
    ("unknown", "stages"),
    [
        ({"made_ns": 0}, {"device"}),
        ({"issued_ns": 0}, {"total"}),
        ({"made_ns": 0, "issued_ns": 0}, set()),
        ({"made_ns": 0, "issued_ns": 0, "done_ns": 0}, set()),
    ],
)
def test_an_unknown_time_gives_no_latency(
    series: Series, count: Count, unknown: dict[str, int], stages: set[str]
) -> None:
    count(**unknown)
    row = only(series.streams())
    assert (row.requests, row.bytes) == (1, 4096)
    assert {stage for stage in STAGES if row.latency_seconds[stage] is not None} == stages
    distributions = only(series.request_distributions()).latency_seconds
    assert {stage for stage in STAGES if distributions[stage].count} == stages


def test_among_known_times_an_unknown_one_is_left_out(series: Series, count: Count) -> None:
    count(count=3, issued_ns=[1010 * US, 0, 1010 * US])
    counts = {stage: d.count for stage, d in only(series.request_distributions()).latency_seconds.items()}
    assert counts == {"queue": 2, "device": 2, "total": 3}


def test_an_expired_request_counts_with_its_bytes_and_its_queue_time_but_no_other(series: Series, count: Count) -> None:
    count(done_ns=0, flags=RequestFlag.EXPIRED)
    row = only(series.streams())
    assert (row.requests, row.bytes) == (1, 4096)
    assert {stage for stage in STAGES if row.latency_seconds[stage] is not None} == {"queue"}
    use = only(series.device_use())
    assert (use.requests, use.bytes, use.busy_seconds, use.in_flight_seconds) == (1, 4096, 0, 0)
    assert series.device_busy_seconds() == {}


def test_times_that_run_backwards_between_two_cpus_are_no_time(series: Series, count: Count) -> None:
    count(made_ns=2000 * US, issued_ns=1999 * US, done_ns=1998 * US)
    assert {d.sum for d in only(series.request_distributions()).latency_seconds.values()} == {0}
    assert only(series.device_use()).in_flight_seconds == 0


def test_errors_are_counted_by_stream_and_by_status(series: Series, count: Count) -> None:
    count(count=5, status=[0, 10, 10, 0, 3])
    count(owner=3, op=Op.WRITE, status=1)
    assert {row.owner: row.errors for row in series.streams()} == {2: 3, 3: 1}
    assert sorted(series.errors(), key=lambda row: (row.owner, row.status)) == [
        ErrorCount(2, DISK, Op.READ, 3, 1),
        ErrorCount(2, DISK, Op.READ, 10, 2),
        ErrorCount(3, DISK, Op.WRITE, 1, 1),
    ]


def test_requeues_are_summed_by_stream_and_by_device(series: Series, count: Count) -> None:
    count(count=3, requeues=[0, 2, 65535])
    count(owner=3)
    assert {row.owner: row.requeues for row in series.streams()} == {2: 65537, 3: 0}
    assert only(series.device_use()).requeues == 65537


@pytest.mark.parametrize("op", list(Op))
def test_only_reads_writes_and_passthrough_move_data_but_each_has_a_size(series: Series, count: Count, op: Op) -> None:
    count(op=op, bytes=MIB)
    row, use = only(series.streams()), only(series.device_use())
    moved = MIB if op in (Op.READ, Op.WRITE, Op.PASSTHROUGH) else 0
    assert (row.bytes, use.bytes) == (moved, moved)
    assert row.size_bytes.max == MIB
    sizes = only(series.request_distributions()).size_bytes
    assert (sizes.sum, int(sizes.counts[SIZE_EDGES.index(MIB)])) == (MIB, 1)


def test_distributions_join_the_engines_and_paths_of_a_worker(series: Series, count: Count) -> None:
    count(engine=Engine.LIBAIO, bytes=512)
    count(engine=Engine.MMAP, path=Path.PAGE_CACHE, bytes=1024)
    count(owner=3)
    found = {row.owner: (row.size_bytes.count, row.size_bytes.sum) for row in series.request_distributions()}
    assert found == {2: (2, 1536), 3: (1, 4096)}


def test_without_detail_percentiles_are_unknown_and_totals_the_same(series: Series, count: Count) -> None:
    plain_series = Series(detail=False)
    records = requests(10, bytes=np.arange(10) * 512 + 512, status=[1] + [0] * 9)
    add_requests(plain_series, records, np.full(10, 2, np.int32))
    count(count=10, bytes=records["bytes"], status=records["status"])
    detailed, row = only(series.streams()), only(plain_series.streams())
    assert (row.requests, row.bytes, row.errors) == (detailed.requests, detailed.bytes, detailed.errors)
    assert (row.size_bytes, row.latency_seconds) == (None, dict.fromkeys(STAGES))
    assert everything(plain_series)["distributions"] == everything(series)["distributions"]


# Devices


def test_device_use_knows_no_owner_and_its_times_are_a_union_and_a_sum(series: Series, count: Count) -> None:
    count(made_ns=1000, issued_ns=2000, done_ns=5000)
    count(owner=3, made_ns=2000, issued_ns=4000, done_ns=9000)
    count(op=Op.WRITE, made_ns=8000, issued_ns=8000, done_ns=10000)
    use = {row.op: row for row in series.device_use()}
    assert use[Op.READ] == DeviceUse(DISK, Op.READ, 2, 8192, 0, busy_seconds=7e-6, in_flight_seconds=11e-6)
    assert use[Op.WRITE].busy_seconds == 2e-6
    assert series.device_busy_seconds() == {DISK: 8e-6}


def test_two_devices_have_busy_times_of_their_own(series: Series, count: Count) -> None:
    count(count=2, device=[DISK, 8 << 20], issued_ns=[1000, 3000], done_ns=[2000, 8000])
    assert series.device_busy_seconds() == {DISK: 1e-6, 8 << 20: 5e-6}


# Calls


def test_a_libaio_submission_says_what_was_asked_and_how_long_it_took(series: Series, count_calls: Count) -> None:
    count_calls(count=2)
    assert only(series.submissions()) == Submission(2, Engine.LIBAIO, Op.READ, 2, 64, 64 * 4096, about(100e-6), None)
    row = only(series.call_distributions())
    assert (row.submit_requests.count, row.submit_requests.sum) == (2, 64)
    assert (row.submit_seconds.count, row.submit_seconds.sum) == (2, about(100e-6))
    assert row.wait_seconds.count == 0


def test_a_wait_is_a_row_without_an_op(series: Series, count_calls: Count) -> None:
    count_calls(flags=CallFlag.WAIT, submitted_ns=0, end_ns=1250 * US, requests=0, reads=0, read_bytes=0, reaped=12)
    assert only(series.submissions()) == Submission(2, Engine.LIBAIO, None, 1, 12, None, None, about(250e-6))
    row = only(series.call_distributions())
    assert (row.submit_requests.count, row.submit_seconds.count, row.wait_seconds.count) == (0, 0, 1)


def test_an_io_uring_call_that_submits_and_waits_is_cut_where_waiting_began(series: Series, count_calls: Count) -> None:
    count_calls(engine=Engine.IO_URING, flags=CallFlag.SUBMIT | CallFlag.WAIT, end_ns=1250 * US)
    read, wait = sorted(series.submissions(), key=lambda row: row.op is None)
    assert (read.op, read.calls, read.submit_seconds, read.wait_seconds) == (Op.READ, 1, about(50e-6), None)
    assert (wait.op, wait.calls, wait.submit_seconds, wait.wait_seconds) == (None, 1, None, about(200e-6))
    row = only(series.call_distributions())
    assert (row.submit_seconds.sum, row.wait_seconds.sum) == (about(50e-6), about(200e-6))


def test_a_wait_of_an_io_uring_call_that_submitted_nothing_is_all_of_it(series: Series, count_calls: Count) -> None:
    nothing = {"requests": 0, "reads": 0, "read_bytes": 0, "submitted_ns": 0}
    count_calls(engine=Engine.IO_URING, flags=CallFlag.SUBMIT | CallFlag.WAIT, end_ns=1250 * US, **nothing)
    row = only(series.submissions())
    assert (row.op, row.wait_seconds) == (None, about(250e-6))


def test_requests_that_the_kernel_polled_for_are_no_calls_and_took_no_time(series: Series, count_calls: Count) -> None:
    polled = {"flags": CallFlag.POLLED, "start_ns": 0, "requests": 1, "reads": 1, "read_bytes": 4096}
    count_calls(count=3, engine=Engine.IO_URING, **polled)
    assert only(series.submissions()) == Submission(2, Engine.IO_URING, Op.READ, 0, 3, 3 * 4096, None, None)
    assert only(series.call_distributions()).submit_requests.count == 0


def test_a_call_that_is_read_amid_its_addition_is_whole_at_the_next_look(series: Series) -> None:
    """Whatever was there at the first look."""
    whole = calls(engine=Engine.IO_URING, flags=CallFlag.SUBMIT | CallFlag.WAIT | CallFlag.BYTES_PART, end_ns=1250 * US)
    expected = Series(detail=True)
    expected.add_calls(whole, owned(whole))
    early, late = np.zeros_like(whole), whole.copy()
    early["engine"] = whole["engine"]
    for name in ("submit_ns", "read_bytes", "reaped", "wait_ns", "parts"):
        early[name], late[name] = whole[name], 0
    series.add_calls(early, owned(early))
    series.add_calls(late, owned(late))
    assert repr(series.submissions()) == repr(expected.submissions())
    assert repr(series.call_distributions()) == repr(expected.call_distributions())


def test_bytes_of_which_a_part_could_not_be_read_are_unknown(series: Series, count_calls: Count) -> None:
    count_calls()
    count_calls(flags=CallFlag.SUBMIT | CallFlag.BYTES_PART)
    count_calls(owner=3)
    assert {row.owner: row.bytes for row in series.submissions()} == {2: None, 3: 32 * 4096}


def test_a_call_with_reads_writes_and_others_shares_its_time_out_by_their_number(
    series: Series, count_calls: Count
) -> None:
    count_calls(requests=10, reads=5, writes=4, read_bytes=5 * 512, write_bytes=4 * 1024)
    rows = {row.op: row for row in series.submissions()}
    assert {op: (row.calls, row.requests, row.bytes) for op, row in rows.items()} == {
        Op.READ: (1, 5, 2560),
        Op.WRITE: (1, 4, 4096),
        Op.OTHER: (1, 1, None),
    }
    assert [rows[op].submit_seconds for op in (Op.READ, Op.WRITE, Op.OTHER)] == pytest.approx([25e-6, 20e-6, 5e-6])
    assert only(series.call_distributions()).submit_seconds.sum == about(50e-6)


def test_a_call_that_handed_over_nothing_took_its_time_too(series: Series, count_calls: Count) -> None:
    count_calls(requests=0, reads=0, read_bytes=0)
    row = only(series.submissions())
    assert (row.op, row.calls, row.requests, row.submit_seconds) == (Op.OTHER, 1, 0, about(50e-6))


# Forgetting


def test_forgetting_an_owner_takes_its_rows_and_nothing_else(series: Series, count: Count, count_calls: Count) -> None:
    for owner in (2, 3, 4):
        records = requests(20, bytes=np.arange(20) * owner * 512 + 512, status=owner)
        add_requests(series, records, owned(records, owner), files=np.arange(20, dtype=np.int32))
        count(owner=owner, op=Op.WRITE)
        count_calls(owner=owner)
    before, use = everything(series), series.device_use()
    series.forget([3, 99])
    after = everything(series)
    for name in ("streams", "distributions", "errors", "submissions", "calls", "files"):
        assert after[name] == [row for row in before[name] if row[0] != 3]
        assert len(after[name]) < len(before[name])
    assert series.device_use() == use
    assert after["busy"] == before["busy"]
    assert after["attributed"] == before["attributed"]


def test_an_owner_that_was_forgotten_begins_anew_and_the_others_go_on(series: Series, count: Count) -> None:
    count(owner=2, bytes=1024)
    count(owner=3, bytes=2048)
    series.forget([2])
    count(owner=2, bytes=512)
    count(owner=3, bytes=4096)
    found = {row.owner: (row.requests, row.bytes, row.size_bytes) for row in series.streams()}
    assert found[2] == (1, 512, Percentiles(512, 512, 512, 512, sum=512))
    assert found[3] == (2, 6144, Percentiles(2048, 4096, 4096, 4096, sum=6144))


def test_files_of_an_owner_that_was_forgotten_begin_anew_and_those_of_others_go_on(series: Series) -> None:
    files = np.array([5, 6], np.int32)
    for _ in range(2):
        for owner in (2, 3):
            records = requests(2)
            add_requests(series, records, owned(records, owner), files=files)
        series.forget([2])
    found = {(row.owner, row.file): row.read_bytes for row in series.file_use()}
    assert found == {(3, 5): 8192, (3, 6): 8192}


def test_all_owners_can_be_forgotten(series: Series, count: Count) -> None:
    count()
    add_requests(series, requests(), owned(requests()), files=np.array([1], np.int32))
    series.forget([2])
    assert (series.streams(), series.file_use()) == ([], [])
    count(bytes=512)
    assert only(series.streams()).bytes == 512


# Batches


def random_requests(random: np.random.Generator, count: int) -> Records:
    """Requests and parts."""
    made = np.sort(random.integers(1, 10**9, count))
    issued = made + random.integers(0, 10**5, count)
    done = issued + random.integers(0, 10**7, count)
    known = random.random((2, count)) > 0.05
    part = random.random(count) < 0.2
    size = random.integers(0, 256, count) * 512
    flags = random.choice([0, RequestFlag.SYNC, RequestFlag.SHARED], count)
    return requests(
        count,
        made_ns=np.where(known[0] & ~part, made, 0),
        issued_ns=np.where(known[1] & ~part, issued, 0),
        done_ns=np.where((random.random(count) > 0.01) & ~part, done, 0),
        bytes=size,
        request_bytes=np.where(part, 0, size + random.integers(0, 2, count) * 4096),
        device=random.choice([DISK, 8 << 20, 7 << 20], count),
        op=random.choice([*Op], count),
        engine=random.choice([*Engine], count),
        path=random.choice([*Path], count),
        owner=random.choice([*OwnerKind], count),
        inode=random.integers(0, 2, count),
        status=np.where(part, 0, random.choice([0, 0, 0, 0, 1, 10], count)),
        requeues=np.where(part, 0, random.integers(0, 3, count)),
        flags=np.where(part, flags | RequestFlag.PART, flags),
    )


def random_calls(random: np.random.Generator, count: int) -> Records:
    start = np.sort(random.integers(1, 10**9, count))
    submitted = start + random.integers(1, 10**5, count)
    reads, writes = random.integers(0, 5, (2, count))
    return calls(
        count,
        start_ns=start,
        submitted_ns=submitted,
        end_ns=submitted + random.integers(0, 10**6, count),
        reads=reads,
        writes=writes,
        requests=reads + writes + random.integers(0, 2, count),
        read_bytes=reads * 4096,
        write_bytes=writes * 512,
        engine=random.choice([Engine.LIBAIO, Engine.IO_URING], count),
        flags=random.integers(0, 16, count),
    )


@pytest.mark.parametrize("detail", [True, False])
@pytest.mark.parametrize("seed", range(5))
def test_batches_give_the_same_rows_as_one_large_batch(seed: int, detail: bool) -> None:
    random = np.random.default_rng(seed)
    records, called = random_requests(random, 1000), random_calls(random, 1000)
    owners, roles = random.integers(0, 6, 1000).astype(np.int32), random.integers(0, len(ROLES), 1000)
    files = random.integers(0, 50, 1000).astype(np.int32)
    whole, split = Series(detail=detail), Series(detail=detail)
    add_requests(whole, records, owners, roles, files)
    whole.add_calls(called, owners)
    cuts = np.sort(random.integers(0, 1000, random.integers(1, 60)))
    for batch in np.split(np.arange(1000), cuts):
        add_requests(split, records[batch], owners[batch], roles[batch], files[batch])
        split.add_calls(called[batch], owners[batch])
    assert everything(split) == everything(whole)


@pytest.mark.parametrize("detail", [True, False])
@pytest.mark.parametrize("unknown", [0, 7], ids=["all times known", "some times unknown"])
def test_records_of_one_owner_in_a_row_give_the_same_as_one_at_a_time(detail: bool, unknown: int) -> None:
    random = np.random.default_rng(unknown)
    records = random_requests(random, 3000)
    for name in ("made_ns", "issued_ns", "done_ns"):
        records[name] = random.integers(1, 10**12, 3000)
        records[name][random.integers(0, 3000, unknown)] = 0
    owners = np.sort(random.integers(0, 3, 3000).astype(np.int32))
    order = np.lexsort((records["op"], records["device"], owners))
    together, single = Series(detail=detail), Series(detail=detail)
    add_requests(together, records[order], owners[order])
    for place in order.tolist():
        add_requests(single, records[[place]], owners[[place]])
    assert everything(together) == everything(single)


def test_a_batch_that_is_worked_on_in_pieces_is_counted_whole(series: Series) -> None:
    records = requests(100_000, bytes=512)
    add_requests(series, records, owned(records), files=np.arange(100_000, dtype=np.int32) % 7 + 1)
    assert (only(series.streams()).requests, only(series.device_use()).requests) == (100_000, 100_000)
    assert sum(row.requests for row in series.file_use()) == 100_000


def test_totals_are_those_of_a_loop_over_the_records(series: Series) -> None:
    random = np.random.default_rng(9)
    records = random_requests(random, 5000)
    owners, files = random.integers(0, 6, 5000).astype(np.int32), random.integers(0, 40, 5000).astype(np.int32)
    add_requests(series, records, owners, files=files)
    expected: dict[Any, list[int]] = defaultdict(lambda: [0, 0, 0, 0])
    expected_files: dict[Any, list[int]] = defaultdict(lambda: [0, 0, 0, 0])
    expected_bytes: dict[Any, list[int]] = defaultdict(lambda: [0, 0])
    for record, owner, file in zip(records, owners, files, strict=True):
        op, size = record["op"], int(record["bytes"])
        whole, shared = not record["flags"] & RequestFlag.PART, bool(record["flags"] & RequestFlag.SHARED)
        where = (owner, *(record[name] for name in ("device", "op", "engine", "path")))
        row = expected[where]
        row[0] += whole
        row[1] += size if op in (Op.READ, Op.WRITE, Op.PASSTHROUGH) else 0
        row[2] += int(record["status"] != 0)
        row[3] += int(record["requeues"])
        row = expected_files[file, owner, record["device"]]
        row[0] += size if op == Op.READ else 0
        row[1] += size if op == Op.WRITE else 0
        row[2] += whole
        row[3] |= shared
        row = expected_bytes[record["device"], record["owner"], record["inode"] != 0]
        row[0] += size if op in (Op.READ, Op.WRITE) else 0
        row[1] += size if op in (Op.READ, Op.WRITE) and shared else 0
    assert expected == {
        (s.owner, s.device, s.op, s.engine, s.path): [s.requests, s.bytes, s.errors, s.requeues]
        for s in series.streams()
    }
    assert {key: row for key, row in expected_files.items() if key[0]} == {
        (f.file, f.owner, f.device): [f.read_bytes, f.write_bytes, f.requests, f.shared] for f in series.file_use()
    }
    assert expected_bytes == {
        (a.device, a.owner_kind, a.file_known): [a.bytes, a.shared_bytes] for a in series.attributed_bytes()
    }


# Whose bytes


def test_what_was_attributed_stays_when_its_owner_is_forgotten(series: Series) -> None:
    """The sum over all workers is a counter of its own: it must never fall."""
    records = requests(3, op=[Op.READ, Op.WRITE, Op.DISCARD], owner=OwnerKind.PROCESS)
    add_requests(series, records, owned(records, 5))
    series.forget([5])
    assert series.streams() == []
    assert series.attributed_bytes() == [AttributedBytes(DISK, OwnerKind.PROCESS, False, 8192, 0)]


def test_bytes_are_told_apart_by_owner_by_file_known_and_by_sharing(series: Series) -> None:
    records = requests(
        6,
        op=Op.WRITE,
        bytes=[1, 2, 4, 8, 16, 32],
        owner=[OwnerKind.UNKNOWN, OwnerKind.PROCESS, OwnerKind.PROCESS, OwnerKind.PROCESS, OwnerKind.KERNEL, 1],
        inode=[7, 7, 0, 1 << 63, 0, 7],
        device=[DISK] * 5 + [7 << 20],
        flags=[RequestFlag.SHARED, RequestFlag.SHARED | RequestFlag.PART, 0, RequestFlag.SYNC, 0, 0],
    )
    add_requests(series, records, owned(records))
    assert series.attributed_bytes() == [
        AttributedBytes(7 << 20, OwnerKind.PROCESS, True, 32, 0),
        AttributedBytes(DISK, OwnerKind.UNKNOWN, True, 1, 1),
        AttributedBytes(DISK, OwnerKind.PROCESS, False, 4, 0),
        AttributedBytes(DISK, OwnerKind.PROCESS, True, 10, 2),
        AttributedBytes(DISK, OwnerKind.KERNEL, False, 16, 0),
    ]


# Parts


def test_a_part_is_bytes_of_its_owner_and_nothing_else(series: Series) -> None:
    """A write of 128 KiB by owner 2, 28 KiB of which are owner 3's."""
    whole = requests(op=Op.WRITE, engine=Engine.POSIX, path=Path.WRITEBACK, bytes=102400, request_bytes=131072)
    records = np.concatenate([parts(bytes=28672), whole])
    add_requests(series, records, np.array([3, 2], np.int32))
    own, part = sorted(series.streams(), key=lambda row: row.owner)
    assert (own.requests, own.bytes, own.size_bytes) == (1, 102400, Percentiles(*[131072] * 5))
    assert (part.requests, part.bytes, part.errors, part.requeues) == (0, 28672, 0, 0)
    assert (part.size_bytes, part.latency_seconds, part.exact) == (None, dict.fromkeys(STAGES), True)
    use = only(series.device_use())
    assert (use.requests, use.bytes) == (1, 131072)
    assert sum(row.bytes for row in series.attributed_bytes()) == 131072
    sizes = {row.owner: (row.size_bytes.count, row.size_bytes.sum) for row in series.request_distributions()}
    assert sizes == {2: (1, 131072), 3: (0, 0)}


@pytest.mark.parametrize("detail", [True, False])
def test_a_batch_of_parts_only_has_bytes_and_no_requests(detail: bool) -> None:
    series = Series(detail=detail)
    for _ in range(2):
        add_requests(series, parts(2), owned(parts(2)), files=np.array([1, 0], np.int32))
    row = only(series.streams())
    assert (row.requests, row.bytes, row.size_bytes, row.latency_seconds) == (0, 16384, None, dict.fromkeys(STAGES))
    assert (series.device_use(), series.device_busy_seconds()) == ([], {})
    assert series.file_use() == ([FileUse(1, 2, DISK, 0, 8192, 0, False)] if detail else [])


def test_only_the_data_of_a_request_counts_as_bytes_and_its_size_whole(series: Series, count: Count) -> None:
    count(op=Op.DISCARD, bytes=MIB, request_bytes=MIB)
    count(op=Op.PASSTHROUGH, bytes=512, request_bytes=4096)
    assert {row.op: (row.bytes, row.size_bytes.max) for row in series.streams() if row.size_bytes} == {
        Op.DISCARD: (0, MIB),
        Op.PASSTHROUGH: (512, 4096),
    }


# Files


def test_a_file_says_what_each_of_its_owners_did_with_it_on_each_device(series: Series) -> None:
    records = requests(
        6,
        op=[Op.READ, Op.WRITE, Op.READ, Op.READ, Op.READ, Op.DISCARD],
        bytes=[1, 2, 4, 8, 16, 32],
        device=[DISK] * 3 + [7 << 20] + [DISK] * 2,
    )
    owners, files = np.array([2, 2, 3, 2, 2, 2], np.int32), np.array([9, 9, 9, 9, 4, 9], np.int32)
    for _ in range(2):
        add_requests(series, records, owners, files=files)
    assert sorted(series.file_use(), key=lambda row: (row.file, row.owner, row.device)) == [
        FileUse(4, 2, DISK, 32, 0, 2, False),
        FileUse(9, 2, 7 << 20, 16, 0, 2, False),
        FileUse(9, 2, DISK, 2, 4, 6, False),
        FileUse(9, 3, DISK, 8, 0, 2, False),
    ]


def test_a_file_written_by_several_is_marked_where_it_was_and_stays_so(series: Series) -> None:
    shared = np.concatenate([requests(op=Op.WRITE, flags=RequestFlag.SHARED), parts(2)])
    shared["flags"][2] |= RequestFlag.SHARED
    for records in (shared, requests(3)):
        add_requests(series, records, owned(records), files=np.array([1, 2, 3], np.int32))
    assert {row.file: row.shared for row in series.file_use()} == {1: True, 2: False, 3: True}


def test_the_unknown_file_is_no_row(series: Series) -> None:
    records = requests(2)
    add_requests(series, records, owned(records), files=np.array([0, 1], np.int32))
    assert only(series.file_use()).file == 1
    assert only(series.streams()).bytes == 8192


def test_without_detail_there_are_no_files() -> None:
    series = Series(detail=False)
    add_requests(series, requests(), owned(requests()), files=np.array([1], np.int32))
    assert series.file_use() == []


def test_many_files_cost_a_batch_little(series: Series) -> None:
    """No search and no loop over files: 100,000 of them take no multiple of what one takes."""
    random = np.random.default_rng(1)
    records = requests(20_000)
    files = {count: random.integers(1, count + 1, 20_000).astype(np.int32) for count in (1, 100_000)}
    took = {}
    for count, each in files.items():
        add_requests(series, records, owned(records), files=each)
        times = []
        for _ in range(5):
            start = time.perf_counter()
            add_requests(series, records, owned(records), files=each)
            times.append(time.perf_counter() - start)
        took[count] = min(times)
    # They are even; a loop over the records would take 50 ms.
    assert took[100_000] < 3 * took[1] + 0.01


# Undecided roles


def test_an_undecided_role_is_other_until_it_is_settled(series: Series) -> None:
    records = requests(3, bytes=[512, 1024, 2048])
    add_requests(series, records, owned(records), np.array([FIRST_UNDECIDED, OTHER_ROLE, FIRST_UNDECIDED + 1000]))
    row = only(series.streams())
    assert (row.role, row.requests, row.bytes, row.size_bytes) == (
        "other",
        3,
        3584,
        Percentiles(1024, 2048, 2048, 2048, sum=3584),
    )
    assert only(series.request_distributions()).role == "other"
    series.settle_roles({FIRST_UNDECIDED: ROLES.index("weights")})
    assert {row.role: row.bytes for row in series.streams()} == {"weights": 512, "other": 3072}


@pytest.mark.parametrize("detail", [True, False])
@pytest.mark.parametrize("seed", range(5))
def test_settled_roles_give_what_counting_under_them_would_have_given(seed: int, detail: bool) -> None:
    random = np.random.default_rng(seed)
    undecided = FIRST_UNDECIDED + np.array([0, 1, 2, 500, 999, 1000])
    final = {int(role): int(random.integers(0, len(ROLES))) for role in undecided}
    known, now = Series(detail=detail), Series(detail=detail)
    for _ in range(4):
        records, owners = random_requests(random, 200), random.integers(0, 3, 200).astype(np.int32)
        records["engine"], records["path"] = Engine.LIBAIO, random.choice([Path.DIRECT, Path.SWAP], 200)
        roles = random.choice([*range(len(ROLES)), *final], 200)
        files = random.integers(0, 50, 200).astype(np.int32)
        add_requests(known, records, owners, np.array([final.get(role, role) for role in roles.tolist()]), files)
        add_requests(now, records, owners, roles, files)
    assert len(now._streams) > len(known._streams)
    for _ in range(2):
        now.settle_roles(final)
        assert everything(now) == everything(known)
        assert every_field(now._streams) == every_field(known._streams)
        assert every_field(now._distributions) == every_field(known._distributions)


def test_counting_goes_on_after_roles_were_settled(series: Series, count: Count) -> None:
    add_requests(series, requests(), owned(requests()), np.array([FIRST_UNDECIDED]))
    series.settle_roles({FIRST_UNDECIDED: OTHER_ROLE})
    count()
    assert only(series.streams()).requests == 2
    series.forget([2])
    assert series.streams() == []


def test_nothing_undecided_is_nothing_to_settle(series: Series, count: Count) -> None:
    series.settle_roles({})
    count()
    before = everything(series)
    series.settle_roles({FIRST_UNDECIDED: 0})
    assert everything(series) == before
