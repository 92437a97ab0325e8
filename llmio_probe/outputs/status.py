"""Names of block statuses, for all outputs, and which of them are no errors of a device.

include/linux/blk_types.h, as far as every kernel since 5.10 agrees (6 was called NEXUS once). In 2024 ZONE_RESOURCE
(14) was dropped and all that follow moved down by one, so 14 and up stay numbers, which are right on any kernel.
"""

from __future__ import annotations

BLOCK_STATUS = (
    "ok",
    "notsupp",
    "timeout",
    "nospc",
    "transport",
    "target",
    "resv_conflict",
    "medium",
    "protection",
    "resource",
    "ioerr",
    "dm_requeue",
    "again",
    "dev_resource",
)
HARMLESS = frozenset({"notsupp", "again"})
"""What the device does not know how to do, and what io_uring then does in another way: nobody has lost data."""


def status_name(status: int) -> str:
    return BLOCK_STATUS[status] if 0 <= status < len(BLOCK_STATUS) else str(status)
