"""What was added up in the kernel, from tables made by hand: differences, exact whatever was read in between."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from llmio_probe.kernel.overflow import Overflow
from llmio_probe.kernel.records import (
    CALL_OVERFLOW_KEY,
    CALL_OVERFLOW_TOTALS,
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
        self._key = np.dtype(key)
        self.entries: dict[Any, NDArray[Any]] = {}

    def at(self, key: Any) -> NDArray[Any]:
        return self.entries.setdefault(key, np.zeros(self.cpus, self.value))

    def get(self, key: Any) -> NDArray[Any] | None:
        return self.entries.get(int(key) if self._key.names is None else key)

    def keys(self) -> NDArray[Any]:
        return np.array(list(self.entries), self._key)

    def items(self) -> tuple[NDArray[Any], NDArray[Any]]:
        values = np.array(list(self.entries.values()), self.value).reshape(-1, self.cpus)
        return self.keys(), values


class Kernel:
    def __init__(self) -> None:
        self.requests = HandTable(OVERFLOW_KEY, OVERFLOW_TOTALS)
        self.calls = HandTable(CALL_OVERFLOW_KEY, CALL_OVERFLOW_TOTALS)
        self.control = np.zeros(1, CONTROL)
        self.counts = HandTable("u4", DEVICE_COUNTS, CPUS)
        self.slots = HandTable("u4", np.dtype("u4"))
        parts: Any = (self.requests, self.calls, self.counts, self.slots, self.control)
        self.overflow = Overflow(*parts)

    def request(self, tgid: int, bytes_: int, ring: int = 0) -> None:
        share = (0, 7, 0, 1, tgid, 1, 1, 1, 0)
        totals = self.requests.at((share, DISK, 0, Op.READ, 0, ring, 0))
        totals["requests"] += 1
        totals["bytes"] += bytes_
        totals["size_counts"][0, 3] += 1
        totals["done_ns"] = 5
        self.control["overflowed"] = 1


@pytest.fixture
def kernel() -> Kernel:
    return Kernel()


def test_nothing_is_read_where_nothing_overflowed(kernel: Kernel) -> None:
    kernel.requests.items = None  # type: ignore[assignment,method-assign] # would fail if it were called
    requests, calls = kernel.overflow.read()
    assert (len(requests), len(calls)) == (0, 0)


def test_each_look_gives_what_has_come_since_the_last_one(kernel: Kernel) -> None:
    kernel.request(11, 4096)
    kernel.request(11, 8192)
    kernel.request(12, 512)
    requests, _ = kernel.overflow.read()
    assert dict(zip(requests["tgid"].tolist(), requests["bytes"].tolist(), strict=True)) == {11: 12288, 12: 512}
    assert (requests["device"] == DISK).all()
    assert (requests["inode"] == 7).all()
    kernel.request(11, 100)
    requests, _ = kernel.overflow.read()
    assert requests[["tgid", "requests", "bytes", "done_ns"]].tolist() == [(11, 1, 100, 5)]
    assert requests["size_counts"].sum() == 1
    for _ in range(3):
        requests, _ = kernel.overflow.read()
        assert len(requests) == 0


def test_rings_are_told_apart_in_the_kernel_only(kernel: Kernel) -> None:
    kernel.request(11, 1, ring=0)
    kernel.request(11, 2, ring=1)
    requests, _ = kernel.overflow.read()
    assert requests["tgid"].tolist() == [11, 11]
    assert requests["bytes"].sum() == 3


def test_a_total_read_amid_an_addition_is_right_at_the_next_look(kernel: Kernel) -> None:
    """The kernel had counted the request, but not its bytes yet, when we looked."""
    kernel.request(11, 0)
    requests, _ = kernel.overflow.read()
    assert requests["bytes"].sum() == 0
    next(iter(kernel.requests.entries.values()))["bytes"] += 4096
    kernel.control["overflowed"] = 1
    requests, _ = kernel.overflow.read()
    assert requests[["requests", "bytes"]].tolist() == [(0, 4096)]


def test_buckets_may_pass_their_32_bits(kernel: Kernel) -> None:
    kernel.request(11, 1)
    counts = next(iter(kernel.requests.entries.values()))["size_counts"]
    counts[0, 3] = 2**32 - 1
    kernel.overflow.read()
    counts[0, 3] = 0
    kernel.request(11, 1)
    requests, _ = kernel.overflow.read()
    assert requests["size_counts"][0, 3] == 2


def test_calls_are_added_up_too(kernel: Kernel) -> None:
    totals = kernel.calls.at((10**9, 11, 0, 1, 1, (0,) * 6))
    totals["records"], totals["read_bytes"] = 3, 300
    totals["calls"][0, 0] = 3
    kernel.control["overflowed"] = 1
    _, calls = kernel.overflow.read()
    assert calls[["owner_start_ns", "tgid", "records", "read_bytes"]].tolist() == [(10**9, 11, 3, 300)]
    assert calls["calls"].tolist() == [[3, 0, 0]]


def test_what_found_no_room_even_there_is_its_devices_and_nobodys(kernel: Kernel) -> None:
    kernel.slots.at(DISK)[:] = 4
    counts = kernel.counts.at(4)
    counts["lost_requests"][0, Op.WRITE], counts["lost_bytes"][0, Op.WRITE] = 2, 8192
    counts["lost_requests"][1, Op.WRITE], counts["lost_bytes"][1, Op.WRITE] = 1, 512
    counts["lost_request_bytes"][1, Op.WRITE] = 16384  # parts of them are known
    kernel.control["overflowed"] = 1
    [row] = kernel.overflow.read()[0]
    assert (row["device"], row["op"], row["owner"]) == (DISK, Op.WRITE, OwnerKind.UNKNOWN)
    assert (row["requests"], row["bytes"], row["request_bytes"]) == (3, 8704, 16384)
    assert len(kernel.overflow.read()[0]) == 0
