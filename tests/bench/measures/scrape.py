"""How long a scrape of /metrics takes at about the most series that there may be, from a snapshot made by hand."""

from __future__ import annotations

import time
import urllib.request
from collections.abc import Iterator
from typing import Literal

import numpy as np
from prometheus_client import CollectorRegistry

from llmio_probe.aggregate.buckets import LATENCY_EDGES, REQUESTS_EDGES, SIZE_EDGES
from llmio_probe.aggregate.rows import STAGES, CallDistributions, Distribution, RequestDistributions, Stream
from llmio_probe.identity.devices import Devices
from llmio_probe.kernel.records import Engine, Op, Path
from llmio_probe.kernel.state import Losses, ProbeState
from llmio_probe.outputs.prometheus import ProbeCollector, Snapshot
from llmio_probe.outputs.web import MetricsServer
from llmio_probe.outputs.web_config import Access
from tests.bench.setting import Setting
from tests.bench.table import Figure, Goal, Row

WORKERS = 26
DEVICE = 259 << 20
SCRAPES = 5
ACCEPT = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;q=0.5"
"""As Prometheus 2.42 asks."""


def scrape(setting: Setting) -> Iterator[Row]:
    snapshot = made()
    registry = CollectorRegistry()
    registry.register(ProbeCollector(lambda: snapshot))
    server = MetricsServer(("127.0.0.1", 0), registry, Access())
    server.start()
    try:
        times = []
        for _ in range(SCRAPES * setting.effort.rounds):
            time_, series = scraped(f"http://127.0.0.1:{server.port}/metrics")
            times.append(time_)
    finally:
        server.close()
    yield Row(f"ms for a scrape of /metrics with {series:,} series made by hand", Figure(times), Goal("≤", 50))


def scraped(url: str) -> tuple[float, int]:
    """Milliseconds, and how many series there are."""
    asked = urllib.request.Request(url, headers={"Accept": ACCEPT})
    begin = time.perf_counter()
    with urllib.request.urlopen(asked) as answer:
        text = answer.read()
    return (time.perf_counter() - begin) * 1e3, sum(not line.startswith(b"#") for line in text.splitlines())


class Worker:
    """As the identity room's owners, as far as a scrape looks at them."""

    kind: Literal["worker"] = "worker"
    process = None

    def __init__(self, index: int) -> None:
        self.index = index
        self.worker = f"vllm-tp{index}"


def made() -> Snapshot:
    """Each worker reads and writes files of one role on one disk, by libaio."""
    latency = {stage: _spread(len(LATENCY_EDGES)) for stage in STAGES}
    sizes = _spread(len(SIZE_EDGES))
    owners = range(WORKERS)
    return Snapshot(
        streams=[
            Stream(owner, DEVICE, op, Engine.LIBAIO, Path.DIRECT, "kv_cache", 9, 9 << 12, 0, 0, True, None, {})
            for owner in owners
            for op in (Op.READ, Op.WRITE)
        ],
        request_distributions=[
            RequestDistributions(owner, DEVICE, op, "kv_cache", sizes, latency)
            for owner in owners
            for op in (Op.READ, Op.WRITE)
        ],
        errors=[],
        submissions=[],
        call_distributions=[
            CallDistributions(owner, Engine.LIBAIO, _spread(len(REQUESTS_EDGES)), latency["queue"], latency["total"])
            for owner in owners
        ],
        device_use=[],
        attributed_bytes=[],
        state=ProbeState([], Losses(0, 0, 0, {}), {}, {}),
        owners={owner: Worker(owner) for owner in owners},
        devices=Devices().known(),
        folded=0,
        version="0",
        loader="core",
        config_right=True,
        config_read=1.8e9,
    )


def _spread(edges: int) -> Distribution:
    """Something in each bucket."""
    return Distribution(np.arange(1, edges + 2), 1.5)
