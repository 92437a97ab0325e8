"""The `--json` document of a session: rows in, one dict out, shaped as summary.schema.json promises.

It is the one source of truth about a session: the summary for people is made from it and from nothing else. So no
presentation goes in here, and no number that the document does not hold.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, Literal, TextIO

from llmio_probe.aggregate.rows import (
    STAGES,
    AttributedBytes,
    DeviceUse,
    ErrorCount,
    FileUse,
    Percentiles,
    RowSource,
    Stream,
    Submission,
)
from llmio_probe.kernel.records import Engine, Path
from llmio_probe.kernel.state import ProbeState
from llmio_probe.outputs.attribution import attribution, data_bytes
from llmio_probe.outputs.shapes import Devices, FileRole, Files, Owner, Owners
from llmio_probe.outputs.status import status_name
from llmio_probe.text import escape

SCHEMA_NAME = "llmio-probe/summary/1"

Document = dict[str, Any]


@dataclass(frozen=True)
class SessionFacts:
    """What the rows do not say of a session.

    start: in UTC. command, exit_status: None without a COMMAND; exit_status too while it still runs.
    session: which owners are what the user asked for; all others are neighbours. None: there are none, it is the host.
    device_filter: the dev_t of the disks asked for, None for all.
    """

    start: datetime
    duration_seconds: float
    end: Literal["completed", "interrupted", "partial"]
    kernel: str
    loader: str
    hooks: list[str]
    command: list[str] | None
    exit_status: int | None
    session: Callable[[Owner], bool] | None
    device_filter: frozenset[int] | None


def build(
    facts: SessionFacts,
    rows: RowSource,
    owners: Owners,
    devices: Devices,
    files: Files,
    role: FileRole,
    state: ProbeState,
    busy_seconds: Mapping[int, float],
) -> Document:
    """role: of a file for an owner. busy_seconds: by device, over all ops together (those of DeviceUse overlap)."""

    def chosen(device: int) -> bool:
        return facts.device_filter is None or device in facts.device_filter

    def own(row: Stream | FileUse | Submission | ErrorCount) -> bool:
        return facts.session is None or facts.session(owners[row.owner])

    streams = [row for row in rows.streams() if chosen(row.device)]
    session = [row for row in streams if own(row)]
    used = [row for row in rows.file_use() if chosen(row.device) and own(row)]
    submissions = [row for row in rows.submissions() if own(row)]
    errors = [row for row in rows.errors() if chosen(row.device) and own(row)]
    seen = sorted({row.owner for row in session} | {row.owner for row in submissions})
    command = None if facts.command is None else [escape(word) for word in facts.command]
    return {
        "schema": SCHEMA_NAME,
        "start": facts.start.astimezone(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "duration_seconds": _seconds(facts.duration_seconds),
        "end": facts.end,
        "scope": "host" if facts.session is None else "processes",
        "host": {"kernel": facts.kernel, "loader": facts.loader, "hooks": list(facts.hooks)},
        "command": None if command is None else {"argv": command, "exit_status": facts.exit_status},
        "workers": _workers(owners[index] for index in seen),
        "streams": _streams(session, owners, devices),
        "files": _files(used, owners, devices, files, role),
        "submissions": _submissions(submissions, owners),
        "errors": _errors(errors, owners, devices),
        "devices": _devices(streams, own, owners, devices, busy_seconds, _in_flight_seconds(rows.device_use())),
        "attribution": _attribution((row for row in rows.attributed_bytes() if chosen(row.device)), devices),
        "accounting": _accounting(state, chosen),
        "losses": {
            "records_lost": state.losses.requests + state.losses.calls,
            "overflowed_requests": state.losses.overflowed_requests,
            "missed_probes": sum(missed.values()) if (missed := state.losses.missed_probes) else None,
        },
    }


def dump(document: Document, stream: TextIO) -> None:
    """ASCII, so that no locale can spoil it, and strict JSON: a NaN would be a bug of ours."""
    stream.write(json.dumps(document, indent=2, allow_nan=False) + "\n")


def schema() -> Document:
    """The JSON Schema of the document."""
    text = pathlib.Path(__file__).with_name("summary.schema.json").read_text(encoding="utf-8")
    loaded: Document = json.loads(text)
    return loaded


def _label(owner: Owner) -> Document:
    return {"worker": escape(owner.worker), "pid": None if owner.process is None else owner.process.id.tgid}


def _workers(seen: Iterable[Owner]) -> list[Document]:
    entries = []
    for owner in seen:
        process = owner.process
        if process is not None:
            facts = {
                "start_ticks": process.id.start_ticks,
                "framework": _escaped(process.framework),
                "rank": _escaped(process.rank),
                "container": _escaped(process.container),
                "pod": _escaped(process.pod),
                "command": _escaped(process.command),
            }
            entries.append({**_label(owner), **facts})
    return sorted(entries, key=lambda entry: (entry["worker"], entry["pid"], entry["start_ticks"]))


def _streams(streams: Iterable[Stream], owners: Owners, devices: Devices) -> list[Document]:
    entries = [
        {
            **_label(owners[row.owner]),
            "device": devices.name(row.device),
            "op": row.op.name.lower(),
            "engine": None if row.engine is Engine.UNKNOWN else row.engine.name.lower(),
            "path": None if row.path is Path.UNKNOWN else row.path.name.lower(),
            "role": row.role,
            "requests": row.requests,
            "bytes": row.bytes,
            "errors": row.errors,
            "requeues": row.requeues,
            "exact": row.exact,
            "size_bytes": _percentiles(row.size_bytes, int),
            "latency_seconds": {stage: _percentiles(row.latency_seconds[stage], _seconds) for stage in STAGES},
        }
        for row in streams
    ]
    return _sorted(entries, ("worker", "pid", "device", "op", "engine", "path", "role"))


def _files(used: Iterable[FileUse], owners: Owners, devices: Devices, files: Files, role: FileRole) -> list[Document]:
    """Largest first."""
    entries = []
    for row in used:
        file, label = files.files[row.file], _label(owners[row.owner])
        pid = label["pid"]
        entries.append(
            {
                "path": _escaped(file.path),
                "worker_path": None if pid is None else _escaped(files.worker_path(row.file, pid)),
                "device": devices.name(row.device),
                "inode": file.inode,
                **label,
                "role": role(row.file, row.owner),
                "deleted": file.deleted,
                "read_bytes": row.read_bytes,
                "write_bytes": row.write_bytes,
                "requests": row.requests,
                "shared_writers": row.shared,
            }
        )
    named = _sorted(entries, ("path", "device", "inode", "worker", "pid"))
    return sorted(named, key=lambda entry: -entry["read_bytes"] - entry["write_bytes"])


def _submissions(submissions: Iterable[Submission], owners: Owners) -> list[Document]:
    entries = [
        {
            **_label(owners[row.owner]),
            "engine": None if row.engine is Engine.UNKNOWN else row.engine.name.lower(),
            "op": None if row.op is None else row.op.name.lower(),
            "calls": row.calls,
            "requests": row.requests,
            "bytes": row.bytes,
            "submit_seconds": None if row.submit_seconds is None else _seconds(row.submit_seconds),
            "wait_seconds": None if row.wait_seconds is None else _seconds(row.wait_seconds),
        }
        for row in submissions
    ]
    return _sorted(entries, ("worker", "pid", "engine", "op"))


def _errors(errors: Iterable[ErrorCount], owners: Owners, devices: Devices) -> list[Document]:
    entries = [
        {
            **_label(owners[row.owner]),
            "device": devices.name(row.device),
            "op": row.op.name.lower(),
            "status": status_name(row.status),
            "requests": row.requests,
        }
        for row in errors
    ]
    return _sorted(entries, ("worker", "pid", "device", "op", "status"))


def _devices(
    streams: Iterable[Stream],
    own: Callable[[Stream], bool],
    owners: Owners,
    devices: Devices,
    busy_seconds: Mapping[int, float],
    in_flight_seconds: Mapping[int, float],
) -> list[Document]:
    session: dict[int, int] = {}
    others: dict[int, dict[int, int]] = {}
    device_seconds: dict[int, float] = {}
    for row in streams:
        if row.requests or row.bytes:
            moved = data_bytes(row)
            at_device = row.latency_seconds["device"]
            device_seconds[row.device] = device_seconds.get(row.device, 0) + (at_device.sum if at_device else 0)
            by_owner = others.setdefault(row.device, {})
            if own(row):
                session[row.device] = session.get(row.device, 0) + moved
            elif moved:
                by_owner[row.owner] = by_owner.get(row.owner, 0) + moved
    entries = [
        {
            "device": devices.name(device),
            "layer": devices.layer(device),
            "session_bytes": session.get(device, 0),
            "others_bytes": sum(by_owner.values()),
            "neighbours": _neighbours(by_owner, owners),
            "busy_seconds": _seconds(busy_seconds[device]) if device in busy_seconds else None,
            "in_flight_seconds": _seconds(in_flight_seconds.get(device, 0.0)),
            "device_seconds": _seconds(device_seconds[device]),
        }
        for device, by_owner in others.items()
    ]
    return _sorted(entries, ("device",))


def _neighbours(by_owner: Mapping[int, int], owners: Owners) -> list[Document]:
    """Largest first."""
    entries = [{**_label(owners[owner]), "bytes": moved} for owner, moved in by_owner.items()]
    return sorted(_sorted(entries, ("worker", "pid")), key=lambda entry: -entry["bytes"])


def _in_flight_seconds(use: Iterable[DeviceUse]) -> dict[int, float]:
    """By device, over all ops."""
    seconds: dict[int, float] = {}
    for row in use:
        seconds[row.device] = seconds.get(row.device, 0.0) + row.in_flight_seconds
    return seconds


def _attribution(rows: Iterable[AttributedBytes], devices: Devices) -> Document:
    found = attribution(rows, devices)
    return {
        "data_bytes": sum(found.by_kind.values()),
        **{f"{kind}_bytes": total for kind, total in found.by_kind.items()},
        "file_bytes": found.file_known,
        "shared_writers_bytes": found.shared_writers,
    }


def _accounting(state: ProbeState, chosen: Callable[[int], bool]) -> Document:
    counts = [row for row in state.devices if chosen(row.device)]
    return {
        "started": sum(row.started for row in counts),
        "finished": sum(row.finished for row in counts),
        "merged": sum(row.merged for row in counts),
        "in_flight": sum(sum(row.in_flight.values()) for row in counts),
        "expired": sum(row.expired for row in counts),
        "in_flight_at_attach": sum(row.unowned_at_attach for row in counts),
    }


def _percentiles(values: Percentiles | None, unit: Callable[[float], float]) -> Document | None:
    if values is None:
        return None
    return {name: unit(getattr(values, name)) for name in ("p50", "p90", "p99", "max", "sum")}


def _seconds(value: float) -> float:
    return round(float(value), 9)  # whole nanoseconds: what was measured


def _escaped(name: str | None) -> str | None:
    return None if name is None else escape(name)


def _sorted(entries: list[Document], keys: tuple[str, ...]) -> list[Document]:
    """None first; a column holds values of one type beside it."""
    return sorted(entries, key=lambda entry: [(entry[key] is not None, entry[key] or 0) for key in keys])
