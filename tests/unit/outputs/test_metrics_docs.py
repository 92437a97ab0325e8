"""docs/metrics.md has the one table of all metrics, made from outputs/metrics.py."""

from __future__ import annotations

from pathlib import Path

from llmio_probe.config import DaemonConfig
from llmio_probe.outputs.metrics import METRICS, OTHER_SERIES, SERIES

DOCS = Path(__file__).parents[3] / "docs" / "metrics.md"


def table_of_metrics() -> str:
    rows = (f"| `{m.name}` | {m.kind} | {', '.join(m.labels) or '-'} | {m.help} |\n" for m in METRICS)
    return "| metric | kind | labels | what it says |\n|---|---|---|---|\n" + "".join(rows)


def test_the_documentation_has_every_metric_with_its_labels_and_help() -> None:
    assert table_of_metrics() in DOCS.read_text(encoding="utf-8"), f"docs/metrics.md needs:\n{table_of_metrics()}"


def test_the_documentation_has_the_limits() -> None:
    text = DOCS.read_text(encoding="utf-8")
    assert f"{SERIES:,} series" in text
    assert f"{SERIES - OTHER_SERIES:,}" in text
    assert DaemonConfig().series == SERIES


def test_help_is_a_sentence_or_two_that_ends_and_fits_on_a_screen() -> None:
    for metric in METRICS:
        assert metric.help[0].isupper(), metric.name
        assert metric.help.endswith("."), metric.name
        assert 40 < len(metric.help) < 250, metric.name
