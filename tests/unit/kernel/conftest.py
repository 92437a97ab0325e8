"""A BPF ring made by hand in our own memory: what the kernel would write, the test writes."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from llmio_probe.kernel.atomics import Atomics
from llmio_probe.kernel.records import REQUEST, Records
from llmio_probe.kernel.ring import Ring, RingMemory

BUSY, DISCARD = 1 << 31, 1 << 30


class HandRing:
    """The writing end. Data lie twice in a row, as the kernel maps them; every write goes to both places."""

    def __init__(self, size: int = 4096, dtype: np.dtype[Any] = REQUEST, begin: int = 0) -> None:
        self.size = size
        self.dtype = dtype
        self.stride = 8 + -(-dtype.itemsize // 8) * 8
        self.data = np.zeros(2 * size, np.uint8)
        self._consumer, self._producer = ctypes.c_uint64(begin), ctypes.c_uint64(begin)
        self.memory = RingMemory(ctypes.addressof(self._consumer), ctypes.addressof(self._producer), self.data)

    @property
    def consumed(self) -> int:
        return self._consumer.value

    @property
    def free(self) -> int:
        """Slots that fit."""
        return (self.size - (self._producer.value - self._consumer.value)) // self.stride

    def reserve(
        self, record: Any = None, *, busy: bool = True, discard: bool = False, length: int | None = None
    ) -> int:
        """Append a slot; returns its position, for finish."""
        assert self.free > 0
        position = self._producer.value
        record = np.zeros(1, self.dtype) if record is None else np.asarray(record, self.dtype)
        self._write(position + 8, record.tobytes())
        length = self.dtype.itemsize if length is None else length
        self._write_length(position, length | BUSY * busy | DISCARD * discard)
        self._producer.value = position + self.stride
        return position

    def append(self, payload: bytes, *, busy: bool = False, discard: bool = False) -> int:
        """A record of any length; returns its position, for finish_payload."""
        position = self._producer.value
        self._write(position + 8, payload)
        self._write_length(position, len(payload) | BUSY * busy | DISCARD * discard)
        self._producer.value = position + 8 + -(-len(payload) // 8) * 8
        return position

    def finish_payload(self, position: int, payload: bytes) -> None:
        self._write_length(position, len(payload))

    def finish(self, position: int, *, discard: bool = False) -> None:
        self._write_length(position, self.dtype.itemsize | DISCARD * discard)

    def write(self, records: Records) -> None:
        for record in records:
            self.reserve(record, busy=False)

    def _write_length(self, position: int, length: int) -> None:
        self._write(position, length.to_bytes(4, "little") + b"\xaa\xaa\xaa\xaa")  # a page offset that nobody needs

    def _write(self, position: int, content: bytes) -> None:
        places = (position + np.arange(len(content))) % self.size
        self.data[places] = self.data[places + self.size] = np.frombuffer(content, np.uint8)


@pytest.fixture(scope="session")
def atomics() -> Atomics:
    return Atomics()


@pytest.fixture
def hand() -> HandRing:
    """One page, which 96-byte slots do not divide evenly: records break at its end."""
    return HandRing()


@pytest.fixture
def ring(hand: HandRing, atomics: Atomics) -> Ring:
    return Ring(hand.memory, hand.dtype, atomics)


@pytest.fixture
def make_ring(atomics: Atomics) -> Callable[..., tuple[HandRing, Ring]]:
    def make(**different: Any) -> tuple[HandRing, Ring]:
        hand = HandRing(**different)
        return hand, Ring(hand.memory, hand.dtype, atomics)

    return make


@pytest.fixture
def records() -> Callable[[int], Records]:
    """records(n): n requests of which every byte is random."""

    def make(count: int) -> Records:
        content = np.random.default_rng(count).bytes(count * REQUEST.itemsize)
        return np.frombuffer(content, REQUEST)

    return make
