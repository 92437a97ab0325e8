"""dm and md: what a layer passes on to the disks below is its user's, with the file that he knows, or nobody's.

Witnesses: the statistics of each disk below, what was written and read, /proc/PID/io.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.live.harness import Actor, Disk, Document, Live, Watched, run, transferred
from tests.live.system import drop, filesystem, fill, partition
from tests.vm.guest.devices import SECTOR, mapped, null_disk, striped

pytestmark = pytest.mark.guest

BLOCK = 4096
SIZE = 256 << 20
DIRECT, CACHED, WRITTEN = (number * BLOCK for number in (137, 153, 171))
"""Of several stripes."""
ROUNDS = 5

Below = dict[str, dict[str, int]]
"""Read and written bytes by disk."""


@dataclass
class Stack:
    """What is used, and the disks below it that do the work."""

    top: Disk
    below: Sequence[str]


def require_types_of_modules() -> None:
    """What a layer clones is read through its module's types."""
    if not any(entry.name != "vmlinux" for entry in Path("/sys/kernel/btf").iterdir()):
        pytest.skip("modules have no types before 5.11: what is below dm and md is nobody's")


@contextmanager
def linear(lower: Disk) -> Iterator[Stack]:
    with mapped(f"{SIZE // SECTOR} linear {lower.path} 2048") as top:
        yield Stack(top, [lower.device])


@contextmanager
def raid0(lower: Disk) -> Iterator[Stack]:
    """Half on NVMe, half on another driver's disk."""
    with (
        partition(lower, 1, 1 << 20, SIZE) as first,
        null_disk(memory_backed=1) as second,
        striped([first, second]) as top,
    ):
        yield Stack(top, [first.device, second.device])


@contextmanager
def crypt(lower: Disk) -> Iterator[Stack]:
    run("modprobe", "dm-crypt")
    key = bytes(range(64)).hex()
    with mapped(f"{SIZE // SECTOR} crypt aes-xts-plain64 {key} 0 {lower.path} 0") as top:
        yield Stack(top, [lower.device])


def moved(stack: Stack) -> Below:
    return {device: transferred(device) for device in stack.below}


def watch_below(live: Callable[..., Live], stack: Stack, scenario: Callable[[], None]) -> tuple[Watched, Below]:
    """A session on the disks below, and what they did meanwhile.

    Played again where the kernel has skipped our program at a request's end, as it does when the interrupt of one disk
    comes in the middle of another's completion (docs/kernel.md): whose the parts of a merged one were is not told then.
    """
    for _ in range(ROUNDS):
        seen, below = watch_once(live, stack, scenario)
        if not seen.report["accounting"]["expired"]:
            break
    return seen, below


def watch_once(live: Callable[..., Live], stack: Stack, scenario: Callable[[], None]) -> tuple[Watched, Below]:
    session = live("--all", *(f"--device={device}" for device in stack.below))
    before = moved(stack)  # only now: ext4 reads its bitmaps for some time after it was mounted
    scenario()
    after = moved(stack)
    return Watched(session.interrupt()), {
        device: {op: after[device][op] - before[device][op] for op in ("read", "write")} for device in stack.below
    }


def check_each_disk(seen: Watched, below: Below) -> None:
    for device, bytes_by_op in below.items():
        assert {op: seen.total("bytes", op=op, device=device) for op in bytes_by_op} == bytes_by_op
    assert seen.report["attribution"]["data_bytes"] == sum(sum(by_op.values()) for by_op in below.values())


def bytes_of_file(report: Document, path: object) -> tuple[set[int], int, int]:
    """Who used the file with that path, and the bytes read and written on all disks below."""
    entries = [f for f in report["files"] if f["path"] == str(path)]
    return {f["pid"] for f in entries}, sum(f["read_bytes"] for f in entries), sum(f["write_bytes"] for f in entries)


@pytest.mark.parametrize("layer", [linear, raid0])
def test_below_a_layer_are_the_users_workers_and_files(
    nvme_disk: Disk, layer: Callable[[Disk], AbstractContextManager[Stack]], live: Callable[..., Live]
) -> None:
    with (
        layer(nvme_disk) as stack, filesystem("ext4", stack.top) as place,
        Actor() as direct, Actor() as cached, Actor() as writer,
    ):  # fmt: skip
        require_types_of_modules()
        paths = [place.folder / name for name in ("direct", "cached", "written")]
        fill(paths[0], 2 * DIRECT)
        fill(paths[1], CACHED)
        place.settle()

        def scenario() -> None:
            direct.do("direct", paths[0], "read", 0, DIRECT)
            direct.do("direct", paths[0], "write", DIRECT, BLOCK, DIRECT // BLOCK)
            drop(paths[1])
            cached.do("read", paths[1], 0, CACHED)
            writer.do("write", paths[2], 0, WRITTEN)
            place.settle()

        seen, below = watch_below(live, stack, scenario)
        check_each_disk(seen, below)
        assert all(by_op["read"] and by_op["write"] for by_op in below.values())
        assert bytes_of_file(seen.report, paths[0]) == ({direct.pid}, DIRECT, DIRECT)
        assert bytes_of_file(seen.report, paths[1]) == ({cached.pid}, CACHED, 0)
        assert bytes_of_file(seen.report, paths[2]) == ({writer.pid}, 0, WRITTEN)
        assert kinds(seen, direct.pid) == {("read", "posix", "direct"): DIRECT, ("write", "posix", "direct"): DIRECT}
        assert kinds(seen, cached.pid) == {("read", "posix", "page_cache"): CACHED}
        assert kinds(seen, writer.pid) == {("write", "posix", "writeback"): WRITTEN}
        assert seen.report["attribution"]["unknown_bytes"] == 0


def kinds(seen: Watched, pid: int) -> dict[tuple[str, str | None, str | None], int]:
    """As ``Watched.kinds``, over all disks."""
    found: dict[tuple[str, str | None, str | None], int] = {}
    for s in seen.streams(pid=pid):
        key = (s["op"], s["engine"], s["path"])
        found[key] = found.get(key, 0) + s["bytes"]
    return found


def test_what_is_encrypted_on_the_way_is_nobody_elses(nvme_disk: Disk, live: Callable[..., Live]) -> None:
    """Writes go to the disk as other pages, by the kernel's workers; reads may be the caller's own."""
    with crypt(nvme_disk) as stack, Actor() as direct, Actor() as writer:

        def scenario() -> None:
            direct.do("direct", stack.top.path, "read", 0, BLOCK, DIRECT // BLOCK)
            direct.do("direct", stack.top.path, "write", 1 << 20, BLOCK, DIRECT // BLOCK)
            writer.do("write", stack.top.path, 2 << 20, WRITTEN)
            writer.do("fsync", stack.top.path)

        seen, below = watch_below(live, stack, scenario)
        check_each_disk(seen, below)
        assert below[nvme_disk.device]["write"] == DIRECT + WRITTEN
        assert {s["pid"] for s in seen.report["streams"]} <= {None, direct.pid, writer.pid}
        assert {s["worker"] for s in seen.streams(pid=None)} == {"unknown", "kernel:flush"}
        mine = kinds(seen, direct.pid)
        assert mine.get(("read", "posix", "direct"), 0) <= DIRECT
        unknown = seen.report["attribution"]["unknown_bytes"]
        assert unknown == seen.total("bytes", pid=None)
        assert unknown >= DIRECT + WRITTEN
