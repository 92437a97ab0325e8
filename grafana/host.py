"""Host: who uses the disks, and what that does to them."""

from __future__ import annotations

from grafana_foundation_sdk.builders import dashboard as build

from grafana.panels import BANDWIDTH, BYTES, HEIGHT, NUMBER, RATIO, REQUESTS, SECONDS, bars, frame, graph, number
from grafana.queries import DATA, DEVICE, HARMFUL, WORKER, busy, events, mean, or_zero, quantile, rate, total

LATENCY = "llmio_request_latency_seconds"


def dashboard() -> build.Dashboard:
    return (
        frame("host", "Host", "Who uses the disks of a host, and whether time goes in the queue or on the device.")
        .with_row(build.Row("Who uses the disks"))
        .with_panel(
            bars(
                "Bandwidth by worker, now",
                "Bytes that each worker caused to be read and written, writeback included. kernel:… is the kernel's "
                "own (journal, metadata), unknown what nobody could be found for, other all workers without series "
                "of their own.",
                BANDWIDTH,
                (
                    f"topk(10, {total('worker', 'llmio_bytes_total', WORKER, DATA)} > 0) "
                    'or on () label_replace(vector(0), "worker", "nobody", "", "")',
                    "{{worker}}",
                ),
                width=8,
            )
        )
        .with_panel(
            graph(
                "Reads by worker",
                "Bytes read from the disks, by the worker that asked for them.",
                BANDWIDTH,
                (total("worker", "llmio_bytes_total", WORKER, 'op="read"'), "{{worker}}"),
                width=8, stacked=True,
            )
        )
        .with_panel(
            graph(
                "Writes by worker",
                "Bytes written to the disks, by the worker that wrote them, whoever flushed them.",
                BANDWIDTH,
                (total("worker", "llmio_bytes_total", WORKER, 'op="write"'), "{{worker}}"),
                width=8, stacked=True,
            )
        )
        .with_panel(
            graph(
                "Bandwidth by role and op",
                "What the bytes are for: weights, KV cache, optimizer state, checkpoints, or something else.",
                BANDWIDTH,
                (total("role, op", "llmio_bytes_total", WORKER, DATA), "{{role}} {{op}}"),
            )
        )
        .with_panel(
            graph(
                "Requests by worker",
                "Requests that the disks finished for each worker. Many requests with few bytes are small ones: see "
                "the mean size below.",
                REQUESTS,
                (total("worker", "llmio_requests_total", WORKER), "{{worker}}"),
            )
        )
        .with_row(build.Row("Where the time goes"))
        .with_panel(
            graph(
                "Queue against device, mean",
                "Mean time of a request in the queue, from being made until the device got it, and on the device. A "
                "long queue on an idle device is the scheduler or requeues, not the limit of a cgroup, which holds I/O "
                "back before there is a request; a slow device is the disk itself.",
                SECONDS,
                (mean("device, stage", LATENCY, WORKER, 'stage=~"queue|device"'), "{{device}} {{stage}}"),
            )
        )
        .with_panel(
            graph(
                "Queue against device, 99th percentile",
                "One request in a hundred takes longer. Interpolated between edges a factor of two apart.",
                SECONDS,
                (quantile(0.99, "device, stage", LATENCY, WORKER, 'stage=~"queue|device"'), "{{device}} {{stage}}"),
            )
        )
        .with_panel(
            graph(
                "Depth",
                "Mean number of requests in flight, queued ones included: the rate of the summed time in flight "
                "(Little's law). A deep queue with long queue times wants more devices, not a deeper queue.",
                NUMBER,
                (f"sum by (device, op) ({rate('llmio_in_flight_seconds_total', DEVICE)})", "{{device}} {{op}}"),
            )
        )
        .with_panel(
            graph(
                "Busy",
                "Part of the time in which the device had at least one request of that op. An SSD at 100 % may still "
                "have much to give: look at depth and time. Ops overlap.",
                RATIO,
                (busy("device, op", DEVICE), "{{device}} {{op}}"),
                most=1,
            )
        )
        .with_row(build.Row("The disks"))
        .with_panel(
            graph(
                "Bandwidth by device and op",
                "All that went through each disk.",
                BANDWIDTH,
                (total("device, op", "llmio_bytes_total", DEVICE, DATA), "{{device}} {{op}}"),
                width=8,
            )
        )
        .with_panel(
            graph(
                "Mean size of a request",
                "Small requests cost a disk most of its bandwidth: 128 KiB and more is what offloading wants.",
                BYTES,
                (mean("device, op", "llmio_request_size_bytes", WORKER, DATA), "{{device}} {{op}}"),
                width=8,
            )
        )
        .with_panel(
            number(
                "Errors",
                "Requests that ended with an error in the time shown; 0 is what it should be. What the device does not "
                "know (notsupp) and what io_uring does again (again) is none. Where the host was not scraped when this "
                "time began, all since the start of its daemon.",
                NUMBER,
                or_zero(events("", "llmio_request_errors_total", WORKER, HARMFUL)),
                height=HEIGHT, decimals=0, bad_from=0.5,
            )
        )
        .with_panel(
            number(
                "Requeues",
                "Requests a second that the device could not take at once. Many mean that it is asked for more than "
                "it has room for.",
                REQUESTS,
                or_zero(total("", "llmio_requeues_total", DEVICE)),
                height=HEIGHT,
            )
        )
    )  # fmt: skip
