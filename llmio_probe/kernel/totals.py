"""Reads a table of totals that the programs add to: what has come since the last look.

The kernel's totals only grow, so a total that was read in the middle of an addition is right at the next look. What is
added up is for others to know (overflow.py, calls.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmio_probe.kernel.records import Records
from llmio_probe.kernel.tables import Table


class Flag:
    """One that the programs raise when they have added something. control: one CONTROL record, shared with them."""

    def __init__(self, control: Records, name: str) -> None:
        self._control = control
        self._name = name
        self._again = False

    def lower(self) -> bool:
        """Is there something to look at? Lowered before the look, since what is added meanwhile raises it again."""
        raised = bool(self._control[self._name][0])
        if raised:
            self._control[self._name] = 0
        # And once more, for what another CPU was just about to say (arm64 may say it late).
        raised, self._again = raised or self._again, raised
        return raised


class TotalsTable:
    """flat: the dtype of what is handed out, key and totals side by side."""

    def __init__(self, table: Table, flat: np.dtype[Any]) -> None:
        self._table = table
        self._flat = flat
        self._rows: dict[bytes, int] = {}
        self._free: list[int] = []
        self._ended: list[bytes] = []
        self._before = np.zeros(0, table.value)

    def read(self) -> Records:
        """The differences to the last look, shape (n,), of the keys for which there is one."""
        keys, values = self._table.items()
        totals = np.ascontiguousarray(values[:, 0])
        rows = np.array([self._row(key.tobytes()) for key in keys], np.intp)
        before = self._before[rows]
        changed = np.flatnonzero(np.any(_bytes(totals) != _bytes(before), axis=1))
        self._before[rows] = totals
        found = self._differences(keys[changed], totals[changed], before[changed])
        self._remove_ended()
        return found

    def give_back(self, has_ended: Callable[[NDArray[Any]], bool]) -> bool:
        """Keys to whose totals nothing will be added any more are removed with the next look. Are there any?"""
        self._ended = [
            key
            for key, row in self._rows.items()
            if self._before[row].tobytes().strip(b"\0")  # else it is so new that nobody knows of it
            and has_ended(np.frombuffer(key, self._table.key)[0])
        ]
        return bool(self._ended)

    def _row(self, key: bytes) -> int:
        """Its row in what was there at the last look."""
        if key not in self._rows:
            if not self._free:
                size = len(self._before)
                self._free = list(range(2 * size, size - 1, -1))
                self._before = np.concatenate([self._before, np.zeros(size + 1, self._table.value)])
            self._rows[key] = self._free.pop()
        return self._rows[key]

    def _remove_ended(self) -> None:
        for key in self._ended:
            self._table.remove(np.frombuffer(key, self._table.key)[0])
            row = self._rows.pop(key)
            self._before[row] = 0
            self._free.append(row)
        self._ended = []

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
