"""How fast user space is, from a batch made by hand: python -m pytest tests/speed (pytest-benchmark prints the table).

With --benchmark-disable (make test, CI) each runs once, as a test that what is measured still works: no time is
asserted. Rounds bring a fixed number of records: that divided by the time of a round is the rate.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from pytest_benchmark.fixture import BenchmarkFixture

from llmio_probe import daemon, session
from llmio_probe.aggregate.combinations import Combinations
from llmio_probe.aggregate.series import Series
from llmio_probe.config import DaemonConfig
from llmio_probe.identity.devices import Devices
from llmio_probe.identity.facts import ProcessFacts, ProcessId
from llmio_probe.identity.mounts import Mounts
from llmio_probe.identity.owners import Owner, Process
from llmio_probe.kernel.records import REQUEST, Batch, Engine, OwnerKind, Records
from llmio_probe.kernel.records import Path as IoPath
from llmio_probe.kernel.state import Losses, ProbeState
from llmio_probe.outputs.prometheus import ProbeCollector, Snapshot
from llmio_probe.outputs.text_format import OPENMETRICS, PLAIN, encode
from llmio_probe.pipeline import Pipeline
from tests.full_ring import FullRing
from tests.singly import add_requests

COUNT = 43_690
"""Two thirds of what one of two CPUs' rings holds."""
DISK = 259 << 20


def recorded(count: int, files: int) -> Records:
    """As a busy host makes them: four processes on two disks, four sizes, in the order in which they were done."""
    random = np.random.default_rng(1)
    records = np.zeros(count, REQUEST)
    records["made_ns"] = 10**12 + np.cumsum(random.integers(1, 8000, count))
    records["issued_ns"] = records["made_ns"] + random.integers(500, 200_000, count)
    records["done_ns"] = records["issued_ns"] + random.integers(20_000, 900_000, count)
    records["sector"] = random.integers(0, 1 << 40, count)
    records["hw_queue"] = random.integers(0, 64, count)
    records["device"] = DISK + random.integers(0, 2, count)
    records["request_bytes"] = random.choice([4096, 8192, 131072, 1 << 20], count)
    records["bytes"] = records["request_bytes"]
    records["op"] = random.integers(0, 2, count)
    records["file_device"], records["inode"] = DISK, random.integers(1, files + 1, count)
    records["engine"], records["path"], records["owner"] = Engine.LIBAIO, IoPath.DIRECT, OwnerKind.PROCESS
    records["tgid"] = 1000 + random.integers(0, 4, count)
    records["owner_start_ns"] = records["tgid"].astype(np.uint64) * 10**9
    return np.take(records, np.argsort(records["done_ns"], kind="stable"))


class Workers:
    """A FactSource: pid N started in second N and is a plain command."""

    def facts(self, pid: int) -> ProcessFacts:
        return ProcessFacts(ProcessId(pid, pid * 100), f"fio{pid}", (f"fio{pid}",), {}, "0::/")

    def maps(self, pid: int) -> frozenset[str]:
        return frozenset()

    def children(self, pid: int) -> list[int]:
        return []

    def start_ticks(self, pid: int) -> int:
        return pid * 100

    def exists(self, pid: int) -> bool:
        return True


class Recorded:
    def __init__(self, records: Records) -> None:
        self._batch = Batch(requests=records)

    def read(self) -> Batch:
        return self._batch


MakePipeline = Callable[..., Pipeline]


@pytest.fixture
def make_pipeline(tmp_path: Path) -> MakePipeline:
    """The daemon's, with its defaults, unless detail asks for a session's."""
    (tmp_path / "self").mkdir()
    (tmp_path / "self" / "mountinfo").write_text("22 1 259:0 / / rw - ext4 /dev/nvme0n1 rw\n")

    def make(source: Any, *, detail: bool = False) -> Pipeline:
        host = Workers(), Mounts(str(tmp_path)), Devices(str(tmp_path), str(tmp_path))
        furnished = session.rooms(*host) if detail else daemon.rooms(DaemonConfig(), *host)
        return furnished.pipeline(source)

    return make


@pytest.mark.parametrize("files", [4, 100], ids="{} files".format)
def test_out_of_the_ring_identified_and_counted(
    benchmark: BenchmarkFixture, make_pipeline: MakePipeline, files: int
) -> None:
    pipeline = make_pipeline(FullRing(recorded(COUNT, files)))
    pipeline.run()  # what is new is new once
    assert benchmark(pipeline.run) == COUNT


def test_the_same_without_the_ring(benchmark: BenchmarkFixture, make_pipeline: MakePipeline) -> None:
    pipeline = make_pipeline(Recorded(recorded(COUNT, 100)))
    pipeline.run()
    assert benchmark(pipeline.run) == COUNT


def test_the_same_in_a_session(benchmark: BenchmarkFixture, make_pipeline: MakePipeline) -> None:
    pipeline = make_pipeline(Recorded(recorded(COUNT, 100)), detail=True)
    pipeline.run()
    assert benchmark(pipeline.run) == COUNT


def test_a_pass_that_finds_nothing(benchmark: BenchmarkFixture, make_pipeline: MakePipeline) -> None:
    pipeline = make_pipeline(Recorded(recorded(0, 1)))
    assert benchmark(pipeline.run) == 0


@pytest.mark.parametrize("files", [4, 100, 100_000], ids="{} files".format)
def test_combinations_are_found(benchmark: BenchmarkFixture, files: int) -> None:
    records, combinations = recorded(COUNT, files), Combinations()
    combinations.find(records)
    assert benchmark(combinations.find, records).counts.sum() == COUNT


class Disk:
    def name(self, device: int) -> str:
        return "nvme0n1"

    def layer_now(self, device: int) -> str:
        return "disk"

    layer = layer_now


def snapshot_of(series: Series, owners: dict[int, Owner]) -> Snapshot:
    return Snapshot(
        streams=series.streams(),
        request_distributions=series.request_distributions(),
        errors=series.errors(),
        submissions=series.submissions(),
        call_distributions=series.call_distributions(),
        device_use=series.device_use(),
        attributed_bytes=series.attributed_bytes(),
        state=ProbeState([], Losses(0, 0, 0, {}), {}, {}),
        owners=owners,
        devices=Disk(),  # type: ignore[arg-type]
        folded=0,
        version="1",
        loader="core",
        config_right=True,
        config_read=1.8e9,
    )


@pytest.fixture
def workers() -> dict[int, Owner]:
    """As many as the daemon shows, and "other"."""
    return {
        index: Owner(index, f"deepspeed-rank{index}", "worker", Process(ProcessId(index, index), "python3"))
        for index in range(2, 27)
    }


@pytest.fixture
def full_series(workers: dict[int, Owner]) -> Series:
    """About 5,000 in the exposition: each worker reads and writes weights and KV cache, with every latency."""
    random, count = np.random.default_rng(1), 40_000
    records = recorded(count, 1)
    records["device"] = DISK
    records["issued_ns"] = records["made_ns"] + (1 << random.integers(9, 32, count))
    records["done_ns"] = records["issued_ns"] + (1 << random.integers(9, 34, count))
    series = Series(detail=False)
    add_requests(series, records, random.choice(list(workers), count).astype(np.int32), random.integers(0, 2, count))
    return series


def test_a_snapshot_of_5000_series(benchmark: BenchmarkFixture, full_series: Series, workers: dict[int, Owner]) -> None:
    assert len(benchmark(snapshot_of, full_series, workers).streams) == 4 * len(workers)


WRITERS = {
    "ours": partial(encode, content_type=OPENMETRICS),
    "the library's": choose_encoder(OPENMETRICS)[0],
    "the library's, plain": choose_encoder(PLAIN)[0],
}


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_a_scrape_of_5000_series(
    benchmark: BenchmarkFixture, full_series: Series, workers: dict[int, Owner], write: Callable[..., bytes]
) -> None:
    snapshot = snapshot_of(full_series, workers)
    registry = CollectorRegistry()
    registry.register(ProbeCollector(lambda: snapshot))
    lines = benchmark(write, registry).decode().splitlines()
    assert 4000 < sum(not line.startswith("#") for line in lines) < 6000
