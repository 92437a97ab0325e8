"""Waiting for whatever comes first: a signal, the end of a child, a ring half full, another thread, or time.

Signals only set a flag here; what they mean is for the session or the daemon.
"""

from __future__ import annotations

import select
import signal
import socket
from collections.abc import Iterable
from contextlib import suppress
from types import FrameType, TracebackType


class Events:
    """A context manager: inside it the given signals are caught, afterwards they do what they did before."""

    def __init__(self, signals: Iterable[signal.Signals]) -> None:
        self._signals = tuple(signals)
        self._received: list[signal.Signals] = []
        self._before: dict[signal.Signals, object] = {}
        self._epoll = select.epoll()
        # Python's handlers run between bytecodes, so a signal must also end the epoll: it writes a byte here.
        self._wakeup, self._interrupt = socket.socketpair()
        for end in (self._wakeup, self._interrupt):
            end.setblocking(False)
        self._epoll.register(self._wakeup, select.EPOLLIN)

    def watch(self, fd: int) -> None:
        """End a wait when fd becomes readable. Edge-triggered: a BPF ring is readable whenever it holds anything."""
        self._epoll.register(fd, select.EPOLLIN | select.EPOLLET)

    def wait(self, seconds: float) -> None:
        """Until something happens, at most so long."""
        self._epoll.poll(max(seconds, 0))
        with suppress(BlockingIOError):
            self._wakeup.recv(4096)

    def wake(self) -> None:
        """End the wait, from any thread."""
        with suppress(OSError):  # full, so that it ends anyway; or closed, when nobody waits any more
            self._interrupt.send(b"\0")

    def signals(self) -> list[signal.Signals]:
        """Those received since the last call, in order."""
        received, self._received = self._received, []
        return received

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._received.append(signal.Signals(number))

    def release(self) -> None:
        """Signals do again what they did before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._before.clear()

    def __enter__(self) -> Events:
        self._before_fd = signal.set_wakeup_fd(self._interrupt.fileno(), warn_on_full_buffer=False)
        for number in self._signals:
            # One that our parent made us ignore (nohup, a shell's background job) stays ignored.
            if signal.getsignal(number) != signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()
        signal.set_wakeup_fd(self._before_fd)
        self._epoll.close()
        self._wakeup.close()
        self._interrupt.close()
