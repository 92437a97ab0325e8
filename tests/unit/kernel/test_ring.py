"""The reading end of a BPF ring takes every finished record once, in order, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from llmio_probe.aggregate.buckets import SIZE_EDGES, SIZE_EXPONENTS, bucket
from llmio_probe.errors import ProbeError
from llmio_probe.kernel.records import PROCESS, REQUEST, Records
from llmio_probe.kernel.ring import Ring
from tests.unit.kernel.conftest import HandRing

MakeRing = Callable[..., tuple[HandRing, Ring]]
MakeRecords = Callable[[int], Records]

STRIDE = 96
SLOTS = 4096 // STRIDE


def numbered(*numbers: int) -> Records:
    records = np.zeros(len(numbers), REQUEST)
    records["sector"] = numbers
    return records


def test_an_empty_ring_gives_an_empty_batch(ring: Ring, hand: HandRing) -> None:
    batch = ring.read()
    assert (len(batch), batch.dtype, hand.consumed) == (0, REQUEST, 0)


def test_records_of_around_128_kib_come_through_and_land_in_the_right_buckets(ring: Ring, hand: HandRing) -> None:
    records = np.zeros(3, REQUEST)
    records["request_bytes"] = [131071, 131072, 131073]
    hand.write(records)
    batch = ring.read()
    assert batch["request_bytes"].tolist() == [131071, 131072, 131073]
    assert [SIZE_EDGES[i] for i in bucket(batch["request_bytes"], SIZE_EXPONENTS)] == [131072, 131072, 262144]


def test_every_byte_of_a_record_comes_through(ring: Ring, hand: HandRing, records: MakeRecords) -> None:
    hand.write(records(SLOTS))
    assert ring.read().tobytes() == records(SLOTS).tobytes()


def test_what_was_read_is_given_back_and_not_read_again(ring: Ring, hand: HandRing, records: MakeRecords) -> None:
    hand.write(records(SLOTS))
    assert hand.free == 0
    ring.read()
    assert (hand.consumed, hand.free) == (SLOTS * STRIDE, SLOTS)
    assert len(ring.read()) == 0


def test_a_batch_is_a_copy_that_later_records_do_not_change(ring: Ring, hand: HandRing) -> None:
    hand.write(numbered(*range(SLOTS)))
    batch = ring.read()
    hand.write(numbered(*[77] * SLOTS))
    assert batch["sector"].tolist() == list(range(SLOTS))


def test_a_record_that_breaks_at_the_end_goes_on_in_the_mirror(make_ring: MakeRing, records: MakeRecords) -> None:
    for begin in range(0, 4096, 8):
        hand, ring = make_ring(begin=begin)
        hand.write(records(SLOTS))
        assert ring.read().tobytes() == records(SLOTS).tobytes(), begin


def test_many_rounds_lose_and_repeat_nothing(ring: Ring, hand: HandRing) -> None:
    random = np.random.default_rng(1)
    written, read = 0, []
    for _ in range(2000):
        count = int(random.integers(0, hand.free + 1))
        hand.write(numbered(*range(written, written + count)))
        written += count
        if random.random() < 0.7:
            read += ring.read()["sector"].tolist()
    read += ring.read()["sector"].tolist()
    assert read == list(range(written))
    assert hand.consumed == written * STRIDE > 100 * hand.size


def test_positions_beyond_32_bits_are_fine(make_ring: MakeRing) -> None:
    hand, ring = make_ring(begin=(1 << 40) - STRIDE)
    hand.write(numbered(1, 2, 3))
    assert ring.read()["sector"].tolist() == [1, 2, 3]
    assert hand.consumed == (1 << 40) + 2 * STRIDE


def test_a_busy_record_stops_the_pass_and_is_read_when_it_is_done(ring: Ring, hand: HandRing) -> None:
    hand.write(numbered(1))
    second = hand.reserve(numbered(2))
    hand.write(numbered(3))
    assert ring.read()["sector"].tolist() == [1]
    assert ring.read()["sector"].tolist() == []
    assert hand.consumed == STRIDE
    hand.finish(second)
    assert ring.read()["sector"].tolist() == [2, 3]


def test_a_discarded_record_is_skipped_and_its_space_given_back(ring: Ring, hand: HandRing) -> None:
    for number, discard in ((1, True), (2, False), (3, True), (4, False), (5, True)):
        hand.reserve(numbered(number), busy=False, discard=discard)
    assert ring.read()["sector"].tolist() == [2, 4]
    assert hand.consumed == 5 * STRIDE


def test_nothing_but_discarded_records_gives_an_empty_batch(ring: Ring, hand: HandRing) -> None:
    first = hand.reserve()
    assert len(ring.read()) == 0
    hand.finish(first, discard=True)
    assert len(ring.read()) == 0
    assert hand.consumed == STRIDE


@pytest.mark.parametrize("length", [0, REQUEST.itemsize - 8, REQUEST.itemsize + 8])
def test_a_record_of_another_length_is_an_error_that_names_the_object(ring: Ring, hand: HandRing, length: int) -> None:
    hand.write(numbered(1))
    hand.reserve(busy=False, length=length)
    with pytest.raises(ProbeError, match="the object and this version do not belong together"):
        ring.read()


def test_the_length_of_a_record_behind_a_busy_one_is_not_looked_at(ring: Ring, hand: HandRing) -> None:
    hand.reserve()
    hand.reserve(busy=False, length=8)
    assert len(ring.read()) == 0


@pytest.mark.parametrize("dtype", [REQUEST, PROCESS, np.dtype([("odd", "u1", (13,))])])
def test_slots_are_padded_to_8_bytes(make_ring: MakeRing, dtype: np.dtype[Any]) -> None:
    hand, ring = make_ring(dtype=dtype)
    content = np.frombuffer(np.random.default_rng(1).bytes(5 * dtype.itemsize), dtype)
    hand.write(content)
    assert ring.read().tobytes() == content.tobytes()
    assert hand.consumed == 5 * hand.stride


def test_a_reader_that_comes_later_begins_where_the_last_one_stopped(ring: Ring, hand: HandRing, atomics: Any) -> None:
    hand.write(numbered(1, 2))
    ring.read()
    hand.write(numbered(3))
    assert Ring(hand.memory, REQUEST, atomics).read()["sector"].tolist() == [3]
