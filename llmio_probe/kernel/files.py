"""File records as they come out of their ring: a struct file_record (records.py) and the names behind it."""

from __future__ import annotations

import numpy as np

from llmio_probe.errors import ProbeError
from llmio_probe.kernel.records import FILE, FileFlag, FileSight


def file_sight(record: bytes) -> FileSight:
    """The names come from the file up to its filesystem's root."""
    if len(record) < FILE.itemsize:
        raise ProbeError(
            "a BPF ring holds a record of another size: the object and this version do not belong together"
        )
    head = np.frombuffer(record, FILE, 1)[0]
    flags = FileFlag(int(head["flags"]))
    names = record[FILE.itemsize : FILE.itemsize + int(head["path_bytes"])].split(b"\0")[:-1]
    return FileSight(
        device=int(head["file_device"]),
        inode=int(head["inode"]),
        generation=int(head["inode_generation"]),
        mount_device=int(head["mount_device"]),
        tgid=int(head["tgid"]),
        owner_start_ns=int(head["owner_start_ns"]),
        size=int(head["size"]),
        path=None if flags & FileFlag.NAMELESS else b"/" + b"/".join(reversed(names)),
        deleted=bool(flags & FileFlag.DELETED),
        cut=bool(flags & FileFlag.CUT),
    )
