"""Records made by hand and series to put them into. Fields are what a test says, else plain ones."""

from __future__ import annotations

from collections.abc import Callable
from enum import IntFlag
from typing import Any

import numpy as np
import pytest

from llmio_probe.aggregate.buckets import LATENCY_EXPONENTS, REQUESTS_EXPONENTS, bucket
from llmio_probe.aggregate.series import Series
from llmio_probe.kernel.records import CALL, REQUEST, Engine, Op, Path, Records, RequestFlag
from tests.singly import add_requests

DISK = 259 << 20
US = 1000
MS = 1000 * US


def requests(count: int = 1, **fields: Any) -> Records:
    """Reads of 4 KiB, made at 1 ms, 10 us in the queue, 100 us on the device; a field is one value or one a record.

    request_bytes follows bytes unless it is given: a request without parts.
    """
    records = np.zeros(count, REQUEST)
    usual = {
        "made_ns": 1000 * US, "issued_ns": 1010 * US, "done_ns": 1110 * US, "device": DISK, "bytes": 4096,
        "op": Op.READ, "engine": Engine.LIBAIO, "path": Path.DIRECT,
    }  # fmt: skip
    for name, value in (usual | fields).items():
        records[name] = value
    if "request_bytes" not in fields:
        records["request_bytes"] = records["bytes"]
    return records


def parts(count: int = 1, **fields: Any) -> Records:
    """Bytes of a write that belong to another owner or file than the rest of it."""
    nothing = dict.fromkeys(("made_ns", "issued_ns", "done_ns", "request_bytes"), 0)
    usual = {"op": Op.WRITE, "engine": Engine.POSIX, "path": Path.WRITEBACK, "flags": RequestFlag.PART}
    return requests(count, **(nothing | usual | fields))


class CallFlag(IntFlag):
    """As bpf/calls.h tells calls apart."""

    SUBMIT = 1
    WAIT = 2
    POLLED = 4
    BYTES_PART = 8


def calls(count: int = 1, **fields: Any) -> Records:
    """io_submit of 32 reads of 4 KiB that took 50 us: the totals of each, as bpf/calls.h adds them up.

    A field is one value or one a call.
    """
    usual = {
        "start_ns": 1000 * US, "submitted_ns": 1050 * US, "end_ns": 1050 * US, "requests": 32, "reads": 32, "writes": 0,
        "read_bytes": 32 * 4096, "write_bytes": 0, "engine": Engine.LIBAIO, "flags": CallFlag.SUBMIT, "reaped": 0,
    }  # fmt: skip
    made = {name: np.broadcast_to(value, count).tolist() for name, value in (usual | fields).items()}
    return np.concatenate([_totals({name: values[i] for name, values in made.items()}) for i in range(count)])


def _totals(call: dict[str, int]) -> Records:
    totals = np.zeros(1, CALL)
    for name in ("read_bytes", "write_bytes", "engine", "reaped"):
        totals[name] = call[name]
    flags, requests = call["flags"], call["requests"]
    submits = bool(flags & CallFlag.SUBMIT and call["submitted_ns"])
    submit_ns = call["submitted_ns"] - call["start_ns"] if submits else 0
    if submits:
        totals["request_counts"][0, bucket_of(requests, REQUESTS_EXPONENTS)] = 1
        totals["submit_counts"][0, bucket_of(submit_ns, LATENCY_EXPONENTS)] = 1
    others = requests - call["reads"] - call["writes"]
    for column, of_op in enumerate((call["reads"], call["writes"], others)):
        if of_op or (column == 2 and submits and not requests):
            totals["calls"][0, column] = not flags & CallFlag.POLLED
            totals["parts"][0, column] = bool(flags & CallFlag.BYTES_PART)
            totals["requests"][0, column] = of_op
            totals["submit_ns"][0, column] = submit_ns * of_op // requests if requests else submit_ns
    if flags & CallFlag.POLLED:
        totals["polled"] = requests
    if flags & CallFlag.WAIT:
        totals["wait_ns"] = call["end_ns"] - (call["submitted_ns"] if submits else call["start_ns"])
        totals["wait_counts"][0, bucket_of(totals["wait_ns"][0], LATENCY_EXPONENTS)] = 1
    return totals


def bucket_of(value: Any, exponents: tuple[int, int]) -> int:
    return int(bucket(np.array([value], np.float64), exponents)[0])


def owned(records: Records, owner: int = 2) -> np.ndarray[Any, np.dtype[np.int32]]:
    return np.full(len(records), owner, np.int32)


@pytest.fixture
def series() -> Series:
    return Series(detail=True)


Count = Callable[..., None]


@pytest.fixture
def count(series: Series) -> Count:
    """count(owner=2, **fields): requests into the series."""

    def add(owner: int = 2, count: int = 1, **fields: Any) -> None:
        records = requests(count, **fields)
        add_requests(series, records, owned(records, owner))

    return add


@pytest.fixture
def count_calls(series: Series) -> Count:
    def add(owner: int = 2, count: int = 1, **fields: Any) -> None:
        records = calls(count, **fields)
        series.add_calls(records, owned(records, owner))

    return add
