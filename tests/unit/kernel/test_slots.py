"""The reading end of rings of slots takes every whole record once, in order, and nothing else."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from llmio_probe.kernel.atomics import Atomics
from llmio_probe.kernel.records import REQUEST, REQUEST_SLOT, RING_POSITION, Records
from llmio_probe.kernel.slots import SlotRings

ROOM = 64


class HandSlots:
    """The writing end of two rings, as bpf/rings.h writes them."""

    def __init__(self, atomics: Atomics, begin: int = 0) -> None:
        self.slots = np.zeros((2, ROOM), REQUEST_SLOT)
        self.positions = np.zeros(2, RING_POSITION)
        self.positions["reserved"] = self.positions["released"] = begin
        self.rings = SlotRings(self.slots, self.positions, atomics)

    def free(self, ring: int = 0) -> int:
        return ROOM - int(self.positions["reserved"][ring] - self.positions["released"][ring])

    def reserve(self, ring: int = 0) -> int:
        assert self.free(ring) > 0
        number = int(self.positions["reserved"][ring])
        self.positions["reserved"][ring] += 1
        return number

    def commit(self, number: int, record: Records, ring: int = 0) -> None:
        self.slots["record"][ring, number % ROOM] = record
        self.slots["written"][ring, number % ROOM] = number + 1

    def write(self, records: Records, ring: int = 0) -> None:
        for record in records:
            self.commit(self.reserve(ring), record, ring)

    def sectors(self) -> list[int]:
        found: list[int] = self.rings.read()["sector"].tolist()
        return found


def numbered(*numbers: int) -> Records:
    records = np.zeros(len(numbers), REQUEST)
    records["sector"] = numbers
    return records


@pytest.fixture
def make_hand(atomics: Atomics) -> Callable[..., HandSlots]:
    return lambda begin=0: HandSlots(atomics, begin)


@pytest.fixture
def hand(atomics: Atomics) -> HandSlots:
    return HandSlots(atomics)


def test_empty_rings_give_an_empty_batch(hand: HandSlots) -> None:
    batch = hand.rings.read()
    assert (len(batch), batch.dtype, hand.rings.peak) == (0, REQUEST, 0)


def test_every_byte_of_a_record_comes_through(hand: HandSlots, records: Callable[[int], Records]) -> None:
    hand.write(records(ROOM))
    assert hand.rings.read().tobytes() == records(ROOM).tobytes()


def test_rings_are_read_one_after_the_other(hand: HandSlots) -> None:
    hand.write(numbered(3, 4), ring=1)
    hand.write(numbered(1, 2), ring=0)
    assert hand.sectors() == [1, 2, 3, 4]


def test_what_was_read_is_given_back_and_not_read_again(hand: HandSlots) -> None:
    hand.write(numbered(*range(ROOM)))
    assert hand.free() == 0
    hand.rings.read()
    assert hand.free() == ROOM
    assert hand.sectors() == []
    assert hand.rings.peak == 1


def test_a_batch_is_a_copy_that_later_records_do_not_change(hand: HandSlots) -> None:
    hand.write(numbered(*range(ROOM)))
    batch = hand.rings.read()
    hand.write(numbered(*[77] * ROOM))
    assert batch["sector"].tolist() == list(range(ROOM))


@pytest.mark.parametrize("open_", [0, 1, 5])
def test_a_record_that_is_not_whole_stops_its_ring_and_no_other(hand: HandSlots, open_: int) -> None:
    numbers = [hand.reserve() for _ in range(6)]
    for number in numbers:
        if number != open_:
            hand.commit(number, numbered(number)[0])
    hand.write(numbered(100), ring=1)
    assert hand.sectors() == [*range(open_), 100]
    assert hand.sectors() == []
    hand.commit(open_, numbered(open_)[0])
    assert hand.sectors() == list(range(open_, 6))


def test_what_the_last_round_left_in_a_slot_is_not_taken_for_a_record(hand: HandSlots) -> None:
    hand.write(numbered(*range(ROOM)))
    hand.rings.read()
    first = hand.reserve()
    hand.write(numbered(2))
    assert hand.sectors() == []
    hand.commit(first, numbered(1)[0])
    assert hand.sectors() == [1, 2]


def test_many_rounds_lose_and_repeat_nothing(hand: HandSlots) -> None:
    random = np.random.default_rng(1)
    written = [0, 0]
    batches = []
    for _ in range(2000):
        for ring in (0, 1):
            count = int(random.integers(0, hand.free(ring) + 1))
            records = numbered(*range(written[ring], written[ring] + count))
            records["tgid"] = ring
            hand.write(records, ring)
            written[ring] += count
        if random.random() < 0.7:
            batches.append(hand.rings.read())
    read = np.concatenate([*batches, hand.rings.read()])
    for ring in (0, 1):
        assert read["sector"][read["tgid"] == ring].tolist() == list(range(written[ring]))
        assert written[ring] > 100 * ROOM


def test_numbers_beyond_32_bits_are_fine(make_hand: Callable[..., HandSlots]) -> None:
    hand = make_hand(begin=(1 << 40) - 1)
    hand.write(numbered(1, 2, 3))
    assert hand.sectors() == [1, 2, 3]
    assert hand.free() == ROOM


def test_a_reader_that_comes_later_begins_where_the_last_one_stopped(hand: HandSlots, atomics: Atomics) -> None:
    hand.write(numbered(1, 2))
    hand.rings.read()
    hand.write(numbered(3))
    later = SlotRings(hand.slots, hand.positions, atomics)
    assert later.read()["sector"].tolist() == [3]
