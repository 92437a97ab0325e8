"""Parsing of /proc, over trees made by hand and once over our own process."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest

from llmio_probe.identity.facts import ProcessFacts, ProcessId, PsutilSource, clock_tick_ns, ns_to_ticks
from tests.unit.identity.conftest import WriteTree


def stat(
    comm: str = "python", state: str = "S", parent: int = 1, threads: int = 4, start: int = 4711, flags: int = 0
) -> str:
    """proc(5): state is field 3, the parent 4, flags 9, the threads 20, the start time 22."""
    return f"77 ({comm}) {state} {parent} {'0 ' * 4}{flags} {'0 ' * 10}{threads} 0 {start} 0 0\n"


def asks(**answers: Any) -> Any:
    """A psutil.Process for any pid; an answer that is an exception is raised."""

    def answer(value: Any) -> Any:
        def method(**_: Any) -> Any:
            if isinstance(value, Exception):
                raise value
            return value

        return method

    return lambda pid: SimpleNamespace(**{name: answer(value) for name, value in answers.items()})


def test_facts_come_from_proc_and_psutil(write_tree: WriteTree) -> None:
    root = write_tree({"77/stat": stat(), "77/cgroup": "0::/a\n"})
    source = PsutilSource(str(root), asks(cmdline=["python", "x.py"], environ={"RANK": "0"}))
    assert source.facts(77) == ProcessFacts(
        ProcessId(77, 4711), "python", ("python", "x.py"), {"RANK": "0"}, "0::/a\n", 1
    )


def test_a_comm_with_spaces_and_parentheses_does_not_shift_the_fields(write_tree: WriteTree) -> None:
    source = PsutilSource(str(write_tree({"77/stat": stat(comm="a) R 1 (b")})), asks(cmdline=[], environ={}))
    facts = source.facts(77)
    assert facts is not None
    assert (facts.comm, facts.id.start_ticks, facts.parent_pid) == ("a) R 1 (b", 4711, 1)


@pytest.mark.parametrize("error", [psutil.AccessDenied(77), psutil.ZombieProcess(77), PermissionError()])
def test_what_may_not_be_read_is_empty_and_the_rest_known(write_tree: WriteTree, error: Exception) -> None:
    source = PsutilSource(str(write_tree({"77/stat": stat()})), asks(cmdline=error, environ=error, children=error))
    facts = source.facts(77)
    assert facts is not None
    assert (facts.cmdline, facts.environ, facts.cgroup) == ((), {}, None)
    assert source.children(77) == []
    assert source.maps(77) == frozenset()


def test_a_process_that_is_not_there_is_none(write_tree: WriteTree) -> None:
    source = PsutilSource(str(write_tree({})), asks(cmdline=psutil.NoSuchProcess(77)))
    assert source.facts(77) is None
    assert source.start_ticks(77) is None


def test_facts_of_a_pid_that_changes_hands_while_it_is_read_are_not_believed(write_tree: WriteTree) -> None:
    root = write_tree({"77/stat": stat(start=1)})

    def process(pid: int) -> Any:
        (root / "77/stat").write_text(stat(start=2))
        return SimpleNamespace(cmdline=lambda: ["other"], environ=dict)

    assert PsutilSource(str(root), process).facts(77) is None


def test_a_process_that_begins_to_exit_while_it_is_read_is_known_as_exiting(write_tree: WriteTree) -> None:
    """Its command line is still there, but its cgroup may have been read too late."""
    root = write_tree({"77/stat": stat(), "77/cgroup": "4:memory:/\n"})

    def process(pid: int) -> Any:
        (root / "77/stat").write_text(stat(flags=0x400104))
        return SimpleNamespace(cmdline=lambda: ["dd"], environ=dict)

    assert PsutilSource(str(root), process).facts(77) == ProcessFacts(
        ProcessId(77, 4711), "python", ("dd",), {}, "4:memory:/\n", 1, exiting=True
    )


@pytest.mark.parametrize(
    ("state", "threads", "expected"),
    [("S", 4, 4711), ("Z", 1, None), ("X", 0, None), ("Z", 3, 4711)],
    ids=["runs", "zombie", "dead", "leader left, threads go on"],
)
def test_start_ticks_are_those_of_a_process_that_runs(
    write_tree: WriteTree, state: str, threads: int, expected: int | None
) -> None:
    source = PsutilSource(str(write_tree({"77/stat": stat(state=state, threads=threads)})))
    assert source.start_ticks(77) == expected


def test_maps_are_base_names_of_files(write_tree: WriteTree) -> None:
    text = (
        "55d0-55d1 r--p 00000000 fe:00 12 /usr/bin/python3.11\n"
        "55d2-55d3 r-xp 00000000 fe:00 13 /root/torch ext/async_io.so\n"
        "55d4-55d5 r-xp 00000000 fe:00 14 /tmp/gone.so (deleted)\n"
        "55d6-55d7 rw-p 00000000 00:00 0 \n"
        "55d8-55d9 rw-p 00000000 00:00 0 [heap]\n"
    )
    source = PsutilSource(str(write_tree({"77/maps": text})))
    assert source.maps(77) == {"python3.11", "async_io.so", "gone.so"}


def test_boot_time_is_rounded_down_to_ticks() -> None:
    assert ns_to_ticks(19_999_999, 10_000_000) == 1
    assert ns_to_ticks(np.array([9, 10, 20], dtype=np.uint64), 10).tolist() == [0, 1, 2]
    assert clock_tick_ns() * os.sysconf("SC_CLK_TCK") == 1_000_000_000


def test_our_own_process_is_read_from_the_real_proc() -> None:
    source = PsutilSource()
    facts = source.facts(os.getpid())
    assert facts is not None
    assert facts.id == ProcessId(os.getpid(), source.start_ticks(os.getpid()) or -1)
    assert facts.parent_pid == os.getppid()
    assert facts.cgroup is not None
    assert "PATH" in facts.environ
    assert any(name.startswith("libc") for name in source.maps(os.getpid()))
