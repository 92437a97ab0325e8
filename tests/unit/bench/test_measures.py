"""What of the measurements needs no root: the order of looks, the snapshot made by hand."""

from __future__ import annotations

from itertools import pairwise

from prometheus_client import CollectorRegistry

from llmio_probe.outputs.prometheus import ProbeCollector
from llmio_probe.outputs.text_format import PLAIN, encode
from tests.bench.measures.scrape import made
from tests.bench.measures.throughput import order


def test_looks_come_in_pairs_and_every_second_pair_begins_with_the_tool() -> None:
    looks = order(15)
    pairs = [(looks[i], looks[i + 1]) for i in range(0, len(looks), 2)]
    assert pairs == [(False, True), (True, False)] * 7 + [(False, True)]


def test_a_tool_starts_at_most_once_in_two_pairs() -> None:
    looks = [False, *order(15)]
    assert sum(now and not before for before, now in pairwise(looks)) == 8


def test_the_snapshot_made_by_hand_has_about_as_many_series_as_there_may_be() -> None:
    registry = CollectorRegistry()
    snapshot = made()
    registry.register(ProbeCollector(lambda: snapshot))
    series = [line for line in encode(registry, PLAIN).splitlines() if not line.startswith(b"#")]
    assert 4_900 <= len(series) <= 5_000
