"""Who dirtied what reaches a disk later: by which process, file, engine and path, whoever flushes it and whenever.

Witnesses: what was written, the files' own sizes, /proc/PID/io, and the disk's statistics, which leave no byte over.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.live.harness import Actor, Disk, Observe, run, transferred
from tests.live.scenes import Played, Scene, scene
from tests.live.system import Volume, drop, fill, loop_device, memory_cgroup, swap_on, sysctl, volume_of

KINDS = ("ext4", "xfs", "btrfs")
SIZE = 37 * 4096 * 16
BLOCK = 4096
WRITTEN = ("write", "posix", "writeback")
MAPPED = ("write", "mmap", "writeback")


def flush_in_background(place: Volume, path: Path) -> None:
    """The kernel's own flusher, with expiry set so short that it begins at once."""
    goal = transferred(place.disk.device)["write"] + SIZE
    with sysctl("vm.dirty_expire_centisecs", 1), sysctl("vm.dirty_writeback_centisecs", 1):
        deadline = time.monotonic() + 30
        while transferred(place.disk.device)["write"] < goal:
            assert time.monotonic() < deadline, "nothing was flushed"
            time.sleep(0.01)


FLUSH: dict[str, Callable[[Volume, Path], object]] = {
    "fsync": lambda place, path: run("sync", path),
    "syncfs": lambda place, path: place.settle(),
    "sync": lambda place, path: run("sync"),
    "background": flush_in_background,
}
"""By another process than the one that wrote."""


@pytest.mark.guest
@scene(*KINDS, flush=list(FLUSH))
def test_written_bytes_are_the_writers_whoever_flushes(place: Volume, flush: str) -> Scene:
    path = place.folder / "file"
    yield
    with Actor() as writer:
        writer.do("write", path, 0, SIZE)
        assert writer.io()["write_bytes"] >= SIZE  # btrfs counts its trees' pages as well
        FLUSH[flush](place, path)
    seen = yield
    assert path.stat().st_size == SIZE
    assert seen.kinds(writer.pid) == {WRITTEN: SIZE}
    assert seen.bytes_of(path) == {writer.pid: (0, SIZE)}
    assert not seen.entry(path)["shared_writers"]


@scene(*KINDS, flush=["msync", "sync_file_range", *FLUSH])
def test_what_was_dirtied_through_a_mapping_is_the_writers(place: Volume, flush: str) -> Scene:
    path = place.folder / "file"
    fill(path, SIZE)
    yield
    drop(path)
    with Actor() as writer:
        writer.do("map_file", path, "write")
        if flush in FLUSH:
            FLUSH[flush](place, path)
        else:
            writer.do(flush, path)
        writer.do("unmap", path)
    seen = yield
    # A fault on a page that is not there reads it first, with its surroundings.
    assert seen.kinds(writer.pid) == {MAPPED: SIZE, ("read", "mmap", "page_cache"): SIZE}
    assert seen.bytes_of(path) == {writer.pid: (SIZE, SIZE)}


@scene(*KINDS)
def test_a_mapping_that_is_dirtied_again_after_a_flush_is_written_again(place: Volume) -> Scene:
    path = place.folder / "file"
    fill(path, SIZE)
    yield
    drop(path)
    with Actor() as writer:
        for _ in range(3):
            writer.do("map_file", path, "write")
            writer.do("msync", path)
            writer.do("unmap", path)
    seen = yield
    assert seen.bytes_of(path) == {writer.pid: (SIZE, 3 * SIZE)}


@scene(*KINDS)
def test_only_what_reaches_the_disk_counts(place: Volume) -> Scene:
    """A file that is cut short and one that is deleted before they are flushed."""
    cut, deleted = place.folder / "cut", place.folder / "deleted"
    yield
    with Actor() as writer:
        for path in (cut, deleted):
            writer.do("write", path, 0, SIZE)
        os.truncate(cut, 5 * BLOCK)
        deleted.unlink()
        place.settle()
    seen = yield
    assert seen.kinds(writer.pid) == {WRITTEN: 5 * BLOCK}
    assert seen.bytes_of(cut) == {writer.pid: (0, 5 * BLOCK)}
    assert not seen.bytes_of(deleted)


@scene(*KINDS)
def test_writers_in_turn_are_kept_apart_by_a_flush_between(place: Volume) -> Scene:
    path = place.folder / "file"
    yield
    with Actor() as first, Actor() as second:
        for turn in range(3):  # each writes again what the other wrote
            for writer, size in ((first, 11 * BLOCK), (second, 23 * BLOCK)):
                writer.do("write", path, turn * BLOCK, size)
                writer.do("fsync", path)
    seen = yield
    assert seen.bytes_of(path) == {first.pid: (0, 3 * 11 * BLOCK), second.pid: (0, 3 * 23 * BLOCK)}
    assert not any(f["shared_writers"] for f in seen.files(path))


@pytest.mark.guest
@scene(*KINDS)
def test_writers_without_a_flush_between_are_flagged_and_exact_by_file(place: Volume) -> Scene:
    shared, own, later = (place.folder / name for name in ("shared", "own", "later"))
    yield
    with Actor() as first, Actor() as second:
        first.do("write", shared, 0, 11 * BLOCK)
        first.do("write", own, 0, 7 * BLOCK)
        second.do("write", shared, 11 * BLOCK, 23 * BLOCK)
        first.do("write", later, 0, 5 * BLOCK)
        first.do("fsync", later)
        second.do("write", later, 5 * BLOCK, 3 * BLOCK)
        place.settle()
    seen = yield
    assert sum(written for _, written in seen.bytes_of(shared).values()) == 34 * BLOCK
    assert set(seen.bytes_of(shared)) <= {first.pid, second.pid}
    assert all(f["shared_writers"] for f in seen.files(shared))
    assert seen.bytes_of(own) == {first.pid: (0, 7 * BLOCK)}
    assert seen.bytes_of(later) == {first.pid: (0, 5 * BLOCK), second.pid: (0, 3 * BLOCK)}
    assert not any(f["shared_writers"] for f in (*seen.files(own), *seen.files(later)))


@scene(*KINDS)
def test_a_writer_that_ended_before_the_flush_is_still_named(place: Volume) -> Scene:
    path = place.folder / "file"
    yield
    with Actor() as writer:
        writer.do("write", path, 0, SIZE)
        writer.end()
    place.settle()
    seen = yield
    assert seen.bytes_of(path) == {writer.pid: (0, SIZE)}
    [worker] = [w for w in seen.watched.report["workers"] if w["pid"] == writer.pid]
    assert worker["worker"].startswith("python")


@scene(*KINDS)
def test_two_writers_of_two_files_at_once(place: Volume) -> Scene:
    """Interleaved, and flushed together."""
    first_path, second_path = place.folder / "first", place.folder / "second"
    yield
    with Actor() as first, Actor() as second:
        for i in range(101):
            first.do("write", first_path, i * BLOCK, BLOCK)
            second.do("write", second_path, 2 * i * BLOCK, 2 * BLOCK)
        place.settle()
    seen = yield
    assert seen.bytes_of(first_path) == {first.pid: (0, 101 * BLOCK)}
    assert seen.bytes_of(second_path) == {second.pid: (0, 202 * BLOCK)}


@scene(*KINDS)
def test_a_writer_that_is_short_of_memory(place: Volume) -> Scene:
    """Written back as memory runs out, by whomever the kernel chooses, and read again since nothing stays."""
    path, size = place.folder / "file", 64 << 20
    yield
    with memory_cgroup(24 << 20) as group, Actor() as writer:
        group.write_text(str(writer.pid))
        writer.do("write_slowly", path, size)
        before = writer.io()["read_bytes"]
        writer.do("read", path, 0, 1 << 20, 1 << 20)
        read = writer.io()["read_bytes"] - before
        writer.end()
    seen = yield
    assert read > size / 2, "memory was not short"
    assert set(seen.bytes_of(path)) == {writer.pid}
    mine, written = seen.bytes_of(path)[writer.pid]
    assert written == size
    assert mine == read or (place.kind == "btrfs" and mine <= read)  # its trees' pages are counted, too


@pytest.mark.guest
@pytest.mark.parametrize("played", KINDS, indirect=True, scope="module")
def test_nothing_that_the_disk_did_is_left_over(played: Played) -> None:
    played.seen.check_totals()


def test_a_file_that_was_shared_is_a_single_writers_after_its_flush(ext4_volume: Volume, observe: Observe) -> None:
    path = ext4_volume.folder / "file"

    def scenario() -> list[int]:
        with Actor() as first, Actor() as second:
            first.do("write", path, 0, 11 * BLOCK)
            second.do("write", path, 11 * BLOCK, 2 * BLOCK)
            ext4_volume.settle()
            first.do("write", path, 0, 29 * BLOCK)
            ext4_volume.settle()
            return [first.pid, second.pid]

    seen = observe(ext4_volume, scenario)
    assert seen.watched.report["attribution"]["shared_writers_bytes"] == 13 * BLOCK
    assert sum(written for _, written in seen.bytes_of(path).values()) == 42 * BLOCK
    assert seen.bytes_of(path)[seen.told[0]][1] >= 29 * BLOCK
    seen.check_totals()


@pytest.mark.guest
@pytest.mark.parametrize("then", ["write", "map_file"])
def test_what_the_journal_puts_back_stays_its_writers(observe: Observe, then: str) -> None:
    """A commit writes those blocks of a page that have a place on the disk, and dirties it again for the others."""
    with volume_of("ext4", shape=["-b", str(BLOCK // 4)]) as place:
        place.settle()
        path, other = place.folder / "file", place.folder / "other"

        def scenario() -> tuple[int, int]:
            with Actor() as writer, Actor() as committer:
                writer.do("write", path, 0, 128)
                writer.do("write", path, SIZE - 1, 1)  # zeroes what follows the 128: a part of the transaction
                writer.do("sync_file_range", path)  # their blocks get places, nothing is committed
                writer.do(then, path, *((0, SIZE) if then == "write" else ("write",)))
                committer.do("write", other, 0, 128)
                committer.do("fsync", other)
                place.settle()
                return writer.pid, committer.pid

        seen = observe(place, scenario)
        writer, committer = seen.told
        assert seen.bytes_of(path) == {writer: (0, SIZE + BLOCK // 2)}
        assert not seen.entry(path)["shared_writers"]
        assert seen.bytes_of(other) == {committer: (0, BLOCK // 4)}
        seen.check_totals()


@pytest.fixture(scope="module")
def swap_disk() -> Iterator[Disk]:
    with loop_device(512 << 20) as disk:
        yield disk


@contextmanager
def swapping(disk: Disk) -> Iterator[Path]:
    """Memory for a third of what is asked for."""
    with swap_on(disk), memory_cgroup(32 << 20) as group:
        yield group


def test_swapping_in_is_the_process_and_swapping_out_the_kernels(swap_disk: Disk, observe: Observe) -> None:
    size = 96 << 20

    def scenario() -> int:
        with swapping(swap_disk) as group, Actor() as worker:
            group.write_text(str(worker.pid))
            worker.do("occupy", "memory", size)
            assert worker.do("revisit", "memory") == size // BLOCK
            worker.end()
        return worker.pid

    seen = observe(swap_disk, scenario)
    mine = {s["path"]: s for s in seen.watched.streams(pid=seen.told, op="read")}
    assert set(mine) == {"swap"}
    assert mine["swap"]["bytes"] >= size - (32 << 20)
    swapped = seen.watched.streams(worker="kernel:swap", op="write")
    assert {s["path"] for s in swapped} == {"swap"}
    assert sum(s["bytes"] for s in swapped) >= size - (32 << 20)
    assert {s["worker"] for s in seen.watched.streams(path="swap")} == {"kernel:swap", mine["swap"]["worker"]}
    assert seen.watched.report["attribution"]["unknown_bytes"] == 0
    for op, moved in seen.transferred.items():
        assert seen.watched.total("bytes", op=op) == moved
