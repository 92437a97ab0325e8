"""What a service manager wants of a daemon: to be told how it is (sd_notify(3)), and lines that a journal can sort.

Without one, when a person starts the daemon, all of it does nothing but write plain lines. Only that may go in here.
"""

from __future__ import annotations

import logging
import math
import os
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import TextIO

READY_SECONDS = 2.0
"""How long a manager that is busy may keep us waiting for that: what it has not heard, it ends us for."""
_PRIORITY = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}


class Manager:
    """Who started us, by the environment that we got. Nothing here raises: a daemon works without being watched."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        address = environ.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        ours = environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        period = environ.get("WATCHDOG_USEC", "")
        self.longest_silence = int(period) / 4e6 if ours and period.isdigit() and int(period) else math.inf
        """Seconds until it has to be told again that we are alive: a quarter of the unit's WatchdogSec=."""

    def ready(self, status: str) -> None:
        """At the start, and after a reload."""
        self._tell("READY=1", f"STATUS={status}", patience=READY_SECONDS)

    def reloading(self) -> None:
        self._tell("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        self._tell("STOPPING=1")

    def alive(self) -> None:
        if self.longest_silence < math.inf:
            self._tell("WATCHDOG=1")

    def _tell(self, *assignments: str, patience: float = 0.0) -> None:
        if not self._address:
            return
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sending:
            sending.settimeout(patience)  # a manager that is stuck must not stop the pipeline
            sending.sendto("\n".join(assignments).encode(), self._address)


def log_to(stream: TextIO, environ: Mapping[str, str]) -> bool:
    """Lines without a time, which a journal adds, and with the level in front, as systemd or as people read it.

    Returns whether it is a journal that reads them.
    """
    in_journal = _is_journal(stream, environ)
    handler = logging.StreamHandler(stream)
    handler.setFormatter(_Lines(in_journal=in_journal))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    return in_journal


class _Lines(logging.Formatter):
    """One record, one line: a second one would be an entry of its own, without its level."""

    def __init__(self, *, in_journal: bool) -> None:
        super().__init__()
        self._in_journal = in_journal

    def format(self, record: logging.LogRecord) -> str:
        text = " | ".join(super().format(record).splitlines())
        return f"<{_PRIORITY.get(record.levelno, 6)}>{text}" if self._in_journal else f"{record.levelname} {text}"


def _is_journal(stream: TextIO, environ: Mapping[str, str]) -> bool:
    """systemd.exec(5), JOURNAL_STREAM: the device and inode of the stream that goes to the journal."""
    try:
        status = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"
