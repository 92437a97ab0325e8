"""What the probe says of itself at one moment, beside the records: counts, losses, memory, cost. Types only."""

from __future__ import annotations

from dataclasses import dataclass, field

from llmio_probe.kernel.records import Op


@dataclass(frozen=True)
class DeviceCounts:
    """The kernel's own counts of one device; started = finished + merged + in_flight + expired."""

    device: int
    started: int
    finished: int
    merged: int
    expired: int
    unowned: int
    unowned_at_attach: int
    untracked: int
    in_flight: dict[Op, int]


@dataclass(frozen=True)
class Losses:
    """What did not reach user space as a record: requests and calls of which only totals are left, or not even a name.

    processes, files: introductions that found no room; each is tried again with the next request, if there is one.
    missed_probes: runs that the kernel skipped, by program; empty where it does not count them (before 5.12).
    overflowed_requests: added up by owner, file and so on, so that totals are exact.
    """

    requests: int
    calls: int
    processes: int
    missed_probes: dict[str, int]
    files: int = 0
    overflowed_requests: int = 0


@dataclass(frozen=True)
class ProbeState:
    """What the probe says of itself and of the host at one moment: made by kernel/, read by outputs/."""

    devices: list[DeviceCounts]
    losses: Losses
    kernel_memory_bytes: dict[str, int]
    program_cost_seconds: dict[str, float]
    ring_peak_ratio: dict[str, float] = field(default_factory=dict)
    """How full a reader has found the fullest ring of each kind, at most: near 1, records were added up instead."""
