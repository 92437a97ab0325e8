"""Draws a dashboard as Grafana would lay it out, from what a real Prometheus answers: to be looked at.

Grafana itself is not needed. Only drawing may go in here; no test depends on what is drawn.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.ticker import FuncFormatter, MaxNLocator
from matplotlib.transforms import Bbox
from numpy.typing import NDArray

from tests.live.prometheus import SCRAPE_SECONDS, Series

FloatArray = NDArray[np.float64]

COLUMN_INCHES, ROW_INCHES = 0.8, 0.34
GRID = 24
MOST_ROWS = 8
"""Of a legend or a table."""


def text(value: float, unit: str) -> str:
    """As Grafana writes a value of one of its units."""
    if math.isnan(value):
        return "NaN"
    if unit == "percentunit":
        return f"{100 * value:.4g} %"
    if unit in ("bytes", "binBps"):
        return _scaled(value, 1024, ("B", "KiB", "MiB", "GiB", "TiB")) + ("/s" if unit == "binBps" else "")
    if unit == "s":
        return next(
            (
                f"{value / size:.3g} {name}"
                for size, name in ((1, "s"), (1e-3, "ms"), (1e-6, "µs"))
                if abs(value) >= size
            ),
            f"{value * 1e9:.3g} ns",
        )
    return _scaled(value, 1000, ("", "K", "M", "G")) + (" req/s" if unit == "reqps" else "")


def _scaled(value: float, step: int, names: Sequence[str]) -> str:
    power = min(int(math.log(abs(value), step)), len(names) - 1) if abs(value) >= 1 else 0
    return f"{value / step**power:.3g} {names[power]}".strip()


def draw(dashboard: dict[str, Any], ask: Callable[[dict[str, Any]], list[Series]], path: Path) -> None:
    """One picture of the whole dashboard. ask: the answers to a panel's queries."""
    height = max(panel["gridPos"].get("y", 0) + panel["gridPos"]["h"] for panel in dashboard["panels"])
    figure = plt.figure(figsize=(GRID * COLUMN_INCHES, height * ROW_INCHES + 0.5), facecolor="#f4f5f5")
    figure.suptitle(dashboard["title"], x=0.01, ha="left", fontsize=13)
    usable = 1 - 0.5 / (height * ROW_INCHES + 0.5)
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        x, y, width, tall = place.get("x", 0), place.get("y", 0), place["w"], place["h"]
        top = usable * (1 - y / height)
        if panel["type"] == "row":
            figure.text(0.01, top - 0.7 * usable / height, panel["title"], fontsize=11, weight="bold", va="center")
            continue
        bottom, inside = usable * (1 - (y + tall) / height), usable * tall / height
        margin = 0.045 if panel["type"] != "bargauge" else 0.075
        legend = 0.34 if panel["type"] == "timeseries" else 0.1
        axes = figure.add_axes(
            (x / GRID + margin, bottom + legend * inside, width / GRID - margin - 0.012, (0.86 - legend) * inside)
        )
        axes.set_title(panel["title"], fontsize=9, loc="left", weight="bold")
        axes.tick_params(labelsize=7)
        _DRAWN[panel["type"]](axes, panel, ask(panel))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80)
    plt.close(figure)


def _unit(panel: dict[str, Any]) -> str:
    return str(panel["fieldConfig"]["defaults"]["unit"])


def _say(axes: Axes, words: str, size: float = 12) -> None:
    axes.set_axis_off()
    axes.text(0.5, 0.45, words, ha="center", va="center", fontsize=size, transform=axes.transAxes)


def _formatted(unit: str) -> FuncFormatter:
    return FuncFormatter(lambda value, _: text(value, unit))


def _graph(axes: Axes, panel: dict[str, Any], answers: list[Series]) -> None:
    if not answers:
        _say(axes, "No data")
        return
    unit, start = _unit(panel), min(series.times[0] for series in answers)
    answers = sorted(answers, key=_mean, reverse=True)
    stacked = panel["fieldConfig"]["defaults"].get("custom", {}).get("stacking", {}).get("mode") == "normal"
    if stacked:
        times = np.array(sorted({t for series in answers for t in series.times}))
        heights = [np.interp(times, series.times, series.values, 0, 0) for series in answers]
        axes.stackplot(times - start, heights, alpha=0.5)
        shown = [patch.get_facecolor()[0] for patch in axes.collections]
    else:
        shown = []
        for series in answers:
            times, values = _with_gaps(series)
            [line] = axes.plot(times - start, values, linewidth=1)
            shown.append(line.get_color())
    axes.set_ylim(0, panel["fieldConfig"]["defaults"].get("max"))
    axes.yaxis.set_major_formatter(_formatted(unit))
    axes.grid(alpha=0.3)
    columns = 2 if panel["gridPos"]["w"] >= 8 else 1
    for number, (series, color) in enumerate(zip(answers[: columns * MOST_ROWS // 2], shown, strict=False)):
        said = f"{series.legend or '{}'}  mean {text(_mean(series), unit)}  max {text(max(series.values), unit)}"
        axes.text(
            number % columns / columns, -0.26 - 0.14 * (number // columns), f"— {said}", color=color, fontsize=6.5,
            transform=axes.transAxes,
        )  # fmt: skip
    if len(answers) > columns * MOST_ROWS // 2:
        axes.text(1, -0.26, f"… {len(answers)} series", fontsize=6.5, ha="right", transform=axes.transAxes)


def _mean(series: Series) -> float:
    values = [value for value in series.values if not math.isnan(value)]
    return float(np.mean(values)) if values else 0.0


def _with_gaps(series: Series) -> tuple[FloatArray, FloatArray]:
    """Times and values, with nothing drawn where there was nothing."""
    times, values = np.array(series.times), np.array(series.values)
    gaps = np.flatnonzero(np.diff(times) > 1.5 * SCRAPE_SECONDS) + 1
    return np.insert(times, gaps, times[gaps]), np.insert(values, gaps, np.nan)


def _heat_map(axes: Axes, panel: dict[str, Any], answers: list[Series]) -> None:
    if not answers:
        _say(axes, "No data")
        return
    ordered = sorted(answers, key=lambda series: float(series.labels["le"]))
    times = np.array(sorted({t for series in ordered for t in series.times}))
    cumulative = np.array([np.interp(times, series.times, series.values, 0, 0) for series in ordered])
    cells = np.diff(cumulative, axis=0, prepend=0)
    cells[cells <= 1e-9] = np.nan
    edges = np.arange(len(ordered) + 1)
    if np.isnan(cells).all():
        _say(axes, "0 in every bucket")
    else:
        steps = np.append(times - times[0], times[-1] - times[0] + 1)
        axes.pcolormesh(steps, edges, cells, cmap="Oranges", norm=PowerNorm(0.5, 0, float(np.nanmax(cells))))
    unit = panel["options"]["yAxis"]["unit"]
    axes.set_yticks(edges[1:])
    axes.set_yticklabels(
        [s.labels["le"] if s.labels["le"] == "+Inf" else text(float(s.labels["le"]), unit) for s in ordered]
    )


def _number(axes: Axes, panel: dict[str, Any], answers: list[Series]) -> None:
    values = [value for series in answers for value in series.values if not math.isnan(value)]
    defaults = panel["fieldConfig"]["defaults"]
    if values and "decimals" in defaults and _unit(panel) == "short":
        values[-1] = round(values[-1], int(defaults["decimals"]))
    words = text(values[-1], _unit(panel)) if values else defaults.get("noValue", "No data")
    _say(axes, words, 16 if values else 11)


def _bars(axes: Axes, panel: dict[str, Any], answers: list[Series]) -> None:
    if not answers:
        _say(axes, "No data")
        return
    ordered = sorted(answers, key=lambda series: series.values[-1])
    drawn = axes.barh([series.legend or "{}" for series in ordered], [series.values[-1] for series in ordered])
    axes.bar_label(drawn, [text(series.values[-1], _unit(panel)) for series in ordered], fontsize=7, padding=2)
    axes.xaxis.set_major_locator(MaxNLocator(3))
    axes.xaxis.set_major_formatter(_formatted(_unit(panel)))
    axes.margins(x=0.25)


def _table(axes: Axes, panel: dict[str, Any], answers: list[Series]) -> None:
    hidden = panel["transformations"][0]["options"]["excludeByName"]
    order = panel["transformations"][0]["options"]["indexByName"]
    columns = sorted({label for series in answers for label in series.labels} - hidden.keys(), key=order.__getitem__)
    if not columns:
        _say(axes, "No data")
        return
    axes.set_axis_off()
    rows = [[series.labels.get(column, "") for column in columns] for series in answers[:MOST_ROWS]]
    height = min(1, 0.2 * (len(rows) + 1))
    axes.table(rows, colLabels=columns, cellLoc="left", bbox=Bbox.from_bounds(0, 1 - height, 1, height)).set_fontsize(8)


_DRAWN: dict[str, Callable[[Axes, dict[str, Any], list[Series]], None]] = {
    "timeseries": _graph, "heatmap": _heat_map, "stat": _number, "bargauge": _bars, "table": _table,
}  # fmt: skip
