"""What differs between guests of different architectures: names, packages, qemu's machine. Only that may go in here.

The runner's own programs, qemu among them, are those of amd64, since they run here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Architecture:
    """name: as `uname -m` says it. debian: as its packages say it. patience: how many times as long all may take."""

    name: str
    debian: str
    qemu: str
    qemu_package: str
    machine: Sequence[str]
    console: str
    platforms: Sequence[str]
    """Of Python wheels."""
    left_out: frozenset[str] = frozenset()
    """Boots (suite.py) that make no sense there."""
    patience: int = 1


AMD64 = Architecture(
    name="x86_64",
    debian="amd64",
    qemu="usr/bin/qemu-system-x86_64",
    qemu_package="qemu-system-x86",
    machine=("-machine", "q35", "-cpu", "max,la57=off"),
    console="ttyS0",
    platforms=("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64"),
)
ARM64 = Architecture(
    name="aarch64",
    debian="arm64",
    qemu="usr/bin/qemu-system-aarch64",
    qemu_package="qemu-system-arm",
    machine=("-machine", "virt,gic-version=3", "-cpu", "max,pauth-impdef=on"),  # a cheap hash, and not QARMA by hand
    console="ttyAMA0",
    platforms=("manylinux_2_28_aarch64", "manylinux_2_17_aarch64", "manylinux2014_aarch64"),
    left_out=frozenset({"no-btf", "systemd", "systemd-no-btf"}),  # BCC compiles for minutes; our wheel is for the host
    patience=4,
)
