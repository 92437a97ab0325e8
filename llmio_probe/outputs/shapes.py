"""What the outputs need to know of the identity room: the shapes of owners, devices, files, and not who makes them.

Protocols only: an output can then be tested with stand-ins, and neither room imports the other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, Protocol

OwnerKind = Literal["worker", "kernel", "unknown"]
Layer = Literal["disk", "upper"]


class ProcessId(Protocol):
    """A process for good: a tgid comes again, together with its start time it does not."""

    @property
    def tgid(self) -> int: ...

    @property
    def start_ticks(self) -> int: ...


class Process(Protocol):
    """One process; what is not known of it is None."""

    @property
    def id(self) -> ProcessId: ...

    @property
    def command(self) -> str | None: ...

    @property
    def framework(self) -> str | None: ...

    @property
    def rank(self) -> str | None: ...

    @property
    def container(self) -> str | None: ...

    @property
    def pod(self) -> str | None: ...


class Owner(Protocol):
    """Whom a row belongs to: a process in a worker slot, a part of the kernel, or nobody known."""

    @property
    def index(self) -> int: ...

    @property
    def worker(self) -> str: ...

    @property
    def kind(self) -> OwnerKind: ...

    @property
    def process(self) -> Process | None: ...


Owners = Mapping[int, Owner]


class Devices(Protocol):
    """Names of whole disks by dev_t, or by what stands for one, and whether a device is a disk or stacked on one (loop,
    md, dm, multipath).
    """

    def name(self, device: int, /) -> str: ...

    def layer(self, device: int, /) -> Layer: ...


class KnownDevices(Devices, Protocol):
    """Nothing is looked up for these."""

    def layer_now(self, device: int, /) -> Layer:
        """Of what has the device's name now; layer() is what it was when its requests were counted."""
        ...


class File(Protocol):
    """One file; what is not known of it is None."""

    @property
    def path(self) -> str | None: ...

    @property
    def inode(self) -> int: ...

    @property
    def deleted(self) -> bool | None: ...


class Files(Protocol):
    """Files by index, and how a process sees one: None when that is the file's path, or unknown."""

    @property
    def files(self) -> Mapping[int, File]: ...

    def worker_path(self, index: int, tgid: int, /) -> str | None: ...


FileRole = Callable[[int, int], str]
"""What a file (its index) is for an owner (its index)."""
