"""The live lines show what happened since the last ones, and nothing else."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmio_probe.aggregate.rows import Stream
from llmio_probe.kernel.records import Op
from llmio_probe.outputs.live import HEADER_EVERY, LiveView

HEADER = " seconds  worker                   device     op             MiB/s     req/s       size\n"
MIB = 1 << 20


@pytest.fixture
def screen() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def live(screen: io.StringIO, owners: dict[int, Any], devices: Any) -> LiveView:
    return LiveView(screen, owners, devices)


def everybody(_: object) -> bool:
    return True


def test_the_first_lines_are_the_rates_since_the_start_of_what_moves_something(
    live: LiveView, screen: io.StringIO, stream: Callable[..., Stream]
) -> None:
    rows = [
        stream(requests=2048, bytes=256 * MIB),
        stream(owner=4, op=Op.WRITE, requests=2, bytes=8192),
        stream(op=Op.FLUSH, requests=1, bytes=0),
    ]
    live.update(2.0, 2.0, rows, everybody)
    assert screen.getvalue() == (
        HEADER + "     2.0  flexgen                  nvme0n1    read           128.0     1,024  128.0 KiB\n"
        "     2.0  kernel:journal           nvme0n1    write            0.0         1    4.0 KiB\n"
        "     2.0  flexgen                  nvme0n1    flush            0.0         0        0 B\n"
    )


def test_later_lines_are_differences_and_idle_when_there_is_none(
    live: LiveView, screen: io.StringIO, stream: Callable[..., Stream]
) -> None:
    live.update(1.0, 1.0, [stream(requests=10, bytes=10 * MIB)], everybody)
    screen.truncate(screen.seek(0))
    live.update(2.0, 1.0, [stream(requests=13, bytes=16 * MIB)], everybody)
    live.update(3.0, 1.0, [stream(requests=13, bytes=16 * MIB)], everybody)
    assert screen.getvalue() == (
        "     2.0  flexgen                  nvme0n1    read             6.0         3    2.0 MiB\n     3.0  idle\n"
    )


def test_parts_of_others_requests_are_bytes_without_requests_of_their_own(
    live: LiveView, screen: io.StringIO, stream: Callable[..., Stream]
) -> None:
    live.update(1.0, 1.0, [stream(requests=0, bytes=MIB)], everybody)
    screen.truncate(screen.seek(0))
    live.update(2.0, 1.0, [stream(requests=0, bytes=3 * MIB)], everybody)
    assert screen.getvalue() == (
        "     2.0  flexgen                  nvme0n1    read             2.0         0          -\n"
    )


def test_rows_of_one_worker_and_op_are_one_line_but_layers_stay_apart(
    live: LiveView, screen: io.StringIO, stream: Callable[..., Stream], dm: int
) -> None:
    rows = [stream(role="weights", bytes=MIB), stream(role="kv_cache", bytes=MIB), stream(device=dm, bytes=MIB)]
    live.update(1.0, 1.0, rows, everybody)
    shown = [line.split()[2:5] for line in screen.getvalue().splitlines()[1:]]
    assert shown == [["nvme0n1", "read", "2.0"], ["dm-0", "read", "1.0"]]


def test_only_the_session_is_shown(live: LiveView, screen: io.StringIO, stream: Callable[..., Stream]) -> None:
    live.update(1.0, 1.0, [stream(), stream(owner=3)], lambda owner: owner.worker == "backup")
    assert [line.split()[1] for line in screen.getvalue().splitlines()[1:]] == ["backup"]


def test_the_five_busiest_are_shown_and_the_rest_is_owned_up_to(
    live: LiveView, screen: io.StringIO, stream: Callable[..., Stream]
) -> None:
    rows = [
        stream(op=op, owner=owner, bytes=MIB * (1 + owner))
        for owner in (2, 3)
        for op in (Op.READ, Op.WRITE, Op.DISCARD, Op.OTHER)
    ]
    live.update(1.0, 1.0, rows, everybody)
    lines = screen.getvalue().splitlines()[1:]
    assert [line.split()[1] for line in lines[:5]] == ["backup"] * 4 + ["flexgen"]
    assert lines[5:] == ["     1.0  and 3 more"]


def test_the_header_comes_again(live: LiveView, screen: io.StringIO) -> None:
    for second in range(HEADER_EVERY + 1):
        live.update(float(second), 1.0, [], everybody)
    lines = screen.getvalue().splitlines(keepends=True)
    assert [number for number, line in enumerate(lines) if line == HEADER] == [0, HEADER_EVERY + 1]


def test_a_long_or_hostile_name_keeps_the_columns(
    live: LiveView, screen: io.StringIO, stream: Callable[..., Stream], owners: dict[int, Any], worker: Any
) -> None:
    owners[2] = worker(2, "\x1b[2J" + "a" * 40, 123)
    live.update(1.0, 1.0, [stream()], everybody)
    line = screen.getvalue().splitlines()[1]
    assert line.startswith("     1.0  \\x1b[2J" + "a" * 15 + ".. nvme0n1 ")
    assert len(line) == len(HEADER) - 1


def test_an_update_in_no_time_has_no_rate(live: LiveView, screen: io.StringIO, stream: Callable[..., Stream]) -> None:
    live.update(1.0, 0.0, [stream()], everybody)
    assert screen.getvalue().splitlines()[1].split()[4:6] == ["-", "-"]


def test_a_closed_pipe_is_left_to_the_caller(owners: dict[int, Any], devices: Any) -> None:
    class Closed(io.StringIO):
        def write(self, text: str, /) -> int:
            raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        LiveView(Closed(), owners, devices).update(1.0, 1.0, [], everybody)


def test_what_could_not_be_written_is_no_burden_for_what_comes_later(
    owners: dict[int, Any], devices: Any, stream: Callable[..., Stream], tmp_path: Path
) -> None:
    path = tmp_path / "file"
    with open("/dev/full", "w") as screen:
        live = LiveView(screen, owners, devices)
        with pytest.raises(OSError, match="No space"):
            live.update(1, 1, [stream()], lambda owner: True)
        live.discard()
        with path.open("w") as roomy:
            os.dup2(roomy.fileno(), screen.fileno())
        screen.write("later\n")
    assert path.read_text() == "later\n"


def test_a_stream_that_is_no_file_has_nothing_to_discard(live: LiveView) -> None:
    live.discard()
