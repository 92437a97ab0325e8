"""emit() and emit_part() (bpf/output.h, overflow.h) by themselves, with own maps: for whoever tests or times them."""

from __future__ import annotations

import ctypes
import mmap
import os
import platform
import select
import struct
import subprocess
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

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
    OwnerKind,
    Records,
)
from llmio_probe.kernel.ring import Ring, Rings, map_ring
from llmio_probe.kernel.slots import SlotRings, map_array
from llmio_probe.kernel.tables import Table

HERE = Path(__file__).parent
BPF = HERE.parent.parent / "bpf"
CPUS = os.cpu_count() or 1
PUSH = np.dtype(
    [
        ("entry", REQUEST_ENTRY),
        ("done_ns", "u8"),
        ("count", "u4"),
        ("part", "u4"),
        ("begin_ns", "u8"),
        ("took_ns", "u8"),
    ]
)
DEVICE = 7 << 20 | 3
SOON_NS = 3_000_000
"""Until then a thread has started."""


class Span(NamedTuple):
    """CLOCK_MONOTONIC nanoseconds."""

    begin: int
    end: int


def together(spans: Sequence[Span]) -> float:
    """The part of the longest for which all of them were there; 0 or less: none."""
    both = min(span.end for span in spans) - max(span.begin for span in spans)
    return both / max(span.end - span.begin for span in spans)


class OutputSide:
    """Push records, read the rings, read what overflowed."""

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

    def push(self, request: Records, count: int = 1, cpu: int = 0, begin_ns: int = 0) -> Span:
        """From that CPU, not before begin_ns; the thread may run on all others again afterwards."""
        allowed = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {cpu})
        try:
            arguments = request.copy()
            arguments["count"], arguments["begin_ns"] = count, begin_ns
            # struct bpf_test_run_opts, as in test_ring.py; what it is given comes back as the program has left it
            options = struct.pack(
                "=QQQIIQQIIIIIIII", 80, 0, 0, 0, 0, arguments.ctypes.data, 0, PUSH.itemsize, 0, 0, 0, 0, 0, 0, 0
            )
            assert self._run(self._program, ctypes.create_string_buffer(options)) == 0, ctypes.get_errno()
            began = int(arguments["begin_ns"][0])
            return Span(began, began + int(arguments["took_ns"][0]))
        finally:
            os.sched_setaffinity(0, allowed)

    def push_together(self, request: Records, count: int, cpus: Sequence[int]) -> list[Span]:
        """From all these CPUs, at the same time if the machine has them free then."""
        begin_ns = time.monotonic_ns() + SOON_NS
        with ThreadPoolExecutor(len(cpus)) as pool:
            return list(pool.map(lambda cpu: self.push(request, count, cpu, begin_ns), cpus))

    def woken(self) -> bool:
        """Since it was asked last."""
        return bool(self._waiter.poll(0))

    def lost(self) -> int:
        values = self.losses.get(0)
        assert values is not None
        return int(values["lost_records"].sum())


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


def compiled(plain: bool, folder: Path) -> Path:
    """plain: the variant with slots, not those for older kernels (bpf/rings.h)."""
    path = folder / f"output-{'slots' if plain else 'buffers'}.o"
    machine = platform.machine()
    target = {"x86_64": "x86", "aarch64": "arm64"}[machine]
    subprocess.run(
        ["clang", "-O2", "-g", "-target", "bpf", "-mcpu=v3", f"-D__TARGET_ARCH_{target}", "-I", BPF, "-I",
         f"/usr/include/{machine}-linux-gnu", *["-DLLMIO_PLAIN"] * plain, "-c", HERE / "output.bpf.c",
         "-o", path], check=True,
    )  # fmt: skip
    return path


@contextmanager
def output_side(path: Path, plain: bool, overflow_entries: int | None = None) -> Iterator[OutputSide]:
    """overflow_entries: of the overflow table; None: as many as usual."""
    libbpf = Libbpf()
    with ExitStack() as stack:
        opened = libbpf.pointer("bpf_object__open_file", bytes(path), None)
        stack.callback(libbpf.bpf_object__close, opened)
        yield OutputSide(libbpf, opened, plain, stack, overflow_entries)
