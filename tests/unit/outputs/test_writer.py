"""The summary goes where it was asked to: privately, and with a wrong path found out before anything is measured."""

from __future__ import annotations

import io
import json
import os
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from llmio_probe.aggregate.rows import Stream
from llmio_probe.errors import ProbeError
from llmio_probe.outputs.document import Document
from llmio_probe.outputs.summary import render
from llmio_probe.outputs.writer import Writer


@pytest.fixture
def report(document: Any, stream: Callable[..., Stream]) -> Document:
    made: Document = document([stream()])
    return made


@pytest.fixture(autouse=True)
def generous_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_new_file_is_for_its_owner_only(tmp_path: Path, report: Document) -> None:
    path = tmp_path / "summary"
    with Writer(str(path), as_json=False) as writer:
        assert mode(path) == 0o600
        writer.write(report)
    assert path.read_text() == render(report)


def test_a_file_that_was_there_is_overwritten_and_no_longer_for_everybody(tmp_path: Path, report: Document) -> None:
    path = tmp_path / "summary.json"
    path.write_text("x" * 100_000)
    path.chmod(0o644)
    with Writer(str(path), as_json=True) as writer:
        assert mode(path) == 0o600
        writer.write(report)
    assert json.loads(path.read_text()) == report


def test_what_a_file_held_stays_when_there_is_no_summary(tmp_path: Path) -> None:
    """The session could not begin: sudo was forgotten, the disk has another name."""
    path = tmp_path / "summary.json"
    path.write_text("of yesterday")
    with pytest.raises(ProbeError), Writer(str(path), as_json=True):
        raise ProbeError("there is no device sdz")
    assert path.read_text() == "of yesterday"


def test_a_file_that_is_no_regular_one_keeps_its_mode(tmp_path: Path, report: Document) -> None:
    """As root, --output /dev/null must not take /dev/null away from everybody."""
    path = tmp_path / "pipe"
    os.mkfifo(path, 0o666)
    reading = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with Writer(str(path), as_json=True) as writer:
        writer.write(report)
    assert mode(path) == 0o666
    assert json.loads(os.read(reading, 1 << 16)) == report
    os.close(reading)


@pytest.mark.parametrize("name", ["no/such/directory", "."])
def test_a_wrong_path_is_found_out_before_anything_is_done(tmp_path: Path, name: str) -> None:
    path = str(tmp_path / name)
    with pytest.raises(ProbeError, match=r"cannot be written: \w+"), Writer(path, as_json=True):
        pytest.fail("the session began")


def test_a_path_with_control_characters_is_escaped(tmp_path: Path) -> None:
    with pytest.raises(ProbeError, match=r"/\\x1b\[2J/a cannot be written"):
        Writer(f"{tmp_path}/\x1b[2J/a", as_json=True).__enter__()


@pytest.mark.parametrize("as_json", [True, False])
def test_without_a_path_it_goes_to_standard_output(
    report: Document, capsys: pytest.CaptureFixture[str], as_json: bool
) -> None:
    with Writer(None, as_json=as_json) as writer:
        writer.write(report)
    written = capsys.readouterr().out
    assert json.loads(written) == report if as_json else written == render(report)
    assert not sys.stdout.closed


def test_a_full_disk_is_an_error_that_names_the_file(report: Document) -> None:
    with (
        Writer("/dev/full", as_json=True) as writer,
        pytest.raises(ProbeError, match=r"written to /dev/full: No space"),
    ):
        writer.write(report)


def test_a_closed_pipe_is_left_to_the_caller(report: Document, monkeypatch: pytest.MonkeyPatch) -> None:
    class ClosedPipe(io.StringIO):
        def flush(self) -> None:
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stdout", ClosedPipe())
    with Writer(None, as_json=True) as writer, pytest.raises(BrokenPipeError):
        writer.write(report)
