"""The Prometheus output as a server reads it: names, labels, buckets and text, to the byte where it matters."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from llmio_probe.aggregate.buckets import LATENCY_EDGES, REQUESTS_EDGES, SIZE_EDGES
from llmio_probe.aggregate.rows import (
    OTHER_DEVICE,
    OTHER_STATUS,
    STAGES,
    AttributedBytes,
    CallDistributions,
    DeviceUse,
    Distribution,
    ErrorCount,
    RequestDistributions,
    Stream,
)
from llmio_probe.kernel.records import Engine, Op, OwnerKind
from llmio_probe.kernel.state import DeviceCounts, ProbeState
from llmio_probe.outputs.metrics import METRICS, REQUEST_LATENCY, REQUEST_SIZE, nanoseconds_le
from llmio_probe.outputs.prometheus import ProbeCollector, Snapshot, exposition
from llmio_probe.outputs.shapes import Layer
from llmio_probe.outputs.status import status_name
from llmio_probe.outputs.text_format import PLAIN, encode

SERIES_LIMIT = 5000
NVME = 259 << 20


@pytest.fixture
def scrape() -> Callable[[Snapshot], str]:
    def text(snapshot: Snapshot) -> str:
        registry = CollectorRegistry()
        registry.register(ProbeCollector(lambda: snapshot))
        return encode(registry, PLAIN).decode()

    return text


@pytest.fixture
def samples(scrape: Callable[[Snapshot], str]) -> Callable[..., dict[tuple[str, ...], float]]:
    """samples(snapshot, name): label values to value, after a round trip through the text format."""

    def read(snapshot: Snapshot, name: str) -> dict[tuple[str, ...], float]:
        found: dict[tuple[str, ...], float] = {}
        for family in text_string_to_metric_families(scrape(snapshot)):
            for sample in family.samples:
                if sample.name == name:
                    labels = tuple(sample.labels.values())
                    assert labels not in found, "the same sample twice"
                    found[labels] = sample.value
        return found

    return read


def lines_of(text: str, name: str) -> list[str]:
    return [
        line for line in text.splitlines() if re.match(rf"(# (HELP|TYPE) )?{name}(_bucket|_sum|_count)?[ {{]", line)
    ]


def test_a_request_histogram_is_exposed_to_the_byte(scrape: Any, full_snapshot: Snapshot) -> None:
    labels = 'device="nvme0n1",le="{}",op="read",role="weights",worker="flexgen"'
    edges = {
        **dict.fromkeys(("512", "4096", "8192", "16384", "32768", "65536"), 0),
        **dict.fromkeys(("131072", "262144", "524288", "1048576", "2097152", "4194304"), 2),
        **dict.fromkeys(("16777216", "2147483648", "+Inf"), 2),
    }
    assert lines_of(scrape(full_snapshot), "llmio_request_size_bytes") == [
        "# HELP llmio_request_size_bytes Size of each finished block request, a merged one whole: small ones cost a "
        "device most of its bandwidth.",
        "# TYPE llmio_request_size_bytes histogram",
        *(f"llmio_request_size_bytes_bucket{{{labels.format(le)}}} {count}.0" for le, count in edges.items()),
        'llmio_request_size_bytes_count{device="nvme0n1",op="read",role="weights",worker="flexgen"} 2.0',
        'llmio_request_size_bytes_sum{device="nvme0n1",op="read",role="weights",worker="flexgen"} 262144.0',
    ]


def test_counters_and_gauges_are_exposed_to_the_byte(scrape: Any, full_snapshot: Snapshot) -> None:
    text = scrape(full_snapshot)
    assert lines_of(text, "llmio_requests_total")[2:] == [
        'llmio_requests_total{device="nvme0n1",engine="mmap",op="read",path="page_cache",role="weights",'
        'worker="flexgen"} 10.0',
        'llmio_requests_total{device="nvme0n1",engine="unknown",op="read",path="unknown",role="other",'
        'worker="unknown"} 10.0',
    ]
    for line in (
        'llmio_request_errors_total{device="nvme0n1",op="read",status="ioerr",worker="flexgen"} 1.0',
        'llmio_requeues_total{device="nvme0n1"} 3.0',
        'llmio_requests_in_flight{device="nvme0n1",op="read"} 2.0',
        'llmio_requests_in_flight{device="nvme0n1",op="write"} 0.0',
        'llmio_in_flight_seconds_total{device="nvme0n1",op="read"} 2.5',
        'llmio_device_busy_seconds_total{device="nvme0n1",op="read"} 1.5',
        'llmio_requests_started_total{device="nvme0n1"} 20.0',
        'llmio_requests_merged_total{device="nvme0n1"} 1.0',
        'llmio_requests_expired_total{device="nvme0n1"} 0.0',
        'llmio_requests_unowned_total{device="nvme0n1"} 2.0',
        'llmio_attributed_bytes_total{kind="kernel"} 0.0',
        'llmio_attributed_bytes_total{kind="unknown"} 0.0',
        "llmio_file_known_bytes_total 1.31072e+06",
        "llmio_shared_writers_bytes_total 4096.0",
        "llmio_records_lost_total 0.0",
        "llmio_overflowed_requests_total 0.0",
        'llmio_introductions_repeated_total{kind="process"} 0.0',
        'llmio_introductions_repeated_total{kind="file"} 0.0',
        "llmio_series_folded_total 0.0",
        'llmio_missed_probes_total{program="issue"} 0.0',
        'llmio_program_cost_seconds{program="issue"} 1.5e-07',
        'llmio_kernel_memory_bytes{map="requests"} 8.388608e+06',
        'llmio_ring_peak_ratio{ring="requests"} 0.25',
        'llmio_device_info{device="nvme0n1",layer="disk"} 1.0',
        "llmio_config_last_reload_successful 1.0",
        "llmio_config_last_reload_success_timestamp_seconds 1.8e+09",
        'llmio_build_info{loader="core",version="0.1.0"} 1.0',
    ):
        assert line in text.splitlines()


def test_every_declared_metric_has_the_declared_labels_and_no_created_sample(
    full_snapshot: Snapshot,
) -> None:
    declared = {metric.name: set(metric.labels) for metric in METRICS}
    for family in ProbeCollector(lambda: full_snapshot).collect():
        name = family.name + ("_total" if family.type == "counter" else "")
        for sample in family.samples:
            assert set(sample.labels) - {"le"} == declared[name]
            assert not sample.name.endswith("_created")
        del declared[name]
    assert not declared


def test_parts_of_others_requests_are_bytes_without_requests_or_sizes(
    samples: Any,
    snapshot: Snapshot,
    stream: Callable[..., Stream],
    distribution: Callable[..., Distribution],
    nvme: int,
) -> None:
    nothing = {stage: distribution(LATENCY_EDGES) for stage in STAGES}
    row = RequestDistributions(2, nvme, Op.READ, "weights", distribution(SIZE_EDGES), nothing)
    seen = replace(snapshot, streams=[stream(requests=0, bytes=4096)], request_distributions=[row])
    assert list(samples(seen, "llmio_requests_total").values()) == [0]
    assert list(samples(seen, "llmio_bytes_total").values()) == [4096]
    assert samples(seen, "llmio_request_size_bytes_count") == {}


def test_no_label_is_a_file() -> None:
    """Paths come and go without end: each would be a series for ever."""
    assert not {label for metric in METRICS for label in metric.labels} & {"file", "inode", "filename", "worker_path"}


def test_registering_needs_no_snapshot() -> None:
    def none_yet() -> Snapshot:
        raise AssertionError("asked for a snapshot")

    CollectorRegistry().register(ProbeCollector(none_yet))


def test_each_scrape_reads_the_newest_snapshot(snapshot: Snapshot) -> None:
    current = [snapshot]
    registry = CollectorRegistry()
    registry.register(ProbeCollector(lambda: current[0]))
    assert registry.get_sample_value("llmio_attributed_bytes_total", {"kind": "worker"}) == 0
    current[0] = replace(snapshot, attributed_bytes=[AttributedBytes(NVME, OwnerKind.PROCESS, True, 1310720, 0)])
    assert registry.get_sample_value("llmio_attributed_bytes_total", {"kind": "worker"}) == 1310720


def test_owners_with_the_same_worker_are_one_series(
    samples: Any,
    snapshot: Snapshot,
    stream: Callable[..., Stream],
    worker: Any,
    distribution: Callable[..., Distribution],
    nvme: int,
) -> None:
    rows = [
        RequestDistributions(
            owner,
            nvme,
            Op.READ,
            "weights",
            distribution(SIZE_EDGES, 4096),
            {stage: distribution(LATENCY_EDGES, 0.001) for stage in STAGES},
        )
        for owner in (2, 5)
    ]
    restarted = {**snapshot.owners, 5: worker(5, "flexgen", 124, 2000)}
    seen = replace(snapshot, owners=restarted, streams=[stream(), stream(owner=5)], request_distributions=rows)
    assert list(samples(seen, "llmio_requests_total").values()) == [20]
    assert list(samples(seen, "llmio_request_size_bytes_count").values()) == [2]
    assert list(samples(seen, "llmio_request_latency_seconds_sum").values()) == [0.002] * 3


class TwoNumbers:
    """One disk that has had two numbers; it was another layer's with the first."""

    def name(self, device: int, /) -> str:
        return "loop0"

    def layer(self, device: int, /) -> Layer:
        return "disk" if device == 1 else "upper"

    def layer_now(self, device: int, /) -> Layer:
        return "upper"


def test_devices_with_the_same_name_are_one_series(
    samples: Any,
    snapshot: Snapshot,
    stream: Callable[..., Stream],
    distribution: Callable[..., Distribution],
) -> None:
    latency = {stage: distribution(LATENCY_EDGES, 0.001) for stage in STAGES}
    sizes = distribution(SIZE_EDGES, 4096)
    seen = replace(
        snapshot,
        devices=TwoNumbers(),
        streams=[stream(device=1), stream(device=2)],
        request_distributions=[RequestDistributions(2, n, Op.READ, "weights", sizes, latency) for n in (1, 2)],
        errors=[ErrorCount(2, n, Op.READ, 10, 3) for n in (1, 2)],
        device_use=[DeviceUse(n, Op.READ, 20, 4096, 3, 1.5, 2.5) for n in (1, 2)],
        state=replace(
            snapshot.state,
            devices=[DeviceCounts(n, 20, 17, 1, 0, 2, 2, 0, {Op.READ: 2}) for n in (1, 2)],
        ),
        attributed_bytes=[AttributedBytes(n, OwnerKind.PROCESS, True, n, 0) for n in (1, 2)],
    )
    for name, value in {
        "requests_total": 20, "request_size_bytes_count": 2, "request_errors_total": 6, "requeues_total": 6,
        "in_flight_seconds_total": 5, "device_busy_seconds_total": 3, "requests_started_total": 40,
        "requests_merged_total": 2, "requests_unowned_total": 4, "requests_in_flight": 4,
    }.items():  # fmt: skip
        assert list(samples(seen, f"llmio_{name}").values()) == [value], name
    assert samples(seen, "llmio_device_info") == {("loop0", "upper"): 1}, "one row, to join with"
    assert samples(seen, "llmio_attributed_bytes_total")["worker",] == 1, "as it was when it was counted"


def test_latencies_are_summed_over_roles(
    samples: Any, snapshot: Snapshot, distribution: Callable[..., Distribution], nvme: int
) -> None:
    latency = {stage: distribution(LATENCY_EDGES, 0.001) for stage in STAGES}
    rows = [
        RequestDistributions(2, nvme, Op.READ, role, distribution(SIZE_EDGES, 512), latency)
        for role in ("weights", "kv_cache")
    ]
    seen = replace(snapshot, request_distributions=rows)
    assert samples(seen, "llmio_request_latency_seconds_count") == {
        ("nvme0n1", "read", stage, "flexgen"): 2 for stage in STAGES
    }
    assert len(samples(seen, "llmio_request_size_bytes_count")) == 2


def test_a_stage_never_measured_has_no_series(
    samples: Any, snapshot: Snapshot, distribution: Callable[..., Distribution]
) -> None:
    never = distribution(LATENCY_EDGES)
    calls = CallDistributions(
        2, Engine.LIBAIO, distribution(REQUESTS_EDGES, 1), distribution(LATENCY_EDGES, 0.001), never
    )
    seen = replace(snapshot, call_distributions=[calls])
    assert samples(seen, "llmio_submit_seconds_count") == {("libaio", "flexgen"): 1}
    assert samples(seen, "llmio_wait_seconds_count") == {}


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ('a"b', 'a"b'),
        ("a\\b", "a\\b"),
        ("ünïcode", "ünïcode"),
        ("a\nb", r"a\x0ab"),
        ("\x1b[2J", r"\x1b[2J"),
        ("bad\udcffbyte", r"bad\xffbyte"),
    ],
)
def test_hostile_worker_names_survive_the_text_format(
    scrape: Any, snapshot: Snapshot, stream: Callable[..., Stream], worker: Any, name: str, shown: str
) -> None:
    seen = replace(snapshot, owners={**snapshot.owners, 5: worker(5, name, 5)}, streams=[stream(owner=5)])
    text = scrape(seen)
    names = {
        sample.labels["worker"]
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == "llmio_requests_total"
    }
    assert names == {shown}


def test_no_metric_has_more_than_14_edges_and_each_is_a_bucket_edge() -> None:
    for metric in METRICS:
        assert len(metric.buckets) <= 14
        assert [bucket.index for bucket in metric.buckets] == sorted({bucket.index for bucket in metric.buckets})
    assert [float(bucket.le) for bucket in REQUEST_SIZE.buckets] == [
        SIZE_EDGES[bucket.index] for bucket in REQUEST_SIZE.buckets
    ]
    assert [float(bucket.le) for bucket in REQUEST_LATENCY.buckets] == [
        LATENCY_EDGES[bucket.index] for bucket in REQUEST_LATENCY.buckets
    ]


@pytest.mark.parametrize(
    ("nanoseconds", "le"), [(1 << 12, "0.000004096"), (1 << 17, "0.000131072"), (10**9, "1"), (1 << 31, "2.147483648")]
)
def test_latency_edges_are_written_as_exact_decimals(nanoseconds: int, le: str) -> None:
    assert nanoseconds_le(nanoseconds) == le


@pytest.mark.parametrize(("status", "name"), [(0, "ok"), (6, "resv_conflict"), (10, "ioerr"), (14, "14"), (255, "255")])
def test_block_status_has_a_name_where_all_kernels_agree_on_it(status: int, name: str) -> None:
    assert status_name(status) == name


def test_errors_are_told_apart_by_status(samples: Any, snapshot: Snapshot, nvme: int) -> None:
    errors = [ErrorCount(2, nvme, Op.READ, status, 3) for status in (7, 10)]
    assert samples(replace(snapshot, errors=errors), "llmio_request_errors_total") == {
        ("nvme0n1", "read", "medium", "flexgen"): 3,
        ("nvme0n1", "read", "ioerr", "flexgen"): 3,
    }


def test_attribution_counts_disks_only(samples: Any, snapshot: Snapshot, dm: int) -> None:
    rows = [
        AttributedBytes(NVME, OwnerKind.PROCESS, True, 100, 64),
        AttributedBytes(NVME, OwnerKind.PROCESS, False, 10, 0),
        AttributedBytes(NVME, OwnerKind.KERNEL, False, 7, 0),
        AttributedBytes(NVME, OwnerKind.UNKNOWN, True, 3, 1),
        AttributedBytes(NVME, OwnerKind.UNKNOWN, False, 2, 0),
        AttributedBytes(dm, OwnerKind.PROCESS, True, 1000, 1000),
    ]
    seen = replace(snapshot, attributed_bytes=rows)
    assert samples(seen, "llmio_attributed_bytes_total") == {("kernel",): 7, ("unknown",): 5, ("worker",): 110}
    assert samples(seen, "llmio_file_known_bytes_total") == {(): 110}
    assert samples(seen, "llmio_shared_writers_bytes_total") == {(): 65}


def test_lost_records_are_summed_over_the_rings(samples: Any, snapshot: Snapshot, state: ProbeState) -> None:
    losses = replace(state.losses, requests=1, calls=2, processes=4, missed_probes={"issue": 8}, files=16)
    seen = replace(snapshot, state=replace(state, losses=losses))
    assert samples(seen, "llmio_records_lost_total") == {(): 3}
    assert samples(seen, "llmio_missed_probes_total") == {("issue",): 8}
    assert samples(seen, "llmio_introductions_repeated_total") == {("process",): 4, ("file",): 16}


def test_worker_info_is_one_row_a_slot_that_shows_with_its_newest_process(
    samples: Any, snapshot: Snapshot, stream: Callable[..., Stream], worker: Any
) -> None:
    restarted = {
        **snapshot.owners,
        8: worker(8, "folded", 10),
        5: worker(5, "flexgen", 200, 3000, rank="0", container="0123456789ab", pod="uid"),
        6: worker(6, "flexgen", 150, 2000),
        7: worker(7, "other", 9, 9000),
    }
    streams = [stream(owner=index) for index in (2, 3, 4, 5, 6, 7)]
    assert samples(replace(snapshot, owners=restarted, streams=streams), "llmio_worker_info") == {
        ("", "", "456", "", "", "backup"): 1,
        ("0123456789ab", "flexgen", "200", "uid", "0", "flexgen"): 1,
    }


def test_the_order_is_the_same_whatever_the_order_of_the_rows(scrape: Any, full_snapshot: Snapshot) -> None:
    owners = dict(reversed(list(full_snapshot.owners.items())))
    turned = replace(full_snapshot, streams=list(reversed(full_snapshot.streams)), owners=owners)
    assert scrape(turned) == scrape(full_snapshot)


def test_a_host_full_of_workers_stays_below_the_series_limit(
    snapshot: Snapshot,
    stream: Callable[..., Stream],
    worker: Any,
    distribution: Callable[..., Distribution],
    nvme: int,
) -> None:
    latency = {stage: distribution(LATENCY_EDGES, 0.001) for stage in STAGES}
    owners = {index: worker(index, f"vllm-tp{index}", index) for index in range(2, 27)}
    one = distribution(LATENCY_EDGES, 0.001)
    busy = replace(
        snapshot,
        owners=owners,
        streams=[stream(owner=index, op=op) for index in owners for op in (Op.READ, Op.WRITE)],
        request_distributions=[
            RequestDistributions(index, nvme, op, "kv_cache", distribution(SIZE_EDGES, 4096), latency)
            for index in owners
            for op in (Op.READ, Op.WRITE)
        ],
        call_distributions=[
            CallDistributions(index, Engine.LIBAIO, distribution(REQUESTS_EDGES, 1), one, one) for index in owners
        ],
    )
    series = sum(len(family.samples) for family in ProbeCollector(lambda: busy).collect())
    assert SERIES_LIMIT * 0.9 < series < SERIES_LIMIT


def test_what_is_shown_without_its_device_is_called_other_and_no_device(
    samples: Any, snapshot: Snapshot, stream: Callable[..., Stream]
) -> None:
    nowhere = replace(
        snapshot,
        streams=[stream(owner=1, device=OTHER_DEVICE, op=Op.OTHER)],
        errors=[ErrorCount(1, OTHER_DEVICE, Op.OTHER, OTHER_STATUS, 3)],
    )
    assert samples(nowhere, "llmio_request_errors_total") == {("other", "other", "other", "other"): 3}
    assert [(labels[0], labels[2]) for labels in samples(nowhere, "llmio_requests_total")] == [("other", "other")]
    assert {device for device, _ in samples(nowhere, "llmio_device_info")} == {"nvme0n1"}


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_promtool_finds_nothing_to_complain_about(full_snapshot: Snapshot) -> None:
    text = encode(exposition(lambda: full_snapshot), PLAIN).decode()
    checked = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")
