"""Which module files a guest needs to reach its root, in the order in which they load. Only that may go in here."""

from __future__ import annotations

import lzma
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

FOR_ROOT = ("virtio_pci", "virtio_blk", "crc32c_generic", "crc32c_intel", "ext4")
"""Some kernels have some of them built in."""


def load_order(wanted: Iterable[str], dependencies: Iterable[str]) -> Sequence[str]:
    """Paths below the modules' folder, from the lines of modules.dep; what is not there is built in."""
    needs: dict[str, list[str]] = {}
    for line in dependencies:
        path, _, others = line.partition(":")
        needs[_name(path)] = [path, *others.split()]
    ordered: dict[str, None] = {}
    for name in wanted:
        for path in reversed(needs.get(_name(name), [])):  # modules.dep has what is needed first last
            ordered.setdefault(path)
    return list(ordered)


def plain_bytes(path: Path) -> bytes:
    """A module file as the kernel takes it."""
    content = path.read_bytes()
    return lzma.decompress(content) if path.suffix == ".xz" else content


def _name(path: str) -> str:
    return re.sub(r"\.ko(\..*)?$", "", path.rpartition("/")[2]).replace("-", "_")
