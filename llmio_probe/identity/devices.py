"""What a kernel dev_t is called, whether it is a disk or stacked on one, and which one a user means.

Only sysfs and mountinfo are read here; what was counted per device is the aggregate room's.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Literal

from llmio_probe.errors import ProbeError
from llmio_probe.identity.mounts import MountTable, decode

Layer = Literal["disk", "upper"]

NO_DISK = 0
UNKNOWN = "unknown"

_MINOR_BITS = 20


class Devices:
    """Names and layers are remembered: a device may be gone when its last requests are shown."""

    def __init__(self, sys_root: str = "/sys", proc_root: str = "/proc", *, host: str = "self") -> None:
        """host: the process whose mounts are the host's (mounts.host_process)."""
        self._sys = Path(sys_root)
        self._mountinfo = Path(proc_root) / host / "mountinfo"
        self._names: dict[int, str] = {}
        self._paths: dict[int, str] = {}
        self._layers: dict[int, Layer] = {}

    def remember(self) -> None:
        """Name all disks that there are now: one that is removed later is still known."""
        for entry in (self._sys / "dev" / "block").glob("*:*"):
            major, _, minor = entry.name.partition(":")
            if major.isdigit() and minor.isdigit():
                dev = int(major) << _MINOR_BITS | int(minor)
                self.name(dev)
                self.layer(dev)

    def name(self, dev: int) -> str:
        """The whole disk's kernel name, nvme0n1; MAJ:MIN while nothing is known of it.

        0 is called unknown: a queue without a disk, as NVMe's admin commands have.
        """
        if dev == NO_DISK:
            return UNKNOWN
        if dev not in self._names:
            folder = self._disk_folder(self._sys / "dev" / "block" / _numbers(dev))
            if folder is None:
                return _numbers(dev)
            self._names[dev] = folder.name.replace("!", "/")
        return self._names[dev]

    def path(self, dev: int) -> str | None:
        """/dev/nvme0n1p2: of a disk or of a partition, as udev and devtmpfs name it; None while nothing is known."""
        if dev not in self._paths:
            entry = self._sys / "dev" / "block" / _numbers(dev)
            try:
                lines = (entry / "uevent").read_text(errors="surrogateescape").splitlines()
            except OSError:
                return None
            names = [line.removeprefix("DEVNAME=") for line in lines if line.startswith("DEVNAME=")]
            self._paths[dev] = f"/dev/{(names or [entry.resolve().name.replace('!', '/')])[0]}"
        return self._paths[dev]

    def layer(self, dev: int) -> Layer:
        """upper: the same bytes show again on a device below, so that no total may add both."""
        folder = self._disk_folder(self._sys / "dev" / "block" / _numbers(dev))
        if folder is not None:
            self._layers[dev] = "upper" if self._is_stacked(folder) else "disk"
        return self._layers.get(dev, "disk")

    def resolve(self, text: str) -> int:
        """The whole disk that a user means by nvme0n1, /dev/nvme0n1p2 or /dev/disk/by-id/…"""
        folder = self._disk_folder(self._entry(text))
        if folder is None:
            there = ", ".join(self._disks()) or "none"
            raise ProbeError(f"there is no block device {text!r}; this host has {there}")
        major, _, minor = (folder / "dev").read_text().strip().partition(":")
        return int(major) << _MINOR_BITS | int(minor)

    def _entry(self, text: str) -> Path:
        path = os.path.realpath(text) if text.startswith("/") else f"/dev/{text}"
        try:
            status = os.stat(path)
            if text.startswith("/") and stat.S_ISBLK(status.st_mode):
                # A node may have any name; its numbers tell.
                return self._sys / "dev" / "block" / f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
        except (OSError, ValueError):
            pass
        name = path.partition("/dev/")[2] or path
        return self._sys / "class" / "block" / name.replace("/", "!")

    def _disk_folder(self, entry: Path) -> Path | None:
        """The disk's sysfs folder, from an entry of dev/block or class/block; a partition's lies inside its disk's."""
        try:
            folder = entry.resolve(strict=True)
        except (OSError, ValueError, RuntimeError):
            return None
        if (folder / "partition").exists():
            folder = folder.parent
        return folder if (folder / "dev").exists() else None

    def _is_stacked(self, folder: Path) -> bool:
        if any((folder / "slaves").glob("*")):
            return True
        try:
            backing = (folder / "loop" / "backing_file").read_text(errors="surrogateescape").rstrip("\n")
        except OSError:
            return False
        return self._lies_on_block_device(backing.removesuffix(" (deleted)"))

    def _lies_on_block_device(self, path: str) -> bool:
        """By mount point, not by st_dev: a btrfs subvolume's st_dev is in no mountinfo, and a deleted file has none."""
        try:
            table = MountTable.parse(decode(self._mountinfo.read_bytes()))
        except OSError:
            table = MountTable()
        mount = table.at(path)
        return mount is None or mount.on_block_devices  # nothing is known: nearly all loop devices are stacked

    def _disks(self) -> list[str]:
        """Those with a medium: hosts have many empty loop devices."""
        sizes = sorted((self._sys / "block").glob("*/size"))
        return [size.parent.name.replace("!", "/") for size in sizes if size.read_text().strip() != "0"]


def _numbers(dev: int) -> str:
    return f"{dev >> _MINOR_BITS}:{dev & ((1 << _MINOR_BITS) - 1)}"
