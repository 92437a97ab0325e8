"""What the aggregate room hands to the outputs: plain rows, cumulative since the programs were attached.

Only row types may go in here: no arithmetic (series.py) and no presentation (outputs/). An ``owner`` is an index into
the identity room's owners, a ``device`` a kernel dev_t (``major << 20 | minor``) of a whole disk. Times are seconds,
sizes bytes; None is unknown.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from llmio_probe.kernel.records import Engine, Op, OwnerKind, Path

Stage = Literal["queue", "device", "total"]
STAGES: tuple[Stage, ...] = ("queue", "device", "total")

OTHER_DEVICE = -1
"""The device of what is shown without its own, because there was no room for it (limit.py)."""
OTHER_STATUS = 255
"""The same of a status; block statuses are few."""


@dataclass(frozen=True)
class Percentiles:
    """Of one distribution, in its own unit. Sizes are exact; latencies are at most 1/64 above the true value.

    Of a stream that is not exact, all are upper edges of buckets: up to twice the true value, unknown above 2^35 ns.
    sum: of all values, always exact.
    """

    p50: float
    p90: float
    p99: float
    max: float
    sum: float


@dataclass(frozen=True)
class Distribution:
    """Counts by the bucket rule of buckets.py.

    counts: shape (edges + 1,), not cumulative; counts[i] holds (edges[i-1], edges[i]], the last one is +Inf.
    sum: of all values, in bytes, seconds or requests.
    """

    counts: NDArray[np.int64]
    sum: float

    @property
    def count(self) -> int:
        return int(self.counts.sum())


@dataclass(frozen=True)
class Stream:
    """All requests that share owner, device, op, engine, path and role.

    bytes may be there without requests: those of parts of other owners' requests.
    """

    owner: int
    device: int
    op: Op
    engine: Engine
    path: Path
    role: str
    requests: int
    bytes: int
    errors: int
    requeues: int
    exact: bool
    size_bytes: Percentiles | None
    latency_seconds: dict[Stage, Percentiles | None]


@dataclass(frozen=True)
class RequestDistributions:
    """Sizes and latencies of an owner's requests on a device, by op and role; latencies also by stage.

    The size is that of the whole request, also where parts of it are another owner's.
    """

    owner: int
    device: int
    op: Op
    role: str
    size_bytes: Distribution  # edges: buckets.SIZE_EDGES
    latency_seconds: dict[Stage, Distribution]  # edges: buckets.LATENCY_EDGES, seconds


@dataclass(frozen=True)
class ErrorCount:
    """Requests of an owner that ended with a block status other than 0 (blk_status_t)."""

    owner: int
    device: int
    op: Op
    status: int
    requests: int


@dataclass(frozen=True)
class Submission:
    """What an owner's calls asked for through one engine. op is None for calls that only waited.

    bytes is None where a part could not be read. A call with reads and writes counts in the row of each; its time is
    shared out by the number of requests, so that times add up.
    """

    owner: int
    engine: Engine
    op: Op | None
    calls: int
    requests: int
    bytes: int | None
    submit_seconds: float | None
    wait_seconds: float | None


@dataclass(frozen=True)
class CallDistributions:
    """Per call of an owner through one engine: requests handed over, time submitting, time waiting."""

    owner: int
    engine: Engine
    submit_requests: Distribution  # edges: buckets.REQUESTS_EDGES
    submit_seconds: Distribution  # edges: buckets.LATENCY_EDGES
    wait_seconds: Distribution  # edges: buckets.LATENCY_EDGES


@dataclass(frozen=True)
class DeviceUse:
    """One device and op. busy: at least one request issued and not done; in_flight: summed time from made to done."""

    device: int
    op: Op
    requests: int
    bytes: int
    requeues: int
    busy_seconds: float
    in_flight_seconds: float


@dataclass(frozen=True)
class AttributedBytes:
    """Read and write bytes on a device by what is known of them: of all time, also of workers that are forgotten.

    file_known: a file was named; the kernel's own blocks have none. shared_bytes: those of them that were written back
    for a file which several processes had changed.
    """

    device: int
    owner_kind: OwnerKind
    file_known: bool
    bytes: int
    shared_bytes: int


@dataclass(frozen=True)
class FileUse:
    """What an owner did with a file on a device. file: the identity room's index, never 0.

    shared: some of it was written back after several processes had changed the file.
    """

    file: int
    owner: int
    device: int
    read_bytes: int
    write_bytes: int
    requests: int
    shared: bool


class RowSource(Protocol):
    """What the outputs may ask of the series (aggregate/series.py); tests hand them rows made by hand."""

    def streams(self) -> list[Stream]: ...

    def request_distributions(self) -> list[RequestDistributions]: ...

    def errors(self) -> list[ErrorCount]: ...

    def submissions(self) -> list[Submission]: ...

    def call_distributions(self) -> list[CallDistributions]: ...

    def device_use(self) -> list[DeviceUse]: ...

    def attributed_bytes(self) -> list[AttributedBytes]: ...

    def file_use(self) -> list[FileUse]: ...
