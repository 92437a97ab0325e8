"""/metrics as a whole, from batches made by hand: a thousand workers, hostile names, both formats, and nobody waits."""

from __future__ import annotations

import socket
import threading
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from llmio_probe.aggregate.calls import CALL_SERIES
from llmio_probe.aggregate.limit import PLAIN_SHARE
from llmio_probe.aggregate.series import LATENCY_SERIES, SIZE_SERIES, STREAM_SERIES, WORKER_SERIES, Series
from llmio_probe.identity.frameworks import builtin_rules
from llmio_probe.identity.owners import OTHER, Identity
from llmio_probe.identity.role_rules import ROLES
from llmio_probe.kernel.records import CALL, REQUEST, Engine, Op, OwnerKind, Path, Records, RequestFlag
from llmio_probe.outputs import metrics
from llmio_probe.outputs.metrics import METRICS, OTHER_SERIES, SERIES
from llmio_probe.outputs.prometheus import Snapshot, exposition
from llmio_probe.outputs.shapes import Layer
from llmio_probe.outputs.text_format import OPENMETRICS, PLAIN, encode
from llmio_probe.outputs.web import MetricsServer
from llmio_probe.outputs.web_config import Access
from tests.singly import add_requests
from tests.unit.identity.conftest import TICK_NS, Host, announced, start_ns

parse_openmetrics: Callable[[str], Iterable[Family]] = openmetrics.text_string_to_metric_families

SECOND = 1_000_000_000
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


class Machine:
    """Processes, the identity and the series of a daemon, without a kernel."""

    def __init__(self, snapshot: Snapshot, workers: int = 24, most_series: int | None = SERIES - OTHER_SERIES) -> None:
        self.host = Host()
        self.identity = Identity(
            self.host, builtin_rules(), self.host.clock, tick_ns=TICK_NS, per_process=False, limit=workers, grace=300
        )
        self.series = Series(
            detail=False, most_series=most_series,
            preferred=lambda owner: self.identity.framework_of(owner) is not None,
        )  # fmt: skip
        self._empty = snapshot

    def process(self, pid: int, comm: bytes) -> None:
        """One that ended before anybody looked: all that is known of it is what the kernel said."""
        record = announced(pid)
        record["comm"] = comm
        self.identity.observe(record)

    def run(self, pid: int, name: str, *arguments: str) -> None:
        self.host.run(pid, f"/usr/bin/{name}", *arguments)
        self.identity.observe(announced(pid, name[:15]))

    def count(self, records: Records, roles: Any = None) -> None:
        add_requests(self.series, records, self.identity.resolve(records), roles)

    def count_calls(self, records: Records) -> None:
        self.series.add_calls(records, self.identity.resolve(records))

    def later(self, seconds: float) -> None:
        self.host.now += seconds
        self.series.forget(self.identity.expire())

    def snapshot(self) -> Snapshot:
        series = self.series
        return replace(
            self._empty,
            streams=series.streams(),
            request_distributions=series.request_distributions(),
            errors=series.errors(),
            call_distributions=series.call_distributions(),
            device_use=series.device_use(),
            attributed_bytes=series.attributed_bytes(),
            owners={index: replace(owner) for index, owner in self.identity.owners.items()},
            folded=self.identity.folded + series.folded,
        )

    def samples(self) -> Samples:
        found: Samples = {}
        for family in parse_text(encode(exposition(self.snapshot), PLAIN).decode()):
            for sample in family.samples:
                key = (sample.name, frozenset(sample.labels.items()))
                assert key not in found, "the same sample twice"
                found[key] = sample.value
        return found


@pytest.fixture
def machine(snapshot: Snapshot) -> Callable[..., Machine]:
    return lambda **more: Machine(snapshot, **more)


def any_requests(random: np.random.Generator, pids: Any, device: int) -> tuple[Records, Any]:
    """One request or part of each process: of any op, engine, path, size, status and role."""
    count = len(pids)
    records = np.zeros(count, REQUEST)
    records["tgid"], records["owner_start_ns"] = pids, [start_ns(pid) for pid in pids]
    records["owner"], records["device"] = OwnerKind.PROCESS, device
    records["made_ns"] = random.integers(SECOND, 60 * SECOND, count)
    records["issued_ns"] = records["made_ns"] + random.integers(0, SECOND, count).astype(np.uint64)
    records["done_ns"] = records["issued_ns"] + random.integers(0, SECOND, count).astype(np.uint64)
    records["op"], records["engine"] = random.integers(0, len(Op), count), random.integers(0, len(Engine), count)
    records["path"] = random.integers(0, len(Path), count)
    records["bytes"] = records["request_bytes"] = 512 * random.integers(1, 2048, count)
    records["flags"] = np.where(random.random(count) < 0.1, RequestFlag.PART, 0)
    records["status"] = np.where(random.random(count) < 0.01, 10, 0)
    return records, random.integers(0, len(ROLES), count)


def any_calls(random: np.random.Generator, pids: Any) -> Records:
    """Of each that submits and waits one."""
    totals = np.zeros(len(pids), CALL)
    totals["tgid"], totals["owner_start_ns"] = pids, [start_ns(pid) for pid in pids]
    totals["engine"] = random.integers(1, 3, len(pids))
    totals["calls"][:, 0] = totals["request_counts"][:, 3] = 1
    totals["requests"][:, 0] = random.integers(5, 9, len(pids))
    totals["submit_ns"][:, 0] = random.integers(1000, SECOND, len(pids))
    totals["submit_counts"][:, 5] = totals["wait_counts"][:, 0] = 1
    totals["wait_ns"] = 1000
    return totals


@pytest.mark.parametrize("own", [24, 1000])
def test_a_thousand_workers_stay_within_5000_series_and_nothing_is_lost_twice_or_smaller(
    machine: Callable[..., Machine], nvme: int, own: int
) -> None:
    """However many workers the configuration asks for."""
    random = np.random.default_rng(17)
    host = machine(workers=own)
    pids = np.arange(1000, 2000)
    for pid in pids.tolist():
        host.run(pid, f"worker-{pid}")
    expected: Counter[str] = Counter()
    before: Samples = {}
    for turn in range(6):
        for _ in range(3):
            records, roles = any_requests(random, random.permutation(pids), nvme)
            host.count(records, roles)
            whole = records["flags"] & RequestFlag.PART == 0
            data = np.isin(records["op"], (Op.READ, Op.WRITE, Op.PASSTHROUGH))
            expected["llmio_requests_total"] += int(whole.sum())
            expected["llmio_bytes_total"] += int(records["bytes"][data].sum())
            expected["llmio_request_size_bytes_count"] += int(whole.sum())
            expected["llmio_request_latency_seconds_count"] += 3 * int(whole.sum())
            expected["llmio_request_errors_total"] += int((whole & (records["status"] != 0)).sum())
            asked = any_calls(random, random.permutation(pids))
            host.count_calls(asked)
            expected["llmio_submit_requests_sum"] += int(asked["requests"].sum())
        now = host.samples()
        assert len(now) <= SERIES
        workers = {value for _, labels in now for label, value in labels if label == "worker"}
        assert len(workers) <= own + 1
        assert "other" in workers
        for name, total in expected.items():
            assert sum(value for (found, _), value in now.items() if found == name) == total, (turn, name)
        gone = [key for key in before.keys() - now.keys() if key[0].startswith("llmio_")]
        assert not gone
        for key, value in before.items():
            if not key[0].startswith("process_"):
                assert now[key] >= value, key
        before = now


class Disks:
    def name(self, device: int, /) -> str:
        return f"nvme{device & 0xFF}n1"

    def layer(self, device: int, /) -> Layer:
        return "disk"

    layer_now = layer


def sums(samples: Samples, *labels: str) -> Counter[Any]:
    """Of counters and buckets by worker, by these of their labels."""
    found: Counter[Any] = Counter()
    for (name, all_labels), value in samples.items():
        of = dict(all_labels)
        if "worker" in of and name != "llmio_worker_info":
            key = (name, *(of.get(label) for label in labels))
            found[key] += round(value * 1e9)  # sums are whole nanoseconds
    return found


def test_on_8_disks_8_workers_of_frameworks_keep_their_counters_and_as_many_histograms_as_there_is_room_for(
    snapshot: Snapshot, nvme: int
) -> None:
    """Although plain commands came first, with more than there is room for."""
    host, unlimited = (Machine(replace(snapshot, devices=Disks()), most_series=most) for most in (4700, None))
    plain, servers = range(100, 112), range(200, 208)
    for machine in (host, unlimited):
        for pid in plain:
            machine.run(pid, f"job{pid}")
        for pid in servers:
            machine.run(pid, "python3", "-m", "flexgen.flex_opt")
    random = np.random.default_rng(23)
    before: Samples = {}
    for _ in range(3):
        for pid in (*plain, *servers):
            records = np.concatenate([any_requests(random, np.full(4, pid), nvme + disk)[0] for disk in range(8)])
            records["op"], records["engine"], records["path"] = np.arange(32) % 2, Engine.LIBAIO, Path.DIRECT
            records["status"] = 0
            for machine in (host, unlimited):
                machine.count(records)
        now, all_of_it = host.samples(), unlimited.samples()
        assert len(now) <= SERIES
        assert not [key for key, value in before.items() if key[0].startswith("llmio_") and now.get(key, -1) < value]
        before = now

    def shown(name: str) -> set[tuple[str, ...]]:
        found = (dict(labels) for metric, labels in now if metric == name)
        return {(of["worker"], of["device"], of["op"]) for of in found if of["worker"].startswith("flexgen")}

    assert len(shown("llmio_requests_total")) == len(shown("llmio_bytes_total")) == 128
    assert len([labels for name, labels in now if name == "llmio_worker_info"]) == 20
    own = shown("llmio_request_latency_seconds_count")
    assert own == shown("llmio_request_size_bytes_count")
    one = SIZE_SERIES + LATENCY_SERIES
    assert (1 - PLAIN_SHARE) * 4700 - 3 * one < len(own) * one
    assert len(now) > SERIES - OTHER_SERIES - 5 * one
    for labels in (("device", "op", "role", "le"), ("device", "op", "stage", "le")):
        assert sums(now, *labels) == sums(all_of_it, *labels)


def test_workers_that_come_and_go_leave_no_series_behind(machine: Callable[..., Machine], nvme: int) -> None:
    random = np.random.default_rng(19)
    host = machine()
    most = other = 0.0
    for generation in range(5):
        pids = np.arange(100 * generation + 1, 100 * generation + 101)
        for pid in pids.tolist():
            host.run(pid, f"job-{pid}")
        host.count(*any_requests(random, pids, nvme))
        now = host.samples()
        most = max(most, len(now))
        total = sum(
            v for (name, labels), v in now.items() if name == "llmio_requests_total" and ("worker", "other") in labels
        )
        assert total >= other, "a counter has fallen"
        other = total
        for pid in pids.tolist():
            host.host.end(pid)
        host.later(1)
        host.later(400)
        shown = {value for _, labels in host.samples() for label, value in labels if label == "worker"}
        assert shown <= {"other"}
    assert most <= SERIES


@pytest.mark.parametrize(
    ("comm", "shown"),
    [
        (b'a"b\\c', 'a"b\\c'),
        (b"a\nb", r"a\x0ab"),
        (b"\xff\xfe{x=1}", r"\xff\xfe{x=1}"),
        (b"\x1b[2J", r"\x1b[2J"),
        (b"# HELP x", "# HELP x"),
        ("ünïcode".encode(), "ünïcode"),
        (b"other", "process:other"),
    ],
)
def test_hostile_names_come_whole_through_both_formats(
    machine: Callable[..., Machine], nvme: int, comm: bytes, shown: str
) -> None:
    host = machine()
    host.process(7, comm)
    host.count(*any_requests(np.random.default_rng(1), np.array([7]), nvme))
    registry = exposition(host.snapshot)
    plain, other = (encode(registry, kind).decode() for kind in (PLAIN, OPENMETRICS))
    for families in (parse_text(plain), parse_openmetrics(other)):
        workers = {s.labels["worker"] for family in families for s in family.samples if "worker" in s.labels}
        assert workers == {shown}


def test_a_path_or_a_command_line_is_in_no_label(machine: Callable[..., Machine], nvme: int) -> None:
    host = machine()
    host.host.run(7, "/opt/secret/bin/tool", "--password=hunter2", "/nvme/secret.bin")
    host.identity.observe(announced(7, "tool"))
    host.count(*any_requests(np.random.default_rng(1), np.array([7]), nvme))
    text = encode(exposition(host.snapshot), PLAIN).decode()
    assert 'worker="tool"' in text
    assert not [word for word in ("secret", "hunter2", "/nvme", "/opt") if word in text]


def test_the_costs_that_the_limit_counts_are_those_of_the_metrics() -> None:
    of = {metric: 3 + len(metric.buckets) for metric in METRICS if metric.kind == "histogram"}  # +Inf, sum, count
    assert sum(metric in (metrics.REQUESTS, metrics.BYTES) for metric in METRICS) == STREAM_SERIES
    assert metrics.WORKER_INFO.kind == "gauge"
    assert WORKER_SERIES == 1
    assert of[metrics.REQUEST_SIZE] == SIZE_SERIES
    assert 3 * of[metrics.REQUEST_LATENCY] == LATENCY_SERIES
    assert sum(of[m] for m in (metrics.SUBMIT_REQUESTS, metrics.SUBMIT_SECONDS, metrics.WAIT_SECONDS)) == CALL_SERIES
    assert len(of) == 5, "a histogram that the limit does not know"


# --- the server


@pytest.fixture
def serve() -> Iterator[Callable[[Callable[[], Snapshot]], int]]:
    """Serve the snapshots; the port."""
    with ExitStack() as running:

        def start(snapshot: Callable[[], Snapshot]) -> int:
            server = MetricsServer(("127.0.0.1", 0), exposition(snapshot), Access())
            running.callback(server.close)
            server.start()
            return server.port

        yield start


def scrape(port: int, accept: str = "text/plain") -> tuple[str, str]:
    request = urllib.request.Request(f"http://127.0.0.1:{port}/metrics", headers={"Accept": accept})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return answer.headers["Content-Type"], answer.read().decode()


def test_the_format_is_the_one_that_was_asked_for(serve: Any, full_snapshot: Snapshot) -> None:
    port = serve(lambda: full_snapshot)
    kind, text = scrape(port, f"{OPENMETRICS},text/plain;version=0.0.4;q=0.5")
    assert kind.startswith("application/openmetrics-text")
    found = {sample.name for family in parse_openmetrics(text) for sample in family.samples}
    assert "llmio_bytes_total" in found
    assert not [name for name in found if name.endswith("_created")]
    kind, text = scrape(port)
    assert kind.startswith("text/plain")
    assert found == {sample.name for family in parse_text(text) for sample in family.samples}


def test_a_scrape_does_not_wait_for_the_pipeline(serve: Any, snapshot: Snapshot) -> None:
    """The pipeline hangs while it makes the next snapshot; scrapes get the last one."""
    current, busy, go_on = [snapshot], threading.Event(), threading.Event()

    def pipeline() -> None:
        busy.set()
        go_on.wait()
        current[0] = replace(snapshot, version="2")

    worker = threading.Thread(target=pipeline)
    port = serve(lambda: current[0])
    worker.start()
    try:
        assert busy.wait(30)
        for _ in range(3):
            assert 'version="0.1.0"' in scrape(port)[1]
    finally:
        go_on.set()
        worker.join()
    assert 'version="2"' in scrape(port)[1]


def test_the_pipeline_and_other_scrapes_do_not_wait_for_a_client_that_does_not_read(
    serve: Any, snapshot: Snapshot, stream: Any, worker: Any
) -> None:
    """More than the buffers of a socket hold, so that its thread hangs in the midst of a snapshot."""
    many = range(2, 20_002)
    owners = {index: worker(index, f"w{index}-" + "x" * 50, index) for index in many}
    large = replace(snapshot, owners=owners, streams=[stream(owner=index) for index in many])
    current = [large]
    port = serve(lambda: current[0])
    with socket.create_connection(("127.0.0.1", port)) as lazy, socket.create_connection(("127.0.0.1", port)) as silent:
        lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        lazy.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        assert lazy.recv(16).startswith(b"HTTP/1")  # it is being answered
        silent.sendall(b"GET /met")
        current[0] = replace(snapshot, version="2")  # the pipeline's part, a single assignment
        assert 'version="2"' in scrape(port)[1]


def test_a_snapshot_that_is_being_scraped_is_not_changed_by_the_pipeline(
    machine: Callable[..., Machine], nvme: int
) -> None:
    host = machine()
    host.run(5, "fio")
    host.count(*any_requests(np.random.default_rng(3), np.full(100, 5), nvme))
    taken = host.snapshot()
    before = encode(exposition(lambda: taken), PLAIN).decode()
    host.count(*any_requests(np.random.default_rng(4), np.full(100, 5), nvme))
    host.host.end(5)
    host.later(1)
    host.later(400)
    after = encode(exposition(lambda: taken), PLAIN).decode()

    def ours(text: str) -> list[str]:
        return [line for line in text.splitlines() if line.startswith("llmio_")]

    assert ours(after) == ours(before)
    assert OTHER not in {stream.owner for stream in taken.streams}
