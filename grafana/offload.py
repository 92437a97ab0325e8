"""Offload: weights and KV cache on NVMe, with the findings of the CHEOPS'25 study as live panels.

The study (doi 10.1145/3719330.3721230) found: libaio gives more bandwidth than POSIX; weights are read in requests of
128 KiB; reading them does not saturate the SSD; a KV cache is read far more than written. Each has its row here. Its
figure 6, accesses by sector, needs a recording: no metric has sectors.
"""

from __future__ import annotations

from grafana_foundation_sdk.builders import dashboard as build
from grafana_foundation_sdk.builders import heatmap, stat

from grafana.panels import BANDWIDTH, BYTES, NUMBER, RATIO, Target, bars, frame, graph, heat_map, number
from grafana.queries import DATA, DEVICE, WORKER, busy, or_zero, rate, share, total

SIZE = "llmio_request_size_bytes"
WEIGHTS, KV_CACHE, OFFLOADED = 'role="weights"', 'role="kv_cache"', 'role=~"weights|kv_cache"'
READ, WRITE = 'op="read"', 'op="write"'


def dashboard() -> build.Dashboard:
    kv_reads = total("", "llmio_bytes_total", WORKER, KV_CACHE, READ)
    kv_writes = total("", "llmio_bytes_total", WORKER, KV_CACHE, WRITE)
    return (
        frame("offload", "Offload", "Weights and KV cache on NVMe: what the CHEOPS'25 study found, live.")
        .with_panel(_now("Weights read", "Bytes of weights read from disk.", WEIGHTS, READ))
        .with_panel(_now("KV cache read", "Bytes of KV cache read from disk.", KV_CACHE, READ))
        .with_panel(_now("KV cache written", "Bytes of KV cache written to disk.", KV_CACHE, WRITE))
        .with_panel(
            number(
                "KV cache: read / written",
                "The study saw about 190 times more read than written (2.0 GiB/s against 11 MiB/s). Near or below 1, "
                "the cache is written more than it is used: a writeback storm, or too small a cache.",
                NUMBER,
                share(kv_reads, kv_writes),
                decimals=1, nothing="nothing written",
            )
        )
        .with_panel(
            number(
                "Weight reads of 64 to 128 KiB",
                "Part of the read requests for weights in the bucket that holds 128 KiB: the study saw nearly all "
                "there.",
                RATIO,
                share(
                    f"({total('', f'{SIZE}_bucket', WORKER, WEIGHTS, READ, _le(131072))} - "
                    f"{total('', f'{SIZE}_bucket', WORKER, WEIGHTS, READ, _le(65536))})",
                    total("", f"{SIZE}_count", WORKER, WEIGHTS, READ),
                ),
                nothing="no weights read",
            )
        )
        .with_panel(
            number(
                "Busiest device",
                "Part of the time in which the busiest device had a request. The study: reading weights does not "
                "saturate an SSD; if this is far below 1 while workers wait, the disk is not what holds them up.",
                RATIO,
                or_zero(busy("", DEVICE)),
            )
        )
        .with_row(build.Row("Finding 4: a KV cache is read and written, and read far more"))
        .with_panel(
            graph(
                "Weights",
                "Reading them again and again is what offloading is; writes are a download or a conversion.",
                BANDWIDTH,
                _reads_and_writes(WEIGHTS),
            )
        )
        .with_panel(
            graph(
                "KV cache",
                "Each step reads what the steps before wrote, so reads should be far above writes.",
                BANDWIDTH,
                _reads_and_writes(KV_CACHE),
            )
        )
        .with_row(build.Row("Finding 1: libaio gives more bandwidth than POSIX"))
        .with_panel(
            graph(
                "Bandwidth by engine",
                "Of weights and KV cache. Compare the same model loaded by libaio or io_uring with POSIX or mmap.",
                BANDWIDTH,
                (
                    or_zero(
                        total("engine, op", "llmio_bytes_total", WORKER, OFFLOADED, DATA),
                        {"engine": "libaio", "op": "read"},
                        {"engine": "posix", "op": "read"},
                    ),
                    "{{engine}} {{op}}",
                ),
            )
        )
        .with_panel(
            graph(
                "KV cache by path",
                "direct, or through the page cache and written back later, when memory runs short or a flush is due.",
                BANDWIDTH,
                (
                    or_zero(
                        total("path, op", "llmio_bytes_total", WORKER, KV_CACHE, DATA),
                        {"path": "page_cache", "op": "read"},
                        {"path": "writeback", "op": "write"},
                    ),
                    "{{path}} {{op}}",
                ),
            )
        )
        .with_row(build.Row("Findings 2 and 4: requests of 128 KiB"))
        .with_panel(_sizes("Sizes of weight reads", WEIGHTS, READ))
        .with_panel(_sizes("Sizes of KV cache reads", KV_CACHE, READ))
        .with_panel(_sizes("Sizes of KV cache writes", KV_CACHE, WRITE))
        .with_panel(
            bars(
                "Mean size by role and op, now",
                "Bytes by requests: large is good.",
                BYTES,
                (
                    f"{total('role, op', f'{SIZE}_sum', WORKER, DATA)} / "
                    f"({total('role, op', f'{SIZE}_count', WORKER, DATA)} > 0)",
                    "{{role}} {{op}}",
                ),
                width=6,
            )
        )
        .with_row(build.Row("Finding 3: reading weights does not saturate the SSD"))
        .with_panel(
            graph(
                "Busy",
                "Part of the time in which the device had at least one request of that op.",
                RATIO,
                (busy("device, op", DEVICE, DATA), "{{device}} {{op}}"),
                most=1,
            )
        )
        .with_panel(
            graph(
                "Depth",
                "Requests in flight on average. An NVMe SSD gives its bandwidth only to a queue that is deep enough, "
                "such as 32 requests of 128 KiB.",
                NUMBER,
                (f"sum by (device, op) ({rate('llmio_in_flight_seconds_total', DEVICE, DATA)})", "{{device}} {{op}}"),
            )
        )
    )  # fmt: skip


def _le(size: int) -> str:
    return f'le="{size}"'


def _now(title: str, description: str, role: str, op: str) -> stat.Panel:
    return number(title, description, BANDWIDTH, or_zero(total("", "llmio_bytes_total", WORKER, role, op)))


def _sizes(title: str, role: str, op: str) -> heatmap.Panel:
    expression = or_zero(total("le", f"{SIZE}_bucket", WORKER, role, op), {"le": "+Inf"})
    return heat_map(title, "The study: dominated by 128 KiB.", BYTES, expression, width=6)


def _reads_and_writes(role: str) -> Target:
    expression = total("op", "llmio_bytes_total", WORKER, role, DATA)
    return or_zero(expression, {"op": "read"}, {"op": "write"}), "{{op}}"
