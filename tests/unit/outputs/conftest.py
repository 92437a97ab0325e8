"""Rows, owners and devices made by hand for the outputs. Only fixtures may go in here; no kernel, no root, no /proc."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from typing import Any

import numpy as np
import pytest

from llmio_probe.aggregate.buckets import LATENCY_EDGES, REQUESTS_EDGES, SIZE_EDGES
from llmio_probe.aggregate.rows import (
    STAGES,
    AttributedBytes,
    CallDistributions,
    DeviceUse,
    Distribution,
    ErrorCount,
    FileUse,
    Percentiles,
    RequestDistributions,
    Stream,
    Submission,
)
from llmio_probe.kernel.records import Engine, Op, OwnerKind, Path
from llmio_probe.kernel.state import DeviceCounts, Losses, ProbeState
from llmio_probe.outputs.document import Document, SessionFacts, build
from llmio_probe.outputs.prometheus import Snapshot
from llmio_probe.outputs.shapes import Layer
from llmio_probe.outputs.shapes import OwnerKind as KindName

NVME = 259 << 20
DM = 253 << 20
MIB = 1 << 20


@dataclass
class HandProcessId:
    tgid: int
    start_ticks: int


@dataclass
class HandProcess:
    id: HandProcessId
    command: str | None = "python -m flexgen.flex_opt"
    framework: str | None = "flexgen"
    rank: str | None = None
    container: str | None = None
    pod: str | None = None


@dataclass
class HandOwner:
    index: int
    worker: str
    kind: KindName
    process: HandProcess | None = None


class HandDevices:
    def name(self, device: int, /) -> str:
        return {NVME: "nvme0n1", DM: "dm-0"}[device]

    def layer(self, device: int, /) -> Layer:
        return "upper" if device == DM else "disk"

    layer_now = layer


@dataclass
class HandFile:
    path: str | None
    inode: int
    deleted: bool | None = False


@dataclass
class HandFiles:
    """Two files, and one whose name nobody knows. The first has another name in the mount namespace of process 123."""

    files: dict[int, HandFile] = field(
        default_factory=lambda: {
            1: HandFile("/nvme/t_12", 12),
            2: HandFile("/nvme/cache", 13, deleted=True),
            3: HandFile(None, 14, deleted=None),
        }
    )
    seen_as: dict[tuple[int, int], str] = field(default_factory=lambda: {(1, 123): "/data/t_12"})

    def worker_path(self, index: int, tgid: int, /) -> str | None:
        return self.seen_as.get((index, tgid))


def hand_role(file: int, owner: int) -> str:
    """A file is for its worker what it is for nobody else."""
    return {(1, 2): "weights", (2, 2): "kv_cache"}.get((file, owner), "other")


@dataclass
class HandRows:
    """A RowSource of lists."""

    stream_rows: list[Stream]
    submission_rows: list[Submission]
    attributed_rows: list[AttributedBytes]
    file_rows: list[FileUse]
    error_rows: list[ErrorCount]
    use_rows: list[DeviceUse]

    def streams(self) -> list[Stream]:
        return self.stream_rows

    def submissions(self) -> list[Submission]:
        return self.submission_rows

    def request_distributions(self) -> list[RequestDistributions]:
        return []

    def errors(self) -> list[ErrorCount]:
        return self.error_rows

    def call_distributions(self) -> list[CallDistributions]:
        return []

    def device_use(self) -> list[DeviceUse]:
        return self.use_rows

    def attributed_bytes(self) -> list[AttributedBytes]:
        return self.attributed_rows

    def file_use(self) -> list[FileUse]:
        return self.file_rows


@pytest.fixture
def nvme() -> int:
    return NVME


@pytest.fixture
def dm() -> int:
    return DM


@pytest.fixture
def devices() -> HandDevices:
    return HandDevices()


@pytest.fixture
def worker() -> Callable[..., HandOwner]:
    """worker(index, name, pid, start_ticks, **facts of the process)"""

    def make(index: int, name: str, pid: int, start_ticks: int = 1000, **facts: Any) -> HandOwner:
        return HandOwner(index, name, "worker", HandProcess(HandProcessId(pid, start_ticks), **facts))

    return make


@pytest.fixture
def owners(worker: Callable[..., HandOwner]) -> dict[int, HandOwner]:
    """0 and 1 as in every session, two workers and a kernel owner."""
    rows = (
        HandOwner(0, "unknown", "unknown"),
        HandOwner(1, "other", "worker"),
        worker(2, "flexgen", 123),
        worker(3, "backup", 456, command="rsync -a /nvme /mnt", framework=None),
        HandOwner(4, "kernel:journal", "kernel"),
    )
    return {owner.index: owner for owner in rows}


@pytest.fixture
def stream() -> Callable[..., Stream]:
    """A read of 10 requests, 128 KiB each, by owner 2; give what differs."""
    usual = Stream(
        owner=2,
        device=NVME,
        op=Op.READ,
        engine=Engine.MMAP,
        path=Path.PAGE_CACHE,
        role="weights",
        requests=10,
        bytes=1310720,
        errors=0,
        requeues=0,
        exact=True,
        size_bytes=Percentiles(131072.0, 131072.0, 131072.0, 131072.0, 1310720.0),
        latency_seconds={
            "queue": Percentiles(2e-6, 4e-6, 8e-6, 9e-6, 3e-5),
            "device": Percentiles(98e-6, 0.0004, 0.0012, 0.0025, 0.00547),
            "total": Percentiles(0.0001, 0.0004, 0.00121, 0.00251, 0.0055),
        },
    )

    def make(**different: Any) -> Stream:
        return replace(usual, **different)

    return make


def attributed(streams: list[Stream], owners: dict[int, HandOwner]) -> list[AttributedBytes]:
    """As the series would have counted them, each stream by the kind of its owner; workers' files are known."""
    kinds = {"worker": OwnerKind.PROCESS, "kernel": OwnerKind.KERNEL, "unknown": OwnerKind.UNKNOWN}
    return [
        AttributedBytes(row.device, kinds[owners[row.owner].kind], owners[row.owner].kind == "worker", row.bytes, 0)
        for row in streams
        if row.op in (Op.READ, Op.WRITE)
    ]


@pytest.fixture
def submission() -> Callable[..., Submission]:
    """4 io_submit calls of owner 2 with 32 reads each."""
    usual = Submission(2, Engine.LIBAIO, Op.READ, 4, 128, 16777216, 0.0005, None)

    def make(**different: Any) -> Submission:
        return replace(usual, **different)

    return make


@pytest.fixture
def distribution() -> Callable[..., Distribution]:
    """distribution(edges, value, …): the buckets of some values, found the slow and obvious way."""

    def make(edges: tuple[float, ...], *values: float) -> Distribution:
        counts = np.zeros(len(edges) + 1, np.int64)
        for value in values:
            counts[sum(value > edge for edge in edges)] += 1
        return Distribution(counts, sum(values))

    return make


@pytest.fixture
def file_use() -> Callable[..., FileUse]:
    """1 MiB of file 1 read by owner 2."""
    usual = FileUse(1, 2, NVME, MIB, 0, 8, False)

    def make(**different: Any) -> FileUse:
        return replace(usual, **different)

    return make


@pytest.fixture
def files() -> HandFiles:
    return HandFiles()


@pytest.fixture
def state() -> ProbeState:
    return ProbeState(
        devices=[DeviceCounts(NVME, 20, 17, 1, 0, 2, 2, 0, {Op.READ: 2, Op.WRITE: 0})],
        losses=Losses(0, 0, 0, {"issue": 0}),
        kernel_memory_bytes={"requests": 8388608},
        program_cost_seconds={"issue": 1.5e-07},
        ring_peak_ratio={"requests": 0.25},
    )


@pytest.fixture
def snapshot(owners: dict[int, HandOwner], devices: HandDevices, state: ProbeState) -> Snapshot:
    """A probe that has seen nothing yet; replace() what a test needs."""
    return Snapshot([], [], [], [], [], [], [], state, owners, devices, 0, "0.1.0", "core", True, 1.8e9)


@pytest.fixture
def full_snapshot(
    snapshot: Snapshot, stream: Callable[..., Stream], distribution: Callable[..., Distribution]
) -> Snapshot:
    """At least one sample of every metric that can have one."""
    latency = {stage: distribution(LATENCY_EDGES, 131072e-9, 0.01) for stage in STAGES}
    sizes = distribution(SIZE_EDGES, 131072, 131072)
    calls = CallDistributions(
        2,
        Engine.LIBAIO,
        distribution(REQUESTS_EDGES, 1, 32),
        distribution(LATENCY_EDGES, 1e-5),
        distribution(LATENCY_EDGES, 1e-3),
    )
    return replace(
        snapshot,
        streams=[stream(), stream(owner=0, engine=Engine.UNKNOWN, path=Path.UNKNOWN, role="other")],
        request_distributions=[RequestDistributions(2, NVME, Op.READ, "weights", sizes, latency)],
        errors=[ErrorCount(2, NVME, Op.READ, 10, 1)],
        call_distributions=[calls],
        device_use=[DeviceUse(NVME, Op.READ, 20, 2621440, 3, 1.5, 2.5)],
        attributed_bytes=[AttributedBytes(NVME, OwnerKind.PROCESS, True, 1310720, 4096)],
    )


@pytest.fixture
def facts() -> SessionFacts:
    """Five seconds of --pid 123."""
    return SessionFacts(
        start=datetime(2026, 1, 1, tzinfo=timezone.utc),
        duration_seconds=5.0,
        end="completed",
        kernel="6.18.0",
        loader="core",
        hooks=["block_io_start"],
        command=None,
        exit_status=None,
        session=lambda owner: owner.process is not None and owner.process.id.tgid == 123,
        device_filter=None,
    )


@pytest.fixture
def document(
    facts: SessionFacts, owners: dict[int, HandOwner], devices: HandDevices, files: HandFiles, state: ProbeState
) -> Callable[..., Document]:
    """document(streams, submissions, used=…, errors=…, owners=…, shared=…, state=…, **what differs in the facts)

    shared: bytes of a file with several writers, beside those of the streams.
    """

    def make(
        streams: list[Stream],
        submissions: list[Submission] | None = None,
        *,
        used: list[FileUse] | None = None,
        errors: list[ErrorCount] | None = None,
        owners: dict[int, HandOwner] = owners,
        shared: int = 0,
        state: ProbeState = state,
        **different: Any,
    ) -> Document:
        bytes_ = attributed(streams, owners)
        if shared:
            bytes_.append(AttributedBytes(NVME, OwnerKind.PROCESS, True, shared, shared))
        use = [DeviceUse(NVME, Op.READ, 20, 2621440, 3, 4.0, 10.0)]
        rows = HandRows(streams, submissions or [], bytes_, used or [], errors or [], use)
        made = replace(facts, **different)
        return build(made, rows, owners, devices, files, hand_role, state, {NVME: 4.0})

    return make
