"""A process's environment out of its memory, for who may trace it but may not open the files of others.

/proc/PID/environ can be opened by its owner only: a service would need CAP_DAC_READ_SEARCH, which opens every file of
the host. process_vm_readv(2) asks for CAP_SYS_PTRACE alone, which is needed for /proc/PID/maps in any case.
"""

from __future__ import annotations

import ctypes

_START, _END = 50 - 3, 51 - 3
"""env_start and env_end of proc(5), counted from the state on, which is field 3."""
_MOST = 1 << 22
"""Bytes: a kernel takes a quarter of the stack's limit at most, 2 MiB by default."""


class _Range(ctypes.Structure):
    """struct iovec"""

    _fields_ = [("start", ctypes.c_void_p), ("length", ctypes.c_size_t)]


def environ_from_memory(pid: int, stat: str) -> dict[str, str]:
    """stat: the text of /proc/PID/stat. Empty where that is not ours to read, and for a process that has none."""
    fields = stat[stat.rindex(")") + 1 :].split()
    if len(fields) <= _END:
        return {}
    start, end = int(fields[_START]), int(fields[_END])  # 0 for who may not trace it
    if not 0 < start < end <= start + _MOST:
        return {}
    block = ctypes.create_string_buffer(end - start)
    ours, theirs = _Range(ctypes.addressof(block), len(block)), _Range(start, len(block))
    read = ctypes.CDLL(None).process_vm_readv
    read.restype = ctypes.c_ssize_t
    length = read(
        pid, ctypes.byref(ours), ctypes.c_ulong(1), ctypes.byref(theirs), ctypes.c_ulong(1), ctypes.c_ulong(0)
    )
    return parse_environ(block.raw[: max(length, 0)])


def parse_environ(block: bytes) -> dict[str, str]:
    """name=value, each ended by a zero byte. An empty entry ends them, and the last of a name counts, as in psutil."""
    found: dict[str, str] = {}
    for entry in block.split(b"\0"):
        if not entry:
            break
        name, equals, value = entry.decode("utf-8", "surrogateescape").partition("=")
        if equals and name:
            found[name] = value
    return found
