"""What this process may do: the capabilities that are needed and why, whether they are there, and giving up the rest.

capabilities(7): they belong to a thread, so all here is about the calling one and those that it starts later. Only the
kernel's calls for that may go in here. Python has them in no library of its own, and they are five.
"""

from __future__ import annotations

import ctypes
import os
import pwd
from collections.abc import Collection, Iterable
from enum import IntEnum

from llmio_probe.errors import ProbeError


class Capability(IntEnum):
    """As linux/capability.h numbers them; those that are of use, and what for."""

    SETGID = 6
    """At the start: to become another user."""
    SETUID = 7
    """At the start: to become another user."""
    SETPCAP = 8
    """At the start: to take the others out of what a program could be given that is started from here."""
    SYS_PTRACE = 19
    """For life: environment, mapped files and mounts of other users' processes, which tell what a worker is."""
    SYS_ADMIN = 21
    """At the start, and not required: types in modules, the app's view by syscall tracepoints, what programs cost."""
    SYSLOG = 34
    """At the start: addresses of the kernel's functions, by which direct I/O is told and its file found."""
    PERFMON = 38
    """At the start: attaching the programs."""
    BPF = 39
    """At the start: loading them. For life on kernels before 5.19, where each look into a table of ours needs it."""


LOADING = frozenset({Capability.BPF, Capability.PERFMON})
"""Without these there is nothing; SYS_ADMIN includes them."""
CHANGING = frozenset({Capability.SETUID, Capability.SETGID})
FOR_LIFE = frozenset({Capability.SYS_PTRACE})

ACCOUNT = "llmio-probe"
FALLBACK = "nobody"

# linux/prctl.h, linux/capability.h
_PR_SET_DUMPABLE, _PR_SET_KEEPCAPS, _PR_CAPBSET_READ, _PR_CAPBSET_DROP = 4, 8, 23, 24
_PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 38, 47, 4
_CAPABILITY_VERSION_3 = 0x20080522


class _Header(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]


class _Words(ctypes.Structure):
    """Bits 0 to 31 of the three sets, then bits 32 to 63."""

    _fields_ = [("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32)]


def require_loading() -> None:
    """ProbeError unless BPF programs may be loaded and attached."""
    if lacking := lacking_for_loading(effective()):
        raise ProbeError(f"loading BPF programs needs {names(lacking)}: run it with sudo")


def lacking_for_loading(held: frozenset[Capability]) -> frozenset[Capability]:
    return frozenset() if Capability.SYS_ADMIN in held else LOADING - held


def names(capabilities: Iterable[Capability]) -> str:
    return " and ".join(sorted(f"CAP_{capability.name}" for capability in capabilities))


def effective() -> frozenset[Capability]:
    """Of those that are of use, the ones in force."""
    return _of(_get(), "effective")


def account(name: str | None) -> pwd.struct_passwd:
    """The account to become: by that name, or our own where the host has one, or nobody. ProbeError without."""
    for candidate in (name,) if name else (ACCOUNT, FALLBACK):
        try:
            return pwd.getpwnam(candidate)
        except KeyError:
            continue
    raise ProbeError(
        f"there is no account {name or FALLBACK}: create it, or name another with user: in the configuration"
    )


def require_change(user: pwd.struct_passwd) -> None:
    """ProbeError unless we may become that user. A container's root may lack what that takes."""
    if user.pw_uid != os.geteuid() and (lacking := CHANGING - effective()):
        raise ProbeError(
            f"becoming {user.pw_name} takes {names(lacking)}: give the container these, or set user: root in the "
            "configuration"
        )


def become(user: pwd.struct_passwd) -> None:
    """From root to a user for good, as yet with the capabilities. No program started from here can have more again."""
    if Capability.SETPCAP in effective():
        for number in range(64):
            if _prctl(_PR_CAPBSET_READ, number, check=False) == 1:
                _prctl(_PR_CAPBSET_DROP, number)
    if user.pw_uid == os.geteuid():
        return
    held = _get()
    _prctl(_PR_SET_KEEPCAPS, 1)
    os.setgroups([])
    os.setresgid(user.pw_gid, user.pw_gid, user.pw_gid)
    os.setresuid(user.pw_uid, user.pw_uid, user.pw_uid)
    _set(held)  # a change of user takes them out of force


def hold(in_force: Collection[Capability], in_reserve: Collection[Capability] = ()) -> None:
    """Give up every capability but these; those in reserve only come into force by another call."""
    words = _get()
    kept = _of(words, "permitted")
    for position, word in enumerate(words):
        word.effective = _bits(kept & frozenset(in_force), position)
        word.permitted = _bits(kept & {*in_force, *in_reserve}, position)
        word.inheritable = 0
    _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    _set(words)


def seal() -> None:
    """No program started from here has more rights than we have, and nobody else gets at what we know of others:
    environments of processes are in our memory, so there is no core dump of it, and no debugger without CAP_SYS_PTRACE.
    """
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    _prctl(_PR_SET_DUMPABLE, 0)


def _of(words: ctypes.Array[_Words], which: str) -> frozenset[Capability]:
    return frozenset(c for c in Capability if getattr(words[c // 32], which) >> c % 32 & 1)


def _bits(capabilities: Iterable[Capability], position: int) -> int:
    return sum(1 << c % 32 for c in capabilities if c // 32 == position)


def _get() -> ctypes.Array[_Words]:
    words = (_Words * 2)()
    _call("capget", ctypes.byref(_Header(_CAPABILITY_VERSION_3, 0)), words)
    return words


def _set(words: ctypes.Array[_Words]) -> None:
    _call("capset", ctypes.byref(_Header(_CAPABILITY_VERSION_3, 0)), words)


def _prctl(option: int, argument: int, *, check: bool = True) -> int:
    arguments = [ctypes.c_ulong(value) for value in (argument, 0, 0, 0)]
    return _call("prctl", option, *arguments, check=check)


def _call(name: str, *arguments: object, check: bool = True) -> int:
    result = int(getattr(ctypes.CDLL(None, use_errno=True), name)(*arguments))
    if result < 0 and check:
        errno = ctypes.get_errno()
        raise OSError(errno, f"{name}: {os.strerror(errno)}")
    return result
