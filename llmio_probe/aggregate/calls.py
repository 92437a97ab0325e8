"""Calls into totals: what was asked for through each engine, how many requests at once, and how long that took.

Only counting may go in here, as in series.py, whose part it is. What was counted stays counted until ``forget``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmio_probe.aggregate.buckets import (
    LATENCY_EDGES,
    LATENCY_EXPONENTS,
    REQUESTS_EDGES,
    REQUESTS_EXPONENTS,
    bucket,
)
from llmio_probe.aggregate.rows import CallDistributions, Distribution, Submission
from llmio_probe.aggregate.table import Rows
from llmio_probe.kernel.records import CallFlag, Engine, Op, Records

_OPS: tuple[Op | None, ...] = (*Op, None)
_ENGINE_BITS = _OP_BITS = 3

Ints = NDArray[np.int64]


class Calls:
    def __init__(self) -> None:
        latency, requests = len(LATENCY_EDGES) + 1, len(REQUESTS_EDGES) + 1
        self._submissions = Rows(
            {"calls": ("i8", ()), "requests": ("i8", ()), "bytes": ("i8", ()), "parts": ("i8", ()),
             "submit": ("f8", ()), "wait": ("f8", ())}
        )  # fmt: skip
        self._calls = Rows(
            {"requests": ("i8", (requests,)), "submit": ("i8", (latency,)), "wait": ("i8", (latency,)),
             "requests_sum": ("i8", ()), "submit_sum": ("i8", ()), "wait_sum": ("i8", ())}
        )  # fmt: skip

    def add(self, records: Records, owners: NDArray[np.int32]) -> None:
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

    def add_overflow(self, totals: Records, owners: NDArray[np.int32]) -> None:
        """Count calls that were added up in the kernel: CALL_OVERFLOW rows, shape (k,), and the owner of each."""
        if not len(totals):
            return
        key = owners.astype(np.int64) << _ENGINE_BITS | totals["engine"]
        flags = totals["flags"]
        polled, part = flags & CallFlag.POLLED != 0, flags & CallFlag.BYTES_PART != 0
        submits, waits = flags & CallFlag.SUBMIT != 0, flags & CallFlag.WAIT != 0
        records, wait_ns = totals["records"].astype(np.int64), totals["wait_ns"].astype(np.int64)
        calls, requests, submit_ns = (totals[name].astype(np.int64) for name in ("calls", "requests", "submit_ns"))
        rows = self._calls.find(key)
        for field, counts, sums in (
            ("requests", "request_counts", np.where(submits, requests.sum(axis=1), 0)),
            ("submit", "submit_counts", submit_ns.sum(axis=1)),
            ("wait", "wait_counts", wait_ns),
        ):
            np.add.at(self._calls[field], rows, totals[counts].astype(np.int64))
            self._calls.add(f"{field}_sum", rows, sums)
        nothing = np.zeros(len(totals), np.int64)
        for column, (op, size) in enumerate(
            ((Op.READ, totals["read_bytes"]), (Op.WRITE, totals["write_bytes"]), (Op.OTHER, nothing))
        ):
            self._add_submissions(
                key, calls[:, column] > 0, op, np.where(polled, 0, calls[:, column]), requests[:, column], size, part,
                submit_ns[:, column], nothing,
            )  # fmt: skip
        self._add_submissions(
            key, waits, None, np.where(polled, 0, records), totals["reaped"], nothing, part & False, nothing, wait_ns
        )

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

    def forget(self, owners: Ints) -> None:
        """Drop the series of owners that have ended."""
        self._submissions.keep(~np.isin(self._submissions.keys >> (_ENGINE_BITS + _OP_BITS), owners))
        self._calls.keep(~np.isin(self._calls.keys >> _ENGINE_BITS, owners))

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

    def distributions(self) -> list[CallDistributions]:
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
            for row, key in enumerate(table.keys.tolist())
        ]
