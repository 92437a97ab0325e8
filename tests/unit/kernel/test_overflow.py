"""What was added up in the kernel, from tables made by hand: differences, exact whatever was read in between."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from llmio_probe.kernel.calls import CallTable
from llmio_probe.kernel.overflow import Overflow
from llmio_probe.kernel.records import (
    CALL_KEY,
    CALL_TOTALS,
    CONTROL,
    DEVICE_COUNTS,
    OVERFLOW_KEY,
    OVERFLOW_TOTALS,
    Op,
    OwnerKind,
)

CPUS = 2
DISK = 8 << 20


class HandTable:
    """In place of a Table: what the kernel would add, the test adds."""

    def __init__(self, key: Any, value: np.dtype[Any], cpus: int = 1) -> None:
        self.value = value
        self.cpus = cpus
        self.key = np.dtype(key)
        self.entries: dict[Any, NDArray[Any]] = {}

    def at(self, key: Any) -> NDArray[Any]:
        return self.entries.setdefault(key, np.zeros(self.cpus, self.value))

    def get(self, key: Any) -> NDArray[Any] | None:
        return self.entries.get(int(key) if self.key.names is None else key)

    def remove(self, key: NDArray[Any]) -> None:
        del self.entries[_plain(key)]

    def keys(self) -> NDArray[Any]:
        return np.array(list(self.entries), self.key)

    def items(self) -> tuple[NDArray[Any], NDArray[Any]]:
        values = np.array(list(self.entries.values()), self.value).reshape(-1, self.cpus)
        return self.keys(), values


def _plain(key: NDArray[Any]) -> Any:
    """As the tests write it."""
    return tuple(tuple(field) if isinstance(field, np.ndarray) else field for field in key.item())


class Kernel:
    def __init__(self) -> None:
        self.requests = HandTable(OVERFLOW_KEY, OVERFLOW_TOTALS)
        self.calls = HandTable(CALL_KEY, CALL_TOTALS)
        self.control = np.zeros(1, CONTROL)
        self.counts = HandTable("u4", DEVICE_COUNTS, CPUS)
        self.slots = HandTable("u4", np.dtype("u4"))
        parts: Any = (self.requests, self.counts, self.slots, self.control)
        self.overflow = Overflow(*parts)
        table: Any = self.calls
        self.calls_read = CallTable(table, self.control)

    def request(self, tgid: int, bytes_: int, ring: int = 0) -> None:
        share = (0, 7, 0, 1, tgid, 1, 1, 1, 0)
        totals = self.requests.at((share, DISK, 0, Op.READ, 0, ring, 0))
        totals["requests"] += 1
        totals["bytes"] += bytes_
        totals["size_counts"][0, 3] += 1
        totals["done_ns"] = 5
        self.control["overflowed"] = 1

    def call(self, tgid: int) -> None:
        totals = self.calls.at((10**9, tgid, 0, 1, (0,) * 7))
        totals["read_bytes"] += 100
        totals["calls"][0, 0] += 1
        self.control["called"] = 1


@pytest.fixture
def kernel() -> Kernel:
    return Kernel()


def test_nothing_is_read_where_nothing_overflowed(kernel: Kernel) -> None:
    kernel.requests.items = None  # type: ignore[assignment,method-assign] # would fail if it were called
    assert len(kernel.overflow.read()) == 0


def test_each_look_gives_what_has_come_since_the_last_one(kernel: Kernel) -> None:
    kernel.request(11, 4096)
    kernel.request(11, 8192)
    kernel.request(12, 512)
    requests = kernel.overflow.read()
    assert dict(zip(requests["tgid"].tolist(), requests["bytes"].tolist(), strict=True)) == {11: 12288, 12: 512}
    assert (requests["device"] == DISK).all()
    assert (requests["inode"] == 7).all()
    kernel.request(11, 100)
    requests = kernel.overflow.read()
    assert requests[["tgid", "requests", "bytes", "done_ns"]].tolist() == [(11, 1, 100, 5)]
    assert requests["size_counts"].sum() == 1
    for _ in range(3):
        requests = kernel.overflow.read()
        assert len(requests) == 0


def test_rings_are_told_apart_in_the_kernel_only(kernel: Kernel) -> None:
    kernel.request(11, 1, ring=0)
    kernel.request(11, 2, ring=1)
    requests = kernel.overflow.read()
    assert requests["tgid"].tolist() == [11, 11]
    assert requests["bytes"].sum() == 3


def test_a_total_read_amid_an_addition_is_right_at_the_next_look(kernel: Kernel) -> None:
    """The kernel had counted the request, but not its bytes yet, when we looked."""
    kernel.request(11, 0)
    requests = kernel.overflow.read()
    assert requests["bytes"].sum() == 0
    next(iter(kernel.requests.entries.values()))["bytes"] += 4096
    kernel.control["overflowed"] = 1
    requests = kernel.overflow.read()
    assert requests[["requests", "bytes"]].tolist() == [(0, 4096)]


def test_buckets_may_pass_their_32_bits(kernel: Kernel) -> None:
    kernel.request(11, 1)
    counts = next(iter(kernel.requests.entries.values()))["size_counts"]
    counts[0, 3] = 2**32 - 1
    kernel.overflow.read()
    counts[0, 3] = 0
    kernel.request(11, 1)
    requests = kernel.overflow.read()
    assert requests["size_counts"][0, 3] == 2


def test_calls_are_read_when_there_were_some(kernel: Kernel) -> None:
    kernel.call(11)
    [row] = kernel.calls_read.read()
    assert row[["owner_start_ns", "tgid", "read_bytes"]].tolist() == (10**9, 11, 100)
    assert row["calls"].tolist() == [1, 0, 0]
    assert len(kernel.calls_read.read()) == 0
    kernel.calls.items = None  # type: ignore[assignment,method-assign] # would fail if it were called
    assert len(kernel.calls_read.read()) == 0


def test_who_has_ended_gives_back_its_room_and_no_call_is_lost(kernel: Kernel) -> None:
    for tgid in (11, 12, 13):
        kernel.call(tgid)
    kernel.calls_read.read()
    kernel.call(12)
    kernel.calls_read.give_back(lambda tgid, start: (tgid, start) == (12, 10**9))
    kernel.call(11)
    assert sorted(kernel.calls_read.read()["tgid"].tolist()) == [11, 12]
    assert [key[1] for key in kernel.calls.entries] == [11, 13]
    kernel.call(14)  # in its place
    kernel.call(13)
    found = kernel.calls_read.read()
    assert sorted(found[["tgid", "read_bytes"]].tolist()) == [(13, 100), (14, 100)]


def test_who_ended_without_a_last_call_is_given_back_all_the_same(kernel: Kernel) -> None:
    kernel.call(11)
    kernel.calls_read.read()
    kernel.calls_read.read()
    kernel.calls_read.give_back(lambda tgid, start: True)
    assert len(kernel.calls_read.read()) == 0
    assert kernel.calls.entries == {}


def test_what_found_no_room_even_there_is_its_devices_and_nobodys(kernel: Kernel) -> None:
    kernel.slots.at(DISK)[:] = 4
    counts = kernel.counts.at(4)
    counts["lost_requests"][0, Op.WRITE], counts["lost_bytes"][0, Op.WRITE] = 2, 8192
    counts["lost_requests"][1, Op.WRITE], counts["lost_bytes"][1, Op.WRITE] = 1, 512
    counts["lost_request_bytes"][1, Op.WRITE] = 16384  # parts of them are known
    kernel.control["overflowed"] = 1
    [row] = kernel.overflow.read()
    assert (row["device"], row["op"], row["owner"]) == (DISK, Op.WRITE, OwnerKind.UNKNOWN)
    assert (row["requests"], row["bytes"], row["request_bytes"]) == (3, 8704, 16384)
    assert len(kernel.overflow.read()) == 0
