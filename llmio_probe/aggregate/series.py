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
    SIZE_EDGES,
    SIZE_EXPONENTS,
    bucket,
)
from llmio_probe.aggregate.busy import BusyTime, chains
from llmio_probe.aggregate.calls import Calls
from llmio_probe.aggregate.combinations import Combined, select
from llmio_probe.aggregate.files import FileTable
from llmio_probe.aggregate.limit import Need, folded, rows_within
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
from llmio_probe.kernel.records import Engine, Op, OwnerKind, Path, Records, RequestFlag

_DATA_OPS = np.array([op in (Op.READ, Op.WRITE, Op.PASSTHROUGH) for op in Op])
"""Ops whose bytes are data; a discard has a size and no data, a flush neither."""

_ENGINE_BITS = _OP_BITS = _PATH_BITS = 3
_ROLE_BITS = 11
"""Roles, and some 1,000 undecided ones. With 31 bits of an owner a stream's key is 63 bits long."""
_DEVICE_BITS = 12
_STATUS_BITS = 8
_STREAM_BITS = _DEVICE_BITS + _OP_BITS + _ENGINE_BITS + _PATH_BITS + _ROLE_BITS
"""What a stream's key holds beside its owner."""
_ERROR_BITS = _DEVICE_BITS + _OP_BITS + _STATUS_BITS

_PIECE = 1 << 14
"""Records at once: what is made of so many stays in a CPU's own cache."""

STREAM_SERIES, SIZE_SERIES, LATENCY_SERIES, ERROR_SERIES = 2, 17, 51, 1
"""What Prometheus shows of a row: requests and bytes; of each (owner, device, op, role), and of each (owner, device,
op); of each status. outputs/metrics.py has the buckets, a test holds them together."""

Ints = NDArray[np.int64]


class Series:
    """Totals since it was made.

    detail: keep what exact sizes, latency percentiles and the list of files need (ad-hoc sessions): 20 kB a stream.
    most_series: so many in Prometheus (see limit.py); None: as many as there are.
    """

    def __init__(self, *, detail: bool, most_series: int | None = None) -> None:
        self._detail = detail
        rows = rows_within(most_series)
        size, latency = len(SIZE_EDGES) + 1, len(LATENCY_EDGES) + 1
        fields: dict[str, tuple[Any, tuple[int, ...]]] = {
            **dict.fromkeys(("requests", "bytes", "errors", "requeues", "size_sum", "added_up"), ("i8", ())),
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
        self._calls = Calls(rows)
        kinds, ops = ("i8", (2 * len(OwnerKind),)), ("i8", (len(Op),))
        self._devices = Rows(
            {"attributed": kinds, "shared": kinds, **dict.fromkeys(("requests", "bytes", "requeues", "in_flight"), ops)}
        )
        self._busy: dict[int, BusyTime] = {}
        self._device_busy: dict[int, BusyTime] = {}

    # --- counting

    def add_combined(
        self, batch: Combined, owners: NDArray[np.int32], roles: Ints | None = None,
        files: NDArray[np.int32] | None = None,
    ) -> None:  # fmt: skip
        """Count finished requests and parts of them. Shape (k,) each: of each combination.

        owners: the owner of each. roles: index into ROLES or an undecided role, see settle_roles; None: all other.
        files: the file of each, 0 is unknown; None: all.
        """
        if not len(batch.records):
            return
        samples, counts = batch.samples, batch.counts
        rows, key, device, op = self._places(samples, owners, roles)
        whole = samples["flags"] & RequestFlag.PART == 0
        self._add_bytes(samples, samples["bytes"] * counts, np.where(whole, counts, 0), rows, device, op, files)
        if whole.all():
            self._add_whole(samples, counts, rows, key, device, op)
            self._add_times(batch.records, batch.spread(rows))
        elif whole.any():  # from here on a part is nothing
            self._add_whole(samples[whole], counts[whole], rows[whole], key[whole], device[whole], op[whole])
            chosen = batch.spread(whole)
            self._add_times(select(batch.records, chosen), batch.spread(rows)[chosen])

    def add_overflow(
        self, totals: Records, owners: NDArray[np.int32], roles: Ints | None = None,
        files: NDArray[np.int32] | None = None,
    ) -> None:  # fmt: skip
        """Count what was added up in the kernel: OVERFLOW rows, shape (k,), and owners, roles and files of each.

        All that is counted stays exact but for percentiles, which then come from buckets, and busy time.
        """
        if not len(totals):
            return
        rows, key, device, op = self._places(totals, owners, roles)
        whole = totals["flags"] & RequestFlag.PART == 0
        requests = np.where(whole, totals["requests"], 0).astype(np.int64)
        self._add_bytes(totals, totals["bytes"].astype(np.int64), requests, rows, device, op, files)
        totals, rows, key, device, op = totals[whole], rows[whole], key[whole], device[whole], op[whole]
        sums = {name: totals[name].astype(np.int64) for name in ("requests", "request_bytes", "requeues", "total_ns")}
        self._add_counts(
            totals["status"], sums["requests"], sums["request_bytes"], sums["requeues"], rows, key, device, op
        )
        self._streams.add("added_up", rows, sums["requests"])
        # What found no room in the kernel's tables either has no sizes, nor an end.
        sized = totals["size_counts"].any(axis=1) | (totals["done_ns"] > 0)
        self._streams.add("size_sum", rows, np.where(sized, sums["request_bytes"], 0))
        np.add.at(self._streams["size"], rows, totals["size_counts"].astype(np.int64))
        self._devices.add_at("in_flight", device, op, sums["total_ns"])
        for stage in STAGES:
            np.add.at(self._streams[stage], rows, totals[f"{stage}_counts"].astype(np.int64))
            self._streams.add(f"{stage}_sum", rows, totals[f"{stage}_ns"])
        if self._detail:
            self._add_bucket_edges(totals, rows)
        until = totals["done_ns"].astype(np.int64)
        for groups, busy in ((device << _OP_BITS | op, self._busy), (device, self._device_busy)):
            for group in np.unique(groups).tolist():
                chosen = groups == group
                under_way = int(totals["device_ns"][chosen].sum())
                busy.setdefault(group, BusyTime()).add_total(under_way, int(until[chosen].max()))

    def _add_bucket_edges(self, totals: Records, rows: Ints) -> None:
        """For percentiles: each value counts as the largest of its bucket."""
        where, column = np.nonzero(totals["size_counts"])
        sizes = np.minimum(1 << SIZE_EXPONENTS[0] + column, 0xFFFFFFFF)
        counts = totals["size_counts"][where, column]
        self._sizes.add("requests", self._sizes.find(rows[where] << 32 | sizes), counts)
        for stage in STAGES:
            where, column = np.nonzero(totals[f"{stage}_counts"])
            ns = 1 << LATENCY_EXPONENTS[0] + column
            counts = totals[f"{stage}_counts"][where, column]
            self._streams.raise_to(f"{stage}_max", rows[where], ns)
            self._streams.add_at(f"{stage}_fine", rows[where], latencies.column(ns.astype(np.float64)), counts)

    def _places(self, samples: Records, owners: NDArray[np.int32], roles: Ints | None) -> tuple[Ints, Ints, Ints, Ints]:
        """Of each: its stream's row, the key of its owner, device and op, and the last two, the device by its row."""
        device = self._devices.find(samples["device"].astype(np.int64))
        op = samples["op"].astype(np.int64)
        key = (owners.astype(np.int64) << _DEVICE_BITS | device) << _OP_BITS | op
        stream = (key << _ENGINE_BITS | samples["engine"]) << _PATH_BITS | samples["path"]
        return self._streams.find(stream << _ROLE_BITS | (OTHER_ROLE if roles is None else roles)), key, device, op

    def _add_bytes(
        self, samples: Records, bytes_: Ints, requests: Ints, rows: Ints, device: Ints, op: Ints,
        files: NDArray[np.int32] | None,
    ) -> None:  # fmt: skip
        """requests: how many there are of each, 0 of parts."""
        self._streams.add("bytes", rows, np.where(_DATA_OPS[op], bytes_, 0))
        moved = np.where(op <= Op.WRITE, bytes_, 0)  # reads and writes
        known = samples["owner"] << 1 | (samples["inode"] != 0)
        self._devices.add_at("attributed", device, known, moved)
        shared = samples["flags"] & RequestFlag.SHARED != 0
        if shared.any():
            self._devices.add_at("shared", device[shared], known[shared], moved[shared])
        if files is not None and self._detail:
            users = self._users.find(self._streams.keys >> (_STREAM_BITS - _DEVICE_BITS))[rows]
            self._files.add(files.astype(np.int64), users, op == Op.WRITE, moved, requests, shared)

    def _add_whole(self, samples: Records, counts: Ints, rows: Ints, key: Ints, device: Ints, op: Ints) -> None:
        size = samples["request_bytes"].astype(np.int64)
        self._add_counts(samples["status"], counts, size * counts, samples["requeues"] * counts, rows, key, device, op)
        self._streams.add("size_sum", rows, size * counts)
        self._streams.add_at("size", rows, bucket(size, SIZE_EXPONENTS), counts)
        if self._detail:
            self._sizes.add("requests", self._sizes.find(rows << 32 | size), counts)

    def _add_counts(
        self, status: NDArray[Any], requests: Ints, request_bytes: Ints, requeues: Ints, rows: Ints, key: Ints,
        device: Ints, op: Ints,
    ) -> None:  # fmt: skip
        """What is the same for requests with records and without; request_bytes and requeues are sums."""
        streams = self._streams
        streams.add("requests", rows, requests)
        streams.add("requeues", rows, requeues)
        failed = status != 0
        if failed.any():
            streams.add("errors", rows[failed], requests[failed])
            errors = self._errors.find(key[failed] << _STATUS_BITS | status[failed])
            self._errors.add("requests", errors, requests[failed])
        self._devices.add_at("requests", device, op, requests)
        self._devices.add_at("bytes", device, op, np.where(_DATA_OPS[op], request_bytes, 0))
        self._devices.add_at("requeues", device, op, requeues)

    def _add_times(self, records: Records, rows: Ints) -> None:
        """What no combination shares: latencies by stream, and busy time. rows: the stream of each, shape (n,)."""
        uses = self._streams.keys >> (_STREAM_BITS - _DEVICE_BITS - _OP_BITS) & (1 << _DEVICE_BITS + _OP_BITS) - 1
        use_of = uses.astype(np.uint16)
        before = self._streams["total_sum"].copy()
        busy = []
        for first in range(0, len(records), _PIECE):
            piece = slice(first, first + _PIECE)
            made, issued, done = (records[name][piece].astype(np.int64) for name in ("made_ns", "issued_ns", "done_ns"))
            self._add_latencies(made, issued, done, rows[piece])
            busy.append(_busy_intervals(use_of.take(rows[piece]), issued, done))
        in_flight = self._streams["total_sum"] - before
        self._devices.add_at("in_flight", uses >> _OP_BITS, uses & (1 << _OP_BITS) - 1, in_flight)
        self._add_busy(*map(np.concatenate, zip(*busy, strict=True)))

    def _add_latencies(self, made: Ints, issued: Ints, done: Ints, rows: Ints) -> None:
        all_known = min(made.min(), issued.min(), done.min()) > 0
        for stage, start, end in (("queue", made, issued), ("device", issued, done), ("total", made, done)):
            ns, where = end - start, rows
            if not all_known:
                known = (start > 0) & (end > 0)
                ns, where = ns[known], rows[known]
            np.maximum(ns, 0, out=ns)  # the clocks of two CPUs may differ
            ns = ns.astype(np.float64)
            self._streams.add_at(stage, where, bucket(ns, LATENCY_EXPONENTS))
            self._streams.add(f"{stage}_sum", where, ns)
            if self._detail:
                self._streams.raise_to(f"{stage}_max", where, ns)
                self._streams.add_at(f"{stage}_fine", where, latencies.column(ns))

    def _add_busy(self, uses: NDArray[np.uint16], starts: Ints, ends: Ints) -> None:
        """uses: a device and op each, as in ``_busy``."""
        for groups, busy in ((uses, self._busy), (uses >> _OP_BITS, self._device_busy)):
            for group in np.flatnonzero(np.bincount(groups)).tolist():
                chosen = groups == group
                busy.setdefault(group, BusyTime()).add(starts[chosen], ends[chosen])

    def add_calls(self, totals: Records, owners: NDArray[np.int32]) -> None:
        """Count calls: CALL rows, shape (k,), and the owner of each."""
        self._calls.add(totals, owners)

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
        self._calls.forget(gone)

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
        return folded(self._streams) + folded(self._errors) + self._calls.folded

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
        sizes = self._size_percentiles(table["size_sum"], size_table)
        return [
            Stream(
                *self._split_stream(key),
                requests=int(table["requests"][row]),
                bytes=int(table["bytes"][row]),
                errors=int(table["errors"][row]),
                requeues=int(table["requeues"][row]),
                exact=not table["added_up"][row],
                size_bytes=sizes[row],
                latency_seconds={
                    stage: latencies.percentiles(
                        table[f"{stage}_fine"][row], int(table[f"{stage}_max"][row]), int(table[f"{stage}_sum"][row])
                    )
                    if self._detail
                    else None
                    for stage in STAGES
                },
            )
            for row, key in table.rows()
        ]

    @staticmethod
    def _size_percentiles(sums: Ints, table: Rows) -> list[Percentiles | None]:
        """Of each stream, whose sizes add up to sums: exact, from every size that occurred."""
        found: list[Percentiles | None] = [None] * len(sums)
        order = np.argsort(table.keys)
        keys, counts = table.keys[order], table["requests"][order]
        rows, first = np.unique(keys >> 32, return_index=True)
        for row, begin, end in zip(rows.tolist(), first, np.append(first, len(keys))[1:], strict=True):
            cumulative = np.cumsum(counts[begin:end])
            ranks = [-(-int(cumulative[-1]) * p // 100) for p in (50, 90, 99, 100)]
            sizes = keys[begin:end][np.searchsorted(cumulative, ranks)] & 0xFFFFFFFF
            found[row] = Percentiles(*(int(value) for value in (*sizes, sums[row])))
        return found

    def request_distributions(self) -> list[RequestDistributions]:
        table = self._streams
        shown = table.shown
        if not len(shown):
            return []
        # Streams that only engine and path tell apart, one after the other.
        role_bits = table.keys[shown] & (1 << _ROLE_BITS) - 1
        role = np.where(role_bits < FIRST_UNDECIDED, role_bits, OTHER_ROLE)
        keys = table.keys[shown] >> (_ENGINE_BITS + _PATH_BITS + _ROLE_BITS) << _ROLE_BITS | role
        order = np.argsort(keys, kind="stable")
        keys, first = np.unique(keys[order], return_index=True)
        order = shown[order]

        def merged(field: str) -> NDArray[np.int64]:
            totals: NDArray[np.int64] = np.add.reduceat(table[field][order], first, axis=0)
            return totals

        size, size_sum = merged("size"), merged("size_sum").tolist()
        stages = {stage: (merged(stage), (merged(f"{stage}_sum") / 1e9).tolist()) for stage in STAGES}
        return [
            RequestDistributions(
                *self._split(key >> _ROLE_BITS),
                ROLES[key & (1 << _ROLE_BITS) - 1],
                Distribution(size[row], float(size_sum[row])),
                {stage: Distribution(counts[row], sums[row]) for stage, (counts, sums) in stages.items()},
            )
            for row, key in enumerate(keys.tolist())
        ]

    def errors(self) -> list[ErrorCount]:
        return [
            ErrorCount(
                *self._split(key >> _STATUS_BITS), key & ((1 << _STATUS_BITS) - 1), int(self._errors["requests"][row])
            )
            for row, key in self._errors.rows()
        ]

    def submissions(self) -> list[Submission]:
        return self._calls.submissions()

    def call_distributions(self) -> list[CallDistributions]:
        return self._calls.distributions()

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


def _busy_intervals(
    uses: NDArray[np.uint16], issued: Ints, done: Ints
) -> tuple[NDArray[np.uint16], Ints, Ints]:  # fmt: skip
    """Few with the same union, by use."""
    seen = issued <= done
    if issued.min(initial=1) <= 0 or not seen.all():
        seen &= issued > 0
        uses, issued, done = uses[seen], issued[seen], done[seen]
    return chains(uses, issued, done)


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
