"""What the kernel says of a loaded program: run time, runs, runs that it skipped.

Only struct bpf_prog_info (UAPI) and its reading may go in here.
"""

from __future__ import annotations

import ctypes
from ctypes import c_char, c_uint8, c_uint32, c_uint64
from dataclasses import dataclass

from llmio_probe.kernel.libbpf import Libbpf


class _ProgramInfo(ctypes.Structure):
    """struct bpf_prog_info, linux/bpf.h; the kernel fills in as much as both sides know."""

    _fields_ = (
        ("type", c_uint32),
        ("id", c_uint32),
        ("tag", c_uint8 * 8),
        ("jited_prog_len", c_uint32),
        ("xlated_prog_len", c_uint32),
        ("jited_prog_insns", c_uint64),
        ("xlated_prog_insns", c_uint64),
        ("load_time", c_uint64),
        ("created_by_uid", c_uint32),
        ("nr_map_ids", c_uint32),
        ("map_ids", c_uint64),
        ("name", c_char * 16),
        ("ifindex", c_uint32),
        ("gpl_compatible", c_uint32),
        ("netns_dev", c_uint64),
        ("netns_ino", c_uint64),
        ("nr_jited_ksyms", c_uint32),
        ("nr_jited_func_lens", c_uint32),
        ("jited_ksyms", c_uint64),
        ("jited_func_lens", c_uint64),
        ("btf_id", c_uint32),
        ("func_info_rec_size", c_uint32),
        ("func_info", c_uint64),
        ("nr_func_info", c_uint32),
        ("nr_line_info", c_uint32),
        ("line_info", c_uint64),
        ("jited_line_info", c_uint64),
        ("nr_jited_line_info", c_uint32),
        ("line_info_rec_size", c_uint32),
        ("jited_line_info_rec_size", c_uint32),
        ("nr_prog_tags", c_uint32),
        ("prog_tags", c_uint64),
        ("run_time_ns", c_uint64),
        ("run_cnt", c_uint64),
        ("recursion_misses", c_uint64),  # since 5.12
    )


@dataclass(frozen=True)
class ProgramRuns:
    """Since load. run_ns and runs only count while somebody has bpf_stats on."""

    run_ns: int
    runs: int
    missed: int | None
    """None before 5.12, which does not count them."""


def program_runs(libbpf: Libbpf, fd: int) -> ProgramRuns:
    info = _ProgramInfo()
    size = c_uint32(ctypes.sizeof(info))
    libbpf.number("bpf_obj_get_info_by_fd", fd, ctypes.addressof(info), ctypes.addressof(size))
    known = size.value > _ProgramInfo.recursion_misses.offset  # the kernel says how much it has filled in
    return ProgramRuns(info.run_time_ns, info.run_cnt, info.recursion_misses if known else None)
