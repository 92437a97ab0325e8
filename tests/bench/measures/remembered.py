"""What the daemon's memory grows by: files that it remembers, so that their requests have a role."""

from __future__ import annotations

import os
import tracemalloc
from collections.abc import Iterator

import numpy as np

from llmio_probe import daemon
from llmio_probe.config import DaemonConfig
from llmio_probe.identity.devices import Devices
from llmio_probe.identity.facts import PsutilSource
from llmio_probe.identity.mounts import Mounts
from llmio_probe.kernel.records import REQUEST, Batch, Engine, FileSight, OwnerKind, Path
from tests.bench.setting import Setting
from tests.bench.table import Figure, Row

AT_ONCE = 500
WARM = 1000
"""Files after which all code and tables are there."""


def remembered(setting: Setting) -> Iterator[Row]:
    source = New()
    pipeline = daemon.rooms(DaemonConfig(), PsutilSource(), Mounts(), Devices()).pipeline(source)
    most = daemon.FILES if setting.effort.thorough else 2 * WARM
    while source.count < WARM:
        pipeline.run()
    tracemalloc.start()
    try:
        while source.count < most:
            pipeline.run()
        grown = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    yield Row(
        f"bytes of the daemon's for each file that it remembers, {daemon.FILES:,} at most",
        Figure([grown / (most - WARM)]),
    )


class New:
    """A source of requests each for a file that nobody has seen before."""

    def __init__(self) -> None:
        self.count = 0
        self._disk = os.stat("/").st_dev

    def read(self) -> Batch:
        numbers = np.arange(self.count, self.count + AT_ONCE)
        self.count += AT_ONCE
        device = os.major(self._disk) << 20 | os.minor(self._disk)
        requests = np.zeros(AT_ONCE, REQUEST)
        requests["made_ns"] = requests["issued_ns"] = requests["done_ns"] = 10**12
        requests["device"] = requests["file_device"] = device
        requests["inode"], requests["inode_generation"] = 10**7 + numbers, 10**9 + numbers
        requests["owner"], requests["engine"], requests["path"] = OwnerKind.PROCESS, Engine.LIBAIO, Path.DIRECT
        requests["tgid"], requests["owner_start_ns"] = os.getpid(), 10**9
        requests["bytes"] = requests["request_bytes"] = 4096
        files = [
            FileSight(
                device, 10**7 + number, 10**9 + number, device, os.getpid(), 10**9, 4096,
                f"/var/cache/kv/worker-{number % 8}/chunk_{number:016x}.safetensors".encode(), False, False,
            )
            for number in numbers.tolist()
        ]  # fmt: skip
        return Batch(requests=requests, files=files)
