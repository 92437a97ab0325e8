"""The record layouts of bpf/record.h as NumPy dtypes, and the ids used in them.

Names, order and sizes are those of the C structs; the loader refuses an object whose BTF differs (btf.py), so the
two cannot drift. Nothing but layouts and ids may go in here. Times are CLOCK_MONOTONIC nanoseconds, ``*start_ns``
CLOCK_BOOTTIME nanoseconds, 0 is unknown.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum, IntFlag
from typing import Any

import numpy as np
from numpy.typing import NDArray

Records = NDArray[Any]
"""A one-dimensional structured array of one of the dtypes below."""


class Op(IntEnum):
    READ = 0
    WRITE = 1
    DISCARD = 2
    FLUSH = 3
    PASSTHROUGH = 4
    OTHER = 5


class Engine(IntEnum):
    UNKNOWN = 0
    LIBAIO = 1
    IO_URING = 2
    POSIX = 3
    MMAP = 4
    KERNEL = 5


class Path(IntEnum):
    UNKNOWN = 0
    DIRECT = 1
    PAGE_CACHE = 2
    WRITEBACK = 3
    SWAP = 4


class OwnerKind(IntEnum):
    UNKNOWN = 0
    PROCESS = 1
    KERNEL = 2


class RequestFlag(IntFlag):
    READAHEAD = 1
    SYNC = 2
    METADATA = 4
    FUA = 8
    UNSTARTED = 16
    EXPIRED = 32
    PART = 64
    SHARED = 128


class FileFlag(IntFlag):
    DELETED = 1
    NAMELESS = 2
    CUT = 4


class BucketEdge(IntEnum):
    """The one bucket rule: bucket n holds (2^(n-1), 2^n]. Of the first and the last n; what is more is in +Inf."""

    SIZE_FIRST = 9
    SIZE_LAST = 31
    LATENCY_FIRST = 10
    LATENCY_LAST = 35
    CALL_FIRST = 0
    CALL_LAST = 12


SIZE_BUCKETS = BucketEdge.SIZE_LAST - BucketEdge.SIZE_FIRST + 2
LATENCY_BUCKETS = BucketEdge.LATENCY_LAST - BucketEdge.LATENCY_FIRST + 2
CALL_BUCKETS = BucketEdge.CALL_LAST - BucketEdge.CALL_FIRST + 2


class ProcessFlag(IntFlag):
    KERNEL_THREAD = 1
    FOLLOWED = 2


REQUEST = np.dtype(
    [
        ("made_ns", "u8"),
        ("issued_ns", "u8"),
        ("done_ns", "u8"),
        ("sector", "u8"),
        ("owner_start_ns", "u8"),
        ("inode", "u8"),
        ("inode_generation", "u4"),
        ("file_device", "u4"),
        ("device", "u4"),
        ("bytes", "u4"),
        ("request_bytes", "u4"),
        ("tgid", "u4"),
        ("requeues", "u2"),
        ("hw_queue", "u2"),
        ("flags", "u2"),
        ("op", "u1"),
        ("status", "u1"),
        ("engine", "u1"),
        ("path", "u1"),
        ("owner", "u1"),
        ("reserved", "u1", (5,)),
    ]
)

REQUEST_SLOT = np.dtype([("written", "u8"), ("record", REQUEST)])

RING_POSITION = np.dtype(
    [("reserved", "u8"), ("reserved_line", "u1", (56,)), ("released", "u8"), ("released_line", "u1", (56,))]
)

PROCESS = np.dtype(
    [
        ("time_ns", "u8"),
        ("start_ns", "u8"),
        ("parent_start_ns", "u8"),
        ("tgid", "u4"),
        ("parent_tgid", "u4"),
        ("flags", "u4"),
        ("reserved", "u4"),
        ("comm", "S16"),
    ]
)

DEVICE_COUNTS = np.dtype(
    [
        ("started", "u8"),
        ("finished", "u8"),
        ("merged", "u8"),
        ("expired", "u8"),
        ("unowned", "u8"),
        ("unowned_at_attach", "u8"),
        ("untracked", "u8"),
        ("lost_requests", "u8", (len(Op),)),
        ("lost_bytes", "u8", (len(Op),)),
        ("lost_request_bytes", "u8", (len(Op),)),
    ]
)

RING_LOSSES = np.dtype(
    [
        ("overflowed_requests", "u8"),
        ("lost_records", "u8"),
        ("lost_calls", "u8"),
        ("processes", "u8"),
        ("files", "u8"),
    ]
)

FILE = np.dtype(
    [
        ("time_ns", "u8"),
        ("inode", "u8"),
        ("owner_start_ns", "u8"),
        ("size", "u8"),
        ("inode_generation", "u4"),
        ("file_device", "u4"),
        ("mount_device", "u4"),
        ("tgid", "u4"),
        ("flags", "u4"),
        ("path_bytes", "u4"),
    ]
)
"""Behind it path_bytes of names, from the file up to its filesystem's root, each with its NUL."""

SHARE = np.dtype(
    [
        ("owner_start_ns", "u8"),
        ("inode", "u8"),
        ("inode_generation", "u4"),
        ("file_device", "u4"),
        ("tgid", "u4"),
        ("engine", "u1"),
        ("path", "u1"),
        ("owner", "u1"),
        ("shared", "u1"),
    ]
)

REQUEST_ENTRY = np.dtype(
    [
        ("request", "u8"),
        ("made_ns", "u8"),
        ("issued_ns", "u8"),
        ("bio", "u8"),
        ("bytes", "u4"),
        ("part_bytes", "u4"),
        ("issued_bytes", "u4"),
        ("issues", "u2"),
        ("flags", "u2"),
        ("op", "u1"),
        ("status", "u1"),
        ("in_flight", "u1"),
        ("merged", "u1"),
        ("reserved", "u1", (12,)),
        ("share", SHARE),
        ("device", "u4"),
        ("seen_epoch", "u4"),
        ("slot", "u2"),
        ("reserved_line", "u1", (22,)),
    ]
)

MADE_BIO = np.dtype(
    [
        ("share", SHARE),
        ("made_ns", "u8"),
        ("device", "u4"),
        ("cmd_flags", "u4"),
        ("slot", "u2"),
        ("op", "u1"),
        ("reserved", "u1", (5,)),
    ]
)

OVERFLOW_KEY = np.dtype(
    [
        ("share", SHARE),
        ("device", "u4"),
        ("flags", "u2"),
        ("op", "u1"),
        ("status", "u1"),
        ("ring", "u4"),
        ("reserved", "u4"),
    ]
)

OVERFLOW_TOTALS = np.dtype(
    [
        ("requests", "u8"),
        ("bytes", "u8"),
        ("request_bytes", "u8"),
        ("requeues", "u8"),
        ("queue_ns", "u8"),
        ("device_ns", "u8"),
        ("total_ns", "u8"),
        ("done_ns", "u8"),
        ("size_counts", "u4", (SIZE_BUCKETS,)),
        ("queue_counts", "u4", (LATENCY_BUCKETS,)),
        ("device_counts", "u4", (LATENCY_BUCKETS,)),
        ("total_counts", "u4", (LATENCY_BUCKETS,)),
        ("reserved", "u4"),
    ]
)

CALL_KEY = np.dtype(
    [("owner_start_ns", "u8"), ("tgid", "u4"), ("ring", "u4"), ("engine", "u1"), ("reserved", "u1", (7,))]
)

CALL_OPS = 3
"""Reads, writes, others: the columns of calls' totals by op (enum call_op)."""

CALL_TOTALS = np.dtype(
    [
        ("calls", "u8", (CALL_OPS,)),
        ("requests", "u8", (CALL_OPS,)),
        ("submit_ns", "u8", (CALL_OPS,)),
        ("parts", "u8", (CALL_OPS,)),
        ("polled", "u8"),
        ("read_bytes", "u8"),
        ("write_bytes", "u8"),
        ("reaped", "u8"),
        ("wait_ns", "u8"),
        ("request_counts", "u4", (CALL_BUCKETS,)),
        ("submit_counts", "u4", (LATENCY_BUCKETS,)),
        ("wait_counts", "u4", (LATENCY_BUCKETS,)),
    ]
)

CONTROL = np.dtype(
    [
        ("started_ns", "u8"),
        ("followed_full", "u8"),
        ("running", "u4"),
        ("seen_epoch", "u4"),
        ("woken", "u4"),
        ("table_full", "u4"),
        ("writers_epoch", "u4"),
        ("registers_offset", "u4"),
        ("requests_mask", "u4"),
        ("slots_taken", "u4"),
        ("page_bytes", "u4"),
        ("starts_with_bio", "u4"),
        ("rings_mask", "u4"),
        ("ring_slots", "u4"),
        ("ring_bytes", "u4"),
        ("overflowed", "u4"),
        ("called", "u4"),
        ("reserved", "u4"),
    ]
)

PROCESS_KEY = np.dtype([("start", "u8"), ("tgid", "u8")])

LAYOUTS: dict[str, np.dtype[Any]] = {
    "request_record": REQUEST,
    "request_slot": REQUEST_SLOT,
    "ring_position": RING_POSITION,
    "process_record": PROCESS,
    "file_record": FILE,
    "device_counts": DEVICE_COUNTS,
    "ring_losses": RING_LOSSES,
    "share": SHARE,
    "request_entry": REQUEST_ENTRY,
    "process_key": PROCESS_KEY,
    "made_bio": MADE_BIO,
    "overflow_key": OVERFLOW_KEY,
    "overflow_totals": OVERFLOW_TOTALS,
    "call_key": CALL_KEY,
    "call_totals": CALL_TOTALS,
    "control": CONTROL,
}
"""C struct name to dtype, for the check at load."""

ENUMS: dict[str, tuple[str, type[IntEnum] | type[IntFlag]]] = {
    "op": ("OP_", Op),
    "engine": ("ENGINE_", Engine),
    "io_path": ("PATH_", Path),
    "owner_kind": ("OWNER_", OwnerKind),
    "request_flag": ("REQUEST_", RequestFlag),
    "process_flag": ("PROCESS_", ProcessFlag),
    "file_flag": ("FILE_", FileFlag),
    "bucket_edge": ("BUCKET_", BucketEdge),
}
"""C enum name to the prefix of its members and the Python enum, for the check at load."""


def _flat(key: np.dtype[Any], totals: np.dtype[Any]) -> np.dtype[Any]:
    """Key and totals side by side."""
    fields = [(name, each[name]) for each in (key, totals) for name in each.names or ()]
    own = [field for field in fields if field[0] not in ("share", "ring", "reserved")]
    return np.dtype([*own, *((name, SHARE[name]) for name in SHARE.names or () if "share" in (key.names or ()))])


OVERFLOW = np.dtype([*_flat(OVERFLOW_KEY, OVERFLOW_TOTALS).descr, ("made_ns", "u8")])
"""Requests, or parts of requests, added up in the kernel because a ring was full: what came since the last look.

Fields are named as in REQUEST where they mean the same; requests, bytes, request_bytes, requeues and all ``*_ns`` but
these two are sums. made_ns, done_ns: when the last of them was done, about; that much is known of when they were."""

CALL = _flat(CALL_KEY, CALL_TOTALS)
"""Calls of a process by an engine, added up in the kernel: what came since the last look."""


@dataclass(frozen=True)
class FileSight:
    """A file as the kernel saw it at the first request for it, or after its name had changed (struct file_record)."""

    device: int
    """What stat calls st_dev, as ``major << 20 | minor``. With inode and generation it names a file."""
    inode: int
    generation: int
    mount_device: int
    """What mountinfo calls its filesystem; differs from device on btrfs."""
    tgid: int
    """The process through which it was seen, and its start."""
    owner_start_ns: int
    size: int
    path: bytes | None
    """From its filesystem's root, beginning with a slash; None when the kernel remembered no name."""
    deleted: bool
    cut: bool
    """The path's beginning is missing: it was longer than what is read."""


@dataclass(frozen=True)
class Batch:
    """What one pass brought: structured arrays, copied out of the rings and tables, and files seen first.

    overflow: requests that found no room in the rings, as totals."""

    requests: Records = field(default_factory=lambda: np.empty(0, REQUEST))
    calls: Records = field(default_factory=lambda: np.empty(0, CALL))
    processes: Records = field(default_factory=lambda: np.empty(0, PROCESS))
    files: list[FileSight] = field(default_factory=list)
    overflow: Records = field(default_factory=lambda: np.empty(0, OVERFLOW))
