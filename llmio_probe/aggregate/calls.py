"""Calls into totals: what was asked for through each engine, how many requests at once, and how long that took.

Only counting may go in here, as in series.py, whose part it is. What was counted stays counted until ``forget``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmio_probe.aggregate.buckets import LATENCY_EDGES, REQUESTS_EDGES
from llmio_probe.aggregate.limit import Fields, Labels, Need, folded
from llmio_probe.aggregate.rows import CallDistributions, Distribution, Submission
from llmio_probe.aggregate.table import Rows
from llmio_probe.kernel.records import Engine, Op, Records

_OPS: tuple[Op | None, ...] = (*Op, None)
_ENGINE_BITS = _OP_BITS = 3

Ints = NDArray[np.int64]


CALL_SERIES = 50
"""What Prometheus shows of an owner and an engine, see series.py."""


def _needs(key: int) -> list[Need]:
    return [(("call", key), CALL_SERIES)]


_LABELS = Labels("distributions", _ENGINE_BITS, _needs, none=Engine.UNKNOWN)


class Calls:
    """limited: makes the tables whose rows show in Prometheus (limit.py)."""

    def __init__(self, limited: Callable[[Fields, Labels], Rows]) -> None:
        latency, requests = len(LATENCY_EDGES) + 1, len(REQUESTS_EDGES) + 1
        self._submissions = Rows(
            {"calls": ("i8", ()), "requests": ("i8", ()), "bytes": ("i8", ()), "parts": ("i8", ()),
             "submit": ("f8", ()), "wait": ("f8", ())}
        )  # fmt: skip
        self._calls = limited(
            {"requests": ("i8", (requests,)), "submit": ("i8", (latency,)), "wait": ("i8", (latency,)),
             "requests_sum": ("i8", ()), "submit_sum": ("i8", ()), "wait_sum": ("i8", ())},
            _LABELS,
        )  # fmt: skip

    def add(self, totals: Records, owners: NDArray[np.int32]) -> None:
        """Count calls: CALL rows, shape (k,), and the owner of each."""
        if not len(totals):
            return
        key = owners.astype(np.int64) << _ENGINE_BITS | totals["engine"]
        calls, requests, submit_ns, parts = (
            totals[name].astype(np.int64) for name in ("calls", "requests", "submit_ns", "parts")
        )
        polled, wait_ns, reaped = (totals[name].astype(np.int64) for name in ("polled", "wait_ns", "reaped"))
        waits = totals["wait_counts"].sum(axis=1, dtype=np.int64)
        rows = self._calls.find(key)
        for field, counts, sums in (
            ("requests", "request_counts", requests.sum(axis=1) - polled),
            ("submit", "submit_counts", submit_ns.sum(axis=1)),
            ("wait", "wait_counts", wait_ns),
        ):
            np.add.at(self._calls[field], rows, totals[counts].astype(np.int64))
            self._calls.add(f"{field}_sum", rows, sums)
        nothing = np.zeros(len(totals), np.int64)
        for column, (op, size) in enumerate(
            ((Op.READ, totals["read_bytes"]), (Op.WRITE, totals["write_bytes"]), (Op.OTHER, nothing))
        ):
            # Read amid an addition, any of them may be there without the others.
            chosen = (calls | requests | submit_ns | parts)[:, column].astype(bool) | (size > 0)
            self._add_submissions(
                key, chosen, op, calls[:, column], requests[:, column], size, parts[:, column],
                submit_ns[:, column], nothing,
            )  # fmt: skip
        waited = (waits | reaped | wait_ns) > 0
        self._add_submissions(key, waited, None, waits, reaped, nothing, nothing, nothing, wait_ns)

    def _add_submissions(
        self, key: Ints, chosen: NDArray[np.bool_], op: Op | None, calls: NDArray[Any], requests: NDArray[Any],
        size: NDArray[Any], parts: NDArray[Any], submit_ns: NDArray[Any], wait_ns: NDArray[Any],
    ) -> None:  # fmt: skip
        if not chosen.any():
            return
        rows = self._submissions.find(key[chosen] << _OP_BITS | _OPS.index(op))
        for field, amounts in (
            ("calls", calls), ("requests", requests), ("bytes", size), ("parts", parts),
            ("submit", submit_ns), ("wait", wait_ns),
        ):  # fmt: skip
            self._submissions.add(field, rows, amounts[chosen])

    def forget(self, owners: Ints) -> None:
        """Drop the series of owners that have ended."""
        self._submissions.keep(~np.isin(self._submissions.keys >> (_ENGINE_BITS + _OP_BITS), owners))
        self._calls.keep(~np.isin(self._calls.keys >> _ENGINE_BITS, owners))

    @property
    def folded(self) -> int:
        """As of Series."""
        return folded(self._calls)

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
            for row, key in table.rows()
        ]
