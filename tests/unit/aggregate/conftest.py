"""Records made by hand and series to put them into. Fields are what a test says, else plain ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from llmio_probe.aggregate.series import Series
from llmio_probe.kernel.records import CALL, REQUEST, CallFlag, Engine, Op, Path, Records, RequestFlag
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


def calls(count: int = 1, **fields: Any) -> Records:
    """io_submit of 32 reads of 4 KiB that took 50 us."""
    records = np.zeros(count, CALL)
    usual = {
        "start_ns": 1000 * US, "submitted_ns": 1050 * US, "end_ns": 1050 * US, "requests": 32, "reads": 32,
        "read_bytes": 32 * 4096, "engine": Engine.LIBAIO, "flags": CallFlag.SUBMIT,
    }  # fmt: skip
    for name, value in (usual | fields).items():
        records[name] = value
    return records


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
