"""The ring reader on a real ring of the kernel's, filled by a program of the test: sizes, wrap-around, discards."""

from __future__ import annotations

import ctypes
import platform
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from llmio_probe.aggregate.buckets import SIZE_EDGES
from llmio_probe.aggregate.series import Series
from llmio_probe.kernel.atomics import Atomics
from llmio_probe.kernel.libbpf import Libbpf
from llmio_probe.kernel.records import REQUEST
from llmio_probe.kernel.ring import Ring, map_ring
from llmio_probe.kernel.tables import Table
from tests.singly import add_requests

HERE = Path(__file__).parent
RING_BYTES = 4096
SLOT_BYTES = 96


class Pusher:
    """push(bytes, count, discard) makes the kernel write that many records."""

    def __init__(self, libbpf: Libbpf, program: int, ring: Ring, globals_: int) -> None:
        self._run = ctypes.CDLL("libbpf.so.1", use_errno=True).bpf_prog_test_run_opts
        self._program = libbpf.number("bpf_program__fd", program)
        self.ring = ring
        self._globals = Table(libbpf, globals_, np.dtype("u4"), np.dtype("u8"))

    @property
    def refused(self) -> int:
        """Records that found no room."""
        value = self._globals.get(0)
        assert value is not None
        return int(value[0])

    def push(self, size: int, count: int = 1, discard: bool = False) -> None:
        arguments = ctypes.create_string_buffer(struct.pack("=III", size, count, discard))
        # struct bpf_test_run_opts: sz, data_in, data_out, data_size_in, data_size_out, ctx_in, ctx_out, ctx_size_in, …
        options = struct.pack(
            "=QQQIIQQIIIIIIII", 80, 0, 0, 0, 0, ctypes.addressof(arguments), 0, 12, 0, 0, 0, 0, 0, 0, 0
        )
        assert self._run(self._program, ctypes.create_string_buffer(options)) == 0, ctypes.get_errno()


@pytest.fixture(scope="module")
def pusher_object(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bpf") / "pusher.o"
    include = f"/usr/include/{platform.machine()}-linux-gnu"
    subprocess.run(
        ["clang", "-O2", "-g", "-target", "bpf", "-mcpu=v3", "-I", HERE.parent.parent / "bpf", "-I", include, "-c",
         HERE / "pusher.bpf.c", "-o", path], check=True,
    )  # fmt: skip
    return path


@pytest.fixture
def pusher(pusher_object: Path) -> Iterator[Pusher]:
    libbpf = Libbpf()
    loaded = libbpf.pointer("bpf_object__open_file", bytes(pusher_object), None)
    try:
        libbpf.number("bpf_object__load", loaded)
        [program] = libbpf.each("bpf_object__next_program", loaded)
        maps = {libbpf.bpf_map__name(item): item for item in libbpf.each("bpf_object__next_map", loaded)}
        ring = Ring(map_ring(libbpf.number("bpf_map__fd", maps[b"ring"]), RING_BYTES), REQUEST, Atomics())
        bss = next(item for name, item in maps.items() if name.endswith(b".bss"))
        yield Pusher(libbpf, program, ring, libbpf.number("bpf_map__fd", bss))
    finally:
        libbpf.bpf_object__close(loaded)


def test_sizes_around_an_edge_come_through_and_fall_in_their_buckets(pusher: Pusher) -> None:
    for size in (131071, 131072, 131073):
        pusher.push(size)
    records = pusher.ring.read()
    assert records["bytes"].tolist() == [131071, 131072, 131073]
    series = Series(detail=True)
    add_requests(series, records, np.full(3, 7, np.int32))
    [row] = series.request_distributions()
    counts = dict(zip(SIZE_EDGES, row.size_bytes.counts.tolist(), strict=False))
    assert (counts[65536], counts[131072], counts[262144]) == (0, 2, 1)


def test_every_record_survives_every_position_of_the_end(pusher: Pusher) -> None:
    """4096 is no multiple of a slot: over 500 rounds records break at the end in all the ways they can."""
    for round_number in range(500):
        count = round_number % 43
        pusher.push(round_number + 1, count)
        records = pusher.ring.read()
        assert records["bytes"].tolist() == [round_number + 1] * count
        assert records["sector"].tolist() == list(range(count))


def test_discarded_records_are_skipped_and_their_space_comes_back(pusher: Pusher) -> None:
    for _ in range(20):
        pusher.push(1, 5)
        pusher.push(2, 30, discard=True)
        pusher.push(3, 5)
        assert pusher.ring.read()["bytes"].tolist() == [1] * 5 + [3] * 5


def test_a_full_ring_takes_no_more_and_goes_on_after_a_read(pusher: Pusher) -> None:
    pusher.push(4096, 1000)
    room = RING_BYTES // SLOT_BYTES
    assert len(pusher.ring.read()) in (room, room - 1)
    pusher.push(8192, 3)
    assert pusher.ring.read()["bytes"].tolist() == [8192] * 3


def test_an_empty_ring_gives_an_empty_batch(pusher: Pusher) -> None:
    assert len(pusher.ring.read()) == 0


def test_a_reader_beside_a_writer_loses_and_invents_nothing(pusher: Pusher) -> None:
    """The writer runs in another thread (the system call lets go of the interpreter); sectors must stay in order."""
    rounds, a_round = 2000, 7

    def write() -> None:
        for n in range(rounds):
            pusher.push(n + 1, a_round)

    writer = threading.Thread(target=write)
    writer.start()
    batches = []
    while writer.is_alive():
        batches.append(pusher.ring.read())
        time.sleep(0)  # else the writer waits 5 ms a round for the interpreter
    writer.join()
    batches.append(pusher.ring.read())
    records = np.concatenate(batches)
    kept = records["bytes"].astype(np.int64) * a_round + records["sector"].astype(np.int64)
    assert np.all(np.diff(kept) > 0)
    assert len(records) + pusher.refused == rounds * a_round
