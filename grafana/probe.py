"""Probe: what llmio-probe itself costs, what it may have lost, and how much of the I/O it can name."""

from __future__ import annotations

from grafana_foundation_sdk.builders import dashboard as build
from grafana_foundation_sdk.builders import stat

from grafana.panels import BANDWIDTH, BYTES, NUMBER, RATIO, REQUESTS, SECONDS, frame, graph, number, rows
from grafana.queries import DATA, HOST, events, or_zero, rate, share, total

ATTRIBUTED = "llmio_attributed_bytes_total"
ON_A_REQUEST = 'program=~"(block_io_start|block_getrq|block_rq_issue|block_rq_complete)(_again)?"'
"""Programs that run once for each request, nearly (since 7.0 two for each); the others run rarely, or on calls."""

OURS = 'worker="llmio-probe"'
OF_PROBES = "and on (instance, job) llmio_build_info"
"""process_* and scrape_* of other exporters on the same host do not count."""


def dashboard() -> build.Dashboard:
    return (
        frame("probe", "Probe", "What llmio-probe costs, what it lost, how much it can name.", devices=False)
        .with_row(build.Row("Can the numbers be trusted?"))
        .with_panel(
            number(
                "Bytes with a known owner",
                "Of the bytes read and written on disks: the part that a worker or the kernel is known to have "
                "caused. Below 0.99 somebody's I/O is hidden.",
                RATIO,
                f"1 - {share(total('', ATTRIBUTED, HOST, _kind('unknown')), total('', ATTRIBUTED, HOST))}",
                decimals=2, good_from=0.99, nothing="no I/O",
            )
        )
        .with_panel(
            number(
                "Bytes with a known file",
                "The same of the file; the kernel's own blocks have none and count as known.",
                RATIO,
                share(total("", "llmio_file_known_bytes_total", HOST), total("", ATTRIBUTED, HOST)),
                decimals=2, good_from=0.99, nothing="no I/O",
            )
        )
        .with_panel(_lost("Records lost", "Records and calls that found no room.", "llmio_records_lost_total"))
        .with_panel(
            _lost(
                "Overflowed",
                "Requests that were only counted, because a ring was full: totals are exact, details are lost.",
                "llmio_overflowed_requests_total",
            )
        )
        .with_panel(
            _lost("Missed", "Runs of our programs that the kernel skipped: events unseen.", "llmio_missed_probes_total")
        )
        .with_panel(
            _lost(
                "Folded",
                'Workers and label sets that are under "other": see workers: and series: in the configuration.',
                "llmio_series_folded_total",
            )
        )
        .with_panel(
            graph(
                "Whose bytes",
                "Read and write bytes on disks by what is known of their owner.",
                BANDWIDTH,
                (total("kind", ATTRIBUTED, HOST), "{{kind}}"),
                stacked=True,
            )
        )
        .with_panel(
            graph(
                "Requests seen in part",
                "expired: its completion was never shown. unowned: its start was not, as of the block layer's own "
                "flushes (those in flight when the probe attached come before the first scrape: see the counter "
                "itself). Both are counted, with less known of them.",
                REQUESTS,
                (total("device", "llmio_requests_expired_total", HOST), "{{device}} expired"),
                (total("device", "llmio_requests_unowned_total", HOST), "{{device}} unowned"),
            )
        )
        .with_row(build.Row("What it costs"))
        .with_panel(
            graph(
                "CPU",
                "Of one core. daemon: the process that serves /metrics. kernel: an estimate, requests a second times "
                "what our programs take for one, as measured at start; missing in the unit as it comes, see the next "
                "panel.",
                RATIO,
                (f"sum by (instance) ({rate('process_cpu_seconds_total', HOST)} {OF_PROBES})", "{{instance}} daemon"),
                (
                    f"sum by (instance) (llmio_program_cost_seconds{{{HOST}, {ON_A_REQUEST}}}) * "
                    f"{total('instance', 'llmio_requests_started_total', HOST)}",
                    "{{instance}} kernel",
                ),
            )
        )
        .with_panel(
            graph(
                "Time of a program's run",
                "Mean, measured for two seconds at start; those that did not run meanwhile are missing. Nothing is "
                "measured in the unit as it comes: the kernel times programs for CAP_SYS_ADMIN only, or once sysctl "
                "kernel.bpf_stats_enabled is 1 (docs/daemon.md, Rights).",
                SECONDS,
                (
                    f"max by (program) (llmio_program_cost_seconds{{{HOST}}})",
                    "{{program}}",
                ),
                nothing="not measured",
            )
        )
        .with_panel(
            graph(
                "Memory",
                "resident: of the daemon, the mapped rings included. kernel: the maps and rings of the "
                "programs.",
                BYTES,
                (f"process_resident_memory_bytes{{{HOST}}} {OF_PROBES}", "{{instance}} resident"),
                (f"sum by (instance) (llmio_kernel_memory_bytes{{{HOST}}})", "{{instance}} kernel"),
                width=6,
            )
        )
        .with_panel(
            graph(
                "Fullest ring",
                "How full a ring was found at most, since the start. At 100 %, records went to the overflow table.",
                RATIO,
                (f"max by (instance, ring) (llmio_ring_peak_ratio{{{HOST}}})", "{{instance}} {{ring}}"),
                width=6, most=1,
            )
        )
        .with_panel(
            graph(
                "A scrape",
                "How long Prometheus took to get the numbers.",
                SECONDS,
                (f"scrape_duration_seconds{{{HOST}}} {OF_PROBES}", "{{instance}}"),
                width=6,
            )
        )
        .with_panel(
            graph(
                "Series",
                "Samples in a scrape: at most 5,000 (series: in the configuration), unless there are very many disks.",
                NUMBER,
                (f"scrape_samples_scraped{{{HOST}}} {OF_PROBES}", "{{instance}}"),
                width=6,
            )
        )
        .with_panel(
            graph(
                "Its own I/O",
                "What the daemon itself had the disks do: next to nothing, its log and its own pages.",
                BANDWIDTH,
                (
                    or_zero(total("op", "llmio_bytes_total", HOST, OURS, DATA), {"op": "read"}, {"op": "write"}),
                    "{{op}}",
                ),
            )
        )
        .with_panel(
            rows(
                "Versions",
                "Which version runs there, and how its programs got in. Dashboard Fleet has those of all hosts.",
                f"llmio_build_info{{{HOST}}}",
                *("instance", "version", "loader"),
                width=12,
            )
        )
    )  # fmt: skip


def _kind(kind: str) -> str:
    return f'kind="{kind}"'


def _lost(title: str, description: str, metric: str) -> stat.Panel:
    said = f"{description} In the time shown; 0 is right."
    return number(title, said, NUMBER, events("", metric, HOST), decimals=0, bad_from=0.5, nothing="not known")
