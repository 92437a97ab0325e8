"""Proves llmio_probe.systemd: what a manager is told, that nobody is told anything without one, one line a record."""

from __future__ import annotations

import io
import logging
import math
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from llmio_probe import systemd
from llmio_probe.systemd import Manager, log_to

NAME = f"llmio-unit-{os.getpid()}"


@pytest.fixture
def listening() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
        end.bind(f"\0{NAME}")
        end.setblocking(False)
        yield end


def test_it_is_told_when_the_daemon_is_ready_and_alive(listening: socket.socket) -> None:
    manager = Manager({"NOTIFY_SOCKET": f"@{NAME}", "WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())})
    assert manager.longest_silence == 7.5
    manager.ready("serving")
    manager.alive()
    manager.stopping()
    said = [listening.recv(4096) for _ in range(3)]
    assert said == [b"READY=1\nSTATUS=serving", b"WATCHDOG=1", b"STOPPING=1"]
    manager.reloading()
    assert listening.recv(4096).startswith(b"RELOADING=1\nMONOTONIC_USEC=")


def test_a_socket_with_a_path_is_found_too(tmp_path: Path) -> None:
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
        end.bind(path)
        Manager({"NOTIFY_SOCKET": path}).ready("x")
        assert end.recv(4096) == b"READY=1\nSTATUS=x"


@pytest.mark.parametrize(
    "watchdog",
    [{}, {"WATCHDOG_USEC": "0"}, {"WATCHDOG_USEC": "much"}, {"WATCHDOG_USEC": "9", "WATCHDOG_PID": "1"}],
    ids=["none", "off", "nonsense", "another's"],
)
def test_without_a_watchdog_of_ours_nobody_is_told_that_we_live(
    listening: socket.socket, watchdog: dict[str, str]
) -> None:
    manager = Manager({"NOTIFY_SOCKET": f"@{NAME}", **watchdog})
    assert manager.longest_silence == math.inf
    manager.alive()
    with pytest.raises(BlockingIOError):
        listening.recv(4096)


@pytest.mark.parametrize("environ", [{}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "/nowhere/at/all"}])
def test_without_a_manager_nothing_happens(environ: dict[str, str]) -> None:
    manager = Manager(environ)
    manager.ready("x")
    manager.reloading()
    manager.stopping()


@pytest.fixture
def full(listening: socket.socket) -> socket.socket:
    """One that has no room for a word, as while its manager is busy."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.setblocking(False)
        with suppress(BlockingIOError):
            while True:
                other.sendto(b"noise", f"\0{NAME}")
    return listening


def heard(listening: socket.socket) -> list[bytes]:
    said: list[bytes] = []
    with suppress(BlockingIOError):
        while True:
            said.append(listening.recv(4096))
    return [word for word in said if word != b"noise"]


def test_a_manager_that_is_busy_is_told_all_the_same_that_the_daemon_is_ready(full: socket.socket) -> None:
    reading = threading.Timer(0.2, lambda: full.recv(4096))
    reading.start()
    Manager({"NOTIFY_SOCKET": f"@{NAME}"}).ready("serving")
    reading.join()
    assert heard(full) == [b"READY=1\nSTATUS=serving"]


def test_a_manager_that_is_stuck_holds_nobody_up_for_long(full: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(systemd, "READY_SECONDS", 0.2)
    manager = Manager({"NOTIFY_SOCKET": f"@{NAME}", "WATCHDOG_USEC": "30000000"})
    began = time.monotonic()
    manager.ready("serving")
    assert 0.2 <= time.monotonic() - began < 5
    monkeypatch.setattr(systemd, "READY_SECONDS", 30)
    began = time.monotonic()
    for say in (manager.alive, manager.reloading, manager.stopping):
        say()
    assert time.monotonic() - began < 5  # nothing else is waited for
    assert heard(full) == []


@pytest.fixture
def root_logger() -> Iterator[logging.Logger]:
    logger = logging.getLogger()
    before = logger.handlers[:], logger.level
    yield logger
    logger.handlers[:], level = before
    logger.setLevel(level)


def test_people_get_the_level_in_words(root_logger: logging.Logger) -> None:
    stream = io.StringIO()
    assert not log_to(stream, {"JOURNAL_STREAM": "1:2"})
    root_logger.info("one")
    root_logger.debug("not asked for")
    root_logger.error("two\nlines")
    assert stream.getvalue() == "INFO one\nERROR two | lines\n"


def test_a_journal_gets_it_as_a_number(root_logger: logging.Logger, tmp_path: Path) -> None:
    path = tmp_path / "journal"
    with path.open("w") as stream:
        status = os.fstat(stream.fileno())
        assert log_to(stream, {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"})
        root_logger.setLevel(logging.DEBUG)
        for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR):
            root_logger.log(level, "x")
    assert path.read_text() == "<7>x\n<6>x\n<4>x\n<3>x\n"
