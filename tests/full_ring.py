"""A ring that always holds the same records, read as the probe reads it: for whoever measures user space."""

from __future__ import annotations

import numpy as np

from llmio_probe.kernel.atomics import Atomics
from llmio_probe.kernel.records import REQUEST_SLOT, RING_POSITION, Batch, Records
from llmio_probe.kernel.slots import SlotRings


class FullRing:
    def __init__(self, records: Records) -> None:
        self._count = len(records)
        self._positions = np.zeros(1, RING_POSITION)
        slots = np.zeros((1, 2 * self._count), REQUEST_SLOT)
        slots["record"][0, : self._count] = records
        slots["written"][0, : self._count] = np.arange(1, self._count + 1)
        self._rings = SlotRings(slots, self._positions, Atomics())

    def read(self) -> Batch:
        self._rings._read[0] = 0  # as if it had not been read
        self._positions["reserved"] = self._count
        return Batch(requests=self._rings.read())
