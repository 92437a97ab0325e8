"""How many records a second one core takes out of the ring, and how many it identifies and counts: by CPU time."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import numpy as np

from llmio_probe import daemon
from llmio_probe.config import DaemonConfig
from llmio_probe.identity.devices import Devices
from llmio_probe.identity.facts import PsutilSource
from llmio_probe.identity.mounts import Mounts
from llmio_probe.kernel.records import REQUEST, Batch, Records
from tests.bench.load import Job, load
from tests.bench.setting import Setting
from tests.bench.table import Figure, Goal, Row
from tests.bench.tools.ours import open_probe
from tests.full_ring import FullRing

RECORDS = 43_690
"""In a batch: some tenths of a second of a busy host."""
PASSES = 10
OFFLOAD = Job(4096, ("--ioengine=libaio", "--iodepth=16", "--nrfiles=8", "--bssplit=4k/50:128k/40:1m/10"))
"""Files read in pieces of a few sizes, as an engine does that keeps tensors on a disk."""


def reader(setting: Setting) -> Iterator[Row]:
    yield Row("M records/s out of the kernel's rings, one core", Figure(_read(setting), "{:.1f}"))
    recorded, random = _recorded(setting), made(RECORDS)
    tries = 3 * setting.effort.rounds
    yield Row(
        "M records/s read, identified and aggregated, one core, from a recorded batch",
        Figure([_aggregated(FullRing(recorded)) for _ in range(tries)], "{:.1f}"),
        Goal("≥", 10),
    )
    for what, records in (("", recorded), (", from one of 6,400 combinations at random", random)):
        yield Row(
            f"M records/s identified and aggregated{what}",
            Figure([_aggregated(Again(records)) for _ in range(tries)], "{:.1f}"),
        )


def _recorded(setting: Setting) -> Records:
    """What two jobs did at the same time, on two disks, as it came out of the rings."""
    found: list[Records] = []
    with load(setting.loop), load(setting.real, OFFLOAD) as files, open_probe(calls=False) as probe:
        probe.start()
        while sum(map(len, found)) < RECORDS:
            files.rate(0.1)
            found.append(probe.read().requests)
    return np.concatenate(found)[:RECORDS]


def _read(setting: Setting) -> list[float]:
    """What has gathered meanwhile, read at one go, while nothing else is to be done."""
    rates = []
    with load(setting.loop) as running, open_probe(calls=False) as probe:
        probe.start()
        for _ in range(3 * setting.effort.rounds):
            running.rate(setting.effort.seconds / 2)
            with running.paused():
                begin = time.process_time()
                count = len(probe.read().requests)
                rates.append(count / (time.process_time() - begin) / 1e6)
    return rates


def _aggregated(source: FullRing | Again) -> float:
    furnished = daemon.rooms(DaemonConfig(), PsutilSource(), Mounts(), Devices())
    pipeline = furnished.pipeline(source)
    pipeline.run()  # the processes are new once
    begin = time.process_time()
    for _ in range(PASSES):
        pipeline.run()
    return PASSES * RECORDS / (time.process_time() - begin) / 1e6


class Again:
    """A source that hands out one batch again and again."""

    def __init__(self, records: Records) -> None:
        self._batch = Batch(requests=records)

    def read(self) -> Batch:
        return self._batch


def made(count: int) -> Records:
    """Requests such as a busy host makes, of four processes on two disks, of a hundred files."""
    random = np.random.default_rng(1)
    records = np.zeros(count, REQUEST)
    records["made_ns"] = 10**12 + np.cumsum(random.integers(1, 8000, count))
    records["issued_ns"] = records["made_ns"] + random.integers(500, 200_000, count)
    records["done_ns"] = records["issued_ns"] + random.integers(20_000, 900_000, count)
    records["device"] = (7 << 20) + random.integers(0, 2, count)
    records["request_bytes"] = random.choice([4096, 8192, 131072, 1 << 20], count)
    records["bytes"] = records["request_bytes"]
    records["op"] = random.integers(0, 2, count)
    records["file_device"], records["inode"] = 259 << 20, random.integers(1, 101, count)
    records["engine"] = records["path"] = records["owner"] = 1
    records["tgid"] = os.getpid() + random.integers(0, 4, count)
    records["owner_start_ns"] = 10**9
    return records
