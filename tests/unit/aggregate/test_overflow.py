"""What the kernel added up counts as the records would have: all totals and buckets, whatever came which way."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import pytest

from llmio_probe.aggregate.buckets import LATENCY_EXPONENTS, SIZE_EXPONENTS
from llmio_probe.aggregate.busy import BusyTime
from llmio_probe.aggregate.rows import STAGES, Percentiles
from llmio_probe.aggregate.series import Series
from llmio_probe.kernel.records import (
    OVERFLOW,
    Engine,
    Op,
    OwnerKind,
    Path,
    Records,
    RequestFlag,
)
from tests.singly import add_requests
from tests.unit.aggregate.conftest import DISK, MS, US, bucket_of, owned, parts, requests

KEY = (
    "owner_start_ns", "inode", "inode_generation", "file_device", "tgid", "engine", "path", "owner", "shared", "device",
    "op", "status",
)  # fmt: skip
TOLD_APART = RequestFlag.PART | RequestFlag.METADATA | RequestFlag.SHARED


def added_up(records: Records) -> Records:
    """As bpf/overflow.h does it, one by one."""
    rows: dict[Any, Any] = defaultdict(lambda: np.zeros(1, OVERFLOW))
    for record in records:
        flags = int(record["flags"]) & TOLD_APART
        names = [name for name in KEY if name in record.dtype.names]
        key = (flags, *(record[name] for name in names))
        row = rows[key]
        row["flags"] = flags
        for name in names:
            row[name] = record[name]
        row["requests"] += 1
        row["bytes"] += record["bytes"]
        row["done_ns"] = row["made_ns"] = record["done_ns"]
        if flags & RequestFlag.PART:
            continue
        row["request_bytes"] += record["request_bytes"]
        row["requeues"] += record["requeues"]
        row["size_counts"][0, bucket_of(record["request_bytes"], SIZE_EXPONENTS)] += 1
        made, issued, done = (int(record[name]) for name in ("made_ns", "issued_ns", "done_ns"))
        for stage, start, end in (("queue", made, issued), ("device", issued, done), ("total", made, done)):
            if start and end:
                row[f"{stage}_ns"] += end - start
                row[f"{stage}_counts"][0, bucket_of(end - start, LATENCY_EXPONENTS)] += 1
    return np.concatenate(list(rows.values()))


def mixed() -> Records:
    """One of each kind that is told apart, and several of some."""
    return np.concatenate(
        [
            requests(5, bytes=[512, 4096, 131072, 131073, 1 << 20], tgid=11, inode=7, owner=OwnerKind.PROCESS),
            requests(3, op=Op.WRITE, path=Path.WRITEBACK, requeues=[0, 1, 2], owner=OwnerKind.PROCESS, inode=8),
            requests(2, status=10, tgid=12),
            requests(2, done_ns=0, flags=RequestFlag.EXPIRED),
            requests(2, made_ns=0, issued_ns=0),
            requests(1, op=Op.DISCARD, bytes=1 << 30, owner=OwnerKind.KERNEL),
            requests(1, device=DISK + 16, engine=Engine.IO_URING, issued_ns=1001 * US, done_ns=9000 * US),
            requests(2, op=Op.WRITE, flags=RequestFlag.SHARED, owner=OwnerKind.PROCESS, inode=9),
            parts(2, bytes=[4096, 8192], owner=OwnerKind.PROCESS, inode=10),
        ]
    )


def totals_of(series: Series) -> dict[str, Any]:
    """All that has to be the same, as plain values."""
    return {
        "streams": sorted(
            (s.owner, s.device, s.op, s.engine, s.path, s.role, s.requests, s.bytes, s.errors, s.requeues)
            for s in series.streams()
        ),
        "distributions": sorted(
            (d.owner, d.device, d.op, d.role, d.size_bytes.counts.tolist(), d.size_bytes.sum,
             [(d.latency_seconds[s].counts.tolist(), round(d.latency_seconds[s].sum, 9)) for s in STAGES])
            for d in series.request_distributions()
        ),
        "errors": sorted((e.owner, e.device, e.op, e.status, e.requests) for e in series.errors()),
        "use": sorted(
            (u.device, u.op, u.requests, u.bytes, u.requeues, u.in_flight_seconds) for u in series.device_use()
        ),
        "attributed": sorted(
            (a.device, a.owner_kind, a.file_known, a.bytes, a.shared_bytes) for a in series.attributed_bytes()
        ),
        "files": sorted(
            (f.file, f.owner, f.device, f.read_bytes, f.write_bytes, f.requests, f.shared) for f in series.file_use()
        ),
    }  # fmt: skip


def files_of(records: Records) -> Any:
    return (records["inode"] % 16).astype(np.int32)


@pytest.mark.parametrize("detail", [True, False])
def test_totals_and_buckets_are_those_of_the_records(detail: bool) -> None:
    records = mixed()
    one, other = Series(detail=detail), Series(detail=detail)
    add_requests(one, records, owned(records), None, files_of(records))
    rows = added_up(records)
    assert len(rows) < len(records)
    other.add_overflow(rows, owned(rows), None, files_of(rows))
    assert totals_of(other) == totals_of(one)


def test_it_does_not_matter_how_much_came_which_way() -> None:
    records = mixed()
    one, other = Series(detail=True), Series(detail=True)
    add_requests(one, records, owned(records), None, files_of(records))
    for half, added in ((records[::2], False), (records[1::2], True)):
        rows = added_up(half) if added else half
        (Series.add_overflow if added else add_requests)(other, rows, owned(rows), None, files_of(rows))
    assert totals_of(other) == totals_of(one)


def test_percentiles_come_from_buckets_then_and_say_so(series: Series) -> None:
    records = requests(100, bytes=3000, done_ns=1110 * US)
    add_requests(series, records, owned(records))
    assert series.streams()[0].exact
    rows = added_up(records)
    series.add_overflow(rows, owned(rows))
    [stream] = series.streams()
    assert not stream.exact
    assert stream.size_bytes == Percentiles(3000, 4096, 4096, 4096, sum=600000)
    device = stream.latency_seconds["device"]
    assert device is not None
    assert device.p50 == pytest.approx(100e-6, rel=1 / 64)
    assert device.p99 == device.max == 131072e-9
    assert device.sum == pytest.approx(200 * 100e-6)  # what is added up loses no nanosecond


def test_other_streams_stay_exact(series: Series) -> None:
    rows = added_up(requests(3))
    series.add_overflow(rows, owned(rows))
    records = requests(3, op=Op.WRITE)
    add_requests(series, records, owned(records))
    assert {stream.op: stream.exact for stream in series.streams()} == {Op.READ: False, Op.WRITE: True}


def test_what_has_no_buckets_counts_all_the_same(series: Series) -> None:
    """The kernel's table was full, too: only a device and an op are left."""
    row = np.zeros(1, OVERFLOW)
    row["device"], row["op"], row["requests"], row["bytes"], row["request_bytes"] = DISK, Op.WRITE, 3, 9000, 9000
    series.add_overflow(row, owned(row))
    [stream] = series.streams()
    assert (stream.requests, stream.bytes, stream.exact, stream.size_bytes) == (3, 9000, False, None)
    [use] = series.device_use()
    assert (use.requests, use.bytes) == (3, 9000)
    [distributions] = series.request_distributions()
    assert (distributions.size_bytes.count, distributions.size_bytes.sum) == (0, 0)


# Busy time


@pytest.mark.parametrize(
    ("under_way", "busy"),
    [
        (3 * MS, 4 * MS),  # one after the other: so long as they were under way
        (90 * MS, 11 * MS),  # always one: since the last end that is known
    ],
)
def test_a_device_was_busy_for_as_long_as_requests_were_under_way_or_time_went_by(under_way: int, busy: int) -> None:
    time = BusyTime()
    time.add(np.array([9 * MS]), np.array([10 * MS]))
    time.add_total(under_way, 20 * MS)
    assert time.nanoseconds == busy
    time.add_total(under_way, 20 * MS)  # another ring's, at the same time
    assert time.nanoseconds == busy


def test_a_full_rings_time_is_not_hidden_by_another_rings_records(series: Series) -> None:
    """Totals are counted first: a second ring has a record until now, and was not busy all the time."""
    before = requests(1, made_ns=9 * MS, issued_ns=9 * MS, done_ns=10 * MS)
    add_requests(series, before, owned(before))
    rows = added_up(requests(32, made_ns=10 * MS, issued_ns=10 * MS, done_ns=110 * MS))
    series.add_overflow(rows, owned(rows))
    beside = requests(1, made_ns=108 * MS, issued_ns=109 * MS, done_ns=110 * MS)
    add_requests(series, beside, owned(beside))
    assert series.device_busy_seconds() == {DISK: pytest.approx(0.101)}
