"""Loading by who may not ask for the types of the kernel's modules: that takes CAP_SYS_ADMIN, loading does not.

libbpf looks for them when the kernel itself lacks a type, and before 1.4 it takes the refusal for a failure of it all.
What it takes for the end of the list is ENOENT: a filter of our own (seccomp(2)) makes that of this one question, for
this process for good. Only that may go in here.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct

# linux/bpf.h, linux/prctl.h, linux/seccomp.h, asm/unistd.h
_BPF_BTF_GET_NEXT_ID = 23
_PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS, _SECCOMP_MODE_FILTER = 22, 38, 2
_RET_ERRNO, _RET_ALLOW = 0x00050000, 0x7FFF0000
_BPF = {"x86_64": 321, "aarch64": 280}
_LOAD, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06  # linux/filter.h: of a word of struct seccomp_data
_NUMBER, _FIRST_ARGUMENT = 0, 16


class _Program(ctypes.Structure):
    """struct sock_fprog"""

    _fields_ = [("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p)]


def do_without_module_types() -> None:
    """OSError where the kernel takes no filters."""
    instructions = [
        (_LOAD, 0, 0, _NUMBER),
        (_JUMP_IF_EQUAL, 0, 3, _BPF[platform.machine()]),
        (_LOAD, 0, 0, _FIRST_ARGUMENT),
        (_JUMP_IF_EQUAL, 0, 1, _BPF_BTF_GET_NEXT_ID),
        (_RETURN, 0, 0, _RET_ERRNO | errno.ENOENT),
        (_RETURN, 0, 0, _RET_ALLOW),
    ]
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *one) for one in instructions))
    program = _Program(len(instructions), ctypes.addressof(code))
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)  # else no filter is taken from who is not root
    _prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.addressof(program))


def _prctl(option: int, *arguments: int) -> None:
    words = [ctypes.c_ulong(word) for word in (*arguments, 0, 0, 0, 0)[:4]]
    if ctypes.CDLL(None, use_errno=True).prctl(option, *words) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
