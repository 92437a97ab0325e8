"""Processes that come, go and change their names, also while nobody reads: each keeps its own bytes and name."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from tests.live.harness import Actor, Live, Watched, stir, undisturbed
from tests.live.scenes import Played, Scene, scene
from tests.live.system import Volume, fill

BLOCK = 4096


@scene("ext4")
def test_a_pid_that_is_used_again_is_another_process(place: Volume) -> Scene:
    """clone3 chooses the pid, as the kernel does after 32,768 or 4,194,304 others."""
    first, second = place.folder / "first", place.folder / "second"
    for path in (first, second):
        fill(path, 64 * BLOCK)
    yield
    with Actor() as parent:
        [pid] = parent.do("have_children", first, 1, BLOCK)
        time.sleep(0.05)  # processes are told apart by their start, in ticks of 10 ms
        assert parent.do("have_child_with_pid", second, pid, BLOCK, 3 * BLOCK) == pid
    seen = yield
    assert [seen.bytes_of(path) for path in (first, second)] == [{pid: (BLOCK, 0)}, {pid: (3 * BLOCK, 0)}]
    rows = [w for w in seen.watched.report["workers"] if w["pid"] == pid]
    assert len(rows) == len({w["start_ticks"] for w in rows}) == 2
    assert sorted(s["bytes"] for s in seen.watched.streams(pid=pid)) == [BLOCK, 3 * BLOCK]


@scene("ext4")
def test_a_thousand_short_processes_have_their_bytes_each(place: Volume) -> Scene:
    path, count = place.folder / "file", 1009
    fill(path, count * BLOCK)
    yield
    with Actor() as parent:
        pids = parent.do("have_children", path, count, BLOCK)
    seen = yield
    assert len(set(pids)) == count
    assert seen.bytes_of(path) == dict.fromkeys(pids, (BLOCK, 0))
    found = {s["pid"]: s["bytes"] for s in seen.watched.report["streams"]}
    assert {pid: found[pid] for pid in pids} == dict.fromkeys(pids, BLOCK)
    assert {w["pid"] for w in seen.watched.report["workers"]} >= set(pids)


@scene("ext4")
def test_a_worker_that_calls_itself_otherwise_stays_one(place: Volume) -> Scene:
    """What setproctitle does: serving stacks name their workers so."""
    path = place.folder / "file"
    fill(path, 64 * BLOCK)
    yield
    with Actor() as worker:
        for name in ("vllm::engine", "ray::idle", "x\x1b[2J"):
            worker.do("direct", path, "read", 0, 7 * BLOCK)
            worker.do("call_oneself", name)
        worker.do("direct", path, "read", 0, 7 * BLOCK)
    seen = yield
    assert seen.bytes_of(path) == {worker.pid: (28 * BLOCK, 0)}
    assert len({s["worker"] for s in seen.watched.streams(pid=worker.pid)}) == 1
    [row] = [w for w in seen.watched.report["workers"] if w["pid"] == worker.pid]
    assert row["worker"].isprintable()


@pytest.mark.parametrize("played", ["ext4"], indirect=True, scope="module")
def test_nothing_that_the_disk_did_is_left_over(played: Played) -> None:
    played.seen.check_totals()


@dataclass
class Unread:
    watched: Watched
    writer: int
    readers: list[int]


def test_processes_and_files_that_are_new_while_nobody_reads(ext4_volume: Volume, live: Callable[..., Live]) -> None:
    """llmio-probe is stopped meanwhile, and all of them are gone when it goes on: the rings kept it."""
    paths = [ext4_volume.folder / f"new-{number}" for number in range(211)]

    def measure() -> Unread:
        for path in paths:
            path.unlink(missing_ok=True)
        ext4_volume.settle()
        session = live("--all", "--device", ext4_volume.disk.device)
        session.process.send_signal(signal.SIGSTOP)
        with Actor() as writer, Actor() as parent:
            for path in paths:
                writer.do("write", path, 0, 3 * BLOCK)
            ext4_volume.settle()
            readers = [parent.do("have_children", path, 1, 2 * BLOCK)[0] for path in paths]
        stir(ext4_volume.disk)
        session.process.send_signal(signal.SIGCONT)
        return Unread(Watched(session.interrupt()), writer.pid, readers)

    unread = undisturbed(measure)
    report = unread.watched.report
    files = {(f["path"], f["pid"]): (f["read_bytes"], f["write_bytes"]) for f in report["files"]}
    for path, reader in zip(paths, unread.readers, strict=True):
        assert files[str(path), unread.writer] == (0, 3 * BLOCK)
        assert files[str(path), reader] == (2 * BLOCK, 0)
    assert {w["pid"] for w in report["workers"]} >= {unread.writer, *unread.readers}
    assert report["attribution"]["unknown_bytes"] == 0
