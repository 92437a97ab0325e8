"""The summary for people: the JSON document in, text of at most 80 columns out. The answer comes first.

It reads the document and nothing else, so that what people and what programs are told cannot differ. Words and
alignment go in here; a number that needs more than the document holds belongs into the document.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from typing import Any

from llmio_probe.outputs.units import UNKNOWN, bytes_text, rate_text, seconds_text, share_text

WIDTH = 80
TOP_STREAMS = 10
TOP_FILES = 10
TOP_SUBMISSIONS = 10
NEIGHBOUR_SHARE = 0.1
"""From this share of a device's bytes on, others are worth a word."""
IDLE_SHARE = 0.5
"""A device that had nothing to do for this share of the time is not what a program waits for."""

Document = dict[str, Any]

_NO_REQUESTS = """\
No block request was made by what was watched. Usual reasons, and what to try:
  * All of it came from the page cache. Run it with a cold cache:
      sync; echo 3 > /proc/sys/vm/drop_caches
  * What was written is still in the page cache; the kernel writes it back after
    up to 30 s. Run sync before the session ends, or watch for longer.
  * The files are on tmpfs (/dev/shm, often /tmp), which has no device, or on a
    network filesystem (NFS, Lustre, FUSE), whose I/O leaves by the network:
      findmnt -T FILE
  * A bypass: SPDK drives the device from user space, and GPUDirect Storage
    (GDS) can move data past the kernel's block layer; is it in use?
      gdscheck -p
  * Another process does the I/O, one that is no child of what was watched, or
    it goes to a device that --device leaves out. Try llmio-probe --all."""


def render(document: Document) -> str:
    """The whole summary, ending with a newline."""
    sections = [_heading(document), *_sections(document)]
    return "\n\n".join(section for section in sections if section) + "\n"


def _sections(document: Document) -> Iterator[str]:
    yield _answer(document) if document["streams"] else _NO_REQUESTS
    yield _devices(document)
    yield _streams(document)
    yield _files(document)
    yield _submissions(document)
    yield _trust(document)


def _heading(document: Document) -> str:
    command = document["command"]
    what = "llmio-probe watched" if command is None else f"llmio-probe watched {_fit(shlex.join(command['argv']), 40)}"
    end = {
        "completed": "",
        "interrupted": ", until it was interrupted",
        "partial": ", then had to stop early",
    }[document["end"]]
    line = f"{what} for {document['duration_seconds']:.1f} s{end}."
    if command is None:
        return line
    status = command["exit_status"]
    return line + ("\nThe command still runs." if status is None else f"\nThe command ended with status {status}.")


def _answer(document: Document) -> str:
    lines = []
    if (shares := _time_shares(document["streams"])) is not None:
        queue, device = shares
        where = "in the queue" if queue > device else "on the device"
        lines.append(
            f"Requests spent most of their time {where}: "
            f"{share_text(queue, queue + device)} queue, {share_text(device, queue + device)} device\n"
            "(by the medians of all streams, weighted by their requests)."
        )
    duration = document["duration_seconds"]
    if busiest := max(document["devices"], key=lambda device: device["session_bytes"], default=None):
        # The one that matters most: what a few stray bytes went to would only mislead.
        name, own, others = busiest["device"], busiest["session_bytes"], busiest["others_bytes"]
        if own and others >= NEIGHBOUR_SHARE * (own + others):
            lines.append(f"{name} is shared: others moved {share_text(others, own + others)} of its bytes.")
        idle = None if busiest["busy_seconds"] is None else duration - busiest["busy_seconds"]
        if own and idle is not None and idle >= IDLE_SHARE * duration > 0:
            lines.append(
                f"{name} had nothing to do for {share_text(idle, duration)} of the time: it waited for the program."
            )
    errors = sum(stream["errors"] for stream in document["streams"])
    if errors:
        lines.append(f"{errors:,} requests ended with an error: see the kernel log (dmesg).")
    return "\n".join(lines)


def _time_shares(streams: Sequence[Document]) -> tuple[float, float] | None:
    """Queue and device time of the typical request. The document holds no sums, so medians stand for their stream."""
    queue = device = 0.0
    for stream in streams:
        latency = stream["latency_seconds"]
        if latency["queue"] is not None and latency["device"] is not None:
            queue += stream["requests"] * latency["queue"]["p50"]
            device += stream["requests"] * latency["device"]["p50"]
    return (queue, device) if queue + device > 0 else None


def _devices(document: Document) -> str:
    duration = document["duration_seconds"]
    rows = [["Devices", "session", "", "others", "", "busy"]]
    rows += [
        [
            device["device"] + (" (upper)" if device["layer"] == "upper" else ""),
            bytes_text(device["session_bytes"]),
            rate_text(device["session_bytes"], duration),
            bytes_text(device["others_bytes"]),
            rate_text(device["others_bytes"], duration),
            share_text(device["busy_seconds"], duration),
        ]
        for device in document["devices"]
    ]
    if len(rows) == 1:
        return ""
    note = "\n(upper: a layer on disks; the same bytes come again on the disk below)"
    return _table(rows) + (note if any(device["layer"] == "upper" for device in document["devices"]) else "")


def _streams(document: Document) -> str:
    """Two lines a stream: who and what do not fit beside seven numbers."""
    streams = sorted(document["streams"], key=lambda stream: (-stream["bytes"], -stream["requests"]))
    if not streams:
        return ""
    top = streams[:TOP_STREAMS]
    of = f" (the top {len(top)} of {len(streams)})" if len(streams) > len(top) else ""
    header = ("requests", "bytes", "rate", "queue p50", "p99", "device p50", "p99")
    lines = [f"Who did what, by bytes{of}", _numbers(header)]
    for stream in top:
        queue, device = stream["latency_seconds"]["queue"], stream["latency_seconds"]["device"]
        role = f" {stream['role']}" if stream["role"] != "other" else ""
        how = "/".join(filter(None, (stream["engine"], stream["path"]))) or UNKNOWN
        size = stream["size_bytes"]
        each = f", {bytes_text(size['p50'])} each (p50)" if size and stream["bytes"] else ""
        what = f"{stream['op']}{role} {how} {stream['device']}{each}"
        lines.append(f"{_fit(_who(stream), WIDTH - len(what) - 1)} {what}")
        cells = (
            f"{stream['requests']:,}",
            bytes_text(stream["bytes"]),
            rate_text(stream["bytes"], document["duration_seconds"]),
            *(seconds_text(None if stage is None else stage[p]) for stage in (queue, device) for p in ("p50", "p99")),
        )
        lines.append(_numbers(cells))
    return "\n".join(lines)


def _numbers(cells: Sequence[str]) -> str:
    return "".join(f"{cell:>{width}}" for cell, width in zip(cells, (12, 11, 13, 12, 10, 12, 10), strict=True))


def _files(document: Document) -> str:
    """Two lines a file: a path that is cut short cannot be opened."""
    files = document["files"]
    if not files:
        return ""
    workers = {worker["pid"]: _who(worker) for worker in document["workers"]}
    of = f" (the top {TOP_FILES} of {len(files):,})" if len(files) > TOP_FILES else ""
    lines = [f"Which files, by bytes{of}", f"{'read':>12}{'written':>12}"]
    for file in files[:TOP_FILES]:
        deleted = " (deleted)" if file["deleted"] else ""
        path = file["path"] or f"inode {file['inode']} on {file['device']}, whose name is not known"
        lines.append(_fit_end(path, WIDTH - len(deleted)) + deleted)
        role = [] if file["role"] == "other" else [file["role"]]
        shared = ["several writers"] if file["shared_writers"] else []
        what = [*role, workers.get(file["pid"], "no known process"), file["device"], *shared]
        numbers = f"{bytes_text(file['read_bytes']):>12}{bytes_text(file['write_bytes']):>12}"
        lines.append(_fit(f"{numbers}  {', '.join(what)}", WIDTH))
        if file["worker_path"]:
            lines.append(f"{'seen by it as':>24}  {_fit_end(file['worker_path'], WIDTH - 26)}")
    return "\n".join(lines)


def _submissions(document: Document) -> str:
    submissions = sorted(
        document["submissions"], key=lambda row: -(row["submit_seconds"] or 0) - (row["wait_seconds"] or 0)
    )
    if not submissions:
        return ""
    top = submissions[:TOP_SUBMISSIONS]
    of = f" (top {len(top)} of {len(submissions)})" if len(submissions) > len(top) else ""
    rows = [[f"What programs asked{of}", "calls", "requests/call", "in submit", "in wait"]]
    for row in top:
        what = f"{row['engine'] or UNKNOWN} {row['op'] or 'wait'}"
        rows.append(
            [
                f"{_fit(_who(row), 24)} {what}",
                f"{row['calls']:,}",
                f"{row['requests'] / row['calls']:.1f}" if row["op"] and row["calls"] else UNKNOWN,
                seconds_text(row["submit_seconds"]),
                seconds_text(row["wait_seconds"]),
            ]
        )
    return _table(rows)


def _trust(document: Document) -> str:
    """How far the numbers above can be believed."""
    lines = []
    attribution, losses = document["attribution"], document["losses"]
    data = attribution["data_bytes"]
    if data:
        lines.append(
            f"Whose bytes: workers {share_text(attribution['worker_bytes'], data)}, "
            f"kernel {share_text(attribution['kernel_bytes'], data)}, "
            f"unknown {share_text(attribution['unknown_bytes'], data)} of {bytes_text(data)} on disks."
        )
        files = attribution["file_bytes"]
        lines.append(
            f"Of which file: {share_text(files, data)} known, {share_text(data - files, data)} unknown "
            "(the kernel's own count as known)."
        )
    if shared := attribution["shared_writers_bytes"]:
        lines.append(f"{bytes_text(shared)} went to files that several processes wrote; the last one is named.")
    warnings = [
        f"{count:,} {text}"
        for count, text in (
            (losses["records_lost"], "records found no room anywhere: requests count as nobody's, calls not at all."),
            (losses["overflowed_requests"], "requests were only counted: totals are exact, percentiles are not."),
            (losses["missed_probes"], "runs of our programs were skipped by the kernel."),
            (
                document["accounting"]["expired"],
                "requests whose end the kernel did not show: counted, without their times.",
            ),
        )
        if count
    ]
    if in_flight := document["accounting"]["in_flight"]:
        lines.append(f"{in_flight:,} requests had not ended yet; they are not in the figures above.")
    if warnings:
        lines += [f"NOT EXACT: {warning}" for warning in warnings]
    else:
        lines.append("Exact: no record was lost and no request went missing.")
    return "\n".join(lines)


def _who(row: Document) -> str:
    return row["worker"] if row["pid"] is None else f"{row['worker']}[{row['pid']}]"


def _table(rows: Sequence[Sequence[str]]) -> str:
    """The first column to the left, numbers to the right, two spaces between."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )


def _fit(text: str, width: int) -> str:
    return text if len(text) <= width else text[: max(width - 2, 1)] + ".."


def _fit_end(text: str, width: int) -> str:
    """The end of a path says more than its beginning."""
    return text if len(text) <= width else ".." + text[2 - width :]
