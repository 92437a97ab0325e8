"""The probe's own records of a scenario, for facts that no output shows, such as the hardware queue."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from llmio_probe.kernel.loading import ProbeOptions
from llmio_probe.kernel.probe import Probe, request_entries
from llmio_probe.kernel.records import Records
from tests.vm.guest.devices import number_of


@dataclass(frozen=True)
class Recorded:
    """Request records of one disk, and what the scenario told of itself."""

    requests: Records
    told: Any

    def of(self, pid: int) -> Records:
        return np.asarray(self.requests[self.requests["tgid"] == pid])


def record(device: str, scenario: Callable[[], Any]) -> Recorded:
    with Probe(ProbeOptions(request_entries(cpus=os.cpu_count() or 1), calls=False)) as probe:
        probe.start()
        told = scenario()
        probe.stop()
        requests = probe.read().requests
        state = probe.state()
    assert not state.losses.requests
    [counts] = [counts for counts in state.devices if counts.device == number_of(device)]
    assert counts.started == counts.finished + counts.merged + counts.expired + sum(counts.in_flight.values())
    return Recorded(np.asarray(requests[requests["device"] == number_of(device)]), told)
