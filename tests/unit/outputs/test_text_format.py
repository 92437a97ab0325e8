"""The text of /metrics is what prometheus_client would write, and who gets which format."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.core import Metric as Family
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from llmio_probe.outputs.prometheus import ProbeCollector, Snapshot
from llmio_probe.outputs.text_format import OPENMETRICS, PLAIN, encode, format_for

HOSTILE = ["", "a\\b", 'say "hi"', "two\nlines", "\\n", "größe", "\U0001f600", "tab\t", "{}", "%s"]
VALUES = [0, 1, 1.0, 0.1, 1e-9, 123456, 1234567, 12345678.5, 2**53, 1e22, float("inf"), float("-inf"), float("nan"), -2]
PROMETHEUS_2 = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75"
PROMETHEUS_3 = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
    "text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)


class Hostile(Collector):
    def collect(self) -> Iterator[Family]:
        text = 'says "how", in \\ two\nlines'
        counter = CounterMetricFamily("hostile_requests_total", text, labels=["z", "a"])
        gauge = GaugeMetricFamily("hostile_depth", text, labels=["name"])
        histogram = HistogramMetricFamily("hostile_seconds", text, labels=["worker", "device"])
        for name, value in zip(HOSTILE, VALUES, strict=False):
            counter.add_metric([name, name], value)
            gauge.add_metric([name], value)
            histogram.add_metric([name, name], [("0.001", 1), ("1", 2), ("+Inf", 3)], value)
        bare = GaugeMetricFamily("hostile_bare", "without labels")
        for value in VALUES:
            bare.add_metric([], value)
        return iter((counter, gauge, histogram, bare, GaugeMetricFamily("hostile_empty", "without samples")))


@pytest.fixture
def registry(full_snapshot: Snapshot) -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(ProbeCollector(lambda: full_snapshot))
    registry.register(Hostile())
    return registry


@pytest.mark.parametrize(("accept", "kind"), [("text/plain", PLAIN), (OPENMETRICS, OPENMETRICS)])
def test_it_is_to_the_byte_what_the_library_writes(registry: CollectorRegistry, accept: str, kind: str) -> None:
    write, _ = choose_encoder(accept)
    assert encode(registry, kind) == write(registry)


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        (PROMETHEUS_2, OPENMETRICS),
        (PROMETHEUS_3, OPENMETRICS),
        ("application/openmetrics-text", OPENMETRICS),
        ("application/openmetrics-text;version=0.0.1,text/plain;q=0.5", PLAIN),
        ("text/plain;version=1.0.0;escaping=allow-utf-8", PLAIN),
        ("text/html,*/*", PLAIN),
        ("", PLAIN),
    ],
)
def test_openmetrics_is_for_who_asks_for_it(accept: str, kind: str) -> None:
    assert format_for(accept) == kind
