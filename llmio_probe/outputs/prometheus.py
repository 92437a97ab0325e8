"""What a Prometheus scrape gets: the rows of one snapshot, summed by label, in the families of metrics.py.

A custom collector, because the numbers are already cumulative rows: the pipeline swaps in a new immutable snapshot, a
scrape reads whichever is there, and neither waits for the other. Labels and sums only; names are in metrics.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.core import Metric as Family
from prometheus_client.registry import Collector

from llmio_probe.aggregate.rows import (
    OTHER_DEVICE,
    OTHER_STATUS,
    AttributedBytes,
    CallDistributions,
    DeviceUse,
    Distribution,
    ErrorCount,
    RequestDistributions,
    Stream,
    Submission,
)
from llmio_probe.kernel.state import ProbeState
from llmio_probe.outputs import metrics
from llmio_probe.outputs.attribution import attribution
from llmio_probe.outputs.metrics import METRICS, Metric
from llmio_probe.outputs.shapes import KnownDevices, Owner, Owners
from llmio_probe.outputs.status import status_name
from llmio_probe.text import escape


@dataclass(frozen=True)
class Snapshot:
    """All that one scrape shows. Nobody changes it, or anything it holds, once it is made."""

    streams: Sequence[Stream]
    request_distributions: Sequence[RequestDistributions]
    errors: Sequence[ErrorCount]
    submissions: Sequence[Submission]
    call_distributions: Sequence[CallDistributions]
    device_use: Sequence[DeviceUse]
    attributed_bytes: Sequence[AttributedBytes]
    state: ProbeState
    owners: Owners
    devices: KnownDevices
    folded: int
    version: str
    loader: str
    config_right: bool
    """Was it right when it was read last?"""
    config_read: float
    """Unix time at which the one in use was read, seconds."""


class ProbeCollector(Collector):
    """Give it to a registry of its own, together with a function that returns the newest snapshot."""

    def __init__(self, snapshot: Callable[[], Snapshot]) -> None:
        self._snapshot = snapshot

    def describe(self) -> Iterator[Family]:
        """The families without samples: registering must not need a first snapshot."""
        return (_family(metric) for metric in METRICS)

    def collect(self) -> Iterator[Family]:
        samples = _samples(self._snapshot())
        return (samples.family(metric) for metric in METRICS)


def exposition(snapshot: Callable[[], Snapshot]) -> CollectorRegistry:
    """All that /metrics shows: the newest snapshot, and what this process takes (process_*)."""
    registry = CollectorRegistry()
    registry.register(ProbeCollector(snapshot))
    ProcessCollector(registry=registry)
    return registry


Labels = tuple[str, ...]


@dataclass
class _Histogram:
    counts: NDArray[np.int64]
    sum: float


class _Samples:
    """Values by a metric's name and labels. Adding to labels that are there already sums, so no sample comes twice."""

    def __init__(self) -> None:
        self._values: dict[str, dict[Labels, float]] = {}
        self._histograms: dict[str, dict[Labels, _Histogram]] = {}

    def add(self, metric: Metric, labels: Iterable[str], value: float) -> None:
        values = self._values.setdefault(metric.name, {})
        key = tuple(labels)
        values[key] = values.get(key, 0) + value

    def set(self, metric: Metric, labels: Iterable[str]) -> None:
        """An info row: 1, however often it is said."""
        self._values.setdefault(metric.name, {})[tuple(labels)] = 1

    def observe(self, metric: Metric, labels: Iterable[str], distribution: Distribution) -> None:
        if not distribution.counts.any():
            return  # up to 17 series that say nothing, such as the waits of who never waits
        histograms = self._histograms.setdefault(metric.name, {})
        key = tuple(labels)
        before = histograms.get(key)
        histograms[key] = (
            _Histogram(distribution.counts, distribution.sum)
            if before is None
            else _Histogram(before.counts + distribution.counts, before.sum + distribution.sum)
        )

    def family(self, metric: Metric) -> Family:
        family = _family(metric)
        if isinstance(family, HistogramMetricFamily):
            for labels, histogram in sorted(self._histograms.get(metric.name, {}).items(), key=lambda item: item[0]):
                cumulative: list[int] = histogram.counts.cumsum().tolist()
                edges: list[tuple[str, float]] = [(bucket.le, cumulative[bucket.index]) for bucket in metric.buckets]
                family.add_metric(labels, [*edges, ("+Inf", cumulative[-1])], histogram.sum)
        else:
            for labels, value in sorted(self._values.get(metric.name, {}).items()):
                family.add_metric(labels, value)
        return family


def _family(metric: Metric) -> CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily:
    if metric.kind == "histogram":
        return HistogramMetricFamily(metric.name, metric.help, labels=metric.labels)
    if metric.kind == "gauge":
        return GaugeMetricFamily(metric.name, metric.help, labels=metric.labels)
    return CounterMetricFamily(metric.name, metric.help, labels=metric.labels)


def _samples(snapshot: Snapshot) -> _Samples:
    samples = _Samples()
    _add_requests(samples, snapshot)
    _add_calls(samples, snapshot)
    _add_devices(samples, snapshot)
    _add_workers(samples, snapshot)
    _add_probe(samples, snapshot)
    return samples


def _add_requests(samples: _Samples, snapshot: Snapshot) -> None:
    worker = _worker_names(snapshot)
    for stream in snapshot.streams:
        labels = (
            worker(stream.owner),
            _device_name(snapshot, stream.device),
            stream.op.name.lower(),
            stream.engine.name.lower(),
            stream.path.name.lower(),
            stream.role,
        )
        samples.add(metrics.REQUESTS, labels, stream.requests)
        samples.add(metrics.BYTES, labels, stream.bytes)
    for row in snapshot.request_distributions:
        shared = (worker(row.owner), _device_name(snapshot, row.device), row.op.name.lower())
        samples.observe(metrics.REQUEST_SIZE, (*shared, row.role), row.size_bytes)
        for stage, latency in row.latency_seconds.items():
            samples.observe(metrics.REQUEST_LATENCY, (*shared, stage), latency)
    for error in snapshot.errors:
        status = "other" if error.status == OTHER_STATUS else status_name(error.status)
        ended = (worker(error.owner), _device_name(snapshot, error.device), error.op.name.lower(), status)
        samples.add(metrics.REQUEST_ERRORS, ended, error.requests)
    attributed = attribution(snapshot.attributed_bytes, snapshot.devices)
    for kind, total in attributed.by_kind.items():
        samples.add(metrics.ATTRIBUTED_BYTES, (kind,), total)
    samples.add(metrics.FILE_KNOWN_BYTES, (), attributed.file_known)
    samples.add(metrics.SHARED_WRITERS_BYTES, (), attributed.shared_writers)


def _add_calls(samples: _Samples, snapshot: Snapshot) -> None:
    worker = _worker_names(snapshot)
    for row in snapshot.call_distributions:
        labels = (worker(row.owner), row.engine.name.lower())
        samples.observe(metrics.SUBMIT_REQUESTS, labels, row.submit_requests)
        samples.observe(metrics.SUBMIT_SECONDS, labels, row.submit_seconds)
        samples.observe(metrics.WAIT_SECONDS, labels, row.wait_seconds)


def _add_devices(samples: _Samples, snapshot: Snapshot) -> None:
    name = snapshot.devices.name
    for use in snapshot.device_use:
        labels = (name(use.device), use.op.name.lower())
        samples.add(metrics.REQUEUES, labels[:1], use.requeues)
        samples.add(metrics.IN_FLIGHT_SECONDS, labels, use.in_flight_seconds)
        samples.add(metrics.DEVICE_BUSY_SECONDS, labels, use.busy_seconds)
        samples.add(metrics.REQUESTS_IN_FLIGHT, labels, 0)  # what was there once is 0 now, not gone
    for counts in snapshot.state.devices:
        label = (name(counts.device),)
        samples.add(metrics.REQUESTS_STARTED, label, counts.started)
        samples.add(metrics.REQUESTS_MERGED, label, counts.merged)
        samples.add(metrics.REQUESTS_EXPIRED, label, counts.expired)
        samples.add(metrics.REQUESTS_UNOWNED, label, counts.unowned)
        for op, now in counts.in_flight.items():
            samples.add(metrics.REQUESTS_IN_FLIGHT, (*label, op.name.lower()), now)
    seen = {use.device for use in snapshot.device_use} | {counts.device for counts in snapshot.state.devices}
    for device in (seen | {stream.device for stream in snapshot.streams}) - {OTHER_DEVICE}:
        samples.set(metrics.DEVICE_INFO, (name(device), snapshot.devices.layer_now(device)))


def _add_workers(samples: _Samples, snapshot: Snapshot) -> None:
    """Those that have series of their own: a row for each of the others would break the limit on series."""
    shown = {row.owner for row in snapshot.streams} | {row.owner for row in snapshot.call_distributions}
    newest: dict[str, Owner] = {}
    for owner in sorted((snapshot.owners[index] for index in shown), key=_age):
        if owner.kind == "worker" and owner.process is not None and owner.worker != "other":
            newest[owner.worker] = owner
    for owner in newest.values():
        process = owner.process
        assert process is not None  # filtered above
        facts = (process.framework, process.rank, process.container, process.pod)
        labels = (owner.worker, str(process.id.tgid), *(fact or "" for fact in facts))
        samples.set(metrics.WORKER_INFO, map(escape, labels))


def _age(owner: Owner) -> tuple[int, int]:
    return (owner.process.id.start_ticks if owner.process else 0, owner.index)


def _add_probe(samples: _Samples, snapshot: Snapshot) -> None:
    state, losses = snapshot.state, snapshot.state.losses
    samples.add(metrics.RECORDS_LOST, (), losses.requests + losses.calls)
    samples.add(metrics.OVERFLOWED_REQUESTS, (), losses.overflowed_requests)
    samples.add(metrics.INTRODUCTIONS_REPEATED, ("process",), losses.processes)
    samples.add(metrics.INTRODUCTIONS_REPEATED, ("file",), losses.files)
    samples.add(metrics.SERIES_FOLDED, (), snapshot.folded)
    samples.add(metrics.CONFIG_RELOADED, (), float(snapshot.config_right))
    samples.add(metrics.CONFIG_READ, (), snapshot.config_read)
    samples.set(metrics.BUILD_INFO, (snapshot.version, snapshot.loader))
    for metric, by_name in (
        (metrics.MISSED_PROBES, losses.missed_probes),
        (metrics.PROGRAM_COST, state.program_cost_seconds),
        (metrics.KERNEL_MEMORY, state.kernel_memory_bytes),
        (metrics.RING_PEAK, state.ring_peak_ratio),
    ):
        for name, value in by_name.items():
            samples.add(metric, (name,), value)


def _device_name(snapshot: Snapshot, device: int) -> str:
    return "other" if device == OTHER_DEVICE else snapshot.devices.name(device)


def _worker_names(snapshot: Snapshot) -> Callable[[int], str]:
    # Worker names come from command lines: a lone surrogate in one must not break the whole exposition.
    names: dict[int, str] = {}

    def name(owner: int) -> str:
        if owner not in names:
            names[owner] = escape(snapshot.owners[owner].worker)
        return names[owner]

    return name
