"""The summary for people: the JSON document in, text of at most 80 columns out. The answer comes first.

It reads the document and nothing else, so that what people and what programs are told cannot differ. Words and
alignment go in here; a number that needs more than the document holds belongs into the document.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from llmio_probe.outputs.status import HARMLESS
from llmio_probe.outputs.units import UNKNOWN, bytes_text, fit, fit_end, rate_text, seconds_text, share_text

WIDTH = 80
TOP_STREAMS = 10
TOP_FILES = 10
TOP_SUBMISSIONS = 10
NEIGHBOUR_SHARE = 0.1
"""From this share of a device's bytes on, others are worth a word."""
IDLE_SHARE = 0.5
"""A device that had nothing to do for this share of the time is not what a program waits for."""
SELDOM_USED = 0.95
LITTLE_BYTES_A_SECOND = 1 << 20
"""A device that is idle for that share and moves less than this: the I/O that somebody looks for is elsewhere."""
SLOW_SHARE = 0.1
"""A stream with this share of all requests' time is shown, however few bytes it moved: a flush moves none."""
NOBODY = "unknown"

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
      gdscheck -p"""
_OF_OTHERS = """\
  * Another process does the I/O, one that is no child of what was watched, or
    it goes to a device that --device leaves out. Try llmio-probe --all."""


def render(document: Document) -> str:
    """The whole summary, ending with a newline."""
    sections = [_heading(document), *_sections(document)]
    return "\n\n".join(section for section in sections if section) + "\n"


def _sections(document: Document) -> Iterator[str]:
    yield _answer(document) if document["streams"] else _no_requests(document)
    yield _devices(document)
    yield _streams(document)
    yield _files(document)
    yield _submissions(document)
    yield _trust(document)


def _no_requests(document: Document) -> str:
    return _NO_REQUESTS if document["scope"] == "host" else f"{_NO_REQUESTS}\n{_OF_OTHERS}"


def _heading(document: Document) -> str:
    command = document["command"]
    if command is not None:
        what = f"llmio-probe watched {fit(shlex.join(command['argv']), 40)}"
    else:
        what = "llmio-probe watched" + (" the whole host" if document["scope"] == "host" else "")
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
    disks = {device["device"] for device in document["devices"] if device["layer"] == "disk"}
    shares = _time_shares(stream for stream in document["streams"] if stream["device"] in disks)
    if shares is not None:
        queue, device = shares
        where = "in the queue" if queue > device else "on the device"
        lines.append(
            f"Requests spent most of their time {where}: "
            f"{share_text(queue, queue + device)} queue, {share_text(device, queue + device)} device."
        )
    for device in document["devices"]:
        if device["layer"] == "disk":
            lines += _neighbours(device)
    if busiest := max(document["devices"], key=lambda device: device["session_bytes"], default=None):
        # The one that matters most: what a few stray bytes went to would only mislead.
        lines += _idle(busiest, document["duration_seconds"], shares)
    lines += _errors(document["errors"])
    return "\n".join(lines)


def _time_shares(streams: Iterable[Document]) -> tuple[float, float] | None:
    """Queue and device time of all requests together, slow ones included."""
    queue = device = 0.0
    for stream in streams:
        latency = stream["latency_seconds"]
        if latency["queue"] is not None and latency["device"] is not None:
            queue += latency["queue"]["sum"]
            device += latency["device"]["sum"]
    return (queue, device) if queue + device > 0 else None


def _neighbours(device: Document) -> Iterator[str]:
    """Who else a disk is busy with; the kernel's own is in what they and the session do."""
    name, total = device["device"], device["session_bytes"] + device["others_bytes"]
    workers = [row for row in device["neighbours"] if row["pid"] is not None]
    moved = sum(row["bytes"] for row in workers)
    if device["session_bytes"] and moved >= NEIGHBOUR_SHARE * total:
        first = workers[0]
        who = fit(_who(first), 30)
        mostly = who if len(workers) == 1 else f"{len(workers)} others, most of all {who} {bytes_text(first['bytes'])}"
        yield f"{name} is shared: {share_text(moved, total)} of its bytes are of {mostly}."
    unknown = sum(row["bytes"] for row in device["neighbours"] if row["worker"] == NOBODY)
    if device["session_bytes"] and unknown >= NEIGHBOUR_SHARE * total:
        yield (
            f"Whose {share_text(unknown, total)} of {name}'s bytes are is not known: written before the watching\n"
            "began, or held back by a cgroup's limit (io.max) and passed on by the kernel."
        )


def _idle(device: Document, duration: float, shares: tuple[float, float] | None) -> Iterator[str]:
    if not device["session_bytes"] or device["busy_seconds"] is None or duration <= 0:
        return
    name, idle = device["device"], duration - device["busy_seconds"]
    if idle < IDLE_SHARE * duration:
        return
    nothing = f"{name} had nothing to do for {share_text(idle, duration)} of the time"
    if shares is not None and shares[0] > shares[1]:
        yield f"{nothing}, while requests were held in front of it: see\n  /sys/block/{name}/queue/scheduler"
    else:
        yield f"{nothing}: it waited for the program."
    if idle >= SELDOM_USED * duration and device["session_bytes"] < LITTLE_BYTES_A_SECOND * duration:
        yield "Little reached a disk: what came from the page cache, tmpfs or the network is not seen."


def _errors(errors: Sequence[Document]) -> Iterator[str]:
    """What a device does not know how to do is no error of its."""
    by_status: dict[str, int] = {}
    for error in errors:
        by_status[error["status"]] = by_status.get(error["status"], 0) + error["requests"]
    real = {status: count for status, count in by_status.items() if status not in HARMLESS}
    if real:
        text = ", ".join(f"{count:,} {status}" for status, count in sorted(real.items()))
        devices = ", ".join(sorted({error["device"] for error in errors if error["status"] in real}))
        yield f"Requests ended with an error: {fit(f'{text} on {devices}', WIDTH - 31)}.\nSee the kernel log (dmesg)."


def _devices(document: Document) -> str:
    """others: everybody else; there are none when the whole host was watched."""
    duration, alone = document["duration_seconds"], document["scope"] == "host"
    rows = [["Devices", "session", "", "others", "", "busy", "depth"]]
    for device in document["devices"]:
        session, others = (
            (bytes_text(device[name]), rate_text(device[name], duration)) for name in ("session_bytes", "others_bytes")
        )
        busy = device["busy_seconds"]
        depth = f"{device['device_seconds'] / busy:.1f}" if busy else UNKNOWN
        layer = " (upper)" if device["layer"] == "upper" else ""
        rows.append([device["device"] + layer, *session, *others, share_text(busy, duration), depth])
    if len(rows) == 1:
        return ""
    if alone:
        rows = [row[:3] + row[5:] for row in rows]
    notes = "\n(rates over the whole time; depth: requests that it had while it was busy)"
    if any(device["layer"] == "upper" for device in document["devices"]):
        notes += "\n(upper: a layer on disks; the same bytes come again on the disk below)"
    return _table(rows) + notes


def _streams(document: Document) -> str:
    """Two lines a stream: who and what do not fit beside seven numbers."""
    streams = sorted(document["streams"], key=lambda stream: (-stream["bytes"], -stream["requests"]))
    if not streams:
        return ""
    slow = SLOW_SHARE * sum(map(_time, streams))
    top = streams[:TOP_STREAMS] + [stream for stream in streams[TOP_STREAMS:] if _time(stream) >= slow > 0]
    of = f" (the top {len(top)} of {len(streams)})" if len(streams) > len(top) else ""
    header = ("requests", "bytes", "mean rate", "queue p50", "p99", "device p50", "p99")
    lines = [f"Who did what, by bytes{of}", _numbers(header)]
    for stream in top:
        queue, device = stream["latency_seconds"]["queue"], stream["latency_seconds"]["device"]
        role = f" {stream['role']}" if stream["role"] != "other" else ""
        how = "/".join(filter(None, (stream["engine"], stream["path"]))) or UNKNOWN
        size = stream["size_bytes"]
        each = f", {bytes_text(size['p50'])} each (p50)" if size and stream["bytes"] else ""
        what = f"{stream['op']}{role} {how} {stream['device']}{each}"
        lines.append(f"{fit(_who(stream), WIDTH - len(what) - 1)} {what}")
        cells = (
            f"{stream['requests']:,}",
            bytes_text(stream["bytes"]),
            rate_text(stream["bytes"], document["duration_seconds"]),
            *(seconds_text(None if stage is None else stage[p]) for stage in (queue, device) for p in ("p50", "p99")),
        )
        lines.append(_numbers(cells))
    return "\n".join(lines)


def _time(stream: Document) -> float:
    """Seconds that its requests took, all together."""
    total = stream["latency_seconds"]["total"]
    return 0.0 if total is None else float(total["sum"])


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
        lines.append(fit_end(path, WIDTH - len(deleted)) + deleted)
        role = [] if file["role"] == "other" else [file["role"]]
        shared = ["several writers"] if file["shared_writers"] else []
        what = [*role, workers.get(file["pid"], "no known process"), file["device"], *shared]
        numbers = f"{bytes_text(file['read_bytes']):>12}{bytes_text(file['write_bytes']):>12}"
        lines.append(fit(f"{numbers}  {', '.join(what)}", WIDTH))
        if file["worker_path"]:
            lines.append(f"{'seen by it as':>24}  {fit_end(file['worker_path'], WIDTH - 26)}")
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
                f"{fit(_who(row), 24)} {what}",
                f"{row['calls']:,}",
                f"{row['requests'] / row['calls']:.1f}" if row["op"] and row["calls"] else UNKNOWN,
                seconds_text(row["submit_seconds"]),
                seconds_text(row["wait_seconds"]),
            ]
        )
    return _table(rows) + "\n(in submit, in wait: added up over all calls and threads)"


def _trust(document: Document) -> str:
    """How far the numbers above can be believed."""
    lines = []
    attribution, losses = document["attribution"], document["losses"]
    data = attribution["data_bytes"]
    if data:
        lines.append(
            f"Everybody's {bytes_text(data)} on disks: workers {share_text(attribution['worker_bytes'], data)}, "
            f"kernel {share_text(attribution['kernel_bytes'], data)}, "
            f"unknown {share_text(attribution['unknown_bytes'], data)}."
        )
        files = attribution["file_bytes"]
        lines.append(
            f"Of which files: {share_text(files, data)} known, {share_text(data - files, data)} unknown "
            "(the kernel's own count as known)."
        )
    if shared := attribution["shared_writers_bytes"]:
        lines.append(f"{bytes_text(shared)} went to files that several processes wrote; the last one is named.")
    warnings = [
        f"{_counted(count, noun)} {text}"
        for count, noun, text in (
            (losses["records_lost"], "record", "found no room anywhere: requests count as nobody's, calls not at all."),
            (losses["overflowed_requests"], "request", "only counted: totals are exact, percentiles are not."),
            (losses["missed_probes"], "run", "of our programs skipped by the kernel."),
            (
                document["accounting"]["expired"],
                "request",
                "whose end the kernel did not show: counted, without times.",
            ),
        )
        if count
    ]
    if in_flight := document["accounting"]["in_flight"]:
        lines.append(f"{_counted(in_flight, 'request')} of the host had not ended yet: not in the figures above.")
    if warnings:
        lines += [f"NOT EXACT: {warning}" for warning in warnings]
    elif losses["missed_probes"] is None:
        lines.append("No record was lost; whether programs were skipped is not counted by this kernel.")
    else:
        lines.append("Exact: no record was lost and no request went missing.")
    return "\n".join(lines)


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


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
