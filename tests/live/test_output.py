"""emit() and emit_part() (bpf/output.h, overflow.h) on the running kernel: which ring, and what a full one leaves.

The totals that the kernel adds up are compared with the same requests counted from records, bucket by bucket.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmio_probe.aggregate.buckets import LATENCY_EXPONENTS, SIZE_EXPONENTS, bucket
from llmio_probe.kernel.records import (
    Op,
    OwnerKind,
    RequestFlag,
)
from tests.live.output_side import CPUS, DEVICE, OutputSide, compiled, output_side, request, together


@pytest.fixture(scope="module", params=[True, False], ids=["slots", "buffers"])
def plain(request: pytest.FixtureRequest) -> bool:
    """Of the plain variant, or of those for older kernels (bpf/rings.h)."""
    return bool(request.param)


@pytest.fixture(scope="module")
def output_object(plain: bool, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled(plain, tmp_path_factory.mktemp("bpf"))


@pytest.fixture(params=[None])
def kernel(output_object: Path, plain: bool, request: pytest.FixtureRequest) -> Iterator[OutputSide]:
    """The parameter: entries of the overflow table, None for as many as usual."""
    with output_side(output_object, plain, request.param) as kernel:
        yield kernel


@pytest.mark.skipif(CPUS < 2, reason="there is one CPU")
def test_two_cpus_write_into_a_ring_each_at_the_same_time(kernel: OutputSide) -> None:
    """No lock is shared: what one CPU wrote is in its own ring alone, also while the other one writes."""
    count = min(10_007, kernel.room)
    shares: list[float] = []
    while not shares or shares[-1] < 0.5:  # of the time
        assert len(shares) < 100, f"both never wrote at the same time: {shares}"
        shares.append(together(kernel.push_together(request(), count, [0, 1])))
        found = kernel.rings.read()  # ring by ring
        assert found["hw_queue"].tolist() == [cpu for cpu in (0, 1) for _ in range(count)]
        assert found["sector"].tolist() == list(range(count)) * 2
    assert len(kernel.overflow.read()) == 0


def test_rings_that_wrap_lose_and_repeat_nothing(kernel: OutputSide) -> None:
    """Read while they are written, for several rounds."""
    count = 4 * kernel.room + 13
    writer = threading.Thread(target=kernel.push, args=(request(), count))
    found: list[int] = []
    writer.start()
    while writer.is_alive():
        found += kernel.rings.read()["sector"].tolist()
    writer.join()
    found += kernel.rings.read()["sector"].tolist()
    overflowed = sum(kernel.overflow.read()["requests"].tolist())
    assert len(found) + overflowed == count
    assert found == sorted(set(found))
    assert kernel.rings.peak <= 1


def test_the_reader_is_woken_once_when_a_ring_is_half_full(kernel: OutputSide) -> None:
    kernel.push(request(done_ns=1 << 20), kernel.room // 2 - 64)
    assert not kernel.woken()
    kernel.push(request(done_ns=1 << 20), 256)
    assert kernel.woken()
    kernel.push(request(done_ns=1 << 20), 256)
    assert not kernel.woken()
    assert len(kernel.rings.read()) == kernel.room // 2 - 64 + 512


EDGES = (0, 1, 511, 512, 513, 131071, 131072, 131073, (1 << 31) - 1, 1 << 31, (1 << 31) + 1)
TIMES = (1, 1023, 1024, 1025, 1 << 20, (1 << 20) + 1, 1 << 35, (1 << 35) + 1, 1 << 40)


def test_what_finds_no_room_is_counted_in_the_same_buckets_as_a_request(kernel: OutputSide) -> None:
    kernel.push(request(), kernel.room)  # full, but for less than a record
    kernel.push(request(), 3)
    kernel.overflow.read()
    for size in EDGES:
        kernel.push(request(bytes=size, tgid=12), 7)
    for ns in TIMES:
        kernel.push(request(tgid=13, issued_ns=1000 + ns, done_ns=1000 + 3 * ns), 5)
    rows = kernel.overflow.read()
    [sizes], [times] = rows[rows["tgid"] == 12], rows[rows["tgid"] == 13]
    assert sizes["requests"] == 7 * len(EDGES)
    assert sizes["bytes"] == sizes["request_bytes"] == 7 * sum(EDGES)
    assert sizes["size_counts"].tolist() == counts(EDGES, 7, SIZE_EXPONENTS)
    for name, values in {"queue": TIMES, "device": [2 * ns for ns in TIMES], "total": [3 * ns for ns in TIMES]}.items():
        assert times[f"{name}_counts"].tolist() == counts(values, 5, LATENCY_EXPONENTS), name
        assert times[f"{name}_ns"] == 5 * sum(values)


def counts(values: Any, times: int, exponents: tuple[int, int]) -> list[int]:
    first, last = exponents
    found: list[int] = np.bincount(bucket(np.array(values), exponents), minlength=last - first + 2).tolist()
    return [times * count for count in found]


def test_all_that_user_space_tells_apart_is_told_apart(kernel: OutputSide) -> None:
    """And what only a record has, such as the sector, is not."""
    kernel.push(request(), kernel.room)
    kernel.overflow.read()
    different: list[dict[str, int]] = [
        {"tgid": 12}, {"owner_start_ns": 5}, {"inode": 13}, {"inode_generation": 1}, {"file_device": 1}, {"device": 9},
        {"engine": 2}, {"path": 2}, {"owner": OwnerKind.KERNEL}, {"op": Op.WRITE}, {"status": 10},
        {"shared": 1}, {"flags": RequestFlag.METADATA},
    ]  # fmt: skip
    same: list[dict[str, int]] = [{}, {"bio": 77}, {"flags": RequestFlag.SYNC}, {"issues": 3}]
    for fields in same + different:
        kernel.push(request(**fields), 2)
    rows = kernel.overflow.read()
    assert len(rows) == 1 + len(different)
    assert sorted(rows["requests"].tolist()) == [2] * len(different) + [2 * len(same)]
    assert rows["requeues"].sum() == 4


def test_a_part_is_no_request_and_a_request_without_times_has_no_latency(kernel: OutputSide) -> None:
    kernel.push(request(), kernel.room)
    kernel.overflow.read()
    nothing = {"made_ns": 0, "issued_ns": 0, "done_ns": 0}
    kernel.push(request(part=1, **nothing), 3)
    kernel.push(request(done_ns=0, flags=RequestFlag.EXPIRED), 2)
    rows = kernel.overflow.read()
    part, whole = sorted(rows, key=lambda row: row["flags"] & RequestFlag.PART == 0)
    assert (part["requests"], part["bytes"], part["size_counts"].sum()) == (3, 3 * 4096, 0)
    assert (whole["requests"], whole["size_counts"].sum()) == (2, 2)
    assert (whole["queue_counts"].sum(), whole["device_counts"].sum(), whole["total_counts"].sum()) == (2, 0, 0)


@pytest.mark.parametrize("kernel", [4], indirect=True)
def test_with_that_table_full_too_the_devices_totals_still_add_up(kernel: OutputSide) -> None:
    kernel.push(request(), kernel.room)
    kernel.overflow.read()
    owners = range(100, 120)
    for tgid in owners:
        kernel.push(request(tgid=tgid, op=Op.WRITE), 3)
    rows = kernel.overflow.read()
    assert kernel.lost() > 0
    assert rows["requests"].sum() == 3 * len(owners)
    assert rows["bytes"].sum() == 3 * len(owners) * 4096
    unknown = rows[rows["owner"] == OwnerKind.UNKNOWN]
    assert unknown["requests"].sum() == kernel.lost()
    assert set(rows["device"].tolist()) == {DEVICE}
    assert set(rows["op"].tolist()) == {Op.WRITE}
