"""Reads what was added up in the kernel because a ring was full (bpf/overflow.h): what has come since the last look."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from llmio_probe.kernel.records import OVERFLOW, Op, OwnerKind, Records
from llmio_probe.kernel.tables import Table
from llmio_probe.kernel.totals import Flag, TotalsTable


class Overflow:
    """All that did not come through the rings. control: the memory shared with the programs, one CONTROL record."""

    def __init__(self, requests: Table, device_counts: Table, slots: Table, control: Records) -> None:
        self._requests = TotalsTable(requests, OVERFLOW)
        self._device_counts = device_counts
        self._slots = slots
        self._overflowed = Flag(control, "overflowed")
        self._lost: dict[int, NDArray[np.uint64]] = {}

    def read(self) -> Records:
        """OVERFLOW rows; where nothing overflowed, no table is asked. TableError when the kernel refuses."""
        if not self._overflowed.lower():
            return np.empty(0, OVERFLOW)
        return np.concatenate([self._requests.read(), self._unattributed()])

    def _unattributed(self) -> Records:
        """What found no room in the table either: nobody's, of a device and op, without sizes and latencies."""
        rows = []
        slots = {0: 0}  # shared by those that found none of their own
        for device in self._slots.keys():  # noqa: SIM118 - a table, no dict
            found = self._slots.get(device)
            if found is not None:
                slots[int(device)] = int(found[0])
        for device, slot in slots.items():
            values = self._device_counts.get(slot)
            if values is None:
                continue
            names = ("requests", "bytes", "request_bytes")
            lost = np.array([values[f"lost_{name}"].sum(axis=0) for name in names])
            new = lost - self._lost.get(device, np.zeros_like(lost))
            self._lost[device] = lost
            for op in np.flatnonzero(new.any(axis=0)).tolist():
                row = np.zeros(1, OVERFLOW)
                row["device"], row["op"], row["owner"] = device, Op(op), OwnerKind.UNKNOWN
                for name, amount in zip(names, new[:, op], strict=True):
                    row[name] = amount
                rows.append(row)
        return np.concatenate(rows) if rows else np.empty(0, OVERFLOW)
