"""How many bytes have a known owner and file: the one rule, because Prometheus and the JSON document both publish it.

Only read and write bytes count, and only on disks: a stacked device would count the same bytes a second time.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from llmio_probe.aggregate.rows import AttributedBytes, Stream
from llmio_probe.kernel.records import Op, OwnerKind
from llmio_probe.outputs.shapes import Devices

KIND_NAMES = {OwnerKind.PROCESS: "worker", OwnerKind.KERNEL: "kernel", OwnerKind.UNKNOWN: "unknown"}
DATA_OPS = frozenset({Op.READ, Op.WRITE})


@dataclass(frozen=True)
class Attribution:
    """Bytes. by_kind: of the owner; every kind is there, 0 when it had none.

    file_known: with the kernel's own, which have no file, and that is known. shared_writers: written back for files
    that several processes had changed.
    """

    by_kind: dict[str, int]
    file_known: int
    shared_writers: int


def data_bytes(stream: Stream) -> int:
    """What the stream moved; a discard moves nothing, however much it names."""
    return stream.bytes if stream.op in DATA_OPS else 0


def attribution(rows: Iterable[AttributedBytes], devices: Devices) -> Attribution:
    on_disks = [row for row in rows if devices.layer(row.device) == "disk"]
    by_kind = dict.fromkeys(KIND_NAMES.values(), 0)
    for row in on_disks:
        by_kind[KIND_NAMES[row.owner_kind]] += row.bytes
    return Attribution(
        by_kind,
        sum(row.bytes for row in on_disks if row.file_known or row.owner_kind is OwnerKind.KERNEL),
        sum(row.shared_bytes for row in on_disks),
    )
