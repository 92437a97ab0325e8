"""The table of `make bench`: figures, goals, columns, and README's quote of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bench.table import Figure, Goal, Row, Table

ROOT = Path(__file__).parents[3]


def test_a_figure_is_its_median_and_its_range() -> None:
    assert str(Figure([0.5, 0.25, 1.0], "{:.2f}")) == "0.50 (0.25-1.00)"


def test_a_figure_measured_once_or_always_the_same_has_no_range() -> None:
    assert str(Figure([1234.4])) == "1,234"
    assert str(Figure([9.9, 10.1])) == "10"


@pytest.mark.parametrize(
    ("goal", "values", "met"),
    [
        (Goal("≤", 100), [90, 100, 300], True),
        (Goal("≤", 100), [90, 101, 102], False),
        (Goal("≥", 0.95), [0.5, 0.95, 1.0], True),
        (Goal("≥", 0.95), [0.5, 0.94, 1.0], False),
    ],
)
def test_a_goal_is_for_the_median(goal: Goal, values: list[float], met: bool) -> None:
    assert goal.met(Figure(values)) is met


def test_each_tool_has_its_column_and_what_was_not_measured_is_empty() -> None:
    row = Row("cost", Figure([2]), Goal("≤", 1), {"ours": Figure([2]), "slow": Figure([40])})
    assert Table(("ours", "floor", "slow")).text([row, Row("rate", Figure([3]), Goal("≥", 3))]).splitlines() == [
        "| what | ours | floor | slow | goal | met |",
        "|---|---|---|---|---|---|",
        "| cost | 2 |  | 40 | ≤ 1 | **no** |",
        "| rate | 3 |  |  | ≥ 3 | yes |",
    ]


def test_readme_quotes_what_was_measured() -> None:
    """Not figures of another day, or rounded ones."""
    measured, quoted = (_table(ROOT / page) for page in ("docs/bench.md", "README.md"))
    assert len(quoted) > 2
    assert set(quoted) < set(measured)


def _table(page: Path) -> list[str]:
    text = page.read_text().partition("<!-- table: make bench -->")[2].partition("<!-- end -->")[0]
    return [line for line in text.splitlines() if line.startswith("|")]
