"""Can programs attach to the kernel's functions (fentry)? Tried with a small one, for nothing in the kernel says it:
it takes CONFIG_FUNCTION_TRACER and, on arm64, direct calls (6.4), a locked down host may refuse, and in some kernels'
types (Debian's 5.10) the functions of system calls have arguments of a struct that is only declared.

Only the trial may go in here.
"""

from __future__ import annotations

import ctypes
import os
import struct
from ctypes import c_int, c_size_t, c_uint32

from llmio_probe.kernel.libbpf import Libbpf

_TRACING, _FENTRY = 26, 24  # enum bpf_prog_type, bpf_attach_type
_PROGRAM = b"".join(
    struct.pack("=BBhi", *instruction)
    for instruction in (
        (0x79, 0x11, 0, 0),  # r1 = *(u64 *)(r1 + 0): the first argument
        (0xB7, 0, 0, 0),  # r0 = 0
        (0x95, 0, 0, 0),  # exit
    )
)


class _LoadOptions(ctypes.Structure):
    """struct bpf_prog_load_opts, bpf/bpf.h, as far as it is used; libbpf takes the size for its length."""

    _fields_ = (
        ("sz", c_size_t),
        ("attempts", c_int),
        ("expected_attach_type", c_int),
        ("prog_btf_fd", c_uint32),
        ("prog_flags", c_uint32),
        ("prog_ifindex", c_uint32),
        ("kern_version", c_uint32),
        ("attach_btf_id", c_uint32),
        ("attach_prog_fd", c_uint32),
    )


def can_attach(libbpf: Libbpf, function_id: int) -> bool:
    """function_id: of a function in the kernel's BTF. For a moment a program is attached that looks at its argument."""
    options = _LoadOptions(
        sz=ctypes.sizeof(_LoadOptions), attempts=1, expected_attach_type=_FENTRY, attach_btf_id=function_id
    )
    program = link = -1
    try:
        program = libbpf.number(
            "bpf_prog_load", _TRACING, b"llmio_trial", b"GPL", _PROGRAM, len(_PROGRAM) // 8, ctypes.byref(options)
        )
        link = libbpf.number("bpf_raw_tracepoint_open", None, program)
    except OSError:
        return False
    finally:
        for fd in (link, program):
            if fd >= 0:
                os.close(fd)
    return True
