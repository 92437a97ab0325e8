"""Reads the slots that the programs write records of requests into (bpf/rings.h): a whole batch as one NumPy array.

A ring is one CPU's, or a few CPUs'. Its producers take numbers, from 0 on, by counting ``reserved`` up; the slot of
number n is n modulo the ring's slots, and is written when its ``written`` says n + 1, stored last. So: acquire
``reserved``, look how far slots are written, acquire fence, copy the records, release ``released``, which gives the
slots back. Only that may go in here.
"""

from __future__ import annotations

import mmap
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmio_probe.kernel.atomics import Atomics
from llmio_probe.kernel.records import REQUEST, Records

# The record as opaque bytes: NumPy copies those as a block, a structured type field by field.
_SLOT = np.dtype([("written", "u8"), ("record", f"V{REQUEST.itemsize}")])


class SlotRings:
    """The reading end of all rings, as one. There may be one reader only.

    slots: REQUEST_SLOT, shape (rings, slots of each). positions: RING_POSITION, shape (rings,). Both are memory that
    the kernel writes meanwhile.
    """

    def __init__(self, slots: NDArray[Any], positions: NDArray[Any], atomics: Atomics) -> None:
        self._slots = slots.view(_SLOT)
        self._positions = positions  # keeps the memory
        self._atomics = atomics
        self._reserved, self._released = (_addresses(positions, name) for name in ("reserved", "released"))
        self._read = [atomics.load_acquire(address) for address in self._released]
        self.peak = 0.0
        """The largest share of a ring that a read has found in use."""

    def read(self) -> Records:
        """All records that are whole, copied out, and their slots given back; shape (n,), ring by ring."""
        counts = [self._written(ring) for ring in range(len(self._read))]
        self._atomics.fence_acquire()
        pieces = [piece["record"] for ring, count in enumerate(counts) for piece in self._pieces(ring, count)]
        if not pieces:
            return np.empty(0, REQUEST)
        records: Records = np.concatenate(pieces).view(REQUEST)
        for ring, count in enumerate(counts):
            if count:
                self._read[ring] += count
                self._atomics.store_release(self._released[ring], self._read[ring])
        return records

    def _written(self, ring: int) -> int:
        """How many slots of a ring are written, from the first that was not read on."""
        first = self._read[ring]
        count = self._atomics.load_acquire(self._reserved[ring]) - first
        self.peak = max(self.peak, count / self._slots.shape[1])
        found = 0
        for piece in self._pieces(ring, count):
            begin = first + found + 1
            missing = np.flatnonzero(piece["written"] != np.arange(begin, begin + len(piece), dtype=np.uint64))
            if len(missing):
                return found + int(missing[0])
            found += len(piece)
        return found

    def _pieces(self, ring: int, count: int) -> list[NDArray[Any]]:
        """Of a ring's slots the next so many: two pieces where they go on at its beginning."""
        slots = self._slots[ring]
        begin = self._read[ring] % len(slots)
        beyond = max(begin + count - len(slots), 0)
        return [piece for piece in (slots[begin : begin + count], slots[:beyond]) if len(piece)]


def _addresses(positions: NDArray[Any], name: str) -> list[int]:
    field = positions[name]
    return [field.ctypes.data + index * field.strides[0] for index in range(len(field))]


def map_array(fd: int, dtype: np.dtype[Any], entries: int, *, writable: bool = False) -> NDArray[Any]:
    """The memory of an array map, shape (entries,). OSError when the kernel refuses."""
    protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
    size = -(-entries * dtype.itemsize // mmap.PAGESIZE) * mmap.PAGESIZE
    return np.frombuffer(mmap.mmap(fd, size, prot=protection), dtype, entries)
