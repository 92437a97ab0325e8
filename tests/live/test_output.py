"""emit() and emit_part() (bpf/output.h, overflow.h) on the running kernel: which ring, and what a full one leaves.

The totals that the kernel adds up are compared with the same requests counted from records, bucket by bucket.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import platform
import select
import struct
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmio_probe.aggregate.buckets import LATENCY_EXPONENTS, SIZE_EXPONENTS, bucket
from llmio_probe.kernel.atomics import Atomics
from llmio_probe.kernel.libbpf import Libbpf
from llmio_probe.kernel.loading import SLOTS, fill_rings, make_rings, ring_bytes, ring_count
from llmio_probe.kernel.overflow import Overflow
from llmio_probe.kernel.records import (
    CONTROL,
    DEVICE_COUNTS,
    OVERFLOW_KEY,
    OVERFLOW_TOTALS,
    REQUEST,
    REQUEST_ENTRY,
    REQUEST_SLOT,
    RING_LOSSES,
    RING_POSITION,
    SHARE,
    Op,
    OwnerKind,
    Records,
    RequestFlag,
)
from llmio_probe.kernel.ring import Ring, Rings, map_ring
from llmio_probe.kernel.slots import SlotRings, map_array
from llmio_probe.kernel.tables import Table

HERE = Path(__file__).parent
BPF = HERE.parent.parent / "bpf"
CPUS = os.cpu_count() or 1
PUSH = np.dtype([("entry", REQUEST_ENTRY), ("done_ns", "u8"), ("count", "u4"), ("part", "u4")])
DEVICE = 7 << 20 | 3


class Kernel:
    """The output side with maps of its own: push records, read the rings, read what overflowed."""

    def __init__(
        self, libbpf: Libbpf, opened: int, plain: bool, stack: ExitStack, overflow_entries: int | None
    ) -> None:
        self._libbpf = libbpf
        maps = {libbpf.bpf_map__name(item).decode(): item for item in libbpf.each("bpf_object__next_map", opened)}
        rings = [] if plain else make_rings(libbpf, CPUS, stack)
        if plain:
            libbpf.number("bpf_map__set_max_entries", maps["request_slots"], SLOTS)
        else:
            libbpf.number("bpf_map__set_max_entries", maps["requests_rings"], len(rings))
            libbpf.number("bpf_map__set_inner_map_fd", maps["requests_rings"], rings[0].fd)
        if overflow_entries:
            libbpf.number("bpf_map__set_max_entries", maps["overflow"], overflow_entries)
        programs = {libbpf.bpf_program__name(item): item for item in libbpf.each("bpf_object__next_program", opened)}
        for name, item in programs.items():
            libbpf.number("bpf_program__set_autoload", item, name == b"push")
        libbpf.number("bpf_object__load", opened)
        fds = {name: libbpf.number("bpf_map__fd", item) for name, item in maps.items()}
        count = ring_count(CPUS)
        self.rings: SlotRings | Rings
        if plain:
            slots = map_array(fds["request_slots"], REQUEST_SLOT, SLOTS).reshape(count, -1)
            positions = map_array(fds["ring_positions"], RING_POSITION, count, writable=True)
            self.rings = SlotRings(slots, positions, Atomics())
            self.room = SLOTS // count
        else:
            fill_rings(libbpf, fds["requests_rings"], rings)
            buffers = [map_ring(ring.fd, ring.max_entries) for ring in rings]
            self.rings = Rings([Ring(buffer, REQUEST, Atomics()) for buffer in buffers], REQUEST)
            self.room = buffers[0].size // (8 + REQUEST.itemsize)
        control = np.frombuffer(mmap.mmap(fds[".data.control"], mmap.PAGESIZE), CONTROL, 1)
        control["rings_mask"] = count - 1
        control["ring_slots"] = SLOTS // count
        control["ring_bytes"] = ring_bytes(count)
        u4 = np.dtype("u4")
        cpus = libbpf.number("libbpf_num_possible_cpus")
        self.losses = Table(libbpf, fds["ring_losses"], u4, RING_LOSSES, cpus)
        self._slots = Table(libbpf, fds["device_slots"], u4, u4)
        self._slots.put(DEVICE, 1)  # claimed when a request begins
        self.overflow = Overflow(
            Table(libbpf, fds["overflow"], OVERFLOW_KEY, OVERFLOW_TOTALS),
            Table(libbpf, fds["device_counts"], u4, DEVICE_COUNTS, cpus),
            self._slots,
            control,
        )
        self._program = libbpf.number("bpf_program__fd", programs[b"push"])
        self._waiter = select.epoll()
        stack.callback(self._waiter.close)
        for fd in (fds["processes_ring"], *(ring.fd for ring in rings)):
            self._waiter.register(fd, select.EPOLLIN | select.EPOLLET)
        self._run = ctypes.CDLL("libbpf.so.1", use_errno=True).bpf_prog_test_run_opts

    def push(self, request: Records, count: int = 1, cpu: int = 0) -> None:
        """From that CPU; the thread may run on all others again afterwards."""
        allowed = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {cpu})
        try:
            arguments = np.zeros(1, PUSH)
            arguments["entry"], arguments["done_ns"] = request["entry"], request["done_ns"]
            arguments["part"], arguments["count"] = request["part"], count
            # struct bpf_test_run_opts, as in test_ring.py
            options = struct.pack(
                "=QQQIIQQIIIIIIII", 80, 0, 0, 0, 0, arguments.ctypes.data, 0, PUSH.itemsize, 0, 0, 0, 0, 0, 0, 0
            )
            assert self._run(self._program, ctypes.create_string_buffer(options)) == 0, ctypes.get_errno()
        finally:
            os.sched_setaffinity(0, allowed)

    def woken(self) -> bool:
        """Since it was asked last."""
        return bool(self._waiter.poll(0))

    def lost(self) -> int:
        values = self.losses.get(0)
        assert values is not None
        return int(values["lost_records"].sum())


@pytest.fixture(scope="module", params=[True, False], ids=["slots", "buffers"])
def plain(request: pytest.FixtureRequest) -> bool:
    """Of the plain variant, or of those for older kernels (bpf/rings.h)."""
    return bool(request.param)


@pytest.fixture(scope="module")
def output_object(plain: bool, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bpf") / "output.o"
    machine = platform.machine()
    target = {"x86_64": "x86", "aarch64": "arm64"}[machine]
    subprocess.run(
        ["clang", "-O2", "-g", "-target", "bpf", "-mcpu=v3", f"-D__TARGET_ARCH_{target}", "-I", BPF, "-I",
         f"/usr/include/{machine}-linux-gnu", *["-DLLMIO_PLAIN"] * plain, "-c", HERE / "output.bpf.c",
         "-o", path], check=True,
    )  # fmt: skip
    return path


@pytest.fixture(params=[None])
def kernel(output_object: Path, plain: bool, request: pytest.FixtureRequest) -> Iterator[Kernel]:
    """The parameter: entries of the overflow table, None for as many as usual."""
    libbpf = Libbpf()
    with ExitStack() as stack:
        opened = libbpf.pointer("bpf_object__open_file", bytes(output_object), None)
        stack.callback(libbpf.bpf_object__close, opened)
        yield Kernel(libbpf, opened, plain, stack, request.param)


def request(**fields: Any) -> Records:
    """As the programs keep one; bytes are the whole request's."""
    made = np.zeros(1, PUSH)
    entry = made["entry"]
    usual = {
        "made_ns": 1000, "issued_ns": 3000, "issues": 1, "device": DEVICE, "bytes": 4096, "tgid": 11,
        "owner_start_ns": 10**9, "owner": OwnerKind.PROCESS, "engine": 1, "path": 1, "inode": 12,
        "file_device": 8 << 20, "done_ns": 10_000,
    }  # fmt: skip
    for name, value in (usual | fields).items():
        where = made if name in ("done_ns", "part") else entry["share"] if name in (SHARE.names or ()) else entry
        where[name] = value
    return made


def test_two_cpus_write_into_a_ring_each_at_the_same_time(kernel: Kernel) -> None:
    """No lock is shared: what one CPU wrote is in its own ring alone, also while the other one writes."""
    count = 10_007
    writers = [threading.Thread(target=kernel.push, args=(request(), count, cpu)) for cpu in range(min(CPUS, 2))]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    found = kernel.rings.read()  # ring by ring
    assert found["hw_queue"].tolist() == [cpu for cpu in range(len(writers)) for _ in range(count)]
    assert found["sector"].tolist() == list(range(count)) * len(writers)
    assert len(kernel.overflow.read()) == 0


def test_rings_that_wrap_lose_and_repeat_nothing(kernel: Kernel) -> None:
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


def test_the_reader_is_woken_once_when_a_ring_is_half_full(kernel: Kernel) -> None:
    kernel.push(request(done_ns=1 << 20), kernel.room // 2 - 64)
    assert not kernel.woken()
    kernel.push(request(done_ns=1 << 20), 256)
    assert kernel.woken()
    kernel.push(request(done_ns=1 << 20), 256)
    assert not kernel.woken()
    assert len(kernel.rings.read()) == kernel.room // 2 - 64 + 512


EDGES = (0, 1, 511, 512, 513, 131071, 131072, 131073, (1 << 31) - 1, 1 << 31, (1 << 31) + 1)
TIMES = (1, 1023, 1024, 1025, 1 << 20, (1 << 20) + 1, 1 << 35, (1 << 35) + 1, 1 << 40)


def test_what_finds_no_room_is_counted_in_the_same_buckets_as_a_request(kernel: Kernel) -> None:
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


def test_all_that_user_space_tells_apart_is_told_apart(kernel: Kernel) -> None:
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


def test_a_part_is_no_request_and_a_request_without_times_has_no_latency(kernel: Kernel) -> None:
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
def test_with_that_table_full_too_the_devices_totals_still_add_up(kernel: Kernel) -> None:
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
