"""The one table: what was measured, ours and the others', the goals, as Markdown. Measures nothing."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class Figure:
    """One quantity, measured once or more. form: how a value of it is written."""

    values: Sequence[float]
    form: str = "{:,.0f}"

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    def __str__(self) -> str:
        """Median (lowest-highest)."""
        text, low, high = map(self._text, (self.median, min(self.values), max(self.values)))
        return text if low == high else f"{text} ({low}-{high})"

    def _text(self, value: float) -> str:
        text = self.form.format(value)
        return text.removeprefix("-") if text.strip("-0.") == "" else text  # no -0


@dataclass(frozen=True)
class Goal:
    """What was promised of a median."""

    bound: Literal["≤", "≥"]
    limit: float

    def met(self, figure: Figure) -> bool:
        return figure.median <= self.limit if self.bound == "≤" else figure.median >= self.limit


@dataclass(frozen=True)
class Row:
    """ours: in our column, which the goal is for. others: by the names of tools. quoted: in README, too."""

    what: str
    ours: Figure
    goal: Goal | None = None
    others: Mapping[str, Figure] = field(default_factory=dict)
    quoted: bool = False


@dataclass(frozen=True)
class Table:
    """Columns: what was measured, the tools by name, ours first, the goal, whether it is met."""

    tools: Sequence[str]

    def head(self) -> str:
        columns = ("what", *self.tools, "goal", "met")
        return f"{_line(columns)}\n|{'---|' * len(columns)}"

    def row(self, row: Row) -> str:
        figures = [row.ours, *(row.others.get(name) for name in self.tools[1:])]
        goal, met = "", ""
        if row.goal is not None:
            goal = f"{row.goal.bound} {row.ours.form.format(row.goal.limit)}"
            met = "yes" if row.goal.met(row.ours) else "**no**"
        return _line((row.what, *("" if figure is None else str(figure) for figure in figures), goal, met))

    def text(self, rows: Iterable[Row]) -> str:
        return "\n".join((self.head(), *map(self.row, rows)))


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
