"""The few kinds of panels and the frame of a dashboard, so that all look alike. No query of a metric in here.

Every panel has a unit and a description that tells a newcomer what is shown and what to make of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from grafana_foundation_sdk.builders import bargauge, common, heatmap, prometheus, stat, table, timeseries
from grafana_foundation_sdk.builders import dashboard as build
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models import common as looks
from grafana_foundation_sdk.models import dashboard as model
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode, HeatmapColorScale
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

SOURCE = model.DataSourceRef(type_val="prometheus", uid="$datasource")
HEIGHT = 8
BANDWIDTH, BYTES, SECONDS, RATIO, REQUESTS, NUMBER = "binBps", "bytes", "s", "percentunit", "reqps", "short"
Target = tuple[str, str]
"""A query and its legend."""


def frame(uid: str, title: str, description: str, *, host: bool = True, devices: bool = True) -> build.Dashboard:
    """host: whether one chooses a host; devices: and devices and workers of it."""
    made = (
        build.Dashboard(f"llmio / {title}")
        .uid(f"llmio-{uid}")
        .description(description)
        .tags(["llmio-probe"])
        .time("now-30m", "now")
        .refresh("10s")
        .timezone("browser")
        .tooltip(model.DashboardCursorSync.CROSSHAIR)
        .readonly()
        .link(
            build.DashboardLink("llmio-probe")
            .type(model.DashboardLinkType.DASHBOARDS)
            .tags(["llmio-probe"])
            .include_vars(True)
            .keep_time(True)
        )
        .with_variable(build.DatasourceVariable("datasource").label("Data source").type("prometheus"))
    )
    if not host:
        return made
    made.with_variable(_variable("instance", "Host", "label_values(llmio_build_info, instance)"))
    if not devices:
        return made
    layer = build.CustomVariable("layer").label("Layer").values("disk,upper")
    layer.current(model.VariableOption(text="disk", value="disk", selected=True))
    layer.description("upper: devices that are stacked on disks (loop, md, dm). No sum is over both.")
    of_layer = 'label_values(llmio_device_info{instance="$instance", layer=~"$layer"}, device)'
    workers = 'label_values(llmio_requests_total{instance="$instance", device=~"$device"}, worker)'
    return (
        made.with_variable(layer)
        .with_variable(_several("device", "Device", of_layer))
        .with_variable(_several("worker", "Worker", workers).all_value(".*"))
    )


def _variable(name: str, label: str, query: str) -> build.QueryVariable:
    return (
        build.QueryVariable(name)
        .label(label)
        .query(query)
        .datasource(SOURCE)
        .refresh(model.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(model.VariableSort.ALPHABETICAL_ASC)
    )


def _several(name: str, label: str, query: str) -> build.QueryVariable:
    every = model.VariableOption(text="All", value="$__all", selected=True)
    return _variable(name, label, query).multi(True).include_all(True).current(every)


def _links(dashboards: Sequence[str], host: str) -> list[Builder[model.DashboardLink]]:
    """From a line to these dashboards, by their uid. host: Grafana's name for what the line says of its host."""
    return [
        build.DashboardLink(f"Dashboard {uid.capitalize()}")
        .type(model.DashboardLinkType.LINK)
        .url(f"/d/llmio-{uid}?var-instance=${{{host}}}&${{__url_time_range}}&${{__all_variables}}")
        for uid in dashboards
    ]


def _framed(panel: Any, title: str, description: str, unit: str, width: int, height: int, targets: Any) -> Any:
    panel.title(title).description(description).unit(unit).datasource(SOURCE).span(width).height(height)
    for number, target in enumerate(targets):
        panel.with_target(target.ref_id(chr(ord("A") + number)).datasource(SOURCE))
    return panel


def _query(expression: str, legend: str) -> prometheus.Dataquery:
    return prometheus.Dataquery().expr(expression).legend_format(legend)


def graph(
    title: str, description: str, unit: str, *targets: Target, width: int = 12, height: int = HEIGHT,
    stacked: bool = False, most: float | None = None, nothing: str | None = None,
) -> timeseries.Panel:  # fmt: skip
    """Lines over time, from zero. stacked: areas that add up. nothing: what is said where there are none."""
    panel = (
        timeseries.Panel()
        .min(0)
        .line_width(1)
        .fill_opacity(30 if stacked else 8)
        .show_points(looks.VisibilityMode.NEVER)
        .legend(
            common.VizLegendOptions()
            .display_mode(looks.LegendDisplayMode.TABLE)
            .placement(looks.LegendPlacement.BOTTOM)
            .calcs(["mean", "max"])
            .sort_by("Mean")
            .sort_desc(True)
            .show_legend(True)
        )
        .tooltip(common.VizTooltipOptions().mode(looks.TooltipDisplayMode.MULTI).sort(looks.SortOrder.DESCENDING))
    )
    if stacked:
        panel.stacking(common.StackingConfig().mode(looks.StackingMode.NORMAL).group("A"))
    if most is not None:
        panel.max(most)
    if nothing is not None:
        panel.no_value(nothing)
    made: timeseries.Panel = _framed(
        panel, title, description, unit, width, height, [_query(*target).range() for target in targets]
    )
    return made


def heat_map(title: str, description: str, unit: str, expression: str, *, width: int = 12) -> heatmap.Panel:
    """A histogram over time. expression: rates by le."""
    panel = (
        heatmap.Panel()
        .calculate(False)
        .color(
            heatmap.HeatmapColorOptions()
            .mode(HeatmapColorMode.SCHEME)
            .scheme("Oranges")
            .scale(HeatmapColorScale.EXPONENTIAL)
            .exponent(0.5)
            .steps(64)
        )
        .cell_gap(1)
        .filter_values(heatmap.FilterValueRange().le(1e-9))
        .y_axis(heatmap.YAxisConfig().unit(unit))
        .rows_frame(heatmap.RowsHeatmapOptions().layout(looks.HeatmapCellLayout.LE))
        .cell_values(heatmap.CellValues().unit(REQUESTS))
        .show_legend()
    )
    target = _query(expression, "{{le}}").format(PromQueryFormat.HEATMAP).range()
    made: heatmap.Panel = _framed(panel, title, description, unit, width, HEIGHT, [target])
    return made


def number(
    title: str, description: str, unit: str, expression: str, *, width: int = 4, height: int = 4,
    decimals: int | None = None,
    good_from: float | None = None, bad_from: float | None = None, nothing: str = "nothing yet",
) -> stat.Panel:  # fmt: skip
    """The last value, large. good_from, bad_from: where it turns green, or red."""
    panel = (
        stat.Panel()
        .color_mode(looks.BigValueColorMode.VALUE)
        .graph_mode(looks.BigValueGraphMode.AREA)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .no_value(nothing)
    )
    if decimals is not None:
        panel.decimals(decimals)
    steps = [model.Threshold(value=None, color="blue")]
    if good_from is not None:
        steps = [model.Threshold(value=None, color="red"), model.Threshold(value=good_from, color="green")]
    elif bad_from is not None:
        steps = [model.Threshold(value=None, color="green"), model.Threshold(value=bad_from, color="red")]
    panel.thresholds(build.ThresholdsConfig().mode(model.ThresholdsMode.ABSOLUTE).steps(steps))
    made: stat.Panel = _framed(panel, title, description, unit, width, height, [_query(expression, "").range()])
    return made


def bars(
    title: str, description: str, unit: str, *targets: Target, width: int = 12, links: Sequence[str] = ()
) -> bargauge.Panel:  # fmt: skip
    """One bar a series, the last value of each. links: dashboards that a bar leads to, with its host."""
    panel = (
        bargauge.Panel()
        .min(0)
        .orientation(looks.VizOrientation.HORIZONTAL)
        .display_mode(looks.BarGaugeDisplayMode.BASIC)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .color_scheme(build.FieldColor().mode(model.FieldColorModeId.PALETTE_CLASSIC))
    )
    if links:
        panel.data_links(_links(links, "__field.labels.instance"))
    made: bargauge.Panel = _framed(
        panel, title, description, unit, width, HEIGHT, [_query(*target).instant() for target in targets]
    )
    return made


def rows(
    title: str, description: str, expression: str, *columns: str, width: int = 24, links: Sequence[str] = ()
) -> table.Panel:  # fmt: skip
    """A table of an info metric's labels, in that order. links: dashboards that a row leads to, with its host."""
    panel = table.Panel().with_transformation(
        model.DataTransformerConfig(
            id_val="organize",
            options={
                "excludeByName": dict.fromkeys(("Time", "Value", "__name__", "job"), True),
                "indexByName": {name: number for number, name in enumerate(columns)},
            },
        )
    )
    if links:
        panel.data_links(_links(links, "__data.fields.instance"))
    target = _query(expression, "").format(PromQueryFormat.TABLE).instant()
    made: table.Panel = _framed(panel, title, description, "none", width, 6, [target])
    return made
