"""Batches into cumulative series: streams, histograms, submissions, device use. One call a batch, all of it array work.

Only counting may go in here: who an owner is, what a device is called and what is shown is for others. What was counted
stays counted until ``forget``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from llmio_probe.aggregate import latencies
from llmio_probe.aggregate.buckets import (
    LATENCY_EDGES,
    LATENCY_EXPONENTS,
    SIZE_EDGES,
    SIZE_EXPONENTS,
    bucket,
    by_bucket,
)
from llmio_probe.aggregate.busy import BusyTime, chains, joined
from llmio_probe.aggregate.calls import Calls
from llmio_probe.aggregate.combinations import PIECE, Combined, select
from llmio_probe.aggregate.files import FileTable
from llmio_probe.aggregate.limit import Labels, Need, folded, tables_within
from llmio_probe.aggregate.rows import (
    OTHER_DEVICE,
    OTHER_STATUS,
    STAGES,
    AttributedBytes,
    CallDistributions,
    DeviceUse,
    Distribution,
    ErrorCount,
    FileUse,
    Percentiles,
    RequestDistributions,
    Stage,
    Stream,
    Submission,
)
from llmio_probe.aggregate.table import Rows
from llmio_probe.aggregate.times import Times
from llmio_probe.identity.roles import FIRST_UNDECIDED, OTHER_ROLE, ROLES
from llmio_probe.kernel.records import Engine, Op, OwnerKind, Path, Records, RequestFlag

_DATA_OPS = np.array([op in (Op.READ, Op.WRITE, Op.PASSTHROUGH) for op in Op])
"""Ops whose bytes are data; a discard has a size and no data, a flush neither."""

_ENGINE_BITS = _OP_BITS = _PATH_BITS = 3
_ROLE_BITS = 11
"""Roles, and some 1,000 undecided ones. With 31 bits of an owner a stream's key is 63 bits long."""
_DEVICE_BITS = 12
_STATUS_BITS = 8
_WAY_BITS = _ENGINE_BITS + _PATH_BITS
"""What streams with the same distributions differ in."""
_DISTRIBUTION_BITS = _DEVICE_BITS + _OP_BITS + _ROLE_BITS
_STREAM_BITS = _DISTRIBUTION_BITS + _WAY_BITS
"""What a stream's key holds beside its owner, from the top: device, op, role, engine, path."""
_ERROR_BITS = _DEVICE_BITS + _OP_BITS + _STATUS_BITS
_NO_DEVICE = (1 << _DEVICE_BITS) - 1
"""In the place of a device's row: of OTHER_DEVICE, and of any device after so many. Those have no use of their own."""

STREAM_SERIES, WORKER_SERIES, SIZE_SERIES, LATENCY_SERIES, ERROR_SERIES = 2, 1, 17, 51, 1
"""What Prometheus shows of a stream: requests and bytes; of who has any; of each (owner, device, op, role), and of each
(owner, device, op); of each status. outputs/metrics.py has the buckets, a test holds them together."""
PROMISED_WORKERS = 24
"""For so many and "other" on each (device, op) distributions leave room for counters: as many as have series of their
own where the configuration says nothing."""

Ints = NDArray[np.int64]


def _stream_needs(key: int) -> list[Need]:
    return [(("stream", key), STREAM_SERIES), (("worker", key >> _STREAM_BITS), WORKER_SERIES)]


def _distribution_needs(key: int) -> list[Need]:
    return [(("size", key), SIZE_SERIES), (("latency", key >> _ROLE_BITS), LATENCY_SERIES)]


def _error_needs(key: int) -> list[Need]:
    return [(("error", key), ERROR_SERIES)]


def _coarse_stream(labels: int) -> int:
    """Device and op stay; the role is other, engine and path are unknown."""
    return _coarse_distribution(labels >> _WAY_BITS) << _WAY_BITS


def _coarse_distribution(labels: int) -> int:
    return labels >> _ROLE_BITS << _ROLE_BITS | OTHER_ROLE


_NOWHERE = _NO_DEVICE << _OP_BITS | Op.OTHER
_STREAM_LABELS = Labels(
    "counters", _STREAM_BITS, _stream_needs, (_NOWHERE << _ROLE_BITS | OTHER_ROLE) << _WAY_BITS, _coarse_stream,
    (PROMISED_WORKERS + 1) * STREAM_SERIES,
)  # fmt: skip
_DISTRIBUTION_LABELS = Labels(
    "distributions", _DISTRIBUTION_BITS, _distribution_needs, _NOWHERE << _ROLE_BITS | OTHER_ROLE, _coarse_distribution
)
_ERROR_LABELS = Labels("counters", _ERROR_BITS, _error_needs, _NOWHERE << _STATUS_BITS | OTHER_STATUS)


class _Places(NamedTuple):
    """Where each is counted. Shape (k,) each."""

    streams: Ints  # rows
    distributions: Ints  # rows
    keys: Ints  # of owner, device and op
    devices: Ints  # rows
    ops: Ints

    def where(self, chosen: NDArray[np.bool_]) -> _Places:
        return _Places(*(each[chosen] for each in self))


class Series:
    """Totals since it was made.

    detail: keep what exact sizes, latency percentiles and the list of files need (ad-hoc sessions): 20 kB a stream.
    most_series: so many in Prometheus (see limit.py); None: as many as there are. preferred: whether an owner's
    distributions are shown rather than others'.
    """

    def __init__(
        self, *, detail: bool, most_series: int | None = None, preferred: Callable[[int], bool] = lambda owner: False
    ) -> None:
        self._detail = detail
        self._joined_bits = 0 if detail else _WAY_BITS
        """How much shorter than a stream's key is that of its distributions: percentiles are asked for by stream."""
        limited = tables_within(most_series, preferred, (PROMISED_WORKERS + 1) * WORKER_SERIES)
        size, latency = len(SIZE_EDGES) + 1, len(LATENCY_EDGES) + 1
        distributions: dict[str, tuple[Any, tuple[int, ...]]] = {"size": ("i8", (size,)), "size_sum": ("i8", ())}
        for stage in STAGES:
            distributions |= {stage: ("i8", (latency,)), f"{stage}_sum": ("i8", ()), f"{stage}_max": ("i8", ())}
            if detail:
                distributions[f"{stage}_fine"] = ("u4", (latencies.COLUMNS,))
        counters = dict.fromkeys(("requests", "bytes", "errors", "requeues", "added_up"), ("i8", ()))
        self._streams = limited(counters, _STREAM_LABELS)
        self._distributions = limited(distributions, _DISTRIBUTION_LABELS)
        self._sizes = Rows({"requests": ("i8", ())})  # by row of the distributions, and size
        self._errors = limited({"requests": ("i8", ())}, _ERROR_LABELS)
        self._users = Rows({})  # owners on a device
        self._files = FileTable()
        self._calls = Calls(limited)
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
        places = self._places(samples, owners, roles)
        whole = samples["flags"] & RequestFlag.PART == 0
        self._add_bytes(samples, samples["bytes"] * counts, np.where(whole, counts, 0), places, files)
        rows = np.bincount(places.distributions).nonzero()[0]
        which = batch.spread(np.searchsorted(rows, places.distributions))
        if whole.all():
            self._add_whole(samples, counts, places)
            self._add_times(batch.records, rows, which, batch.lengths)
        elif whole.any():  # from here on a part is nothing
            self._add_whole(samples[whole], counts[whole], places.where(whole))
            chosen = batch.spread(whole)
            self._add_times(select(batch.records, chosen), rows, which[chosen], None)

    def add_overflow(
        self, totals: Records, owners: NDArray[np.int32], roles: Ints | None = None,
        files: NDArray[np.int32] | None = None,
    ) -> None:  # fmt: skip
        """Count what was added up in the kernel: OVERFLOW rows, shape (k,), and owners, roles and files of each.

        All that is counted stays exact but for percentiles, which then come from buckets, and busy time.
        """
        if not len(totals):
            return
        places = self._places(totals, owners, roles)
        whole = totals["flags"] & RequestFlag.PART == 0
        requests = np.where(whole, totals["requests"], 0).astype(np.int64)
        self._add_bytes(totals, totals["bytes"].astype(np.int64), requests, places, files)
        totals, places = totals[whole], places.where(whole)
        sums = {name: totals[name].astype(np.int64) for name in ("requests", "request_bytes", "requeues", "total_ns")}
        self._add_counts(totals["status"], sums["requests"], sums["request_bytes"], sums["requeues"], places)
        self._streams.add("added_up", places.streams, sums["requests"])
        distributions, rows = self._distributions, places.distributions
        # What found no room in the kernel's tables either has no sizes, nor an end.
        sized = totals["size_counts"].any(axis=1) | (totals["done_ns"] > 0)
        distributions.add("size_sum", rows, np.where(sized, sums["request_bytes"], 0))
        np.add.at(distributions["size"], rows, totals["size_counts"].astype(np.int64))
        for stage in STAGES:
            np.add.at(distributions[stage], rows, totals[f"{stage}_counts"].astype(np.int64))
            distributions.add(f"{stage}_sum", rows, totals[f"{stage}_ns"])
        if self._detail:
            self._add_bucket_edges(totals, rows)
        device, op = places.devices, places.ops
        self._devices.add_at("in_flight", device, op, sums["total_ns"])
        until = totals["done_ns"].astype(np.int64)
        for groups, busy in ((device << _OP_BITS | op, self._busy), (device, self._device_busy)):
            for group in np.unique(groups).tolist():
                chosen = groups == group
                under_way = int(totals["device_ns"][chosen].sum())
                busy.setdefault(group, BusyTime()).add_total(under_way, int(until[chosen].max()))

    def _add_bucket_edges(self, totals: Records, rows: Ints) -> None:
        """For percentiles: each value counts as the largest of its bucket. rows: of the distributions."""
        where, column = np.nonzero(totals["size_counts"])
        sizes = np.minimum(1 << SIZE_EXPONENTS[0] + column, 0xFFFFFFFF)
        counts = totals["size_counts"][where, column]
        self._sizes.add("requests", self._sizes.find(rows[where] << 32 | sizes), counts)
        for stage in STAGES:
            where, column = np.nonzero(totals[f"{stage}_counts"])
            ns = 1 << LATENCY_EXPONENTS[0] + column
            counts = totals[f"{stage}_counts"][where, column]
            self._distributions.raise_to(f"{stage}_max", rows[where], ns)
            self._distributions.add_at(f"{stage}_fine", rows[where], latencies.column(ns.astype(np.float64)), counts)

    def _places(self, samples: Records, owners: NDArray[np.int32], roles: Ints | None) -> _Places:
        device = self._devices.find(samples["device"].astype(np.int64))
        op = samples["op"].astype(np.int64)
        key = (owners.astype(np.int64) << _DEVICE_BITS | np.minimum(device, _NO_DEVICE)) << _OP_BITS | op
        stream = key << _ROLE_BITS | (OTHER_ROLE if roles is None else roles)
        stream = (stream << _ENGINE_BITS | samples["engine"]) << _PATH_BITS | samples["path"]
        rows = self._streams.find(stream)
        return _Places(rows, self._distributions_of(rows), key, device, op)

    def _distributions_of(self, streams: Ints) -> Ints:
        """The rows that go with rows of streams: those of "other" where the counters already are there.

        By streams, because there are far fewer of them than of what is looked for.
        """
        seen = np.flatnonzero(np.bincount(streams))
        rows = np.empty(len(self._streams), np.int64)
        rows[seen] = self._distributions.find(self._streams.keys[seen] >> self._joined_bits)
        return rows.take(streams)

    def _add_bytes(
        self, samples: Records, bytes_: Ints, requests: Ints, places: _Places, files: NDArray[np.int32] | None
    ) -> None:
        """requests: how many there are of each, 0 of parts."""
        device, op = places.devices, places.ops
        self._streams.add("bytes", places.streams, np.where(_DATA_OPS[op], bytes_, 0))
        moved = np.where(op <= Op.WRITE, bytes_, 0)  # reads and writes
        known = samples["owner"] << 1 | (samples["inode"] != 0)
        self._devices.add_at("attributed", device, known, moved)
        shared = samples["flags"] & RequestFlag.SHARED != 0
        if shared.any():
            self._devices.add_at("shared", device[shared], known[shared], moved[shared])
        if files is not None and self._detail:
            users = self._users.find(self._streams.keys >> (_STREAM_BITS - _DEVICE_BITS))[places.streams]
            self._files.add(files.astype(np.int64), users, op == Op.WRITE, moved, requests, shared)

    def _add_whole(self, samples: Records, counts: Ints, places: _Places) -> None:
        size = samples["request_bytes"].astype(np.int64)
        self._add_counts(samples["status"], counts, size * counts, samples["requeues"] * counts, places)
        rows = places.distributions
        self._distributions.add("size_sum", rows, size * counts)
        self._distributions.add_at("size", rows, bucket(size, SIZE_EXPONENTS), counts)
        if self._detail:
            self._sizes.add("requests", self._sizes.find(rows << 32 | size), counts)

    def _add_counts(
        self, status: NDArray[Any], requests: Ints, request_bytes: Ints, requeues: Ints, places: _Places
    ) -> None:
        """What is the same for requests with records and without; request_bytes and requeues are sums."""
        streams, rows, device, op = self._streams, places.streams, places.devices, places.ops
        streams.add("requests", rows, requests)
        streams.add("requeues", rows, requeues)
        failed = status != 0
        if failed.any():
            streams.add("errors", rows[failed], requests[failed])
            errors = self._errors.find(places.keys[failed] << _STATUS_BITS | status[failed])
            self._errors.add("requests", errors, requests[failed])
        self._devices.add_at("requests", device, op, requests)
        self._devices.add_at("bytes", device, op, np.where(_DATA_OPS[op], request_bytes, 0))
        self._devices.add_at("requeues", device, op, requeues)

    def _add_times(self, records: Records, rows: Ints, which: Ints, lengths: Ints | None) -> None:
        """What no combination shares: latencies, and busy time.

        rows: of distributions, shape (r,). which: an index into these of each record, shape (n,). lengths: of runs.
        """
        below = _ROLE_BITS + _WAY_BITS - self._joined_bits
        uses = self._distributions.keys[rows] >> below & (1 << _DEVICE_BITS + _OP_BITS) - 1
        use_of = uses.astype(np.uint16)
        times = Times(len(rows))
        heads = None if lengths is None else np.cumsum(lengths) - lengths
        busy = []
        for first in range(0, len(records), PIECE):
            piece = slice(first, first + PIECE)
            when = _when(records[piece])
            own = None if heads is None else heads[slice(*np.searchsorted(heads, (first, first + PIECE)))] - first
            ns, places = times.add(when, which[piece], own)
            if self._detail:
                self._add_detail(ns, places, rows)
            busy.append(_busy_intervals(use_of, which[piece], when[1], when[2], own))
        for stage, counts, sums in zip(STAGES, times.counts, times.sums, strict=True):
            self._distributions[stage][rows] += by_bucket(counts, LATENCY_EXPONENTS)
            self._distributions[f"{stage}_sum"][rows] += sums
        total = times.sums[STAGES.index("total")]
        self._devices.add_at("in_flight", uses >> _OP_BITS, uses & (1 << _OP_BITS) - 1, total)
        self._add_busy(*map(np.concatenate, zip(*busy, strict=True)))

    def _add_detail(self, ns: Ints, places: Ints, rows: Ints) -> None:
        """As Times.add returns them: those of one stage after those of another, with places for all rows each."""
        begins = np.searchsorted(places, len(rows) * np.arange(len(STAGES) + 1))
        for index, stage in enumerate(STAGES):
            own = slice(begins[index], begins[index + 1])
            at = rows.take(places[own] - index * len(rows))
            self._distributions.raise_to(f"{stage}_max", at, ns[own])
            self._distributions.add_at(f"{stage}_fine", at, latencies.column(ns[own]))

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
        self._streams.keep(~np.isin(self._streams.keys >> _STREAM_BITS, gone))
        stays = ~np.isin(self._distributions.keys >> (_STREAM_BITS - self._joined_bits), gone)
        self._sizes.keep(stays[self._sizes.keys >> 32])
        self._sizes = self._moved_sizes(np.cumsum(stays) - 1)
        self._distributions.keep(stays)
        self._files.forget(np.flatnonzero(np.isin(self._users.keys >> _DEVICE_BITS, gone)))
        self._errors.keep(~np.isin(self._errors.keys >> _ERROR_BITS, gone))
        self._calls.forget(gone)

    def settle_roles(self, final: Mapping[int, int]) -> None:
        """Put an index into ROLES in the place of each undecided role; other, where there is none. All stays exact."""
        self._streams, self._distributions, self._sizes = self._settled(final)

    def _settled(self, final: Mapping[int, int]) -> tuple[Rows, Rows, Rows]:
        """Streams, distributions and sizes, those that have the same role then in one row."""
        streams, _ = _with_roles(self._streams, _WAY_BITS, final)
        distributions, rows = _with_roles(self._distributions, _WAY_BITS - self._joined_bits, final)
        return streams, distributions, self._sizes if rows is None else self._moved_sizes(rows)

    def _moved_sizes(self, rows: Ints) -> Rows:
        """The sizes once their distributions are in these rows."""
        keys = self._sizes.keys
        return self._sizes.merged(rows[keys >> 32] << 32 | keys & 0xFFFFFFFF)[0]

    @property
    def folded(self) -> int:
        """Label sets so far of which counters, or distributions, are under "other", as there was no room for more."""
        return sum(map(folded, (self._streams, self._distributions, self._errors))) + self._calls.folded

    # --- rows

    def _split_stream(self, key: int) -> tuple[int, int, Op, Engine, Path, str]:
        key, path = key >> _PATH_BITS, key & 7
        key, engine = key >> _ENGINE_BITS, key & 7
        owner, device, op, role = self._split_distribution(key)
        return owner, device, op, Engine(engine), Path(path), role

    def _split_distribution(self, key: int) -> tuple[int, int, Op, str]:
        return *self._split(key >> _ROLE_BITS), ROLES[key & ((1 << _ROLE_BITS) - 1)]

    def _split(self, key: int) -> tuple[int, int, Op]:
        key, op = key >> _OP_BITS, key & 7
        row = key & _NO_DEVICE
        return key >> _DEVICE_BITS, OTHER_DEVICE if row == _NO_DEVICE else int(self._devices.keys[row]), Op(op)

    def streams(self) -> list[Stream]:
        """What is undecided is other."""
        table, distributions, size_table = self._settled({})
        sizes = self._size_percentiles(distributions["size_sum"], size_table)
        place = distributions.find(table.keys).tolist() if self._detail else []
        return [
            Stream(
                *self._split_stream(key),
                requests=int(table["requests"][row]),
                bytes=int(table["bytes"][row]),
                errors=int(table["errors"][row]),
                requeues=int(table["requeues"][row]),
                exact=not table["added_up"][row],
                size_bytes=sizes[place[row]] if self._detail else None,
                latency_seconds=_latency_percentiles(distributions, place[row])
                if self._detail
                else dict.fromkeys(STAGES),
            )
            for row, key in table.rows()
        ]

    @staticmethod
    def _size_percentiles(sums: Ints, table: Rows) -> list[Percentiles | None]:
        """Of each of the distributions, whose sizes add up to sums: exact, from every size that occurred."""
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
        """What is undecided is other."""
        table, _ = _with_roles(self._distributions, _WAY_BITS - self._joined_bits, {})
        if self._detail:
            table, _ = table.merged(table.keys >> _WAY_BITS)
        shown = table.shown
        size, size_sum = table["size"][shown], table["size_sum"][shown].tolist()
        stages = {stage: (table[stage][shown], (table[f"{stage}_sum"][shown] / 1e9).tolist()) for stage in STAGES}
        return [
            RequestDistributions(
                *self._split_distribution(key),
                Distribution(size[index], float(size_sum[index])),
                {stage: Distribution(counts[index], sums[index]) for stage, (counts, sums) in stages.items()},
            )
            for index, (_, key) in enumerate(table.rows())
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
            for index, device in enumerate(table.keys.tolist()[:_NO_DEVICE])
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


def _when(records: Records) -> Ints:
    """When each was made, issued and done, shape (3, n)."""
    when = np.empty((3, len(records)), np.int64)
    for row, name in zip(when, ("made_ns", "issued_ns", "done_ns"), strict=True):
        row[:] = records[name]
    return when


def _busy_intervals(
    use_of: NDArray[np.uint16], which: Ints, issued: Ints, done: Ints, heads: Ints | None
) -> tuple[NDArray[np.uint16], Ints, Ints]:  # fmt: skip
    """Few with the same union, by use."""
    seen = issued <= done
    if issued.min(initial=1) <= 0 or not seen.all():
        seen &= issued > 0
        which, issued, done = which[seen], issued[seen], done[seen]
    elif heads is not None:
        first, issued, done = joined(heads[1:], issued, done)
        which = which[first]
    return chains(use_of.take(which), issued, done)


def _with_roles(table: Rows, below: int, final: Mapping[int, int]) -> tuple[Rows, Ints | None]:
    """The table with a role in the place of each undecided one, and in which of its rows each row has gone.

    below: the bits below the role. None: nothing is undecided, it is the same table.
    """
    role = table.keys >> below & ((1 << _ROLE_BITS) - 1)
    undecided = np.flatnonzero(role >= FIRST_UNDECIDED)
    if not len(undecided):
        return table, None
    settled = np.array([final.get(each, OTHER_ROLE) for each in role[undecided].tolist()])
    keys = table.keys.copy()
    keys[undecided] += settled - role[undecided] << below
    return table.merged(keys, largest=[f"{stage}_max" for stage in STAGES])


def _latency_percentiles(table: Rows, row: int) -> dict[Stage, Percentiles | None]:
    return {
        stage: latencies.percentiles(
            table[f"{stage}_fine"][row], int(table[f"{stage}_max"][row]), int(table[f"{stage}_sum"][row])
        )
        for stage in STAGES
    }
