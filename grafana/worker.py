"""Worker: how one worker asks for I/O, and what it waits for."""

from __future__ import annotations

from grafana_foundation_sdk.builders import dashboard as build

from grafana.panels import BANDWIDTH, BYTES, NUMBER, RATIO, SECONDS, Target, frame, graph, heat_map, rows
from grafana.queries import CALLER, DATA, WORKER, mean, or_zero, quantile, share, total

SIZE, LATENCY = "llmio_request_size_bytes", "llmio_request_latency_seconds"


def dashboard() -> build.Dashboard:
    return (
        frame("worker", "Worker", "How workers ask for I/O, how large and how slow it is. Choose one above.")
        .with_panel(
            rows(
                "Workers",
                "Who fills each worker slot now: the newest process. A restart with the same framework, rank and "
                "cgroup goes on in the same slot.",
                f"llmio_worker_info{{{CALLER}}}",
                *("instance", "worker", "pid", "framework", "rank", "container", "pod"),
            )
        )
        .with_row(build.Row("The way it asks"))
        .with_panel(
            graph(
                "Bandwidth by engine and path",
                "libaio and io_uring ask for many at once, posix and mmap for one at a time. direct goes past the "
                "page cache; page_cache reads ahead in requests of the kernel's choice; writeback is flushed later "
                "by the kernel.",
                BANDWIDTH,
                (total("op, engine, path", "llmio_bytes_total", WORKER, DATA), "{{op}} {{engine}} {{path}}"),
                stacked=True,
            )
        )
        .with_panel(
            graph(
                "Share of each role",
                "What part of the bytes is for weights, KV cache, optimizer state, checkpoints. llmio-probe roles "
                "PATH explains why a file has its role.",
                RATIO,
                (
                    f"{total('role, op', 'llmio_bytes_total', WORKER, DATA)} / on () group_left () "
                    f"({total('', 'llmio_bytes_total', WORKER, DATA)} > 0)",
                    "{{role}} {{op}}",
                ),
                stacked=True, most=1,
            )
        )
        .with_row(build.Row("How large"))
        .with_panel(
            heat_map(
                "Sizes of reads",
                "How many requests of which size reach the disk, merged ones whole. Offloading is at its best with "
                "128 KiB and more.",
                BYTES,
                total("le", f"{SIZE}_bucket", WORKER, 'op="read"'),
            )
        )
        .with_panel(
            heat_map(
                "Sizes of writes",
                "Many small ones are metadata, a log, or a KV cache that is flushed page by page.",
                BYTES,
                or_zero(total("le", f"{SIZE}_bucket", WORKER, 'op="write"'), {"le": "+Inf"}),
            )
        )
        .with_row(build.Row("How slow"))
        .with_panel(
            heat_map(
                "Time in the queue",
                "From the moment a request is made until the device gets it: the scheduler, plugging, requeues. Two "
                "bands are two kinds of requests, such as those that went straight through and those that had to wait. "
                "What holds I/O back before there is a request (cgroups' limits, no free request) is not in it.",
                SECONDS,
                total("le", f"{LATENCY}_bucket", WORKER, 'stage="queue"'),
            )
        )
        .with_panel(
            heat_map(
                "Time on the device",
                "From the moment that the device got a request until it was done.",
                SECONDS,
                total("le", f"{LATENCY}_bucket", WORKER, 'stage="device"'),
            )
        )
        .with_panel(
            graph(
                "Median and 99th percentile",
                "Of queue and device, by op. Interpolated between edges a factor of two apart.",
                SECONDS,
                (quantile(0.5, "op, stage", LATENCY, WORKER, DATA, 'stage=~"queue|device"'), "{{op}} {{stage}} p50"),
                (quantile(0.99, "op, stage", LATENCY, WORKER, DATA, 'stage=~"queue|device"'), "{{op}} {{stage}} p99"),
            )
        )
        .with_panel(
            graph(
                "Requests a call",
                "Requests in one io_submit or io_uring_enter, on average: 1 is no batching, a system call for each.",
                NUMBER,
                _of_calls(mean("engine", "llmio_submit_requests", CALLER)),
            )
        )
        .with_row(build.Row("What it waits for"))
        .with_panel(
            graph(
                "Time inside submitting calls",
                "Of one thread's time, added up over all threads: 100 % is one that does nothing else. An asynchronous "
                "call that takes long blocks: the queue is full, a cgroup's io.latency or io.cost holds it back, or "
                "the file is not opened with O_DIRECT.",
                RATIO,
                _of_calls(total("engine", "llmio_submit_seconds_sum", CALLER)),
            )
        )
        .with_panel(
            graph(
                "Time inside waiting calls",
                "Of one thread's time, added up over all threads, in io_getevents and io_uring_enter. Much of it: the "
                "worker has nothing to compute until its data are there. What is reaped in user space does not show.",
                RATIO,
                _of_calls(total("engine", "llmio_wait_seconds_sum", CALLER)),
            )
        )
        .with_panel(
            graph(
                "Part of a request's time that is queue",
                "Near 1: what is slow is in front of the device. Near 0: the device.",
                RATIO,
                (
                    share(
                        total("worker, op", f"{LATENCY}_sum", WORKER, DATA, 'stage="queue"'),
                        total("worker, op", f"{LATENCY}_sum", WORKER, DATA, 'stage="total"'),
                    ),
                    "{{worker}} {{op}}",
                ),
                width=24, most=1,
            )
        )
    )  # fmt: skip


def _of_calls(expression: str) -> Target:
    return or_zero(expression, {"engine": "libaio"}, {"engine": "io_uring"}), "{{engine}}"
