"""What a kernel dev_t is called, whether it is a disk or stacked on one, and which one a user means.

Only sysfs and mountinfo are read here; what was counted per device is the aggregate room's. systemd's sandbox hides the
host's mountinfo from a thread without rights, as the server's are, so a scrape gets what is known and looks nothing up.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from llmio_probe.errors import ProbeError
from llmio_probe.identity.mounts import Mounts

Layer = Literal["disk", "upper"]

NO_DISK = 0
UNKNOWN = "unknown"

_MINOR_BITS = 20
_FURTHER = 0xFFF << _MINOR_BITS
"""Numbers from here on are no dev_t's: the kernel has no such major."""
_LOOP_MAJOR = 7


@dataclass(frozen=True)
class Description:
    name: str
    layer: Layer


@dataclass(frozen=True)
class KnownDevices:
    """What was known of devices at one moment. Nothing is looked up, and nobody changes it."""

    by_number: Mapping[int, Description]
    layers: Mapping[str, Layer]
    """By name, what the device that was called so last is now."""

    def name(self, device: int, /) -> str:
        return _name(device, self.by_number.get(device))

    def layer(self, device: int, /) -> Layer:
        """While the number stood for it."""
        return _layer(self.by_number.get(device))

    def layer_now(self, device: int, /) -> Layer:
        return self.layers.get(self.name(device), "disk")


class Devices:
    """Names and layers are remembered: a device may be gone when its last requests are shown.

    The kernel uses a dev_t again, for another disk or a loop device with another file. What was counted before must
    stay where it is, else one counter falls and another jumps. So a number stands for a dev_t with one name and layer:
    the dev_t itself for the first that were found, another one for any others, the same whenever they come again.
    """

    def __init__(self, sys_root: str = "/sys", proc_root: str = "/proc", *, host: str = "self") -> None:
        """host: the process whose mounts are the host's (mounts.host_process)."""
        self._sys = Path(sys_root)
        self._mounts = Mounts(proc_root, host=host)
        self._now: dict[int, Description] = {}  # by dev_t
        self._by_number: dict[int, Description] = {}
        self._number_of: dict[tuple[int, Description], int] = {}
        self._layers: dict[str, Layer] = {}
        self._paths: dict[int, str] = {}

    def remember(self) -> None:
        """Look at all disks that there are: one that is removed later is still known, and what has changed is noticed.

        One without a medium, such as a loop device without a file, stays what it was: no request can be for it.
        """
        for name in _entries(self._sys / "block"):
            folder = self._sys / "block" / name
            if _has_medium(folder) and (dev := _dev_of(folder)) is not None:
                self._describe(dev, folder)

    def number(self, dev: int) -> int:
        """What stands for it now. Who is gone before anybody looked is shown by its numbers from then on."""
        if dev not in self._now:
            self._look(dev)
        if dev not in self._now:
            self._stands_for(dev, Description(_name(dev, None), "disk"))
        return self._number_of[dev, self._now[dev]]

    def renumbered(self) -> dict[int, int]:
        """The numbers of those whose dev_t stands for something else by now."""
        numbers = {dev: self._number_of[dev, found] for dev, found in self._now.items()}
        return {dev: number for dev, number in numbers.items() if number != dev}

    def known(self) -> KnownDevices:
        """What is known now, for who must not look by himself."""
        return KnownDevices(self._by_number.copy(), self._layers.copy())

    def name(self, device: int) -> str:
        """The whole disk's kernel name, nvme0n1; MAJ:MIN while nothing is known of it.

        0 is called unknown: a queue without a disk, as NVMe's admin commands have.
        """
        return _name(device, self._description(device))

    def layer(self, device: int) -> Layer:
        """upper: the same bytes show again on a device below, so that no total may add both."""
        return _layer(self._description(device))

    def path(self, dev: int) -> str | None:
        """/dev/nvme0n1p2: of a disk or of a partition, as udev and devtmpfs name it; None while nothing is known."""
        entry = self._sys / "dev" / "block" / _numbers(dev)
        try:
            lines = (entry / "uevent").read_text(errors="surrogateescape").splitlines()
        except OSError:
            return self._paths.get(dev)
        names = [line.removeprefix("DEVNAME=") for line in lines if line.startswith("DEVNAME=")]
        self._paths[dev] = f"/dev/{(names or [entry.resolve().name.replace('!', '/')])[0]}"
        return self._paths[dev]

    def resolve(self, text: str) -> int:
        """As find(), but ProbeError when there is none."""
        dev = self.find(text)
        if dev is None:
            there = ", ".join(self._disks()) or "none"
            raise ProbeError(f"there is no block device {text!r}; this host has {there}")
        return dev

    def find(self, text: str) -> int | None:
        """The whole disk that a user means by nvme0n1, /dev/nvme0n1p2 or /dev/disk/by-id/…"""
        folder = self._disk_folder(self._entry(text))
        return None if folder is None else _dev_of(folder)

    def _description(self, device: int) -> Description | None:
        if device not in self._by_number:
            self._look(device)
        return self._by_number.get(device)

    def _look(self, dev: int) -> None:
        folder = self._disk_folder(self._sys / "dev" / "block" / _numbers(dev))
        if folder is not None:
            self._describe(dev, folder)

    def _describe(self, dev: int, folder: Path) -> None:
        layer: Layer = "upper" if self._is_stacked(dev, folder) else "disk"
        self._stands_for(dev, Description(folder.name.replace("!", "/"), layer))

    def _stands_for(self, dev: int, found: Description) -> None:
        if self._now.get(dev) == found:
            return
        self._now[dev] = found
        self._layers[found.name] = found.layer
        number = self._number_of.get((dev, found))
        if number is None:
            number = dev if dev not in self._by_number else _FURTHER + len(self._number_of)
            self._number_of[dev, found], self._by_number[number] = number, found

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

    def _is_stacked(self, dev: int, folder: Path) -> bool:
        if _entries(folder / "slaves"):
            return True
        if dev >> _MINOR_BITS != _LOOP_MAJOR:
            return False
        try:
            backing = (folder / "loop" / "backing_file").read_text(errors="surrogateescape").rstrip("\n")
        except OSError:
            return True  # its file is gone again; nearly all loop devices are stacked
        # By mount point, not by st_dev: a btrfs subvolume's st_dev is in no mountinfo, and a deleted file has none.
        mount = self._mounts.table().at(backing.removesuffix(" (deleted)"))
        return mount is None or mount.on_block_devices

    def _disks(self) -> list[str]:
        """Those with a medium: hosts have many empty loop devices."""
        folders = sorted((self._sys / "block").glob("*"))
        return [folder.name.replace("!", "/") for folder in folders if _has_medium(folder)]


def _has_medium(folder: Path) -> bool:
    try:
        return (folder / "size").read_text().strip() != "0"
    except OSError:  # just removed
        return False


def _dev_of(folder: Path) -> int | None:
    try:
        major, _, minor = (folder / "dev").read_text().strip().partition(":")
    except OSError:
        return None
    return int(major) << _MINOR_BITS | int(minor)


def _entries(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _name(device: int, known: Description | None) -> str:
    if device == NO_DISK:
        return UNKNOWN
    return _numbers(device) if known is None else known.name


def _layer(known: Description | None) -> Layer:
    return "disk" if known is None else known.layer


def _numbers(dev: int) -> str:
    return f"{dev >> _MINOR_BITS}:{dev & ((1 << _MINOR_BITS) - 1)}"
