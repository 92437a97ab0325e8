"""Reads a BPF ring buffer through its mapped memory: whole batches as NumPy arrays, no callback per record.

Every record of a ring has one size, so the slots lie at a fixed stride and a pass is a few array operations. Only the
ring's protocol may go in here (kernel/bpf/ringbuf.c): the consumer's page is ours to write; the producer's page and the
data, mapped twice in a row so that a record never breaks at the end, are read-only. A slot is a header (length with two
flag bits, page offset) and the record, padded to 8 bytes. The kernel reserves in order and clears BUSY last, with a
full barrier; so: acquire the producer's position, copy the headers, acquire fence, copy the records before the first
busy one, release the consumer's position.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmio_probe.errors import ProbeError
from llmio_probe.kernel.atomics import Atomics
from llmio_probe.kernel.records import Records

_BUSY = np.uint32(1 << 31)
_DISCARD = np.uint32(1 << 30)
_HEADER = 8


@dataclass(frozen=True)
class RingMemory:
    """Where a ring lies. data: shape (2 * size,), bytes; the second half mirrors the first."""

    consumer_address: int
    producer_address: int
    data: NDArray[np.uint8]
    kept: tuple[object, ...] = ()
    """What owns the memory and has to live as long."""

    @property
    def size(self) -> int:
        return len(self.data) // 2


def map_ring(fd: int, size: int) -> RingMemory:
    """Map the ring of a map's fd. OSError when the kernel refuses. The pages go when the memory is no longer used."""
    page = mmap.PAGESIZE
    consumer = mmap.mmap(fd, page, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    rest = mmap.mmap(fd, page + 2 * size, prot=mmap.PROT_READ, offset=page)
    consumer_page = np.frombuffer(consumer, np.uint8)
    pages = np.frombuffer(rest, np.uint8)
    return RingMemory(consumer_page.ctypes.data, pages.ctypes.data, pages[page:], (consumer_page, pages))


class Ring:
    """The reading end of one ring whose records all have the given dtype. One reader per ring."""

    def __init__(self, memory: RingMemory, dtype: np.dtype[Any], atomics: Atomics) -> None:
        self._memory = memory
        self._atomics = atomics
        self._dtype = dtype
        padded = -(-dtype.itemsize // 8) * 8
        # The record as opaque bytes: NumPy copies those as a block, a structured type field by field.
        self._slot = np.dtype(
            {"names": ["length", "record"], "formats": ["u4", f"V{dtype.itemsize}"], "offsets": [0, _HEADER],
             "itemsize": _HEADER + padded}
        )  # fmt: skip
        self._consumed = atomics.load_acquire(memory.consumer_address)
        self.peak = 0.0
        """The largest share of the ring that a read has found in use."""

    def read(self) -> Records:
        """All records that are complete, oldest first, copied out; shape (n,), and their space given back."""
        memory, stride = self._memory, self._slot.itemsize
        produced = self._atomics.load_acquire(memory.producer_address)
        count = (produced - self._consumed) // stride
        if count == 0:
            return np.empty(0, self._dtype)
        self.peak = max(self.peak, count * stride / memory.size)
        slots = np.ndarray(count, self._slot, memory.data, offset=self._consumed % memory.size)
        lengths = slots["length"].copy()
        self._atomics.fence_acquire()
        kept: slice | NDArray[np.bool_] = slice(count)
        if np.any(lengths != self._dtype.itemsize):  # else all are complete, and none is discarded
            busy = np.flatnonzero(lengths & _BUSY)
            if len(busy):
                count = int(busy[0])
                lengths = lengths[:count]
            if np.any(lengths & ~_DISCARD != self._dtype.itemsize):
                raise ProbeError(
                    "a BPF ring holds a record of another size: the object and this version do not belong together"
                )
            kept = lengths & _DISCARD == 0
        records: Records = slots["record"][:count][kept].copy().view(self._dtype)
        self._consumed += count * stride
        self._atomics.store_release(memory.consumer_address, self._consumed)
        return records

    def drain(self) -> Records:
        """As ``read``, until there is nothing more: the kernel wakes only a reader that has read all up to a record."""
        batches = [np.empty(0, self._dtype)]
        before = None
        while self._consumed != before:
            before = self._consumed
            batches.append(self.read())
            self._atomics.fence()  # our position is there before we look for more
        return np.concatenate(batches)


class Rings:
    """The reading end of several rings, as one."""

    def __init__(self, rings: Sequence[Ring], dtype: np.dtype[Any]) -> None:
        self._rings = rings
        self._dtype = dtype

    @property
    def peak(self) -> float:
        """As of Ring, of any of them."""
        return max(ring.peak for ring in self._rings)

    def read(self) -> Records:
        """As of Ring; ring by ring."""
        filled = [records for ring in self._rings if len(records := ring.read())]
        if len(filled) <= 1:
            return filled[0] if filled else np.empty(0, self._dtype)
        # As opaque bytes and not field by field, which takes 10 times as long.
        return np.concatenate([records.view(f"V{self._dtype.itemsize}") for records in filled]).view(self._dtype)


class BytesRing:
    """The reading end of a ring whose records have sizes of their own: seldom ones, since Python runs for each."""

    def __init__(self, memory: RingMemory, atomics: Atomics) -> None:
        self._memory = memory
        self._atomics = atomics
        self._consumed = atomics.load_acquire(memory.consumer_address)

    def drain(self) -> list[bytes]:
        """As of Ring."""
        records: list[bytes] = []
        before = None
        while self._consumed != before:
            before = self._consumed
            records += self.read()
            self._atomics.fence()
        return records

    def read(self) -> list[bytes]:
        """All records that are complete, oldest first, copied out, and their space given back."""
        memory = self._memory
        produced = self._atomics.load_acquire(memory.producer_address)
        records = []
        before = self._consumed
        while self._consumed < produced:
            begin = self._consumed % memory.size
            header = int(memory.data[begin : begin + 4].view(np.uint32)[0])
            self._atomics.fence_acquire()
            if header & int(_BUSY):
                break
            length = header & ~int(_DISCARD)
            if not header & int(_DISCARD):
                records.append(memory.data[begin + _HEADER : begin + _HEADER + length].tobytes())
            self._consumed += -(-(_HEADER + length) // 8) * 8
        if self._consumed != before:
            self._atomics.store_release(memory.consumer_address, self._consumed)
        return records
