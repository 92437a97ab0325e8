"""Proves llmio_probe.identity.environ: the same as /proc/PID/environ, without opening it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from llmio_probe.identity.environ import environ_from_memory, parse_environ
from llmio_probe.identity.facts import PsutilSource


@pytest.fixture
def own() -> str:
    return Path("/proc/self/stat").read_text()


def test_it_is_what_the_kernel_shows_of_the_process() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", "print(1, flush=True); input()"], env={"RANK": "3", "EMPTY": "", "X": "a=b"},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stdout
        process.stdout.readline()
        stat = Path(f"/proc/{process.pid}/stat").read_text()
        assert environ_from_memory(process.pid, stat) == {"RANK": "3", "EMPTY": "", "X": "a=b"}
        process.communicate(b"\n")


def test_where_it_may_not_be_opened_its_memory_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: psutil.Process) -> dict[str, str]:
        raise psutil.AccessDenied(self.pid)

    expected = psutil.Process().environ()
    monkeypatch.setattr(psutil.Process, "environ", refuse)
    facts = PsutilSource().facts(os.getpid())
    assert facts is not None
    assert facts.environ == expected


@pytest.mark.parametrize("stat", ["()", "1 (x) S 1", "1 (x) S" + " 0" * 49, "1 (a) b) S" + " 7" * 45 + " 100 50"])
def test_what_may_not_be_traced_has_none(stat: str) -> None:
    assert environ_from_memory(os.getpid(), stat) == {}


def test_an_absurd_length_is_not_believed(own: str) -> None:
    head, _, tail = own.rpartition(")")
    fields = tail.split()
    fields[48] = str(int(fields[47]) + (1 << 40))
    assert environ_from_memory(os.getpid(), f"{head}) {' '.join(fields)}") == {}


def test_a_process_that_has_gone_has_none(own: str) -> None:
    with subprocess.Popen(["true"]) as process:
        process.wait()
    assert environ_from_memory(process.pid, own) == {}


@pytest.mark.parametrize(
    ("block", "parsed"),
    [
        (b"", {}),
        (b"A=1\0B=\0", {"A": "1", "B": ""}),
        (b"A=1\0A=2\0", {"A": "2"}),
        (b"title of a process\0=x\0C=3", {"C": "3"}),
        (b"A=1\0\0B=2\0", {"A": "1"}),
        (b"A=\xff\0", {"A": "\udcff"}),
    ],
)
def test_entries_are_read_as_psutil_reads_them(block: bytes, parsed: dict[str, str]) -> None:
    assert parse_environ(block) == parsed
