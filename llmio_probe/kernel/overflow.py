"""Reads what was added up in the kernel because a ring was full (bpf/overflow.h): what has come since the last look.

The kernel's totals only grow, so a total that was read in the middle of an addition is right at the next look.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmio_probe.errors import ProbeError
from llmio_probe.kernel.records import CALL_OVERFLOW, OVERFLOW, Op, OwnerKind, Records
from llmio_probe.kernel.tables import Table


class OverflowTable:
    """One table of totals. flat: the dtype of what is handed out, key and totals side by side."""

    def __init__(self, table: Table, flat: np.dtype[Any]) -> None:
        self._table = table
        self._flat = flat
        self._rows: dict[bytes, int] = {}
        self._before = np.zeros(0, table.value)

    def read(self) -> Records:
        """The differences to the last look, shape (n,), of the keys for which there is one."""
        keys, values = self._table.items()
        totals = np.ascontiguousarray(values[:, 0])
        rows = np.array([self._rows.setdefault(key.tobytes(), len(self._rows)) for key in keys], np.intp)
        if new := len(self._rows) - len(self._before):
            self._before = np.concatenate([self._before, np.zeros(new, self._table.value)])
        before = self._before[rows]
        changed = np.flatnonzero(np.any(_bytes(totals) != _bytes(before), axis=1))
        self._before[rows] = totals
        return self._differences(keys[changed], totals[changed], before[changed])

    def _differences(self, keys: NDArray[Any], totals: NDArray[Any], before: NDArray[Any]) -> Records:
        found = np.zeros(len(keys), self._flat)
        share = keys["share"] if "share" in (keys.dtype.names or ()) else None
        for name in self._flat.names or ():
            if name in ("made_ns", "done_ns"):
                found[name] = totals["done_ns"]
            elif name in (totals.dtype.names or ()):
                found[name] = totals[name] - before[name]  # modulo their size, as the kernel counts
            elif name in (keys.dtype.names or ()):
                found[name] = keys[name]
            elif share is not None:
                found[name] = share[name]
        return found


def _bytes(records: NDArray[Any]) -> NDArray[np.uint8]:
    return records.view(np.uint8).reshape(len(records), records.dtype.itemsize)


class Overflow:
    """All that did not come through the rings. control: the memory shared with the programs, one CONTROL record."""

    def __init__(self, requests: Table, calls: Table, device_counts: Table, slots: Table, control: Records) -> None:
        self._requests = OverflowTable(requests, OVERFLOW)
        self._calls = OverflowTable(calls, CALL_OVERFLOW)
        self._device_counts = device_counts
        self._slots = slots
        self._control = control
        self._again = False
        self._lost: dict[int, NDArray[np.uint64]] = {}

    def read(self) -> tuple[Records, Records]:
        """Requests and calls, OVERFLOW and CALL_OVERFLOW. Where nothing overflowed, no table is asked: before 5.19 that
        takes CAP_BPF, and where nobody looks nobody needs it. ProbeError then, where something did overflow.
        """
        changed = bool(self._control["overflowed"][0])
        if not changed and not self._again:
            return np.empty(0, OVERFLOW), np.empty(0, CALL_OVERFLOW)
        self._control["overflowed"] = 0  # first: what is added meanwhile says so again
        self._again = changed  # and once more, for what another CPU was just about to say (arm64 may say it late)
        try:
            return np.concatenate([self._requests.read(), self._unattributed()]), self._calls.read()
        except OSError as error:
            raise ProbeError(
                f"what found no room in the rings cannot be read ({error.strerror}): before Linux 5.19 give CAP_BPF"
            ) from None

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
