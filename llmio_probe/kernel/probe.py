"""The probe: attaches what a loader loaded, hands out records and the kernel's own counts, leaves nothing behind.

This is all that the rooms above know of BPF.
"""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Protocol

import numpy as np

from llmio_probe.errors import ProbeError
from llmio_probe.kernel.atomics import Atomics
from llmio_probe.kernel.calls import CallTable
from llmio_probe.kernel.files import file_sight
from llmio_probe.kernel.libbpf import Libbpf
from llmio_probe.kernel.loaders import load as load_fitting
from llmio_probe.kernel.loading import SLOTS, LoadedMap, Loader, ProbeOptions, online_cpus, ring_bytes, ring_count
from llmio_probe.kernel.overflow import Overflow
from llmio_probe.kernel.program_info import ProgramRuns, program_runs
from llmio_probe.kernel.records import (
    CALL_KEY,
    CALL_TOTALS,
    CONTROL,
    DEVICE_COUNTS,
    MADE_BIO,
    OVERFLOW_KEY,
    OVERFLOW_TOTALS,
    PROCESS,
    PROCESS_KEY,
    REQUEST,
    REQUEST_ENTRY,
    REQUEST_SLOT,
    RING_LOSSES,
    RING_POSITION,
    Batch,
    Op,
    Records,
)
from llmio_probe.kernel.ring import BytesRing, Ring, RingMemory, Rings, map_ring
from llmio_probe.kernel.slots import SlotRings, map_array
from llmio_probe.kernel.state import DeviceCounts, Losses, ProbeState
from llmio_probe.kernel.tables import Table, TableError
from llmio_probe.kernel.tracepoints import attach_tracepoint, tracepoint_ids
from llmio_probe.kernel.variants import AGAIN, missed_by_all

# Only the completions come first, so that whatever is started is also seen to end.
_ATTACH_ORDER = (
    "block_rq_complete", "block_rq_merge", "block_bio_backmerge", "block_bio_frontmerge", "writeback_dirty_folio",
    "writeback_dirty_page", "block_rq_issue", "block_io_start", "block_getrq",
)  # fmt: skip
_STARTED = 1  # entries.h: request_entry.in_flight
_DEVICE_COUNTS = ("started", "finished", "merged", "expired", "unowned", "unowned_at_attach", "untracked")
_IN_FLIGHT = np.dtype([("slot", "u2"), ("op", "u1")])
_STATS_RUN_TIME = 0  # enum bpf_stats_type
_STATS_SYSCTL = Path("/proc/sys/kernel/bpf_stats_enabled")
_NEVER = 2**64 - 1
_SETTLE_SECONDS = 0.002  # for programs that were already past their look at `running`


def request_entries(sys_root: Path = Path("/sys"), cpus: int = 1) -> int:
    """Room for every struct request of the host: per disk hardware queues x nr_requests, twice over, within bounds.

    Twice, since an I/O scheduler has requests of its own and devices may come; and not below 512 a CPU, because a hash
    map keeps its free entries in a list for each (kernel/bpf/percpu_freelist.c).
    """
    requests = 0
    for queue in sys_root.glob("block/*/queue"):
        try:
            requests += int((queue / "nr_requests").read_text()) * max(1, len(list((queue.parent / "mq").glob("*"))))
        except (OSError, ValueError):
            continue
    return min(max(4096, 512 * cpus, 2 * requests), 1 << 17)


class EndCost(Protocol):
    """go_on: leave the statistics on, and begin to take the means anew."""

    def __call__(self, *, go_on: bool = False) -> None: ...


class Probe:
    """Loaded programs. ``start`` lets them count, ``read`` hands out records, ``stop`` freezes, ``close`` unloads.

    A context manager; whatever happens, nothing stays attached, since everything hangs on descriptors of this process.
    """

    def __init__(self, options: ProbeOptions, load: Loader | None = None, library: Libbpf | None = None) -> None:
        self._libbpf = library or Libbpf()
        self._atomics = Atomics()
        self._attached = ExitStack()
        self._hooks: list[str] = []
        self._program_costs: dict[str, float] = {}
        self._loaded = (load or load_fitting)(self._libbpf, options)
        self.warnings: list[str] = list(self._loaded.warnings)
        """What could not be attached though it was asked for, a sentence each; known after ``start``."""
        try:
            self._open_maps()
        except OSError as error:
            self.close()
            raise ProbeError(f"the BPF maps cannot be mapped into memory ({error.strerror}): run as root") from None
        except BaseException:
            self.close()
            raise

    # --- loading and attaching

    def _open_maps(self) -> None:
        libbpf = self._libbpf
        cpus = libbpf.number("libbpf_num_possible_cpus")
        self._rings = ring_count(online_cpus())
        self._request_rings = self._open_rings() if self._loaded.rings else self._open_slots()
        self._processes_ring = Ring(self._ring_memory("processes_ring"), PROCESS, self._atomics)
        self._files_ring = BytesRing(self._ring_memory("files_ring"), self._atomics)
        u4, u8 = np.dtype("u4"), np.dtype("u8")
        self._requests = [
            Table(libbpf, self._fd("requests"), u4, REQUEST_ENTRY),
            Table(libbpf, self._fd("displaced_requests"), u8, REQUEST_ENTRY),
        ]
        self._made_bios = Table(libbpf, self._fd("made_bios"), u8, MADE_BIO)
        self._slots = Table(libbpf, self._fd("device_slots"), u4, u4)
        self._counts = Table(libbpf, self._fd("device_counts"), u4, DEVICE_COUNTS, cpus)
        self._losses = Table(libbpf, self._fd("ring_losses"), u4, RING_LOSSES, cpus)
        self._seen = Table(libbpf, self._fd("seen"), PROCESS_KEY, u4)
        self._followed = Table(libbpf, self._fd("followed"), PROCESS_KEY, u4)
        self._control = np.frombuffer(mmap.mmap(self._fd(".data.control"), mmap.PAGESIZE), CONTROL, 1)
        self._overflow = Overflow(
            Table(libbpf, self._fd("overflow"), OVERFLOW_KEY, OVERFLOW_TOTALS),
            self._counts,
            self._slots,
            self._control,
        )
        self._calls = CallTable(Table(libbpf, self._fd("call_totals"), CALL_KEY, CALL_TOTALS), self._control)
        self._control["requests_mask"] = self._loaded.maps["requests"].max_entries - 1
        self._control["page_bytes"] = mmap.PAGESIZE
        self._control["starts_with_bio"] = self._loaded.starts_with_bio
        self._control["rings_mask"] = self._rings - 1
        self._control["ring_slots"] = SLOTS // self._rings
        self._control["ring_bytes"] = ring_bytes(self._rings)
        # All but task storage has its room from the start, and before 5.14 who gives up being root cannot ask later.
        self._memory = {name: self._memory_of(name) for name in self._loaded.maps}

    def _open_slots(self) -> SlotRings:
        slots = map_array(self._fd("request_slots"), REQUEST_SLOT, SLOTS).reshape(self._rings, -1)
        positions = map_array(self._fd("ring_positions"), RING_POSITION, self._rings, writable=True)
        return SlotRings(slots, positions, self._atomics)

    def _open_rings(self) -> Rings:
        memories = [map_ring(ring.fd, ring.max_entries) for ring in self._loaded.rings]
        return Rings([Ring(memory, REQUEST, self._atomics) for memory in memories], REQUEST)

    def _ring_memory(self, name: str) -> RingMemory:
        return map_ring(self._fd(name), self._loaded.maps[name].max_entries)

    def _fd(self, name: str) -> int:
        return self._loaded.maps[name].fd

    def start(self) -> None:
        """Attach everything, then let it count from one moment on. ProbeError when the kernel refuses."""
        programs = self._loaded.programs
        try:
            for name in sorted(programs, key=_attach_order):
                kind, _, event = programs[name].hook.partition("/")
                if kind != "tracepoint":
                    # Of a raw tracepoint the name; the others have it in the program.
                    where = event.encode() if kind == "raw_tp" else None
                    fd = self._libbpf.number("bpf_raw_tracepoint_open", where, programs[name].fd)
                    self._attached.callback(os.close, fd)
                    self._hooks.append(programs[name].hook)
            self._attach_tracepoints()
        except OSError as error:
            raise ProbeError(f"the BPF programs cannot be attached ({error.strerror}): run as root") from None
        if self._loaded.symbols_hidden:
            self.warnings.append(
                "the kernel hides its symbols' addresses, so that no request's path or file is known: give CAP_SYSLOG, "
                "and sysctl kernel.kptr_restrict at 0 or 1"
            )
        # What was made earlier was in flight at attach; set last, what is made from `running` on has a start.
        self._control["started_ns"] = _NEVER
        self._control["running"] = 1
        self._control["started_ns"] = time.monotonic_ns()

    def _attach_tracepoints(self) -> None:
        """Those of system calls: the app's view."""
        events = {
            program.hook.partition("/")[2]: program
            for program in self._loaded.programs.values()
            if program.hook.startswith("tracepoint/")
        }
        try:
            ids = tracepoint_ids(events) if events else {}
        except OSError as error:  # without CAP_SYS_ADMIN; block requests are all counted nonetheless
            self.warnings.append(f"the app's view is missing, this user gets no tracefs ({error.strerror})")
            return
        if missing := sorted(events.keys() - ids.keys()):
            self.warnings.append(f"the app's view lacks what this kernel has no tracepoint for: {', '.join(missing)}")
        with ExitStack() as attached:
            try:
                for event, tracepoint in ids.items():
                    attached.callback(os.close, attach_tracepoint(tracepoint, events[event].fd))
            except PermissionError as error:  # seccomp, or a kernel such as Debian's that wants CAP_SYS_ADMIN for it
                self.warnings.append(f"the app's view is missing, this user gets no perf events ({error.strerror})")
                return
            self._attached.callback(attached.pop_all().close)
        self._hooks += [events[event].hook for event in ids]

    # --- while it runs

    @property
    def hooks(self) -> list[str]:
        """The attached programs' sections, such as ``tp_btf/block_io_start``, each once."""
        return sorted(set(self._hooks))

    @property
    def programs(self) -> int:
        """How many are attached."""
        return len(self._hooks)

    @property
    def loader(self) -> str:
        """``core`` or ``bcc``."""
        return self._loaded.loader

    @property
    def variant(self) -> str:
        """Which of the programs' variants fits this kernel, in words."""
        return self._loaded.variant

    @property
    def wake_fds(self) -> list[int]:
        """Readable, edge-triggered, when a ring is half full or a process or a file is new."""
        return [*(ring.fd for ring in self._loaded.rings), self._fd("processes_ring"), self._fd("files_ring")]

    def read(self) -> Batch:
        """Everything that is complete in the rings, what was added up because one was full, and what was asked for.

        TableError where a table may not be read.

        Requests come before processes and files: those are introduced before their first request finishes, so whoever
        is in ``requests`` is also in this or an earlier ``processes``. In the order of the rings, each about in the
        order of completion.
        """
        requests = self._request_rings.read()
        self._control["woken"] = 0
        overflow, calls = self._overflow.read(), self._calls.read()
        processes = self._processes_ring.drain()
        files = [file_sight(record) for record in self._files_ring.drain()]
        return Batch(requests, calls, processes, files, overflow)

    def give_back(self, has_ended: Callable[[int, int], bool]) -> None:
        """Make room in tables: which processes, by pid and start in nanoseconds, have ended?"""
        self._calls.give_back(has_ended)

    def follow(self, pid: int, start_ticks: int) -> None:
        """The process and all its descendants from now on belong to the session."""
        try:
            self._followed.put(np.array((start_ticks, pid), PROCESS_KEY), 1)
        except TableError as error:
            raise ProbeError(f"process {pid} cannot be followed ({error.why}): there are too many, use --all") from None
        # Introduced before? Then again, now as one that is followed.
        for key in self._seen.keys():  # noqa: SIM118 - a table, no dict
            if key["tgid"] == pid:
                self._seen.remove(key)
                self._control["seen_epoch"] += 1

    def unfollow(self, pid: int, start_ticks: int) -> None:
        """The process has ended without the kernel having told us."""
        self._followed.remove(np.array((start_ticks, pid), PROCESS_KEY))

    def followed(self) -> set[tuple[int, int]]:
        """(pid, start_ticks) of the followed processes that are alive."""
        return {(int(key["tgid"]), int(key["start"])) for key in self._followed.keys()}  # noqa: SIM118

    def state(self) -> ProbeState:
        """The kernel's counts. After ``stop`` they add up; before it they are read one after the other."""
        in_flight = np.concatenate([*self._requests_in_flight()], dtype=_IN_FLIGHT)
        losses = self._sum(self._losses, 0)
        return ProbeState(
            [self._device(int(device), int(slot), in_flight) for device, slot in self._device_slots()],
            Losses(
                losses["lost_records"], losses["lost_calls"], losses["processes"],
                missed_by_all({name: runs.missed for name, runs in self._runs().items() if runs.missed is not None}),
                losses["files"], losses["overflowed_requests"],
            ),
            dict(self._memory),
            dict(self._program_costs),
            {"requests": self._request_rings.peak},
        )  # fmt: skip

    def _requests_in_flight(self) -> Iterator[Records]:
        """Slots and ops. The tables of a large host are some 20 MiB, of which hardly anything is in flight."""
        for table in self._requests:
            for _, values in table.batches():
                yield values[values["in_flight"] == _STARTED][["slot", "op"]].copy()
        for _, values in self._made_bios.batches():
            yield values[:, 0][["slot", "op"]].copy()

    def shortages(self) -> list[str]:
        """What found no room in a table, a sentence each: counted, but it costs names."""
        devices = self._device_slots()
        untracked = sum(self._sum(self._counts, slot)["untracked"] for _, slot in devices)
        forks = int(self._control["followed_full"][0])
        return [
            f"{count:,} {what}"
            for count, what in (
                (untracked, "requests found no room in the request table: their owner is unknown"),
                (forks, "new processes found no room in the session: what they did counts as others'; use --all"),
            )
            if count
        ]

    def _device_slots(self) -> list[tuple[int, int]]:
        devices = self._slots.keys()
        slots = [
            (int(device), int(slot[0])) for device in devices if (slot := self._slots.get(int(device))) is not None
        ]
        # Slot 0 is shared by those that found none of their own.
        return [*slots, (0, 0)] if any(self._sum(self._counts, 0).values()) else slots

    def _device(self, device: int, slot: int, in_flight: Records) -> DeviceCounts:
        counts = self._sum(self._counts, slot)
        ops, requests = np.unique(in_flight["op"][in_flight["slot"] == slot], return_counts=True)
        return DeviceCounts(
            device,
            **{name: counts[name] for name in _DEVICE_COUNTS},
            in_flight={Op(op): int(n) for op, n in zip(ops, requests, strict=True)},
        )

    @staticmethod
    def _sum(table: Table, key: int) -> dict[str, int]:
        values = table.get(key)
        return {name: int(values[name].sum()) if values is not None else 0 for name in table.value.names or ()}

    def _memory_of(self, name: str) -> int:
        """Bytes of a map, with the rings in it."""
        rings = self._loaded.rings if name == "requests_rings" else ()
        return _map_memory(name, self._loaded.maps[name]) + sum(_map_memory("a_ring", ring) for ring in rings)

    # --- what we cost

    def _runs(self) -> dict[str, ProgramRuns]:
        return {name: program_runs(self._libbpf, program.fd) for name, program in self._loaded.programs.items()}

    def begin_cost(self) -> EndCost:
        """Turn the kernel's BPF statistics on, which costs; what it returns keeps the means, and turns them off.

        PermissionError without CAP_SYS_ADMIN, unless they are on for all (kernel.bpf_stats_enabled).
        """
        fd = None
        try:
            fd = self._libbpf.number("bpf_enable_stats", _STATS_RUN_TIME)
        except PermissionError:
            if _STATS_SYSCTL.read_text().strip() != "1":
                raise
        before = self._runs()

        def end(*, go_on: bool = False) -> None:
            nonlocal before
            if fd is not None and not go_on:
                os.close(fd)
            now = self._runs()
            for name, after in now.items():
                if runs := after.runs - before[name].runs:
                    self._program_costs[name] = (after.run_ns - before[name].run_ns) / runs / 1e9
            before = now

        return end

    # --- the end

    def stop(self) -> None:
        """Freeze all counts at one moment; what is in the rings can still be read."""
        self._control["running"] = 0
        time.sleep(_SETTLE_SECONDS)

    def close(self) -> None:
        """Detach and unload. Safe to call twice."""
        self._attached.close()
        self._loaded.close()

    def __enter__(self) -> Probe:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _attach_order(program: str) -> tuple[bool, int]:
    """On a tracepoint a second program comes after its first, which it looks at."""
    return program.endswith(AGAIN), _ATTACH_ORDER.index(program) if program in _ATTACH_ORDER else -1


def _map_memory(name: str, loaded: LoadedMap) -> int:
    """Bytes that the kernel accounts to a map (fdinfo's memlock). Before 6.4 it knows of no ring's: then its data."""
    with open(f"/proc/self/fdinfo/{loaded.fd}") as file:
        accounted = next(int(line.split()[1]) for line in file if line.startswith("memlock:"))
    return accounted or (loaded.max_entries if name.endswith("_ring") else 0)
