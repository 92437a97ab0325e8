"""What a loader is asked for and what it hands over: programs and maps in the kernel, as descriptors.

There are two loaders, core_loader.py and bcc_loader.py; ``Probe`` works with what either of them loaded, and does not
know which.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from platform import machine
from typing import Literal

from llmio_probe.errors import ProbeError
from llmio_probe.kernel.btf import Btf, check_layouts
from llmio_probe.kernel.libbpf import Libbpf
from llmio_probe.kernel.variants import AGAIN

LoaderName = Literal["auto", "core", "bcc"]

FOLLOWING = frozenset({"sched_process_fork", "sched_process_exit"})
_SYSCALL_HOOKS = ("tracepoint/", "fentry/", "fexit/")
IO_URING_VIEW = frozenset({"io_uring_submit_req", "io_uring_submit_sqe"})


@dataclass(frozen=True)
class ProbeOptions:
    """What to load. request_entries: struct requests to remember at once (see ``request_entries``)."""

    request_entries: int
    calls: bool = True
    """The app's view: by syscall tracepoints it costs every task of the host 10 to 30 ns a system call."""
    follow: bool = False
    """Keep track of the descendants of followed processes."""
    loader: LoaderName = "auto"
    without: frozenset[str] = frozenset()
    """Tracepoints and functions to do without, though the kernel has them: to try what is for other kernels."""

    def wants(self, program: str, section: str) -> bool:
        """Is the program needed for this?"""
        program = program.removesuffix(AGAIN)
        if program in FOLLOWING:
            return self.follow
        return self.calls or not (section.startswith(_SYSCALL_HOOKS) or program in IO_URING_VIEW)


@dataclass(frozen=True)
class LoadedProgram:
    fd: int
    hook: str
    """What it attaches to: ``tp_btf/block_io_start``, ``raw_tp/…``, ``fentry/…``, ``tracepoint/syscalls/…``."""


@dataclass(frozen=True)
class LoadedMap:
    fd: int
    max_entries: int


@dataclass
class Loaded:
    """Programs by name, maps by name, and the BPF ring buffers in `requests_rings`, where that is one of them.

    Everything goes when ``close`` is called, or this process ends.
    """

    loader: Literal["core", "bcc"]
    variant: str
    """In words, for people."""
    programs: Mapping[str, LoadedProgram]
    maps: Mapping[str, LoadedMap]
    rings: Sequence[LoadedMap]
    starts_with_bio: bool
    symbols_hidden: bool
    warnings: list[str] = field(default_factory=list)
    closing: ExitStack = field(default_factory=ExitStack)

    def close(self) -> None:
        self.closing.close()


def object_path() -> Path:
    """The object that was built for this machine. ProbeError when there is none."""
    path = Path(__file__).parent / "objects" / f"probe.{machine()}.bpf.o"
    if not path.is_file():
        raise ProbeError(f"the BPF object {path} is missing: run make setup, or install a wheel for {machine()}")
    return path


class ProbeObject:
    """An opened object: its programs, maps and types. Nothing of it is in the kernel yet."""

    def __init__(self, libbpf: Libbpf, path: Path) -> None:
        """ProbeError when it cannot be read, or lays out its records differently from this version."""
        self.libbpf = libbpf
        try:
            self.address = libbpf.pointer("bpf_object__open_file", str(path).encode(), None)
        except OSError as error:
            raise ProbeError(
                f"the BPF object {path} cannot be read ({error.strerror}): rebuild it (make setup)"
            ) from None
        try:
            self.types = Btf(libbpf, libbpf.pointer("bpf_object__btf", self.address))
            check_layouts(self.types)
        except BaseException:
            self.close()
            raise
        self.maps = {libbpf.bpf_map__name(item).decode(): item for item in self._each("bpf_object__next_map")}
        self.programs = {
            libbpf.bpf_program__name(item).decode(): item for item in self._each("bpf_object__next_program")
        }
        self.sections: dict[str, str] = {
            name: libbpf.bpf_program__section_name(item).decode() for name, item in self.programs.items()
        }

    def _each(self, function: str) -> Iterator[int]:
        return self.libbpf.each(function, self.address)

    @property
    def symbols(self) -> dict[str, int]:
        """The names of the kernel's functions that it asks for, and where their addresses go (bpf/symbols.h)."""
        found = self.types.fields("symbols")
        if found is None:
            raise ProbeError("the BPF object asks for no symbols, so it is of another version: rebuild it (make setup)")
        return {name: offset for name, (offset, _) in found[0].items()}

    def close(self) -> None:
        self.libbpf.bpf_object__close(self.address)


SLOTS = 1 << 17
"""Of all rings together, 96 bytes each: 12 MiB. A reader is woken when any ring is half full: at 250,000 requests/s
from one CPU of two after 0.13 s."""
RINGS_BYTES = 8 << 20
"""Of all rings together where they are BPF ring buffers: 87,381 requests."""
RING_MAPS = frozenset({"request_slots", "requests_rings", "processes_ring", "files_ring"})
"""Where the memory of rings is accounted."""
PLAIN_MAPS = frozenset({"request_slots", "ring_positions", "call_states"})
OTHER_MAPS = frozenset({"requests_rings", "calls", "walks"})
"""What only the plain variant has, and what only the others have (bpf/variant.h)."""
RINGS_MAX = 64  # bpf/maps.h
RING_LEAST_BYTES = 64 << 10
"""The largest page of any machine: a ring is a whole number of pages, and a power of two."""
_RING = 27  # BPF_MAP_TYPE_RINGBUF


def online_cpus(path: Path = Path("/sys/devices/system/cpu/online")) -> int:
    """By the highest number of a CPU that runs: a virtual machine may be allowed hundreds that it does not have."""
    return int(path.read_text().replace("-", ",").split(",")[-1]) + 1


def ring_count(cpus: int) -> int:
    """A power of two, one ring a CPU or, of many CPUs, one for each few: a CPU's is found by a mask."""
    return min(1 << (max(cpus, 1) - 1).bit_length(), RINGS_MAX)


def ring_bytes(count: int) -> int:
    """Of each of so many rings."""
    return max(RINGS_BYTES // count, RING_LEAST_BYTES)


def make_rings(libbpf: Libbpf, cpus: int, stack: ExitStack) -> list[LoadedMap]:
    """BPF ring buffers; closed with the stack. OSError when the kernel refuses."""
    count = ring_count(cpus)
    size = ring_bytes(count)
    made = []
    for _ in range(count):
        fd = libbpf.number("bpf_map_create", _RING, b"requests_ring", 0, 0, size, None)
        stack.callback(os.close, fd)
        made.append(LoadedMap(fd, size))
    return made


FILLED_AT_ONCE = 16


def fill_rings(libbpf: Libbpf, outer: int, rings: Sequence[LoadedMap]) -> None:
    """Put the rings into the map, given by its descriptor, that holds them. OSError when the kernel refuses.

    Some at once: after each change of such a map the kernel waits until no program can see what was there before, for
    about 10 ms, and those who wait at the same time wait for the same moment. Not all: the service may have 64 threads.
    """

    def put(index: int) -> None:
        key, value = ctypes.c_uint32(index), ctypes.c_uint32(rings[index].fd)
        libbpf.number("bpf_map_update_elem", outer, ctypes.byref(key), ctypes.byref(value), 0)

    with ThreadPoolExecutor(min(len(rings), FILLED_AT_ONCE)) as pool:
        list(pool.map(put, range(len(rings))))


LRU_MAPS = {"bios": 8192, "seen": 8192, "writers": 16384, "files": 16384}  # bpf/maps.h
LRU_A_CPU = 256
"""Entries: each CPU may hold 128 free ones of such a map, and one that gets none, before d4adf1c9ee77 (2025), takes its
own newest entry instead, long before the map is full.
"""
OVERFLOW_LEAST = 4096  # bpf/maps.h
OVERFLOW_A_RING = 256
"""Combinations of owner, file, op and so on for which there is room, where each is seen on every CPU."""


def map_sizes(options: ProbeOptions, plain: bool, starts_with_bio: bool, cpus: int) -> dict[str, int]:
    """Entries of the maps whose size depends on the host or on what is asked for."""
    overflow = max(OVERFLOW_LEAST, OVERFLOW_A_RING * ring_count(cpus))
    return {
        **{name: max(least, LRU_A_CPU * cpus) for name, least in LRU_MAPS.items()},
        "overflow": overflow,
        "call_totals": overflow,
        **({} if options.follow else {"followed": 1}),
        "request_slots": SLOTS,
        "requests": 1 << (options.request_entries - 1).bit_length() if plain else 1,  # found by a mask
        "displaced_requests": options.request_entries,
        "made_bios": options.request_entries if starts_with_bio else 1,
    }


Loader = Callable[[Libbpf, ProbeOptions], Loaded]
