"""Rolling lines while a session runs, like vmstat: who moves how much right now. For people watching a terminal.

Differences of cumulative rows only; percentiles and explanations are the summary's. A closed pipe is the caller's.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import TextIO

from llmio_probe.aggregate.rows import Stream
from llmio_probe.kernel.records import Op
from llmio_probe.outputs.shapes import Devices, Owner, Owners
from llmio_probe.outputs.units import MIB, UNKNOWN, bytes_text, fit
from llmio_probe.text import escape

TOP = 5
HEADER_EVERY = 20
_HEADER = f"{'seconds':>8}  {'worker':<24} {'device':<10} {'op':<11} {'MiB/s':>8} {'req/s':>9} {'size':>10}"

_Shown = tuple[str, str, str]
"""Worker, device, op: what has a line of its own."""


@dataclass
class _Amount:
    requests: int = 0
    bytes: int = 0

    def add(self, requests: int, bytes_: int) -> None:
        self.requests += requests
        self.bytes += bytes_


class LiveView:
    """One per session; each update prints what happened since the one before."""

    def __init__(self, stream: TextIO, owners: Owners, devices: Devices) -> None:
        self._stream = stream
        self._owners = owners
        self._devices = devices
        self._before: dict[tuple[int, int, Op], _Amount] = {}
        self._lines = 0

    def update(
        self,
        elapsed_seconds: float,
        interval_seconds: float,
        streams: Iterable[Stream],
        session: Callable[[Owner], bool],
    ) -> None:
        """streams: cumulative since attach. interval_seconds: since the update before. May raise OSError."""
        moved = self._moved(streams, session)
        busiest = sorted(moved.items(), key=lambda item: (-item[1].bytes, -item[1].requests, item[0]))
        for (worker, device, op), amount in busiest[:TOP]:
            size = bytes_text(amount.bytes / amount.requests if amount.requests else None)
            mib = _rate(amount.bytes / MIB, interval_seconds, ".1f")
            requests = _rate(amount.requests, interval_seconds, ",.0f")
            self._line(
                f"{elapsed_seconds:8.1f}  {fit(worker, 24):<24} {fit(device, 10):<10} {op:<11}"
                f" {mib:>8} {requests:>9} {size:>10}"
            )
        if len(busiest) > TOP:
            self._line(f"{elapsed_seconds:8.1f}  and {len(busiest) - TOP} more")
        if not busiest:
            self._line(f"{elapsed_seconds:8.1f}  idle")
        self._stream.flush()

    def discard(self) -> None:
        """Forget what could not be written: every later flush would stumble over it again."""
        with suppress(OSError, ValueError):  # no file
            fd = self._stream.fileno()
            kept, nowhere = os.dup(fd), os.open(os.devnull, os.O_WRONLY)
            try:
                os.dup2(nowhere, fd)
                self._stream.flush()
            finally:
                os.dup2(kept, fd)
                os.close(kept)
                os.close(nowhere)

    def _moved(self, streams: Iterable[Stream], session: Callable[[Owner], bool]) -> dict[_Shown, _Amount]:
        """By worker, device and op: adding up over devices would count a stacked one twice.

        Subtracted by owner, which never changes, and named afterwards: a worker's name may.
        """
        now: dict[tuple[int, int, Op], _Amount] = {}
        for row in streams:
            if session(self._owners[row.owner]):
                now.setdefault((row.owner, row.device, row.op), _Amount()).add(row.requests, row.bytes)
        moved: dict[_Shown, _Amount] = {}
        for key, amount in now.items():
            before = self._before.get(key, _Amount())
            if amount != before:  # bytes may come without requests, as parts of other owners' requests
                owner, device, op = key
                shown = (escape(self._owners[owner].worker), self._devices.name(device), op.name.lower())
                moved.setdefault(shown, _Amount()).add(amount.requests - before.requests, amount.bytes - before.bytes)
        self._before = now
        return moved

    def _line(self, text: str) -> None:
        if self._lines % HEADER_EVERY == 0:
            self._stream.write(_HEADER + "\n")
        self._lines += 1
        self._stream.write(text + "\n")


def _rate(amount: float, seconds: float, form: str) -> str:
    """A last update may follow at once; what happened in no time has no rate."""
    return format(amount / seconds, form) if seconds > 0 else UNKNOWN
