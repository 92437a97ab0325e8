"""Every Prometheus metric in one table: name, type, labels, help and buckets.

Declarations only; prometheus.py fills them. Adding or renaming one changes what users have in dashboards and alerts.

Series: 17 for each (worker, device, op, role) and (worker, device, op, stage), 50 for each (worker, engine) that makes
calls, 2 a stream, 1 a worker. 24 workers and "other", each reading and writing one kind of file on one device, stay
below 5,000 (a test counts them); each further role that a worker reads or writes adds 19. What keeps the number down
is the identity room's limit on workers and aggregate/limit.py: the histograms of a label set give way first, and those
of plain commands before those of frameworks, its counters last. Folding some away here, when they have been shown
already, would make counters fall.

Help texts are for somebody who sees the metric for the first time: what is counted, what a high value means.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from llmio_probe.aggregate.buckets import LATENCY_EXPONENTS, REQUESTS_EXPONENTS, SIZE_EXPONENTS

SERIES = 5000
"""At most so many series in all, unless the configuration says otherwise."""
OTHER_SERIES = 300
"""So many of them are not for what is counted by worker, but for devices, some 15 each, and for the probe, some 60."""


@dataclass(frozen=True)
class Bucket:
    """A finite edge: the text of its label, and which count of a Distribution is the last one below it."""

    le: str
    index: int


@dataclass(frozen=True)
class Metric:
    name: str
    kind: Literal["counter", "gauge", "histogram"]
    labels: tuple[str, ...]
    help: str
    buckets: tuple[Bucket, ...] = ()


def nanoseconds_le(nanoseconds: int) -> str:
    """Nanoseconds as the shortest exact decimal of seconds: 131072 is "0.000131072", never "1.31072e-04"."""
    whole, part = divmod(nanoseconds, 10**9)
    return f"{whole}.{part:09d}".rstrip("0").rstrip(".")


def _buckets(chosen: tuple[int, ...], available: tuple[int, int], le: Callable[[int], str]) -> tuple[Bucket, ...]:
    return tuple(Bucket(le(1 << n), n - available[0]) for n in chosen)


# At most 14 edges each, because every one is a series. Sizes: single sectors, each power of two where block I/O
# lives, and two for what only large folios, discards and passthrough reach.
SIZE_BUCKETS = _buckets((9, *range(12, 23), 24, 31), SIZE_EXPONENTS, str)
# Latencies: dense from 16 us to 4 ms, where NVMe lives; 4 us for an empty queue; up to 2 s for a throttled cloud disk.
LATENCY_BUCKETS = _buckets((12, *range(14, 23), 24, 26, 28, 31), LATENCY_EXPONENTS, nanoseconds_le)
REQUESTS_BUCKETS = _buckets(tuple(range(13)), REQUESTS_EXPONENTS, str)

_STREAM = ("worker", "device", "op", "engine", "path", "role")
_DEVICE_OP = ("device", "op")
_CALL = ("worker", "engine")

REQUESTS = Metric(
    "llmio_requests_total",
    "counter",
    _STREAM,
    "Block requests that a disk has finished, by the worker that caused them, how it asked (engine), by which way "
    "through the kernel (path) and what the file is for (role).",
)
BYTES = Metric(
    "llmio_bytes_total",
    "counter",
    _STREAM,
    "Bytes of finished block requests, those of a merged one under each worker that they belong to; "
    "its rate is the bandwidth. Add up devices of one layer only, see llmio_device_info.",
)
REQUEST_ERRORS = Metric(
    "llmio_request_errors_total",
    "counter",
    ("worker", "device", "op", "status"),
    "Block requests that ended with an error, by the kernel's name for it (blk_status_t), or its number: "
    "medium and ioerr mean a bad disk, timeout and transport a bad path to it.",
)
REQUEUES = Metric(
    "llmio_requeues_total",
    "counter",
    ("device",),
    "Times that a request was handed to the device again, because it could not take it before.",
)
REQUEST_SIZE = Metric(
    "llmio_request_size_bytes",
    "histogram",
    ("worker", "device", "op", "role"),
    "Size of each finished block request, a merged one whole: small ones cost a device most of its bandwidth.",
    SIZE_BUCKETS,
)
REQUEST_LATENCY = Metric(
    "llmio_request_latency_seconds",
    "histogram",
    ("worker", "device", "op", "stage"),
    "Time of each block request by stage: queue (made until handed to the device), device (until done), and total, "
    "which is both: never add it to them. What a cgroup's limits or a full device hold back before the request is made "
    "is in no stage.",
    LATENCY_BUCKETS,
)
REQUESTS_IN_FLIGHT = Metric(
    "llmio_requests_in_flight",
    "gauge",
    _DEVICE_OP,
    "Block requests that are made and not done at this moment: the depth of the queue, device included.",
)
IN_FLIGHT_SECONDS = Metric(
    "llmio_in_flight_seconds_total",
    "counter",
    _DEVICE_OP,
    "Summed time that requests were in flight; its rate is the mean queue depth.",
)
DEVICE_BUSY_SECONDS = Metric(
    "llmio_device_busy_seconds_total",
    "counter",
    _DEVICE_OP,
    "Time in which the device had at least one request of this op; its rate is 1 when it is never idle. "
    "Ops overlap, so do not add them up.",
)
SUBMIT_REQUESTS = Metric(
    "llmio_submit_requests",
    "histogram",
    _CALL,
    "Requests that the application handed over in one call (io_submit, io_uring_enter): 1 means that it does not "
    "batch, and pays a system call for each.",
    REQUESTS_BUCKETS,
)
SUBMIT_SECONDS = Metric(
    "llmio_submit_seconds",
    "histogram",
    _CALL,
    "Time inside one submitting call: the kernel can block there although the I/O is asynchronous, such as when the "
    "queue is full.",
    LATENCY_BUCKETS,
)
WAIT_SECONDS = Metric(
    "llmio_wait_seconds",
    "histogram",
    _CALL,
    "Time inside one call that waited for completions (io_getevents, io_uring_enter); those that are reaped in user "
    "space are not measured.",
    LATENCY_BUCKETS,
)
ATTRIBUTED_BYTES = Metric(
    "llmio_attributed_bytes_total",
    "counter",
    ("kind",),
    "Read and write bytes on disks by what is known of their owner: a worker, the kernel itself, or unknown.",
)
FILE_KNOWN_BYTES = Metric(
    "llmio_file_known_bytes_total",
    "counter",
    (),
    "Read and write bytes on disks whose file is known; the kernel's own (journal, metadata) have no file and count "
    "as known.",
)
SHARED_WRITERS_BYTES = Metric(
    "llmio_shared_writers_bytes_total",
    "counter",
    (),
    "Bytes written back for files that several processes had changed meanwhile: all count for the last of them.",
)
REQUESTS_STARTED = Metric(
    "llmio_requests_started_total",
    "counter",
    ("device",),
    "Block requests made, counted in the kernel: started = finished + merged + in flight + expired.",
)
REQUESTS_MERGED = Metric(
    "llmio_requests_merged_total",
    "counter",
    ("device",),
    "Block requests that were merged into another one and so never finished by themselves.",
)
REQUESTS_EXPIRED = Metric(
    "llmio_requests_expired_total",
    "counter",
    ("device",),
    "Block requests that vanished: their memory was used for a new request before a completion was seen.",
)
REQUESTS_UNOWNED = Metric(
    "llmio_requests_unowned_total",
    "counter",
    ("device",),
    "Block requests that completed without a start having been seen, such as those in flight when the probe attached.",
)
RECORDS_LOST = Metric(
    "llmio_records_lost_total",
    "counter",
    (),
    "What found no room: request records in neither a ring nor the overflow table, which leave only totals by device, "
    "and calls in the table of calls. Above 0 the probe could not keep up, or more processes make calls than have room "
    "there.",
)
OVERFLOWED_REQUESTS = Metric(
    "llmio_overflowed_requests_total",
    "counter",
    (),
    "Requests counted in the kernel's overflow table because the ring was full: totals exact, detail lost.",
)
INTRODUCTIONS_REPEATED = Metric(
    "llmio_introductions_repeated_total",
    "counter",
    ("kind",),
    "Times that a ring had no room to introduce a process or a file, which is tried again at its next request: no "
    "request or byte is lost, but a name comes late, or not at all if there is none.",
)
MISSED_PROBES = Metric(
    "llmio_missed_probes_total",
    "counter",
    ("program",),
    "Runs of a BPF program that the kernel skipped because one was running already: events not seen, since Linux 7.0 "
    "as many at most. Not known before 5.12.",
)
PROGRAM_COST = Metric(
    "llmio_program_cost_seconds",
    "gauge",
    ("program",),
    "Mean time of one run of a BPF program, what the probe costs each event: measured for two seconds at start, or all "
    "the time if the configuration asks; not by a service without CAP_SYS_ADMIN, as the shipped one is.",
)
WORKER_INFO = Metric(
    "llmio_worker_info",
    "gauge",
    ("worker", "pid", "framework", "rank", "container", "pod"),
    "Always 1: the newest process in each worker slot, to join with the other metrics by worker.",
)
DEVICE_INFO = Metric(
    "llmio_device_info",
    "gauge",
    ("device", "layer"),
    "Always 1: whether a device is a disk or an upper layer on disks (loop, md, dm, multipath).",
)
SERIES_FOLDED = Metric(
    "llmio_series_folded_total",
    "counter",
    (),
    "Workers, or label sets of one, that came when there was no room for more series: their histograms, and only where "
    'there is none even for counters these too, add up under worker="other".',
)
KERNEL_MEMORY = Metric(
    "llmio_kernel_memory_bytes",
    "gauge",
    ("map",),
    "Kernel memory that each BPF map and ring of the probe takes; it is not in process_resident_memory_bytes, except "
    "the rings, which are mapped.",
)
RING_PEAK = Metric(
    "llmio_ring_peak_ratio",
    "gauge",
    ("ring",),
    "How full the probe has found the fullest ring of each kind, at most, since it began: at 1, records had to go to "
    "the overflow table.",
)
CONFIG_RELOADED = Metric(
    "llmio_config_last_reload_successful",
    "gauge",
    (),
    "Whether the configuration was right when it was read last: at 0 a reload was refused, the log says why, and the "
    "one before is in use.",
)
CONFIG_READ = Metric(
    "llmio_config_last_reload_success_timestamp_seconds",
    "gauge",
    (),
    "Unix time at which the configuration in use was read, at the start or by the last reload that was not refused.",
)
BUILD_INFO = Metric(
    "llmio_build_info",
    "gauge",
    ("version", "loader"),
    "Always 1: the version of llmio-probe and the loader that put its programs into the kernel.",
)

METRICS = (
    REQUESTS,
    BYTES,
    REQUEST_ERRORS,
    REQUEUES,
    REQUEST_SIZE,
    REQUEST_LATENCY,
    REQUESTS_IN_FLIGHT,
    IN_FLIGHT_SECONDS,
    DEVICE_BUSY_SECONDS,
    SUBMIT_REQUESTS,
    SUBMIT_SECONDS,
    WAIT_SECONDS,
    ATTRIBUTED_BYTES,
    FILE_KNOWN_BYTES,
    SHARED_WRITERS_BYTES,
    REQUESTS_STARTED,
    REQUESTS_MERGED,
    REQUESTS_EXPIRED,
    REQUESTS_UNOWNED,
    RECORDS_LOST,
    OVERFLOWED_REQUESTS,
    INTRODUCTIONS_REPEATED,
    MISSED_PROBES,
    PROGRAM_COST,
    WORKER_INFO,
    DEVICE_INFO,
    SERIES_FOLDED,
    KERNEL_MEMORY,
    RING_PEAK,
    CONFIG_RELOADED,
    CONFIG_READ,
    BUILD_INFO,
)
"""In the order of the exposition."""
