"""Where everything is measured and how thoroughly: two disks under load, the tools beside ours. No measurement."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from llmio_probe.identity.devices import Devices
from tests.bench.tools.bpftrace import Bpftrace
from tests.bench.tools.reference import Reference, build
from tests.bench.tools.tool import Tool
from tests.live.harness import Disk
from tests.live.system import fill, loop_device

LOOP_BYTES = 256 << 20
FILE_BYTES = 256 << 20
REAL_FOLDER = "/var/tmp"
"""On a real disk: /tmp may be in memory."""


@dataclass(frozen=True)
class Effort:
    """How often and how long is looked.

    pairs: at a load with and without a tool, or at ours and what it is compared with. fewer: of either, where they come
    slowly or the outcome is plain. rounds: of what is steady. seconds: of one look. thorough: each tool on each disk,
    not only so much that all code runs.
    """

    rounds: int
    pairs: int
    fewer: int
    seconds: float
    thorough: bool


FULL = Effort(rounds=5, pairs=15, fewer=3, seconds=0.35, thorough=True)
QUICK = Effort(rounds=1, pairs=1, fewer=1, seconds=0.2, thorough=False)


@dataclass(frozen=True)
class Setting:
    """loop: a loop device over tmpfs, which the CPU saturates. real: a file on the machine's own disk."""

    loop: Disk
    real: Disk
    effort: Effort
    biolatency: Reference
    floor: Reference
    nothing_dirtied: Reference
    nothing_called: Reference
    scripts: tuple[Tool, ...]
    """By bpftrace: much slower to start, and to run."""


@contextmanager
def setting(effort: Effort) -> Iterator[Setting]:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="llmio-bench-", dir=REAL_FOLDER)))
        loop = stack.enter_context(loop_device(LOOP_BYTES))
        fill(loop.path, LOOP_BYTES)
        built = build(folder)
        yield Setting(
            loop=loop,
            real=_file(folder / "file"),
            effort=effort,
            biolatency=Reference(built, "latency", "biolatency's way"),
            floor=Reference(built, "empty", "empty programs"),
            nothing_dirtied=Reference(built, "dirtied", "empty programs"),
            nothing_called=Reference(built, "called", "empty programs"),
            scripts=(Bpftrace("biosnoop.bt", "bpftrace: as biosnoop"), Bpftrace("paper.bt", "bpftrace: the paper's")),
        )


def _file(path: Path) -> Disk:
    fill(path, FILE_BYTES)
    number = os.stat(path).st_dev
    name = Devices().name(os.major(number) << 20 | os.minor(number))
    if not Path(f"/sys/block/{name}").exists():
        raise RuntimeError(f"{REAL_FOLDER} is not on a block device, so that a real disk cannot be measured")
    return Disk(path, name, FILE_BYTES)
