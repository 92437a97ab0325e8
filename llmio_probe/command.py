"""Runs the COMMAND of ``llmio-probe [options] -- COMMAND …`` and hands its exit status on.

COMMAND must not do any I/O before the probe follows it, so it is forked first, waits at a gate, and is executed only
when the gate opens. That is why this is os.fork and not subprocess. Only the starting, signalling and reaping of that
one child may go in here.

What keeps the fork sound: it happens in the main thread before we start others; names (user, groups) are looked up
before it, because libc's look-ups may hang in a forked child; the child makes little more than system calls, and it
leaves through exec or os._exit, never through Python's own end.
"""

from __future__ import annotations

import errno
import os
import pwd
import signal
import socket
import warnings
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import NoReturn

from llmio_probe.errors import ProbeError
from llmio_probe.text import escape

FAILURE_OF_OURS = 125
NOT_RUNNABLE = 126
NOT_FOUND = 127

# What the child was at when it failed: the first byte of its report, the second is the errno.
_SETTING_UP = 0
_EXECUTING = 1


class CommandError(ProbeError):
    """COMMAND could not be started. Exit code 127: there is none, 126: it cannot be run, 125: a failure of ours."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Command:
    """One child: prepared, released, polled until it has ended.

    As a context manager it makes sure that a command that was never released never runs. One that was released is left
    alone: how long we watch has nothing to do with how long it runs.
    """

    def __init__(self, pid: int, argv: Sequence[str], gate: socket.socket, user: str | None) -> None:
        self.pid = pid
        self.argv = tuple(argv)
        self.pidfd = _open_pidfd(pid)
        """Readable once the child has ended, for the caller's epoll; None where the kernel has none: poll by time."""
        self._gate = gate
        self._user = user
        self._status: int | None = None

    @classmethod
    def prepare(
        cls, argv: Sequence[str], *, user: str | None = None, stdout: int | None = None, keep_fds: Collection[int] = ()
    ) -> Command:
        """Fork a child that waits at the gate.

        It runs as `user`, writes its standard output to the descriptor `stdout`, and has nothing open but the three
        standard descriptors and `keep_fds` (what inherited_fds found at our start: ``COMMAND <(…)`` passes those).
        Signals that somebody made us ignore stay ignored (nohup does that), so a caller that wants to outlive a SIGINT
        must catch it, not ignore it. Call it in the main thread, before there are others.
        """
        if not argv or not argv[0]:
            raise CommandError("there is no command to run after --", NOT_FOUND)
        account = None if user is None else _look_up(user)
        if signal.getsignal(signal.SIGCHLD) == signal.SIG_IGN:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # inherited: the kernel would throw the exit status away
        ours, theirs = socket.socketpair()
        # No handler of ours may run in the child: signals wait from before the fork until it has put theirs in place.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            pid = _fork()
            if pid == 0:
                _run_child(argv, theirs, account, stdout, keep_fds)
        except OSError as error:
            ours.close()
            message = f"cannot start {escape(argv[0])}: no new process can be made ({_reason(error.errno)})"
            raise CommandError(message, FAILURE_OF_OURS) from error
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            theirs.close()
        return cls(pid, argv, ours, user)

    def release(self) -> None:
        """Let the child execute the command; returns when it has, or when a signal ended it first (poll tells)."""
        with suppress(ConnectionError):  # a signal ended the child at the gate
            self._gate.send(b"!", socket.MSG_NOSIGNAL)
        try:
            report = self._gate.recv(2)  # closed by the exec itself, else two bytes that say what went wrong
        except ConnectionResetError:
            report = b""
        self._gate.close()
        if report:
            self._reap()
            raise self._failure(step=report[0], code=report[1])

    def poll(self) -> int | None:
        """The exit status as a shell gives it, 128+N after signal N; None while it runs."""
        if self._status is None:
            self._reap(os.WNOHANG)
        return self._status

    def terminate(self) -> None:
        """Forward a SIGTERM to the child, unless it has ended."""
        if self.poll() is None:
            with suppress(ProcessLookupError, PermissionError):  # it became somebody whom we may not signal
                os.kill(self.pid, signal.SIGTERM)

    def kill_gate(self) -> None:
        """End a child that still waits at the gate, without running the command. No effect after release."""
        if self._gate.fileno() != -1:
            self._gate.close()
            self._reap()

    def close(self) -> None:
        """Give everything back that we hold. A command that was released goes on."""
        self.kill_gate()
        if self.pidfd is not None:
            os.close(self.pidfd)
            self.pidfd = None

    def __enter__(self) -> Command:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _reap(self, options: int = 0) -> None:
        if self._status is not None:
            return
        pid, wait_status = os.waitpid(self.pid, options)
        if pid:
            code = os.waitstatus_to_exitcode(wait_status)
            self._status = code if code >= 0 else 128 - code

    def _failure(self, step: int, code: int) -> CommandError:
        name, reason = escape(self.argv[0]), _reason(code)
        if step == _SETTING_UP and self._user is not None and code == errno.EPERM:
            return CommandError(f"cannot run {name} as {escape(self._user)}: --user needs root", FAILURE_OF_OURS)
        if step == _SETTING_UP:
            return CommandError(f"cannot set up {name}: {reason}", FAILURE_OF_OURS)
        if code == errno.ENOENT and "/" in self.argv[0] and os.path.exists(self.argv[0]):
            return CommandError(f"cannot start {name}: the interpreter that it names does not exist", NOT_FOUND)
        if code == errno.ENOENT:
            return CommandError(f"cannot start {name}: there is no such program", NOT_FOUND)
        if code == errno.ENOEXEC:
            message = f"cannot start {name}: not a program (a script needs a first line such as #!/bin/sh)"
            return CommandError(message, NOT_RUNNABLE)
        return CommandError(f"cannot start {name}: {reason}", NOT_RUNNABLE)


def inherited_fds() -> frozenset[int]:
    """The descriptors beyond the standard three that our own parent wants passed on; ask before opening anything."""
    return frozenset(fd for fd in _open_fds() if _is_inheritable(fd))


def _is_inheritable(fd: int) -> bool:
    try:
        return os.get_inheritable(fd)
    except OSError:  # the listing's own, closed by now
        return False


@dataclass(frozen=True)
class _Account:
    uid: int
    gid: int
    groups: Sequence[int]
    environment: Mapping[str, str]


def _look_up(user: str) -> _Account:
    try:
        entry = pwd.getpwnam(user)
    except (KeyError, ValueError) as error:
        raise CommandError(f"there is no user {escape(user)} on this host", FAILURE_OF_OURS) from error
    return _Account(
        uid=entry.pw_uid,
        gid=entry.pw_gid,
        groups=os.getgrouplist(user, entry.pw_gid),
        environment={"HOME": entry.pw_dir, "USER": user, "LOGNAME": user},
    )


def _fork() -> int:
    with warnings.catch_warnings():
        # From 3.12 on Python warns when the process has threads. NumPy's BLAS keeps some, idle, and none holds a lock.
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def _run_child(
    argv: Sequence[str],
    gate: socket.socket,
    account: _Account | None,
    stdout: int | None,
    keep_fds: Collection[int],
) -> NoReturn:
    """In the child, with all signals blocked: everything up to the exec."""
    step = _SETTING_UP
    try:
        _default_signals()
        if stdout is not None:
            os.dup2(stdout, 1)
        for fd in _open_fds() - {gate.fileno(), *keep_fds}:
            with suppress(OSError):  # the listing's own is closed by now
                os.close(fd)
        if gate.recv(1):
            environment = dict(os.environ)
            if account is not None:
                os.setgroups(account.groups)
                os.setgid(account.gid)
                os.setuid(account.uid)
                environment.update(account.environment)
            step = _EXECUTING
            os.execvpe(argv[0], tuple(argv), environment)
    except BaseException as error:  # whatever it was: the parent must hear of it, and its code must not run on here
        code = error.errno if isinstance(error, OSError) else None
        gate.send(bytes((step, code or errno.EINVAL)), socket.MSG_NOSIGNAL)
    finally:
        os._exit(FAILURE_OF_OURS)


def _default_signals() -> None:
    """Python's and our handlers off, SIGPIPE and SIGXFSZ, which Python ignores, back, then nothing blocked."""
    for number in signal.valid_signals():
        if callable(signal.getsignal(number)) or number in (signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _open_fds() -> set[int]:
    """What is open beyond the standard three. Walking /proc beats trying every number: the limit can be a billion."""
    return {fd for fd in map(int, os.listdir("/proc/self/fd")) if fd > 2}


def _open_pidfd(pid: int) -> int | None:
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):  # before Linux 5.3, or under a seccomp filter
        return None


def _reason(code: int | None) -> str:
    return os.strerror(code or 0).lower()
