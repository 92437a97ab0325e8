"""Which file: its name on the host and for the worker, whatever becomes of it and wherever it is seen from."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmio_probe.identity.handles import FINDABLE
from llmio_probe.text import escape
from tests.live.harness import PROBE, Actor, Observe, run
from tests.live.scenes import Played, Scene, scene
from tests.live.system import Volume, drop, fill, loop_device, mounted, partition, sysctl, written_directly

KINDS = ("ext4", "xfs", "btrfs")
FOLLOWED = tuple(kind for kind in KINDS if kind in FINDABLE)
"""Where it can be told what became of a file after its last request."""
BLOCK = 4096
SIZE = 31 * BLOCK
PRIVATE = ["unshare", "--mount", "--propagation", "private"]


def read_directly(path: Path | str, *within: str | Path) -> int:
    """The pid of the process that did."""
    with Actor(*within) as reader:
        assert reader.do("direct", path, "read", 0, SIZE) == SIZE
        return reader.pid


@pytest.mark.guest
@scene(*KINDS)
def test_a_file_that_is_renamed_is_one_file_with_its_last_name(place: Volume) -> Scene:
    first, last = place.folder / "first", place.folder / "folder" / "last"
    last.parent.mkdir()
    fill(first, SIZE)
    yield
    with Actor() as reader:
        reader.do("direct", first, "read", 0, SIZE)
        first.rename(last)
        time.sleep(1.2)  # how often the kernel side looks at the name of a file that it knows
        reader.do("direct", last, "read", 0, SIZE)
    seen = yield
    assert seen.bytes_of(last) == {reader.pid: (2 * SIZE, 0)}
    assert not seen.files(first)


@scene(*FOLLOWED)
def test_a_file_that_is_renamed_after_its_last_request_has_its_last_name(place: Volume) -> Scene:
    """As a checkpoint is: written under another name, then put in its place."""
    path, last = place.folder / "model.tmp", place.folder / "model.bin"
    yield
    with Actor() as writer:
        writer.do("write", path, 0, SIZE)
        writer.do("fsync", path)
    path.rename(last)
    seen = yield
    assert seen.bytes_of(last) == {writer.pid: (0, SIZE)}
    assert seen.entry(last)["deleted"] is False
    assert not seen.files(path)


@scene(*FOLLOWED)
def test_a_deleted_file_keeps_its_name(place: Volume) -> Scene:
    """One that was read, and one that is gone before anybody but its writer saw it, as DeepSpeed swaps."""
    gone, swapped = place.folder / "gone", place.folder / "swapped"
    fill(gone, SIZE)
    yield
    with Actor() as worker:
        worker.do("direct", gone, "read", 0, SIZE)
        gone.unlink()
        worker.do("submit", swapped, "write", BLOCK, 31, 0, 0, True)
    seen = yield
    assert seen.bytes_of(gone) == {worker.pid: (SIZE, 0)}
    assert seen.bytes_of(swapped) == {worker.pid: (0, SIZE)}
    assert seen.entry(gone)["deleted"] is seen.entry(swapped)["deleted"] is True


@pytest.mark.guest
@scene(*KINDS)
def test_files_that_are_opened_and_closed_at_once_have_names(place: Volume) -> Scene:
    """Nobody could find them in /proc: they are closed before anybody waits for what was asked for."""
    paths = [place.folder / f"swap-{number}.tensor.swp" for number in range(23)]
    for path in paths:
        fill(path, 4 * BLOCK)
    yield
    with Actor() as worker:
        for path in paths:
            assert worker.do("submit", path, "read", BLOCK, 4) == 4 * BLOCK
    seen = yield
    for path in paths:
        assert seen.bytes_of(path) == {worker.pid: (4 * BLOCK, 0)}
        assert seen.entry(path)["deleted"] is False


@scene(*KINDS)
def test_hard_links_are_one_file(place: Volume) -> Scene:
    links = [place.folder / "file", place.folder / "link"]
    fill(links[0], SIZE)
    os.link(*links)
    yield
    with Actor() as reader:
        for name in links:
            reader.do("direct", name, "read", 0, SIZE)
    seen = yield
    [entry] = [f for f in seen.watched.report["files"] if f["pid"] == reader.pid]
    assert entry["path"] in map(str, links)
    assert (entry["inode"], entry["read_bytes"]) == (links[0].stat().st_ino, 2 * SIZE)


@scene(*FOLLOWED)
def test_an_inode_number_that_is_used_again_is_another_file(place: Volume) -> Scene:
    first, second = place.folder / "first", place.folder / "second"
    fill(first, SIZE)
    yield
    pids = [read_directly(first)]
    first.unlink()
    fill(second, SIZE)
    pids.append(read_directly(second))
    seen = yield
    assert seen.bytes_of(first) == {pids[0]: (SIZE, 0)}
    assert seen.bytes_of(second)[pids[1]] == (SIZE, 0)
    assert seen.entry(first)["deleted"] is True
    assert not any(f["deleted"] for f in seen.files(second))


NAMES = {
    "newline": b"two\nlines",
    "control": b"\x1b[2J\x07bell",
    "undecodable": b"\xff\xfe.bin",
    "unicode": "gewichte-β-重み.safetensors".encode(),
    "backslash": rb"a\012b\\c",
    "longest": b"n" * 255,
}


@scene("ext4", name=list(NAMES))
def test_a_name_of_any_bytes_is_told_and_made_safe_to_show(place: Volume, name: str) -> Scene:
    path = Path(os.fsdecode(os.fsencode(place.folder) + b"/" + NAMES[name]))
    fill(path, SIZE)
    yield
    pid = read_directly(path)
    seen = yield
    assert seen.bytes_of(escape(str(path))) == {pid: (SIZE, 0)}


@scene(*KINDS, shape=[(47, "folder"), (58, "n" * 60)])
def test_a_deep_path_is_told_whole(place: Volume, shape: tuple[int, str]) -> Scene:
    depth, name = shape
    path = place.folder.joinpath(*(f"{name}{number}" for number in range(depth)), "file")
    path.parent.mkdir(parents=True)
    fill(path, SIZE)
    yield
    pid = read_directly(path)
    seen = yield
    assert seen.bytes_of(path) == {pid: (SIZE, 0)}


@scene(*FOLLOWED)
def test_a_path_deeper_than_the_kernel_side_reads_is_told_as_far_as_it_is_known(place: Volume) -> Scene:
    """Whole if the file is still there when the session ends, else from its end."""
    kept, gone = (place.folder.joinpath(*(f"{number}" for number in range(300)), name) for name in ("kept", "gone"))
    kept.parent.mkdir(parents=True)
    for path in (kept, gone):
        fill(path, SIZE)
    inode = gone.stat().st_ino
    yield
    pids = [read_directly(path) for path in (kept, gone)]
    gone.unlink()
    seen = yield
    assert seen.bytes_of(kept) == {pids[0]: (SIZE, 0)}
    [entry] = [f for f in seen.watched.report["files"] if f["pid"] == pids[1]]
    assert (entry["read_bytes"], entry["inode"], entry["deleted"]) == (SIZE, inode, True)
    begin, _, end = entry["path"].partition("…")
    assert begin == ""
    assert str(gone).endswith(end)
    assert end.count("/") > 40


@scene(*KINDS)
def test_a_bind_mount_shows_the_same_file(place: Volume) -> Scene:
    path = place.folder / "file"
    fill(path, SIZE)
    with tempfile.TemporaryDirectory() as other, mounted("--bind", place.folder, other) as bound:
        yield
        pids = [read_directly(bound / "file"), read_directly(path)]
        seen = yield
        entries = [f for f in seen.watched.report["files"] if f["pid"] in pids]
        assert {f["path"] for f in entries} <= {str(path), str(bound / "file")}
        assert {f["pid"]: f["read_bytes"] for f in entries} == dict.fromkeys(pids, SIZE)
        assert {f["inode"] for f in entries} == {path.stat().st_ino}


@pytest.mark.guest
@scene(*KINDS)
def test_a_worker_with_mounts_of_its_own_has_a_path_of_its_own(place: Volume) -> Scene:
    """As in a container: the host's folder is somewhere else for it."""
    path = place.folder / "weights.bin"
    fill(path, SIZE)
    yield
    script = f'mount --bind {place.folder} /mnt && exec "$@"'
    with Actor(*PRIVATE, "sh", "-c", script, "sh") as worker:  # alive: its mounts are gone with it
        worker.do("direct", "/mnt/weights.bin", "read", 0, SIZE)
        seen = yield
    assert seen.bytes_of(path) == {worker.pid: (SIZE, 0)}
    assert seen.entry(path)["worker_path"] == "/mnt/weights.bin"


@scene("ext4")
def test_a_worker_that_gets_its_mounts_after_its_first_request_has_a_path_of_its_own(place: Volume) -> Scene:
    """As a container's first process: it sees the host's mounts until it has its own and becomes the worker by exec."""
    path, other = place.folder / "weights.bin", place.folder / "config.json"
    fill(path, SIZE)
    fill(other, BLOCK)
    yield
    drop(other)
    script = f'read line <{other}; sleep 0.3; mount --bind {place.folder} /mnt && exec "$@"'
    with Actor(*PRIVATE, "sh", "-c", script, "sh") as worker:
        worker.do("direct", "/mnt/weights.bin", "read", 0, SIZE)
        seen = yield
    assert seen.bytes_of(path) == {worker.pid: (SIZE, 0)}
    assert seen.entry(path)["worker_path"] == "/mnt/weights.bin"


@scene(*KINDS)
def test_a_worker_with_a_root_of_its_own_has_a_path_of_its_own(place: Volume) -> Scene:
    path = place.folder / "weights.bin"
    fill(path, SIZE)
    yield
    with tempfile.TemporaryDirectory() as root:
        script = f'mount --rbind / {root} && mount --bind {place.folder} {root}/mnt && exec chroot {root} "$@"'
        with Actor(*PRIVATE, "sh", "-c", script, "sh") as worker:
            worker.do("direct", "/mnt/weights.bin", "read", 0, SIZE)
            seen = yield
    assert seen.bytes_of(path) == {worker.pid: (SIZE, 0)}
    assert seen.entry(path)["worker_path"] == "/mnt/weights.bin"


@scene("ext4", "xfs")
def test_through_an_overlay_the_file_below_is_told_and_the_worker_sees_the_merged_one(place: Volume) -> Scene:
    """As a container's image, of which it sees nothing else: read from the lower layer, written to the upper one."""
    layers = {name: place.folder / name for name in ("lower", "upper", "work")}
    for folder in layers.values():
        folder.mkdir()
    below, above = layers["lower"] / "image.bin", layers["upper"] / "made.bin"
    fill(below, SIZE)
    yield
    drop(below)
    options = ",".join(f"{name}dir={folder}" for name, folder in layers.items())
    script = f'mount -t overlay overlay -o {options} /mnt && umount --lazy {place.mount_point} && exec "$@"'
    with Actor(*PRIVATE, "sh", "-c", script, "sh") as worker:
        assert worker.do("read", "/mnt/image.bin", 0, SIZE) == SIZE
        worker.do("write", "/mnt/made.bin", 0, SIZE)
        worker.do("fsync", "/mnt/made.bin")
        seen = yield
    assert seen.bytes_of(below) == {worker.pid: (SIZE, 0)}
    assert seen.entry(below)["worker_path"] == "/mnt/image.bin"
    assert seen.bytes_of(above) == {worker.pid: (0, SIZE)}
    assert seen.entry(above)["worker_path"] == "/mnt/made.bin"


@scene(*KINDS, op=["read", "write"], buffer=["anonymous", "tmpfs", "memfd", "hugetlb"])
def test_the_file_is_told_and_not_the_buffer(place: Volume, op: str, buffer: str) -> Scene:
    path, count = place.folder / "file", 101
    written_directly(place, path)
    fill(path, count * 2 * BLOCK)
    yield
    with sysctl("vm.nr_hugepages", 4), Actor() as worker:
        worker.do("direct", path, op, 0, BLOCK, count, buffer, 2 * BLOCK)
    seen = yield
    size = count * BLOCK
    assert seen.kinds(worker.pid) == {(op, "posix", "direct"): size}
    assert seen.bytes_of(path) == {worker.pid: (size, 0) if op == "read" else (0, size)}
    assert seen.entry(path)["inode"] == path.stat().st_ino


@scene("btrfs")
def test_what_is_written_directly_in_name_only_is_the_writers(place: Volume) -> Scene:
    """With checksums, btrfs takes it through the page cache since 6.15, and flushes at once."""
    path = place.folder / "file"
    yield
    with Actor() as writer:
        path.touch()
        writer.do("direct", path, "write", 0, SIZE, 7)
    seen = yield
    assert seen.bytes_of(path) == {writer.pid: (0, 7 * SIZE)}
    assert {(op, engine) for op, engine, _ in seen.kinds(writer.pid)} == {("write", "posix")}


@pytest.mark.guest
@pytest.mark.parametrize("played", KINDS, indirect=True, scope="module")
def test_nothing_that_the_disk_did_is_left_over(played: Played) -> None:
    played.seen.check_totals()


def test_a_raw_disk_and_a_partition_are_files(observe: Observe) -> None:
    with loop_device(64 << 20) as disk, partition(disk, 1, 1 << 20, 32 << 20) as part:

        def scenario() -> list[int]:
            with Actor() as whole, Actor() as reader:
                whole.do("direct", disk.path, "write", 0, SIZE)
                whole.do("direct", disk.path, "read", 2 << 20, SIZE)
                reader.do("direct", part.path, "read", 0, SIZE)
                reader.do("read", part.path, 0, BLOCK, 1 << 20)
                reader.do("write", part.path, 3 << 20, SIZE)
                reader.do("fsync", part.path)
                return [whole.pid, reader.pid]

        seen = observe(disk, scenario)
    whole, reader = seen.told
    assert seen.bytes_of(disk.path)[whole] == (SIZE, SIZE)
    assert seen.bytes_of(part.path) == {reader: (SIZE + 32 * BLOCK, SIZE)}
    assert seen.kinds(reader) == {
        ("read", "posix", "direct"): SIZE,
        ("read", "posix", "page_cache"): 32 * BLOCK,
        ("write", "posix", "writeback"): SIZE,
    }
    seen.check_totals()


@pytest.fixture
def hidden_symbols() -> Iterator[None]:
    with sysctl("kernel.kptr_restrict", 2):
        yield


@pytest.mark.usefixtures("hidden_symbols")
def test_where_symbols_are_hidden_nothing_is_guessed(ext4_volume: Volume, observe: Observe) -> None:
    """Without the addresses of the kernel's functions, direct and cached I/O look alike."""
    path = ext4_volume.folder / "file"
    fill(path, SIZE)
    seen = observe(ext4_volume, lambda: read_directly(path))
    assert seen.kinds(seen.told) == {("read", "posix", None): SIZE}
    assert not seen.files(path)
    attribution = seen.watched.report["attribution"]
    assert attribution["data_bytes"] == sum(seen.transferred.values())
    assert attribution["data_bytes"] - attribution["file_bytes"] >= SIZE
    assert "kptr_restrict" in run(*PROBE, "doctor")
