"""Batches into cumulative series: streams, histograms, submissions, device use. One call a batch, all of it array work.

Only counting may go in here: who an owner is, what a device is called and what is shown is for others. What was counted
stays counted until ``forget``.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmio_probe.aggregate import latencies
from llmio_probe.aggregate.buckets import (
    LATENCY_EDGES,
    LATENCY_EXPONENTS,
    REQUESTS_EDGES,
    REQUESTS_EXPONENTS,
    SIZE_EDGES,
    SIZE_EXPONENTS,
    bucket,
)
from llmio_probe.aggregate.busy import BusyTime
from llmio_probe.aggregate.files import FileTable
from llmio_probe.aggregate.limit import LimitedRows, Need, SeriesLimit
from llmio_probe.aggregate.rows import (
    STAGES,
    AttributedBytes,
    CallDistributions,
    DeviceUse,
    Distribution,
    ErrorCount,
    FileUse,
    Percentiles,
    RequestDistributions,
    Stream,
    Submission,
)
from llmio_probe.aggregate.table import Rows
from llmio_probe.identity.roles import FIRST_UNDECIDED, OTHER_ROLE, ROLES
from llmio_probe.kernel.records import CallFlag, Engine, Op, OwnerKind, Path, Records, RequestFlag

_DATA_OPS = np.array([op in (Op.READ, Op.WRITE, Op.PASSTHROUGH) for op in Op])
"""Ops whose bytes are data; a discard has a size and no data, a flush neither."""

_OPS: tuple[Op | None, ...] = (*Op, None)
_ENGINE_BITS = _OP_BITS = _PATH_BITS = 3
_ROLE_BITS = 11
"""Roles, and some 1,000 undecided ones. With 31 bits of an owner a stream's key is 63 bits long."""
_DEVICE_BITS = 12
_STATUS_BITS = 8
_STREAM_BITS = _DEVICE_BITS + _OP_BITS + _ENGINE_BITS + _PATH_BITS + _ROLE_BITS
"""What a stream's key holds beside its owner."""
_ERROR_BITS = _DEVICE_BITS + _OP_BITS + _STATUS_BITS

_PIECE = 1 << 15
"""Records at once: arrays so small that malloc keeps their pages. Page faults took a third of the time of 100,000."""

STREAM_SERIES, SIZE_SERIES, LATENCY_SERIES, CALL_SERIES, ERROR_SERIES = 2, 17, 51, 50, 1
"""What Prometheus shows of a row: requests and bytes; of each (owner, device, op, role), and of each (owner, device,
op); of each (owner, engine) that makes calls; of each status. outputs/metrics.py has the buckets, a test holds them
together."""

Ints = NDArray[np.int64]


class Series:
    """Totals since it was made.

    detail: keep what exact sizes, latency percentiles and the list of files need (ad-hoc sessions): 20 kB a stream.
    most_series: so many in Prometheus (see limit.py); None: as many as there are.
    """

    def __init__(self, *, detail: bool, most_series: int | None = None) -> None:
        self._detail = detail
        limit = None if most_series is None else SeriesLimit(most_series)

        def rows(fields: dict[str, Any], *more: Any) -> Rows:
            return Rows(fields) if limit is None else LimitedRows(fields, limit, *more)

        size, latency, requests = len(SIZE_EDGES) + 1, len(LATENCY_EDGES) + 1, len(REQUESTS_EDGES) + 1
        fields: dict[str, tuple[Any, tuple[int, ...]]] = {
            **dict.fromkeys(("requests", "bytes", "errors", "requeues", "size_sum"), ("i8", ())),
            "size": ("i8", (size,)),
        }
        for stage in STAGES:
            fields |= {stage: ("i8", (latency,)), f"{stage}_sum": ("i8", ()), f"{stage}_max": ("i8", ())}
            if detail:
                fields[f"{stage}_fine"] = ("u4", (latencies.COLUMNS,))
        self._streams = rows(fields, _STREAM_BITS, _stream_needs, _coarse_stream)
        self._sizes = Rows({"requests": ("i8", ())})
        self._errors = rows({"requests": ("i8", ())}, _ERROR_BITS, lambda key: [(("error", key), ERROR_SERIES)])
        self._users = Rows({})  # owners on a device
        self._files = FileTable()
        self._submissions = Rows(
            {"calls": ("i8", ()), "requests": ("i8", ()), "bytes": ("i8", ()), "parts": ("i8", ()),
             "submit": ("f8", ()), "wait": ("f8", ())}
        )  # fmt: skip
        self._calls = rows(
            {"requests": ("i8", (requests,)), "submit": ("i8", (latency,)), "wait": ("i8", (latency,)),
             "requests_sum": ("i8", ()), "submit_sum": ("i8", ()), "wait_sum": ("i8", ())},
            _ENGINE_BITS, lambda key: [(("call", key), CALL_SERIES)],
        )  # fmt: skip
        kinds, ops = ("i8", (2 * len(OwnerKind),)), ("i8", (len(Op),))
        self._devices = Rows(
            {"attributed": kinds, "shared": kinds, **dict.fromkeys(("requests", "bytes", "requeues", "in_flight"), ops)}
        )
        self._busy: dict[int, BusyTime] = {}
        self._device_busy: dict[int, BusyTime] = {}

    # --- counting

    def add_requests(
        self, records: Records, owners: NDArray[np.int32], roles: Ints | None = None,
        files: NDArray[np.int32] | None = None,
    ) -> None:  # fmt: skip
        """Count finished requests and parts of them. Shape (n,) each.

        owners: the owner of each. roles: index into ROLES or an undecided role, see settle_roles; None: all other.
        files: the file of each, 0 is unknown; None: all.
        """
        for first in range(0, len(records), _PIECE):
            piece = slice(first, first + _PIECE)
            self._add_piece(
                records[piece], owners[piece].astype(np.int64),
                OTHER_ROLE if roles is None else roles[piece],
                None if files is None or not self._detail else files[piece].astype(np.int64),
            )  # fmt: skip

    def _add_piece(self, records: Records, owners: Ints, role: Ints | int, files: Ints | None) -> None:
        device = self._devices.find(records["device"].astype(np.int64))
        op = records["op"].astype(np.int64)
        key = (owners << _DEVICE_BITS | device) << _OP_BITS | op
        stream = (key << _ENGINE_BITS | records["engine"]) << _PATH_BITS | records["path"]
        rows = self._streams.find(stream << _ROLE_BITS | role)
        bytes_ = records["bytes"].astype(np.int64)
        self._streams.add("bytes", rows, np.where(_DATA_OPS[op], bytes_, 0))

        flags = records["flags"]
        seen = int(np.bitwise_or.reduce(flags))
        whole = flags & RequestFlag.PART == 0 if seen & RequestFlag.PART else None
        shared = flags & RequestFlag.SHARED != 0 if seen & RequestFlag.SHARED else None
        moved = np.where(op <= Op.WRITE, bytes_, 0)  # reads and writes
        known = records["owner"] << 1 | (records["inode"] != 0)
        self._devices.add_at("attributed", device, known, moved)
        if shared is not None:
            self._devices.add_at("shared", device[shared], known[shared], moved[shared])
        if files is not None:
            users = self._users.find(self._streams.keys >> (_STREAM_BITS - _DEVICE_BITS))[rows]
            self._files.add(files, users, op == Op.WRITE, moved, whole, shared)

        if whole is not None:  # from here on a part is nothing
            records, rows, key, device, op = records[whole], rows[whole], key[whole], device[whole], op[whole]
        if len(records):
            self._add_whole(records, rows, key, device, op)

    def _add_whole(self, records: Records, rows: Ints, key: Ints, device: Ints, op: Ints) -> None:
        streams, size = self._streams, records["request_bytes"].astype(np.int64)
        streams.add("requests", rows)
        streams.add("size_sum", rows, size)
        streams.add_at("size", rows, bucket(size, SIZE_EXPONENTS))
        if records["requeues"].any():
            streams.add("requeues", rows, records["requeues"])
        if self._detail:
            self._sizes.add("requests", self._sizes.find(rows << 32 | size))
        self._add_latencies(records, rows)
        self._add_errors(records, rows, key)
        self._add_use(records, device, op, np.where(_DATA_OPS[op], size, 0))

    def _add_latencies(self, records: Records, rows: Ints) -> None:
        made, issued, done = (records[name].astype(np.int64) for name in ("made_ns", "issued_ns", "done_ns"))
        for stage, start, end in (("queue", made, issued), ("device", issued, done), ("total", made, done)):
            known = (start > 0) & (end > 0)
            ns, where = (end - start, rows) if known.all() else ((end - start)[known], rows[known])
            ns = np.maximum(ns, 0)  # clocks of two CPUs
            self._streams.add_at(stage, where, bucket(ns, LATENCY_EXPONENTS))
            self._streams.add(f"{stage}_sum", where, ns)
            if self._detail:
                self._streams.raise_to(f"{stage}_max", where, ns)
                self._streams.add_at(f"{stage}_fine", where, latencies.column(ns))

    def _add_errors(self, records: Records, rows: Ints, key: Ints) -> None:
        failed = records["status"] != 0
        if not failed.any():
            return
        self._streams.add("errors", rows[failed])
        self._errors.add("requests", self._errors.find(key[failed] << _STATUS_BITS | records["status"][failed]))

    def _add_use(self, records: Records, device: Ints, op: Ints, data_bytes: Ints) -> None:
        start, issued, end = (records[name].astype(np.int64) for name in ("made_ns", "issued_ns", "done_ns"))
        for field, amounts in (
            ("requests", None), ("bytes", data_bytes), ("requeues", records["requeues"]),
            ("in_flight", np.where(start > 0, np.maximum(end - start, 0), 0)),
        ):  # fmt: skip
            self._devices.add_at(field, device, op, amounts)
        seen = (issued > 0) & (issued <= end)
        for groups, busy in ((device << _OP_BITS | op, self._busy), (device, self._device_busy)):
            for group in np.flatnonzero(np.bincount(groups)).tolist():
                chosen = seen & (groups == group)
                if chosen.any():
                    busy.setdefault(group, BusyTime()).add(issued[chosen], end[chosen])

    def add_calls(self, records: Records, owners: NDArray[np.int32]) -> None:
        """Count calls. owners: shape (n,), the owner of each."""
        if not len(records):
            return
        key = owners.astype(np.int64) << _ENGINE_BITS | records["engine"]
        flags = records["flags"]
        start, submitted, end = (records[name].astype(np.int64) for name in ("start_ns", "submitted_ns", "end_ns"))
        polled = flags & CallFlag.POLLED != 0
        submits = (flags & CallFlag.SUBMIT != 0) & (submitted > 0)
        waits = flags & CallFlag.WAIT != 0
        submit_ns = np.where(submits, submitted - start, 0)
        wait_ns = np.where(waits, end - np.where(submits, submitted, start), 0)

        rows = self._calls.find(key)
        for chosen, field, values, exponents in (
            (submits, "requests", records["requests"].astype(np.int64), REQUESTS_EXPONENTS),
            (submits, "submit", submit_ns, LATENCY_EXPONENTS),
            (waits, "wait", wait_ns, LATENCY_EXPONENTS),
        ):
            self._calls.add_at(field, rows[chosen], bucket(values[chosen], exponents))
            self._calls.add(f"{field}_sum", rows[chosen], values[chosen])

        requests, reads, writes = (records[name].astype(np.int64) for name in ("requests", "reads", "writes"))
        others = requests - reads - writes
        part = flags & CallFlag.BYTES_PART != 0
        nothing = np.zeros(len(records), np.int64)
        for op, count, size in (
            (Op.READ, reads, records["read_bytes"]),
            (Op.WRITE, writes, records["write_bytes"]),
            (Op.OTHER, others, nothing),
        ):
            chosen, share = count > 0, count / np.maximum(requests, 1)
            if op is Op.OTHER:  # calls that handed over nothing took their time too
                empty = submits & (requests == 0)
                chosen, share = chosen | empty, np.where(empty, 1.0, share)
            self._add_submissions(key, chosen, op, ~polled, count, size, part, submit_ns * share, nothing)
        self._add_submissions(key, waits, None, ~polled, records["reaped"], nothing, part & False, nothing, wait_ns)

    def _add_submissions(
        self, key: Ints, chosen: NDArray[np.bool_], op: Op | None, calls: NDArray[Any], requests: NDArray[Any],
        size: NDArray[Any], part: NDArray[np.bool_], submit_ns: NDArray[Any], wait_ns: NDArray[Any],
    ) -> None:  # fmt: skip
        if not chosen.any():
            return
        rows = self._submissions.find(key[chosen] << _OP_BITS | _OPS.index(op))
        for field, amounts in (
            ("calls", calls), ("requests", requests), ("bytes", size), ("parts", part),
            ("submit", submit_ns), ("wait", wait_ns),
        ):  # fmt: skip
            self._submissions.add(field, rows, amounts[chosen])

    def forget(self, owners: Collection[int]) -> None:
        """Drop the series of owners that have ended. What devices did stays."""
        if not owners:
            return
        gone = np.array(sorted(owners))
        stays = ~np.isin(self._streams.keys >> _STREAM_BITS, gone)
        self._sizes.keep(stays[self._sizes.keys >> 32])
        self._sizes = self._moved_sizes(np.cumsum(stays) - 1)
        self._streams.keep(stays)
        self._files.forget(np.flatnonzero(np.isin(self._users.keys >> _DEVICE_BITS, gone)))
        self._errors.keep(~np.isin(self._errors.keys >> _ERROR_BITS, gone))
        self._submissions.keep(~np.isin(self._submissions.keys >> (_ENGINE_BITS + _OP_BITS), gone))
        self._calls.keep(~np.isin(self._calls.keys >> _ENGINE_BITS, gone))

    def settle_roles(self, final: Mapping[int, int]) -> None:
        """Put an index into ROLES in the place of each undecided role; other, where there is none. All stays exact."""
        self._streams, self._sizes = self._settled(final)

    def _settled(self, final: Mapping[int, int]) -> tuple[Rows, Rows]:
        """Streams and sizes, those that have the same role then in one row."""
        keys = self._streams.keys
        role = keys & ((1 << _ROLE_BITS) - 1)
        undecided = np.flatnonzero(role >= FIRST_UNDECIDED)
        if not len(undecided):
            return self._streams, self._sizes
        settled = np.array([final.get(each, OTHER_ROLE) for each in role[undecided].tolist()])
        keys = keys.copy()
        keys[undecided] += settled - role[undecided]
        streams, rows = self._streams.merged(keys, largest=[f"{stage}_max" for stage in STAGES])
        return streams, self._moved_sizes(rows)

    def _moved_sizes(self, rows: Ints) -> Rows:
        """The sizes once their streams are in these rows."""
        keys = self._sizes.keys
        return self._sizes.merged(rows[keys >> 32] << 32 | keys & 0xFFFFFFFF)[0]

    @property
    def folded(self) -> int:
        """Label sets so far that are counted under "other", because there was no room for more series."""
        return sum(
            table.folded for table in (self._streams, self._errors, self._calls) if isinstance(table, LimitedRows)
        )

    # --- rows

    def _split_stream(self, key: int) -> tuple[int, int, Op, Engine, Path, str]:
        key, role = key >> _ROLE_BITS, key & ((1 << _ROLE_BITS) - 1)
        key, path = key >> _PATH_BITS, key & 7
        key, engine = key >> _ENGINE_BITS, key & 7
        owner, device, op = self._split(key)
        return owner, device, op, Engine(engine), Path(path), ROLES[role if role < FIRST_UNDECIDED else OTHER_ROLE]

    def _split(self, key: int) -> tuple[int, int, Op]:
        key, op = key >> _OP_BITS, key & 7
        return key >> _DEVICE_BITS, int(self._devices.keys[key & ((1 << _DEVICE_BITS) - 1)]), Op(op)

    def streams(self) -> list[Stream]:
        """What is undecided is other."""
        table, size_table = self._settled({})
        sizes = self._size_percentiles(len(table), size_table)
        return [
            Stream(
                *self._split_stream(key),
                requests=int(table["requests"][row]),
                bytes=int(table["bytes"][row]),
                errors=int(table["errors"][row]),
                requeues=int(table["requeues"][row]),
                exact=True,
                size_bytes=sizes[row],
                latency_seconds={
                    stage: latencies.percentiles(table[f"{stage}_fine"][row], int(table[f"{stage}_max"][row]))
                    if self._detail
                    else None
                    for stage in STAGES
                },
            )
            for row, key in table.rows()
        ]

    @staticmethod
    def _size_percentiles(streams: int, table: Rows) -> list[Percentiles | None]:
        """Of each stream: exact, from every size that occurred."""
        found: list[Percentiles | None] = [None] * streams
        order = np.argsort(table.keys)
        keys, counts = table.keys[order], table["requests"][order]
        rows, first = np.unique(keys >> 32, return_index=True)
        for row, begin, end in zip(rows.tolist(), first, np.append(first, len(keys))[1:], strict=True):
            cumulative = np.cumsum(counts[begin:end])
            ranks = [-(-int(cumulative[-1]) * p // 100) for p in (50, 90, 99, 100)]
            sizes = keys[begin:end][np.searchsorted(cumulative, ranks)] & 0xFFFFFFFF
            found[row] = Percentiles(*(int(size) for size in sizes))
        return found

    def request_distributions(self) -> list[RequestDistributions]:
        table = self._streams
        merged: dict[tuple[int, int, Op, str], list[int]] = {}
        for row, key in table.rows():
            owner, device, op, _, _, role = self._split_stream(key)
            merged.setdefault((owner, device, op, role), []).append(row)
        return [
            RequestDistributions(
                *key,
                Distribution(table["size"][rows].sum(0), float(table["size_sum"][rows].sum())),
                {
                    stage: Distribution(table[stage][rows].sum(0), table[f"{stage}_sum"][rows].sum() / 1e9)
                    for stage in STAGES
                },
            )
            for key, rows in merged.items()
        ]

    def errors(self) -> list[ErrorCount]:
        return [
            ErrorCount(
                *self._split(key >> _STATUS_BITS), key & ((1 << _STATUS_BITS) - 1), int(self._errors["requests"][row])
            )
            for row, key in self._errors.rows()
        ]

    def submissions(self) -> list[Submission]:
        table = self._submissions
        found = []
        for row, key in enumerate(table.keys.tolist()):
            op = _OPS[key & 7]
            owner, engine = divmod(key >> _OP_BITS, 1 << _ENGINE_BITS)
            moves_data = op in (Op.READ, Op.WRITE) and not table["parts"][row]
            found.append(
                Submission(
                    owner,
                    Engine(engine),
                    op,
                    int(table["calls"][row]),
                    int(table["requests"][row]),
                    int(table["bytes"][row]) if moves_data else None,
                    None if op is None or not table["calls"][row] else float(table["submit"][row]) / 1e9,
                    float(table["wait"][row]) / 1e9 if op is None else None,
                )
            )
        return found

    def call_distributions(self) -> list[CallDistributions]:
        table = self._calls

        def distribution(field: str, row: int, unit: float) -> Distribution:
            return Distribution(table[field][row].copy(), float(table[f"{field}_sum"][row]) / unit)

        return [
            CallDistributions(
                key >> _ENGINE_BITS,
                Engine(key & 7),
                distribution("requests", row, 1),
                distribution("submit", row, 1e9),
                distribution("wait", row, 1e9),
            )
            for row, key in table.rows()
        ]

    def device_use(self) -> list[DeviceUse]:
        table = self._devices
        return [
            DeviceUse(
                device,
                Op(op),
                requests=int(table["requests"][index, op]),
                bytes=int(table["bytes"][index, op]),
                requeues=int(table["requeues"][index, op]),
                busy_seconds=busy.nanoseconds / 1e9 if (busy := self._busy.get(index << _OP_BITS | op)) else 0.0,
                in_flight_seconds=int(table["in_flight"][index, op]) / 1e9,
            )
            for index, device in enumerate(table.keys.tolist())
            for op in np.flatnonzero(table["requests"][index]).tolist()
        ]

    def attributed_bytes(self) -> list[AttributedBytes]:
        table = self._devices
        return [
            AttributedBytes(
                device, OwnerKind(column >> 1), bool(column & 1),
                int(table["attributed"][index, column]), int(table["shared"][index, column]),
            )
            for index, device in enumerate(table.keys.tolist())
            for column in np.flatnonzero(table["attributed"][index]).tolist()
        ]  # fmt: skip

    def file_use(self) -> list[FileUse]:
        """Of known files; nothing without detail."""
        users, devices = self._users.keys.tolist(), self._devices.keys.tolist()
        return [
            FileUse(
                file, users[user] >> _DEVICE_BITS, devices[users[user] & ((1 << _DEVICE_BITS) - 1)],
                read, written, requests, shared,
            )
            for file, user, read, written, requests, shared in self._files
            if file
        ]  # fmt: skip

    def device_busy_seconds(self) -> dict[int, float]:
        """By device, whatever the op: seconds with at least one request issued and not done."""
        return {int(self._devices.keys[index]): busy.nanoseconds / 1e9 for index, busy in self._device_busy.items()}


_DETAIL_BITS = _ENGINE_BITS + _PATH_BITS + _ROLE_BITS


def _stream_needs(key: int) -> list[Need]:
    owner_device_op, role = key >> _DETAIL_BITS, key & ((1 << _ROLE_BITS) - 1)
    return [
        (("stream", key), STREAM_SERIES),
        (("size", owner_device_op, role), SIZE_SERIES),
        (("latency", owner_device_op), LATENCY_SERIES),
    ]


def _coarse_stream(labels: int) -> int:
    """Device and op stay; engine and path are unknown, the role is other."""
    return labels >> _DETAIL_BITS << _DETAIL_BITS | OTHER_ROLE
