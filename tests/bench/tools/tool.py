"""What every tool that is measured can do. ours.py, reference.py and bpftrace.py are the tools."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol

from tests.bench.load import Load
from tests.live.harness import Disk


class Tool(Protocol):
    @property
    def name(self) -> str:
        """Its column in the table."""

    def running(self, disk: Disk) -> AbstractContextManager[object]:
        """As a user runs it, from the moment that it watches the disk on."""

    def kernel_ns(self, disk: Disk, running: Load, seconds: float) -> float:
        """Kernel time a request of the load that runs on the disk, all the tool's programs on its path together.

        Measured by bpf_stats, which costs by itself: never while a rate is measured.
        """
