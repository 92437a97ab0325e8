"""Fleet: which of many hosts to look at, by the recording rules, so that it is cheap however many there are."""

from __future__ import annotations

from grafana_foundation_sdk.builders import bargauge
from grafana_foundation_sdk.builders import dashboard as build

from grafana.panels import BANDWIDTH, NUMBER, RATIO, SECONDS, bars, frame, number, rows
from grafana.queries import HARMFUL, events, or_zero

UP = 'up{job="llmio-probe"}'
DISKS = 'llmio_device_info{layer="disk"}'
LOST = events("instance", "llmio_records_lost_total")
SMALL = 6


def dashboard() -> build.Dashboard:
    errors = events("instance, device", "llmio_request_errors_total", HARMFUL)
    return (
        frame("fleet", "Fleet", "Which host and which disk to look at. Needs the recording rules.", host=False)
        .with_row(build.Row("The hosts"))
        .with_panel(
            number("Hosts", "Probes that Prometheus scrapes.", NUMBER, f"count({UP})", height=SMALL, decimals=0)
        )
        .with_panel(
            number(
                "Hosts down",
                "Those that do not answer Prometheus now: nothing is known of I/O there meanwhile.",
                NUMBER,
                or_zero(f"count({UP} == 0)"),
                height=SMALL, decimals=0, bad_from=0.5,
            )
        )
        .with_panel(
            number(
                "Hosts with losses",
                "Those whose probe lost records in the time shown; below is which.",
                NUMBER,
                or_zero(f"count({LOST} > 0)"),
                height=SMALL, decimals=0, bad_from=0.5,
            )
        )
        .with_panel(
            rows(
                "Probes",
                "Which version runs where, and how its programs got in; those that do not answer come first. A click "
                "leads to the host.",
                f'label_replace({UP} == 0, "version", "does not answer", "", "") or llmio_build_info',
                *("instance", "version", "loader"),
                width=12, links=("host", "probe"),
            )
        )
        .with_row(build.Row("The disks, ten of all hosts"))
        .with_panel(
            _disks(
                "Busiest",
                "Part of the last five minutes in which the disk had a request. An SSD at 100 % may still have much to "
                "give.",
                RATIO,
                f"clamp_max(instance_device:llmio_device_busy:ratio5m {_of_disks()}, 1)",
            )
        )
        .with_panel(
            _disks(
                "Longest queue time",
                "Mean time from the moment a request is made until the disk gets it, over five minutes. Long where the "
                "disk is not busy is a scheduler or a driver that holds requests back.",
                SECONDS,
                f'instance_device_stage:llmio_request_latency_seconds:mean5m{{stage="queue"}} {_of_disks()}',
                nothing="no requests",
            )
        )
        .with_panel(
            _disks(
                "Most bandwidth",
                "Bytes read and written, over five minutes.",
                BANDWIDTH,
                f"sum by (job, instance, device) (instance_device_op:llmio_bytes:rate5m) {_of_disks()}",
            )
        )
        .with_panel(
            _disks(
                "Most errors",
                "Requests that ended with an error in the time shown; 0 is what it should be. Without what the device "
                "does not know (notsupp) and what io_uring does again (again).",
                NUMBER,
                f"{errors} or 0 * max by (instance, device) ({DISKS})",
            )
        )
        .with_row(build.Row("Can the numbers be trusted? Ten hosts of all"))
        .with_panel(
            _hosts(
                "Bytes with an unknown owner",
                "Part of the bytes on disks of which nobody is known to have caused them, over 15 minutes. Above 1 % "
                "somebody's I/O is hidden.",
                RATIO,
                "1 - instance:llmio_attributed_bytes:ratio15m",
                nothing="no I/O",
            )
        )
        .with_panel(
            _hosts(
                "Records lost",
                "Records of requests and calls that found no room, in the time shown; 0 is right.",
                NUMBER,
                LOST,
            )
        )
    )  # fmt: skip


def _of_disks() -> str:
    """Not what is stacked on them, which would show the same again."""
    return f"and on (job, instance, device) {DISKS}"


def _disks(title: str, description: str, unit: str, expression: str, nothing: str = "no disk") -> bargauge.Panel:
    target = _most(expression, nothing), "{{instance}} {{device}}"
    return bars(title, f"{description} A click leads to the host.", unit, target, links=("host",))


def _hosts(title: str, description: str, unit: str, expression: str, nothing: str = "no host") -> bargauge.Panel:
    target = _most(expression, nothing), "{{instance}}"
    return bars(title, f"{description} A click leads to the host.", unit, target, links=("host", "probe"))


def _most(expression: str, nothing: str) -> str:
    """nothing: what is said where there is none, since an empty panel looks like a broken one."""
    return f'topk(10, {expression}) or on () label_replace(vector(0), "instance", "{nothing}", "", "")'
