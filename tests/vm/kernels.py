"""Which kernels the guests run, why each, and how a build of one is chosen. Only that may go in here.

A build is pinned, so that a failure is ours and not a new kernel's. Debian keeps no build for long, and its index runs
ahead of its pool: where a pin is gone, the newest build of the same series that there is takes its place, and is named.
A table in Python and not in a file format of its own: its readers are these functions and a person.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tests.vm.architectures import AMD64, ARM64, Architecture

NEWEST = "newest"
FLAVOURS = {"": "cloud-amd64", "-arm64": "cloud-arm64", "-arm64-16k": "arm64-16k"}
"""Debian's, by how a kernel's name here ends. cloud: built for virtual machines, with NVMe, virtio and a serial console
and without a physical machine's 400 MB of drivers. 16k: the size of a page."""


@dataclass(frozen=True)
class Kernel:
    """name: as on the command line: a series, then what is not amd64's, as 6.12-arm64.
    release: as `uname -r` says it, without the flavour; empty: the newest."""

    name: str
    release: str
    why: str
    lacks: tuple[str, ...] = ()
    """Words in the ids of tests that do not apply to it: "btrfs", whose files are known from 6.2 on only."""

    @property
    def series(self) -> str:
        return self.name.partition("-")[0]

    @property
    def flavour(self) -> str:
        return FLAVOURS[self.name.removeprefix(self.series)]

    @property
    def architecture(self) -> Architecture:
        return ARM64 if "arm64" in self.flavour else AMD64


BEFORE_6_2 = ("btrfs",)

KERNELS = (
    Kernel(
        "5.10",
        "5.10.0-46",
        "Debian 11 and the oldest that we promise: no block_io_start, rq->rq_disk, no folios",
        BEFORE_6_2,
    ),
    Kernel("6.1", "6.1.0-56", "Debian 12: folios, still no block_io_start", BEFORE_6_2),
    Kernel("6.12", "6.12.117+deb12", "Debian 13, and backported to 12: block_io_start, ioprio in the tracepoints"),
    Kernel(NEWEST, "", "the newest in Debian's suites: what breaks next. docs/compatibility.md says which it last was"),
    Kernel("6.12-arm64", "6.12.117+deb12", "another architecture: other registers, functions, system calls"),
)


def kernel(name: str) -> Kernel:
    """By its name in the table, or a series that is not there, as 6.16 or 6.12-arm64-16k: its newest build."""
    for known in KERNELS:
        if known.name == name:
            return known
    if re.fullmatch(rf"\d+\.\d+({'|'.join(FLAVOURS)})", name):
        return Kernel(name, "", "asked for on the command line")
    names = ", ".join(known.name for known in KERNELS)
    raise ValueError(f"there is no kernel {name}: use one of {names}, or another series as 6.16 or 6.16-arm64")


def releases(kernel: Kernel, packages: Iterable[str]) -> Sequence[str]:
    """What to try for a kernel, best first, from the names of all image packages in Debian's index."""
    series = r"\d+\.\d+" if kernel.series == NEWEST else re.escape(kernel.series)
    image = re.compile(rf"linux-image-({series}\.\d[^-]*(?:-[^-]+)?)-{kernel.flavour}")
    found = sorted({match[1] for name in packages if (match := image.fullmatch(name))}, key=_order, reverse=True)
    pinned = [kernel.release] if kernel.release else []
    return [*pinned, *(release for release in found if release not in pinned)]


def image_packages(release: str, flavour: str, packages: Iterable[str]) -> Sequence[str]:
    """What holds the kernel and its modules: one package, and several from 6.19 on."""
    wanted = [f"linux-{part}-{release}-{flavour}" for part in ("image", "binary", "modules")]
    there = set(packages)
    return [name for name in wanted if name in there]


def _order(release: str) -> tuple[int, ...]:
    """6.1.0-9 before 6.1.0-10, and a backport of a build (6.1.0-0.deb11.52) before all builds."""
    return tuple(int(number) for number in re.findall(r"\d+", release))
