"""One pass of the pipeline: batches from the kernel, identified, counted. And how long to wait for the next one."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from llmio_probe.aggregate.combinations import Combinations, select
from llmio_probe.aggregate.series import Series
from llmio_probe.identity.files import Files
from llmio_probe.identity.owners import Identity
from llmio_probe.identity.roles import RoleBook
from llmio_probe.kernel.records import Batch, Records

SHORTEST_WAIT = 0.5
"""Under load. Larger batches cost less a record, and a ring that gets half full ends the wait early."""
LONGEST_WAIT = 5.0
"""While nothing happens. What is new, a process or a file, ends the wait, and so does who asks for the numbers."""


class Source(Protocol):
    def read(self) -> Batch: ...


class Pipeline:
    """Kernel to series. ``wait`` is what to sleep before the next pass, unless the probe wakes us up earlier."""

    def __init__(
        self,
        source: Source,
        identity: Identity,
        files: Files,
        roles: RoleBook,
        series: Series,
        devices: Collection[int] | None = None,
    ) -> None:
        """devices: the dev_t of the disks to count, None for all."""
        self._source = source
        self._identity = identity
        self._files = files
        self._roles = roles
        self._series = series
        self._combinations = Combinations()
        self._numbers: Mapping[int, int] = {}
        self.wait = SHORTEST_WAIT
        self.choose(devices)

    def choose(self, devices: Collection[int] | None) -> None:
        """Count these from now on."""
        self._devices = None if devices is None else np.array(sorted(devices), np.uint32)

    def renumber(self, numbers: Mapping[int, int]) -> None:
        """Count what these dev_t do under other numbers from now on (identity/devices.py)."""
        self._numbers = numbers

    def run(self) -> int:
        """Take everything that is there. Returns the number of records."""
        batch = self._source.read()
        self._identity.observe(batch.processes)
        self._files.observe(batch.files, batch.processes)
        self._count_overflow(batch)
        if len(batch.requests):
            self._count(self._chosen(batch.requests))
        self._series.add_calls(batch.calls, self._identity.resolve(batch.calls))
        records = len(batch.requests) + len(batch.calls)
        self.wait = SHORTEST_WAIT if records else min(2 * self.wait, LONGEST_WAIT)
        return records

    def _chosen(self, requests: Records) -> Records:
        if self._devices is None:
            return requests
        return select(requests, np.isin(requests["device"], self._devices))

    def _number(self, records: Records) -> None:
        devices = records["device"]
        for dev, number in self._numbers.items():
            devices[devices == dev] = number

    def _count(self, requests: Records) -> None:
        """All but times is the same for the requests of a combination."""
        self._number(requests)
        batch = self._combinations.find(requests)
        owners, files = self._identity.resolve(batch.samples), self._files.resolve(batch.samples)
        roles = self._roles.resolve(batch.samples, owners, files, (requests, batch.spread))
        self._series.add_combined(batch, owners, roles, files)

    def _count_overflow(self, batch: Batch) -> None:
        """Before the requests with records: how long a device was busy with these is counted from the last end that was
        known before, and another ring may have records until now.
        """
        if len(totals := batch.overflow):
            if self._devices is not None:
                totals = totals[np.isin(totals["device"], self._devices)]
            self._number(totals)
            owners, files = self._identity.resolve(totals), self._files.resolve(totals)
            self._series.add_overflow(totals, owners, self._roles.resolve(totals, owners, files), files)


@dataclass(frozen=True)
class Rooms:
    """What batches are identified and counted in. session.py and daemon.py furnish them, each in its way."""

    identity: Identity
    files: Files
    roles: RoleBook
    series: Series

    def pipeline(self, source: Source, devices: Collection[int] | None = None) -> Pipeline:
        return Pipeline(source, self.identity, self.files, self.roles, self.series, devices)
