"""What the first bytes of a file say, read only where that moves no data: we must not cause the I/O that we count.

Reading from the page cache and the header of .npy files may go in here, not what a shape means for a role.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import re
import stat
from contextlib import closing

import numpy as np

LENGTH = 256
"""Bytes that are read. The header of a tensor's .npy file is 128 long."""

_LIBC = ctypes.CDLL(None, use_errno=True)
_NPY = b"\x93NUMPY"
_NPY_START = 10
"""Where the text of its header begins; in version 2 and later at 12."""


def cached_start(path: str, device: int, inode: int) -> bytes | None:
    """The file's first bytes; None when the page cache lacks them or the path leads to another file.

    device: as stat tells it, major << 20 | minor. Raises OSError, PermissionError when this will never work.
    """
    # First only a handle on the name, which a FIFO, a device or a lease does not notice.
    name = os.open(path.encode("utf-8", "surrogateescape"), os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        status = os.fstat(name)
        found = os.major(status.st_dev) << 20 | os.minor(status.st_dev), status.st_ino
        if found != (device, inode) or not stat.S_ISREG(status.st_mode):
            return None
        fd = os.open(f"/proc/self/fd/{name}", os.O_RDONLY | os.O_NOATIME | os.O_NONBLOCK | os.O_CLOEXEC)
    finally:
        os.close(name)
    try:
        return _read_cached(fd)
    finally:
        os.close(fd)


def _read_cached(fd: int) -> bytes | None:
    # RWF_NOWAIT alone is not enough: where the page is missing it starts a read-ahead.
    if not _is_cached(fd):
        return None
    start = bytearray(LENGTH)
    try:
        return bytes(start[: os.preadv(fd, [start], 0, os.RWF_NOWAIT)])
    except BlockingIOError:
        return None


def _is_cached(fd: int) -> bool:
    """Whether the page cache holds the file's first page. It tells the truth to whoever may use O_NOATIME."""
    size = min(os.fstat(fd).st_size, mmap.PAGESIZE)
    if size == 0:
        return False
    with closing(mmap.mmap(fd, size, mmap.MAP_SHARED, mmap.PROT_READ)) as mapping:
        address = np.frombuffer(mapping, np.uint8).ctypes.data  # nothing is read through it
        present = (ctypes.c_ubyte * 1)()
        if _LIBC.mincore(ctypes.c_void_p(address), ctypes.c_size_t(size), present) != 0:
            return False
        return bool(present[0] & 1)


def npy_shape(start: bytes) -> tuple[int, ...] | None:
    """The shape in a .npy file's header; None when it is none."""
    if not start.startswith(_NPY):
        return None
    found = re.search(rb"'shape': \(([0-9, ]{0,100})\)", start[_NPY_START:])
    return None if found is None else tuple(int(n) for n in found[1].split(b",") if n.strip())
