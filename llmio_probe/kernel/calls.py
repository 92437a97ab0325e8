"""Reads what programs asked for by their calls (bpf/calls.h): what has come since the last look."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from llmio_probe.kernel.records import CALL, Records
from llmio_probe.kernel.tables import Table
from llmio_probe.kernel.totals import Flag, TotalsTable


class CallTable:
    """control: the memory shared with the programs, one CONTROL record."""

    def __init__(self, table: Table, control: Records) -> None:
        self._totals = TotalsTable(table, CALL)
        self._called = Flag(control, "called")
        self._ended = False

    def read(self) -> Records:
        """CALL rows; where nobody made a call, the table is not asked. TableError when the kernel refuses."""
        if not self._called.lower() and not self._ended:
            return np.empty(0, CALL)
        self._ended = False
        return self._totals.read()

    def give_back(self, has_ended: Callable[[int, int], bool]) -> None:
        """Make room with the next read: which processes, by pid and start in nanoseconds, have ended?"""
        self._ended = self._totals.give_back(lambda key: has_ended(int(key["tgid"]), int(key["owner_start_ns"])))
