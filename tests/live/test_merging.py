"""What becomes of a request on its way: merged with others', cut short, put back, failed, flushed. Bytes stay exact."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.live.harness import (
    Actor,
    Disk,
    Observe,
    disk_statistics,
    fio,
    fio_totals,
    watch,
    whole,
)
from tests.live.scenes import Played, Scene, scene
from tests.live.system import (
    Volume,
    backing_file,
    drop,
    filesystem,
    fill,
    frozen,
    loop_device,
    queue,
    volume_of,
)

KINDS = ("ext4", "xfs", "btrfs")
BLOCK = 4096
FILES = 1000
COUNT = 61
"""What two tasks ask for each on a disk that stands still: all of it has to find room in its scheduler."""


def merges(device: str) -> int:
    """Bios and requests that the kernel has merged into others, by /proc/diskstats."""
    statistics = disk_statistics(device)
    return statistics["read_merges"] + statistics["write_merges"]


@scene(*KINDS)
def test_requests_of_many_files_of_two_writers_are_parted(place: Volume) -> Scene:
    """A thousand small files each: their blocks lie side by side, so that a request holds many files."""

    def size(number: int) -> int:
        return (4 + number % 13) << 10

    yield
    before = merges(place.disk.device)
    with Actor() as first, Actor() as second:
        writers = [first, second]
        for number in range(2 * FILES):
            writers[number % 2].begin("write", place.folder / str(number), 0, size(number))
        for number in range(2 * FILES):
            assert writers[number % 2].answer() == {"done": size(number)}
        place.settle()
    merged = merges(place.disk.device) - before
    seen = yield
    if place.kind != "btrfs":  # it hands over one file after the other
        assert merged > FILES, "hardly anything was merged"
    expected = {
        str(place.folder / str(number)): (writers[number % 2].pid, -(-size(number) // BLOCK) * BLOCK)
        for number in range(2 * FILES)
    }
    found = {f["path"]: (f["pid"], f["write_bytes"]) for f in seen.watched.report["files"] if f["path"] in expected}
    assert found == expected
    for writer in writers:
        total = sum(written for pid, written in expected.values() if pid == writer.pid)
        assert seen.kinds(writer.pid) == {("write", "posix", "writeback"): total}


@scene(*KINDS)
def test_an_fsync_after_each_write(place: Volume) -> Scene:
    """As a database does it: every one writes back its block, and makes the filesystem write its journal."""
    count, path = 211, place.folder / "file"
    yield
    with Actor() as writer:
        for number in range(count):
            writer.do("write", path, number * BLOCK, BLOCK)
            writer.do("fsync", path)
    seen = yield
    assert seen.kinds(writer.pid) == {("write", "posix", "writeback"): count * BLOCK}
    assert seen.bytes_of(path) == {writer.pid: (0, count * BLOCK)}


@pytest.mark.parametrize("played", KINDS, indirect=True, scope="module")
def test_nothing_that_the_disk_did_is_left_over(played: Played) -> None:
    played.seen.check_totals()


@dataclass(frozen=True)
class Stallable:
    """A disk that can be made to stand still: a loop device over a filesystem that can be frozen."""

    disk: Disk
    below: Path
    tags: int
    """How many requests its driver takes; what comes after them waits in the scheduler and may merge there."""

    @contextmanager
    def stalled(self, busy: Actor, path: Path, offset: int) -> Iterator[None]:
        """What is asked for inside waits until the end: the driver is kept busy by direct writes to that place."""
        with frozen(self.below):
            # The first one stands still for the filesystem below, all others behind it.
            busy.begin("submit", path, "write", BLOCK, self.tags + 8, offset, 2 * BLOCK)
            in_flight = Path(f"/sys/block/{self.disk.device}/inflight")
            _wait(lambda: sum(map(int, in_flight.read_text().split())) >= self.tags)
            yield
        assert busy.answer() == {"done": (self.tags + 8) * BLOCK}


def _wait(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.fixture(scope="module")
def stallable() -> Iterator[Stallable]:
    with volume_of("ext4") as below, loop_device(512 << 20, below.folder) as disk, queue(disk, scheduler="mq-deadline"):
        tags = int(Path(f"/sys/block/{disk.device}/mq/0/nr_tags").read_text())
        yield Stallable(disk, below.folder, tags)


@pytest.mark.parametrize("way", ["direct_read", "direct_write", "cached_read"])
def test_bios_of_two_tasks_in_one_request_are_parted(stallable: Stallable, way: str, observe: Observe) -> None:
    """They take turns, block by block on a raw device that stands still: all of it merges."""
    disk = stallable.disk
    op = way.rpartition("_")[2]
    busy_bytes = (stallable.tags + 8) * BLOCK

    def scenario() -> list[int]:
        with open(disk.path, "rb") as open_, Actor() as busy, Actor() as even, Actor() as odd:
            os.posix_fadvise(open_.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            before = merges(disk.device)
            with stallable.stalled(busy, disk.path, disk.size // 2):
                for actor, start in ((even, 0), (odd, BLOCK)):
                    if way == "cached_read":
                        actor.begin("prefetch", disk.path, start, BLOCK, COUNT, 2 * BLOCK)
                    else:
                        actor.begin("submit", disk.path, op, BLOCK, COUNT, start, 2 * BLOCK)
                _wait(lambda: merges(disk.device) - before >= COUNT)
            for actor in (even, odd):
                actor.answer()
            return [busy.pid, even.pid, odd.pid]

    seen = observe(disk, scenario)
    busy, even, odd = seen.told
    engine, path = ("posix", "page_cache") if way == "cached_read" else ("libaio", "direct")
    mine = (COUNT * BLOCK, 0) if op == "read" else (0, COUNT * BLOCK)
    assert seen.kinds(busy) == {("write", "libaio", "direct"): busy_bytes}
    for pid in (even, odd):
        assert seen.kinds(pid) == {(op, engine, path): COUNT * BLOCK}
    files = seen.bytes_of(disk.path)
    assert {pid: files[pid] for pid in seen.told} == {busy: (0, busy_bytes), even: mine, odd: mine}
    seen.check_totals()


def test_reads_of_many_files_by_two_tasks_are_parted(stallable: Stallable, observe: Observe) -> None:
    """Into the page cache, from small files that lie side by side, each task every second one."""
    with filesystem("ext4", stallable.disk) as volume:
        filler, paths = volume.folder / "filler", [volume.folder / str(number) for number in range(2 * COUNT)]
        fill(filler, 8 << 20)
        for path in paths:
            path.write_bytes(bytes(BLOCK))
        volume.settle()

        def scenario() -> list[int]:
            for path in paths:
                drop(path)
            with Actor() as busy, Actor() as even, Actor() as odd:
                before = merges(stallable.disk.device)
                with stallable.stalled(busy, filler, 0):
                    for actor, own in ((even, paths[::2]), (odd, paths[1::2])):
                        for path in own:
                            actor.begin("prefetch", path, 0, BLOCK, 1, 0)
                    _wait(lambda: merges(stallable.disk.device) - before >= COUNT)
                for actor, own in ((even, paths[::2]), (odd, paths[1::2])):
                    for _ in own:
                        actor.answer()
                return [even.pid, odd.pid]

        seen = observe(volume, scenario)
    even, odd = seen.told
    for number, path in enumerate(paths):
        assert seen.bytes_of(path) == {(even, odd)[number % 2]: (BLOCK, 0)}, number
    for pid in (even, odd):
        assert seen.kinds(pid) == {("read", "posix", "page_cache"): COUNT * BLOCK}
    seen.check_totals()


def test_a_read_beyond_the_end_of_the_disk_below_fails_and_one_across_it_completes_in_parts(observe: Observe) -> None:
    """The loop device's backing file has been cut short under it."""
    size, kept = 64 << 10, (3 * 64 + 20) << 10

    with loop_device(64 << 20) as disk:
        os.truncate(backing_file(disk), kept)

        def scenario() -> int:
            with Actor() as reader:
                for number in range(7):
                    arguments = ("direct", disk.path, "read", number * size, size)
                    if number < 3:
                        assert reader.do(*arguments) == size
                    else:
                        assert reader.fail(*arguments) == errno.EIO
                os.truncate(backing_file(disk), disk.size)  # for what else is read of it
                return reader.pid

        seen = observe(disk, scenario)
        os.truncate(backing_file(disk), kept)
    [stream] = seen.watched.streams(pid=seen.told)
    assert (stream["requests"], stream["errors"]) == (7, 4)
    seen.check_totals()


@pytest.mark.parametrize("sync", ["fsync", "dsync"])
def test_flushes_have_no_bytes_and_change_none(sync: str, observe: Observe) -> None:
    """On a raw device: as many flushes as the disk counts, and every byte once."""
    count = 101

    def scenario() -> tuple[int, int]:
        before = disk_statistics(disk.device)["flushes"]
        with Actor() as writer:
            for number in range(count):
                flags = os.RWF_DSYNC if sync == "dsync" else 0
                writer.do("direct", disk.path, "write", 2 * number * BLOCK, BLOCK, 1, "anonymous", 0, flags)
                if sync == "fsync":
                    writer.do("fsync", disk.path)
            return writer.pid, disk_statistics(disk.device)["flushes"] - before

    with loop_device(64 << 20) as disk:
        seen = observe(disk, scenario)
    pid, flushes = seen.told
    assert flushes >= count
    # Who asks for one has a request, which the block layer answers with one of its own: the disk only sees the latter.
    assert seen.watched.total("requests", op="flush", worker="kernel:flush") == flushes
    assert seen.watched.total("requests", op="flush", pid=pid) == count
    assert seen.watched.total("bytes", op="flush") == 0
    assert seen.kinds(pid) == {("write", "posix", "direct"): count * BLOCK}
    assert seen.watched.total("requests", op="write", pid=pid) == count
    seen.check_totals()


def test_requests_that_the_disk_puts_back_count_once(ext4_disk: Disk, tmp_path: Path) -> None:
    """On the virtual disk, at a depth that its ring cannot take."""
    report, requests = tmp_path / "fio.json", 2003
    job = fio(
        ext4_disk, "--direct=1", "--rw=randread", "--bs=64k", "--ioengine=libaio", "--iodepth=256",
        requests=requests, report=report,
    )  # fmt: skip
    for _ in range(5):
        watched = whole(ext4_disk.device, lambda: watch(job, "--device", ext4_disk.device))
        if watched.total("requeues"):
            break
    assert watched.total("requeues"), "its ring has taken all of it"
    assert fio_totals(report)["read"] == (requests, requests << 16)
    [stream] = watched.streams(engine="libaio")
    assert (stream["op"], stream["path"], stream["bytes"]) == ("read", "direct", requests << 16)
    [file] = [f for f in watched.report["files"] if f["path"] == str(ext4_disk.path)]
    assert (file["pid"], file["read_bytes"]) == (stream["pid"], requests << 16)
