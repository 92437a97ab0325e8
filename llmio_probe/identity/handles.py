"""Files by inode and generation instead of by name: the C library's two calls for it (open_by_handle_at(2)).

Only these calls and the layouts of the handles may go in here. Nothing that a handle leads to is ever read: it is
opened with O_PATH. Tried on 6.18 with ext4 and xfs: a renamed file has its new name in /proc/self/fd while the kernel
still remembers the name, else "/"; a deleted one is ESTALE, or has no links while somebody holds it open.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct

from llmio_probe.identity.mounts import decode, encode

_AT_FDCWD = -100
_LONGEST = 128  # MAX_HANDLE_SZ

_INO32_GEN, _INO64_GEN, _BTRFS = 1, 0x81, 0x4D  # include/linux/exportfs.h
_GENERATION_AT = {(_INO32_GEN, 8): 4, (_INO64_GEN, 12): 8, (_BTRFS, 20): 16}
"""Type and length of a handle to where the generation lies in it: behind the inode, on btrfs the subvolume as well."""

FINDABLE = frozenset({"ext2", "ext3", "ext4", "xfs"})
"""Filesystems whose handles are inode and generation and nothing else."""


class _Handle(ctypes.Structure):
    _fields_ = (("length", ctypes.c_uint), ("type", ctypes.c_int), ("data", ctypes.c_ubyte * _LONGEST))


class Handles:
    """Without these calls in the C library, nothing is known: generation is None and open refuses."""

    def __init__(self) -> None:
        library = ctypes.CDLL(None, use_errno=True)
        self._name = getattr(library, "name_to_handle_at", None)
        self._open = getattr(library, "open_by_handle_at", None)
        self._handle = _Handle()
        self._mount_id = ctypes.c_int()
        pointer = ctypes.POINTER(_Handle)
        if self._name is not None:
            self._name.argtypes = (ctypes.c_int, ctypes.c_char_p, pointer, ctypes.POINTER(ctypes.c_int), ctypes.c_int)
        if self._open is not None:
            self._open.argtypes = (ctypes.c_int, pointer, ctypes.c_int)

    def generation(self, name: str) -> int | None:
        """Of the inode that a name leads to; None when its filesystem does not say."""
        if self._name is None:
            return None
        handle = self._handle
        handle.length = _LONGEST
        if self._name(_AT_FDCWD, encode(name), handle, self._mount_id, 0) != 0:
            return None
        place = _GENERATION_AT.get((handle.type, handle.length))
        return None if place is None else int(struct.unpack_from("=I", handle.data, place)[0])

    def open(self, directory: int, kind: str, inode: int, generation: int) -> int:
        """A descriptor for nothing but asking. ESTALE: there is no such file any more. EPERM without the capability.

        directory: any one of the filesystem, opened for reading: O_PATH is not enough (EBADF).
        """
        if self._open is None or kind not in FINDABLE:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        # xfs makes the longer ones and takes both; only those hold all its inode numbers.
        if kind == "xfs":
            type, data = _INO64_GEN, struct.pack("=QI", inode, generation)
        else:
            type, data = _INO32_GEN, struct.pack("=II", inode, generation)
        handle = self._handle
        handle.type, handle.length = type, len(data)
        ctypes.memmove(handle.data, data, len(data))
        fd: int = self._open(directory, handle, os.O_PATH | os.O_CLOEXEC)
        if fd < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        return fd


def name_of(fd: int) -> str:
    """What the kernel calls an open file; whether the name leads back to it has to be tried."""
    return decode(os.readlink(b"/proc/self/fd/%d" % fd))
