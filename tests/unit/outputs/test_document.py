"""The JSON document keeps its promises: shape, whose bytes, unknown as null, names made safe."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from jsonschema import Draft202012Validator, ValidationError

from llmio_probe.aggregate.rows import STAGES, ErrorCount, FileUse, Stream, Submission
from llmio_probe.kernel.records import Engine, Op, Path
from llmio_probe.kernel.state import DeviceCounts, ProbeState
from llmio_probe.outputs.document import Document, dump, schema


@pytest.fixture
def validator() -> Draft202012Validator:
    Draft202012Validator.check_schema(schema())
    return Draft202012Validator(schema())


@pytest.fixture
def full(
    document: Any,
    stream: Callable[..., Stream],
    submission: Callable[..., Submission],
    file_use: Callable[..., FileUse],
    dm: int,
) -> Document:
    """Something in every list, and null wherever it is allowed."""
    made: Document = document(
        [
            stream(),
            stream(owner=4, op=Op.WRITE, engine=Engine.KERNEL, path=Path.WRITEBACK, role="other"),
            stream(owner=0, op=Op.FLUSH, engine=Engine.UNKNOWN, path=Path.UNKNOWN, role="other", size_bytes=None),
            stream(device=dm, latency_seconds=dict.fromkeys(STAGES)),
        ],
        [submission(), submission(op=None, bytes=None, submit_seconds=None, wait_seconds=1.5)],
        errors=[ErrorCount(2, dm, Op.READ, 10, 1)],
        used=[file_use(), file_use(file=3, owner=0, read_bytes=0)],
        session=lambda owner: True,
        command=["python", "-m", "flexgen.flex_opt"],
    )
    return made


def test_every_document_follows_the_schema(validator: Any, full: Document, document: Any) -> None:
    validator.validate(full)
    validator.validate(document([]))


def test_the_schema_refuses_what_the_design_does_not_name(validator: Any, full: Document) -> None:
    lists = [full[name][0] for name in ("workers", "streams", "files", "submissions", "errors", "devices")]
    parts = [full[name] for name in ("host", "command", "attribution", "accounting", "losses")]
    for place in (full, *lists, *parts):
        place["surprise"] = 1
        with pytest.raises(ValidationError):
            validator.validate(full)
        del place["surprise"]
    validator.validate(full)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        *(("streams", key) for key in ("requests", "bytes", "role", "device", "exact")),
        *(("files", key) for key in ("device", "inode", "role", "read_bytes", "write_bytes", "requests")),
        ("files", "shared_writers"),
    ],
)
def test_the_schema_refuses_null_where_a_value_is_always_known(
    validator: Any, full: Document, name: str, key: str
) -> None:
    full[name][0][key] = None
    with pytest.raises(ValidationError):
        validator.validate(full)


@pytest.mark.parametrize("key", ["file_bytes", "shared_writers_bytes", "data_bytes"])
@pytest.mark.parametrize("value", [None, -1, 0.5])
def test_the_schema_wants_bytes_that_are_known(validator: Any, full: Document, key: str, value: object) -> None:
    full["attribution"][key] = value
    with pytest.raises(ValidationError):
        validator.validate(full)


def test_the_schema_describes_every_field_of_a_file_that_its_name_does_not() -> None:
    fields = schema()["$defs"]["file"]["properties"]
    plain = {"worker", "pid", "read_bytes", "write_bytes"}
    assert {name for name, field in fields.items() if "description" not in field} == plain
    assert set(schema()["$defs"]["file"]["required"]) == set(fields)


def test_the_keys_come_in_the_order_of_the_design(full: Document) -> None:
    assert " ".join(full) == (
        "schema start duration_seconds end scope host command workers streams files submissions errors devices "
        "attribution accounting losses"
    )
    assert " ".join(full["workers"][0]) == "worker pid start_ticks framework rank container pod command"
    assert " ".join(full["streams"][0]) == (
        "worker pid device op engine path role requests bytes errors requeues exact size_bytes latency_seconds"
    )
    assert " ".join(full["files"][0]) == (
        "path worker_path device inode worker pid role deleted read_bytes write_bytes requests shared_writers"
    )
    assert " ".join(full["attribution"]) == (
        "data_bytes worker_bytes kernel_bytes unknown_bytes file_bytes shared_writers_bytes"
    )
    assert " ".join(full["submissions"][0]) == ("worker pid engine op calls requests bytes submit_seconds wait_seconds")


def test_the_start_is_utc_in_milliseconds(document: Any) -> None:
    local = datetime(2026, 1, 1, 2, 0, 0, 123456, tzinfo=timezone(timedelta(hours=2)))
    assert document([], start=local)["start"] == "2026-01-01T00:00:00.123Z"


def test_a_stream_says_all_that_its_row_says(document: Any, stream: Callable[..., Stream]) -> None:
    made = document([stream(errors=1, requeues=2)])
    assert made["streams"] == [
        {
            "worker": "flexgen",
            "pid": 123,
            "device": "nvme0n1",
            "op": "read",
            "engine": "mmap",
            "path": "page_cache",
            "role": "weights",
            "requests": 10,
            "bytes": 1310720,
            "errors": 1,
            "requeues": 2,
            "exact": True,
            "size_bytes": {"p50": 131072, "p90": 131072, "p99": 131072, "max": 131072, "sum": 1310720},
            "latency_seconds": {
                "queue": {"p50": 2e-06, "p90": 4e-06, "p99": 8e-06, "max": 9e-06, "sum": 3e-05},
                "device": {"p50": 9.8e-05, "p90": 0.0004, "p99": 0.0012, "max": 0.0025, "sum": 0.00547},
                "total": {"p50": 0.0001, "p90": 0.0004, "p99": 0.00121, "max": 0.00251, "sum": 0.0055},
            },
        }
    ]
    assert all(type(value) is int for value in made["streams"][0]["size_bytes"].values())


def test_streams_and_workers_of_neighbours_stay_out(document: Any, stream: Callable[..., Stream]) -> None:
    made = document([stream(), stream(owner=3), stream(owner=0), stream(owner=4)])
    assert [row["worker"] for row in made["streams"]] == ["flexgen"]
    assert [row["worker"] for row in made["workers"]] == ["flexgen"]


def test_rows_without_a_process_have_no_pid_and_no_worker_entry(document: Any, stream: Callable[..., Stream]) -> None:
    made = document([stream(owner=0), stream(owner=4)], session=lambda owner: True)
    assert [(row["worker"], row["pid"]) for row in made["streams"]] == [("kernel:journal", None), ("unknown", None)]
    assert made["workers"] == []


def test_a_process_that_only_submitted_is_a_worker(document: Any, submission: Callable[..., Submission]) -> None:
    assert [row["pid"] for row in document([], [submission()])["workers"]] == [123]


def test_a_process_of_which_only_the_id_is_known_has_no_command(
    document: Any, validator: Any, stream: Callable[..., Stream], owners: dict[int, Any], worker: Any
) -> None:
    made = document([stream()], owners={**owners, 2: worker(2, "pid123", 123, command=None, framework=None)})
    assert [(row["worker"], row["command"]) for row in made["workers"]] == [("pid123", None)]
    validator.validate(made)


def test_two_processes_with_the_same_worker_and_pid_stay_apart(
    document: Any, stream: Callable[..., Stream], owners: dict[int, Any], worker: Any
) -> None:
    restarted = {**owners, 7: worker(7, "flexgen", 123, 2000)}
    made = document([stream(), stream(owner=7)], owners=restarted)
    assert len(made["streams"]) == 2
    assert [row["start_ticks"] for row in made["workers"]] == [1000, 2000]


def test_unknown_engine_and_path_are_null(document: Any, stream: Callable[..., Stream]) -> None:
    (row,) = document([stream(engine=Engine.UNKNOWN, path=Path.UNKNOWN)])["streams"]
    assert (row["engine"], row["path"]) == (None, None)


def test_devices_say_what_the_session_and_what_others_moved(document: Any, stream: Callable[..., Stream]) -> None:
    made = document(
        [
            stream(bytes=100),
            stream(op=Op.DISCARD, bytes=1 << 30),
            stream(owner=3, op=Op.WRITE, bytes=30),
            stream(owner=4, bytes=7),
        ]
    )
    assert made["devices"] == [
        {
            "device": "nvme0n1",
            "layer": "disk",
            "session_bytes": 100,
            "others_bytes": 37,
            "neighbours": [
                {"worker": "backup", "pid": 456, "bytes": 30},
                {"worker": "kernel:journal", "pid": None, "bytes": 7},
            ],
            "busy_seconds": 4.0,
            "in_flight_seconds": 10.0,
            "device_seconds": 0.02188,  # of four streams
        }
    ]


def test_neighbours_are_whole_owners_the_largest_first(document: Any, stream: Callable[..., Stream]) -> None:
    rows = [stream(owner=0, bytes=5), stream(owner=3, bytes=3), stream(owner=3, op=Op.WRITE, bytes=4)]
    [device] = document([*rows, stream(owner=4, op=Op.DISCARD, bytes=1 << 30)])["devices"]
    assert [(row["worker"], row["bytes"]) for row in device["neighbours"]] == [("backup", 7), ("unknown", 5)]
    assert device["others_bytes"] == 12


def test_of_the_whole_host_everybody_is_the_session(
    document: Any, validator: Any, stream: Callable[..., Stream]
) -> None:
    made = document([stream(bytes=100), stream(owner=3, bytes=30), stream(owner=0, bytes=7)], session=None)
    assert made["scope"] == "host"
    assert len(made["streams"]) == 3
    [device] = made["devices"]
    assert (device["session_bytes"], device["others_bytes"], device["neighbours"]) == (137, 0, [])
    validator.validate(made)


def test_errors_are_the_sessions_own_by_their_status(document: Any, validator: Any, nvme: int, dm: int) -> None:
    rows = [
        ErrorCount(2, nvme, Op.READ, 10, 2),
        ErrorCount(2, dm, Op.WRITE, 15, 1),
        ErrorCount(3, nvme, Op.READ, 10, 9),
    ]
    made = document([], errors=rows)
    flexgen = {"worker": "flexgen", "pid": 123}
    assert made["errors"] == [
        {**flexgen, "device": "dm-0", "op": "write", "status": "15", "requests": 1},
        {**flexgen, "device": "nvme0n1", "op": "read", "status": "ioerr", "requests": 2},
    ]
    validator.validate(made)
    assert [row["device"] for row in document([], errors=rows, device_filter=frozenset({dm}))["errors"]] == ["dm-0"]


def test_a_stream_of_parts_only_is_shown_with_its_bytes_and_without_percentiles(
    document: Any, validator: Any, stream: Callable[..., Stream]
) -> None:
    made = document([stream(requests=0, bytes=4096, size_bytes=None, latency_seconds=dict.fromkeys(STAGES))])
    (row,) = made["streams"]
    assert (row["requests"], row["bytes"], row["size_bytes"]) == (0, 4096, None)
    assert row["latency_seconds"] == dict.fromkeys(STAGES)
    assert [device["session_bytes"] for device in made["devices"]] == [4096]
    assert made["attribution"]["data_bytes"] == 4096
    validator.validate(made)


def test_a_device_without_requests_is_left_out_and_unknown_busy_time_is_null(
    document: Any, stream: Callable[..., Stream], dm: int
) -> None:
    assert document([stream(requests=0, bytes=0)])["devices"] == []
    assert document([stream(device=dm)])["devices"][0]["busy_seconds"] is None


def test_the_device_filter_holds_for_streams_devices_attribution_and_accounting(
    document: Any, stream: Callable[..., Stream], state: ProbeState, nvme: int, dm: int
) -> None:
    both = replace(state, devices=[*state.devices, DeviceCounts(dm, 7, 7, 0, 0, 0, 0, 0, {})])
    made = document([stream(), stream(device=dm)], state=both, device_filter=frozenset({dm}))
    assert [row["device"] for row in made["streams"]] == ["dm-0"]
    assert [row["device"] for row in made["devices"]] == ["dm-0"]
    assert made["attribution"]["data_bytes"] == 0
    assert made["accounting"]["started"] == 7


def test_attribution_covers_everybody_on_disks_only(document: Any, stream: Callable[..., Stream], dm: int) -> None:
    made = document(
        [
            stream(bytes=100),
            stream(owner=3, bytes=10),
            stream(owner=4, bytes=5),
            stream(owner=0, bytes=1),
            stream(device=dm),
        ]
    )
    assert made["attribution"] == {
        "data_bytes": 116,
        "worker_bytes": 110,
        "kernel_bytes": 5,
        "unknown_bytes": 1,
        "file_bytes": 115,
        "shared_writers_bytes": 0,
    }


def test_the_kernels_own_bytes_have_no_file_and_that_is_known(document: Any, stream: Callable[..., Stream]) -> None:
    assert document([stream(owner=4, bytes=5)])["attribution"]["file_bytes"] == 5
    assert document([stream(owner=0, bytes=5)])["attribution"]["file_bytes"] == 0


def test_bytes_of_files_with_several_writers_are_told(document: Any, stream: Callable[..., Stream]) -> None:
    assert document([stream()], shared=4096)["attribution"]["shared_writers_bytes"] == 4096


def test_a_file_says_all_that_its_row_says(document: Any, file_use: Callable[..., FileUse]) -> None:
    made = document([], used=[file_use(write_bytes=4096, shared=True)])
    assert made["files"] == [
        {
            "path": "/nvme/t_12",
            "worker_path": "/data/t_12",
            "device": "nvme0n1",
            "inode": 12,
            "worker": "flexgen",
            "pid": 123,
            "role": "weights",
            "deleted": False,
            "read_bytes": 1048576,
            "write_bytes": 4096,
            "requests": 8,
            "shared_writers": True,
        }
    ]


def test_what_is_not_known_of_a_file_is_null(document: Any, validator: Any, file_use: Callable[..., FileUse]) -> None:
    made = document([], used=[file_use(file=3, owner=0)], session=lambda owner: True)
    (row,) = made["files"]
    assert [row[key] for key in ("path", "worker_path", "pid", "deleted", "role")] == [None, None, None, None, "other"]
    validator.validate(made)


def test_files_of_neighbours_and_of_devices_not_asked_for_stay_out(
    document: Any, file_use: Callable[..., FileUse], nvme: int, dm: int
) -> None:
    used = [file_use(), file_use(owner=3), file_use(owner=0), file_use(file=2, device=dm)]
    assert [row["path"] for row in document([], used=used)["files"]] == ["/nvme/cache", "/nvme/t_12"]
    made = document([], used=used, device_filter=frozenset({nvme}))
    assert [row["path"] for row in made["files"]] == ["/nvme/t_12"]


def test_files_come_by_bytes_and_then_by_path(document: Any, file_use: Callable[..., FileUse], dm: int) -> None:
    used = [
        file_use(read_bytes=1, write_bytes=1),
        file_use(file=2, read_bytes=2),
        file_use(file=3, read_bytes=0, write_bytes=2),
        file_use(file=2, device=dm, read_bytes=0, write_bytes=3),
    ]
    for rows in (used, used[::-1]):
        found = [(row["path"], row["device"]) for row in document([], used=rows)["files"]]
        assert found == [
            ("/nvme/cache", "dm-0"), (None, "nvme0n1"), ("/nvme/cache", "nvme0n1"), ("/nvme/t_12", "nvme0n1"),
        ]  # fmt: skip


def test_accounting_and_losses_are_sums(document: Any, state: ProbeState) -> None:
    losses = replace(state.losses, requests=1, calls=2, processes=4, missed_probes={"a": 3, "b": 5})
    made = document([], state=replace(state, losses=losses))
    assert made["accounting"] == {
        "started": 20,
        "finished": 17,
        "merged": 1,
        "in_flight": 2,
        "expired": 0,
        "in_flight_at_attach": 2,
    }
    assert made["losses"] == {"records_lost": 3, "overflowed_requests": 0, "missed_probes": 8}


def test_what_the_kernel_does_not_count_is_null(document: Any, state: ProbeState) -> None:
    made = document([], state=replace(state, losses=replace(state.losses, missed_probes={})))
    assert made["losses"]["missed_probes"] is None


def test_names_from_outside_are_escaped(
    document: Any,
    stream: Callable[..., Stream],
    file_use: Callable[..., FileUse],
    files: Any,
    owners: dict[int, Any],
    worker: Any,
) -> None:
    files.files[1].path, files.seen_as[1, 123] = "/a\nb\udcff", "/\x1b[2J"
    hostile = {**owners, 2: worker(2, "evil\x1b[2J", 123, command="a\nb", rank="\udcff")}
    made = document([stream()], used=[file_use()], owners=hostile, command=["run\x07", "\udcff"])
    assert made["command"]["argv"] == ["run\\x07", "\\xff"]
    assert made["streams"][0]["worker"] == "evil\\x1b[2J"
    assert (made["files"][0]["path"], made["files"][0]["worker_path"]) == ("/a\\x0ab\\xff", "/\\x1b[2J")
    assert (made["workers"][0]["command"], made["workers"][0]["rank"]) == ("a\\x0ab", "\\xff")


def test_the_order_does_not_depend_on_the_rows(document: Any, stream: Callable[..., Stream]) -> None:
    rows = [stream(op=op, engine=engine) for op in (Op.WRITE, Op.READ) for engine in (Engine.MMAP, Engine.UNKNOWN)]
    assert document(rows) == document(rows[::-1])


def test_dump_writes_one_ascii_document_and_refuses_nan(full: Document) -> None:
    stream = io.StringIO()
    dump(full, stream)
    text = stream.getvalue()
    assert json.loads(text) == full
    assert text.isascii()
    assert text.endswith("}\n")
    assert text.splitlines()[1] == '  "schema": "llmio-probe/summary/1",'
    broken = deepcopy(full)
    broken["duration_seconds"] = float("nan")
    with pytest.raises(ValueError, match="JSON"):
        dump(broken, stream)
