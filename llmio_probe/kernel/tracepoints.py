"""Opens the syscall tracepoints as perf events, without needing tracefs to be mounted on the host.

tp_btf programs need none of this. The ids of syscall tracepoints are only found in tracefs, which many hosts mount late
or never; fsopen and fsmount (Linux 5.2) give a tracefs of our own that hangs in no directory and goes with its fd. Whom
the kernel refuses that (it takes CAP_SYS_ADMIN) takes the mounted one, where he may read it.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import platform
import struct
from collections.abc import Iterable
from pathlib import Path

MOUNTED = Path("/sys/kernel/tracing")

# asm/unistd_64.h and asm-generic/unistd.h: the newer ones are the same everywhere
_FSOPEN, _FSCONFIG, _FSMOUNT = 430, 431, 432
_PERF_EVENT_OPEN = {"x86_64": 298, "aarch64": 241}

_FSOPEN_CLOEXEC, _FSMOUNT_CLOEXEC, _FSCONFIG_CMD_CREATE = 1, 1, 6
_PERF_TYPE_TRACEPOINT = 2
_PERF_FLAG_FD_CLOEXEC = 8
_PERF_EVENT_IOC_ENABLE, _PERF_EVENT_IOC_SET_BPF = 0x2400, 0x40042408
_PERF_ATTR_SIZE = 112  # PERF_ATTR_SIZE_VER5; the kernel takes any known size


def tracepoint_ids(names: Iterable[str], mounted: Path = MOUNTED) -> dict[str, int]:
    """The ids of tracepoints named ``syscalls/sys_enter_io_submit``; those that the kernel lacks are left out.

    OSError when the kernel gives no tracefs.
    """
    mount = _tracefs(mounted)
    ids = {}
    try:
        for name in names:
            try:
                fd = os.open(f"events/{name}/id", os.O_RDONLY | os.O_CLOEXEC, dir_fd=mount)
            except FileNotFoundError:
                continue
            with os.fdopen(fd) as file:
                ids[name] = int(file.read())
    finally:
        os.close(mount)
    return ids


def attach_tracepoint(tracepoint_id: int, program_fd: int) -> int:
    """A perf event for a tracepoint, with the program attached; one is enough for all CPUs. OSError when refused.

    The program is detached when the descriptor is closed. By ioctl, which every kernel has: a BPF link for a perf event
    came with 5.15.
    """
    attributes = struct.pack("=IIQQQQQIIQ", _PERF_TYPE_TRACEPOINT, _PERF_ATTR_SIZE, tracepoint_id, 1, 0, 0, 0, 1, 0, 0)
    buffer = ctypes.create_string_buffer(attributes, _PERF_ATTR_SIZE)
    number = _PERF_EVENT_OPEN[platform.machine()]
    fd = _checked(_syscall()(number, buffer, -1, 0, -1, _PERF_FLAG_FD_CLOEXEC))
    try:
        fcntl.ioctl(fd, _PERF_EVENT_IOC_SET_BPF, program_fd)
        fcntl.ioctl(fd, _PERF_EVENT_IOC_ENABLE, 0)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _tracefs(mounted: Path) -> int:
    """A descriptor of its root. OSError when there is none for us."""
    syscall = _syscall()
    try:
        context = _checked(syscall(_FSOPEN, b"tracefs", _FSOPEN_CLOEXEC))
        try:
            _checked(syscall(_FSCONFIG, context, _FSCONFIG_CMD_CREATE, None, None, 0))
            return _checked(syscall(_FSMOUNT, context, _FSMOUNT_CLOEXEC, 0))
        finally:
            os.close(context)
    except PermissionError:
        if not (mounted / "events").is_dir():
            raise
        return os.open(mounted, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def _syscall() -> ctypes._NamedFuncPointer:
    function = ctypes.CDLL(None, use_errno=True).syscall
    function.restype = ctypes.c_long
    return function


def _checked(result: int) -> int:
    if result < 0:
        errno = ctypes.get_errno()
        raise OSError(errno, os.strerror(errno))
    return int(result)
