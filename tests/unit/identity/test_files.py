"""Files over handmade sights and records: one index each, their names, and what became of them at the end."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest

from llmio_probe.daemon import FILES
from llmio_probe.identity.devices import Devices
from llmio_probe.identity.files import NO_FILE, File, Files
from llmio_probe.identity.handles import Handles
from llmio_probe.identity.mounts import Mounts
from llmio_probe.kernel.records import REQUEST, FileSight, ProcessFlag, Records
from tests.unit.identity.conftest import THEIRS, TOP, Proc, announced

MAPS = Path(__file__).parents[3] / "bpf" / "maps.h"
DISK = 254 << 20
DATA = 259 << 20 | 2

SIGHT = FileSight(DISK, 12, 1, DISK, 7, 700, 4096, b"/srv/w", deleted=False, cut=False)


def asked(*files: FileSight) -> Records:
    """One REQUEST record for each."""
    records = np.zeros(len(files), REQUEST)
    records["file_device"] = [file.device for file in files]
    records["inode"] = [file.inode for file in files]
    records["inode_generation"] = [file.generation for file in files]
    records["tgid"] = [file.tgid for file in files]
    records["owner_start_ns"] = [file.owner_start_ns for file in files]
    return records


MakeFiles = Callable[..., Files]


@pytest.fixture
def make_files(proc: Proc) -> MakeFiles:
    def make(limit: int | None = None, handles: Handles | None = None) -> Files:
        devices = Devices(str(proc.root / "sys"), str(proc.root / "proc"))
        return Files(proc.mounts(), devices, limit=limit, handles=handles)

    return make


@pytest.fixture
def files(make_files: MakeFiles) -> Files:
    return make_files()


def seen(files: Files, *sights: FileSight) -> list[File]:
    files.observe(sights)
    return [files.files[index] for index in files.resolve(asked(*sights)).tolist()]


# One index for each file


def test_a_file_is_its_device_inode_and_generation(files: Files) -> None:
    others = [replace(SIGHT, device=DATA), replace(SIGHT, inode=13), replace(SIGHT, generation=2)]
    files.observe([SIGHT, *others])
    indexes = files.resolve(asked(SIGHT, *others, SIGHT)).tolist()
    assert indexes == [1, 2, 3, 4, 1]
    assert files.resolve(asked(others[1])).tolist() == [3]


def test_records_without_a_file_have_none(files: Files) -> None:
    nobody = replace(SIGHT, device=0, inode=0, generation=0)
    assert files.resolve(asked(nobody, SIGHT, replace(nobody, device=DISK))).tolist() == [NO_FILE, 1, NO_FILE]
    assert files.resolve(asked()).tolist() == []
    assert list(files.files) == [1]


def test_many_files_are_told_apart(files: Files) -> None:
    random = np.random.default_rng(7)
    known: dict[tuple[int, int, int], int] = {}
    for _ in range(6):
        records = np.zeros(50_000, REQUEST)
        records["file_device"] = random.integers(1, 3, len(records)) << 20
        records["inode"] = random.integers(0, 5000, len(records)) << random.choice([0, 8, 40])
        records["inode_generation"] = random.integers(0, 2, len(records))
        keys = list(zip(*(records[n].tolist() for n in ("file_device", "inode", "inode_generation")), strict=True))
        for key, index in zip(keys, files.resolve(records).tolist(), strict=True):
            assert index == (known.setdefault(key, index) if key[1] else NO_FILE)
    assert len(set(known.values())) == len(known) == len(files.files)
    assert {(f.device, f.inode, f.generation): f.index for f in files.files.values()} == known


def test_a_file_that_was_never_announced_has_an_index_and_no_name(files: Files) -> None:
    assert files.resolve(asked(SIGHT, SIGHT)).tolist() == [1, 1]
    file = files.files[1]
    assert (file.path, file.deleted, file.size, file.mount_device) == (None, None, None, None)
    assert seen(files, SIGHT) == [file], "announced late"
    assert file.path == "/srv/w"


# Names


def test_a_file_is_named_as_the_host_sees_it(proc: Proc, files: Files) -> None:
    proc.host(TOP, "30 27 259:2 / /nvme rw - xfs /dev/x rw")
    (file,) = seen(files, replace(SIGHT, device=DATA, mount_device=DATA))
    assert (file.path, file.inside, file.deleted, file.size) == ("/nvme/srv/w", "/srv/w", False, 4096)


def test_mountinfos_number_counts_not_the_files(proc: Proc, files: Files) -> None:
    proc.host(TOP, "30 27 0:40 /sub /pool rw - btrfs /dev/x rw,subvolid=256,subvol=/sub")
    (file,) = seen(files, replace(SIGHT, device=42, mount_device=40, path=b"/sub/w"))
    assert file.path == "/pool/w"


@pytest.mark.parametrize(
    ("sight", "path"),
    [
        (replace(SIGHT, path=None), None),
        (replace(SIGHT, path=b"/a/b/c", cut=True), "…/a/b/c"),
        (replace(SIGHT, path=b"/\xff\n"), "/\udcff\n"),
        (replace(SIGHT, path="/gewölbe".encode()), "/gewölbe"),
        (replace(SIGHT, mount_device=DATA), None),
    ],
    ids=["nameless", "cut", "not UTF-8", "UTF-8", "a mount that the host lacks"],
)
def test_a_name_comes_from(files: Files, sight: FileSight, path: str | None) -> None:
    assert seen(files, sight)[0].path == path


def test_a_renamed_file_keeps_its_index_and_a_deleted_one_its_name(files: Files) -> None:
    (file,) = seen(files, SIGHT)
    assert seen(files, replace(SIGHT, path=b"/srv/new", size=9, tgid=8, owner_start_ns=800)) == [file]
    assert (file.index, file.path, file.size, file.deleted) == (1, "/srv/new", 9, False)
    seen(files, replace(SIGHT, path=b"/srv/new", deleted=True))
    assert (file.path, file.deleted) == ("/srv/new", True)
    seen(files, replace(SIGHT, path=None))
    assert file.path == "/srv/new", "the last name that is known"


def test_a_file_whose_mount_shows_late_gets_its_name_then(proc: Proc, files: Files) -> None:
    (file,) = seen(files, replace(SIGHT, mount_device=DATA))
    proc.host(TOP, "30 27 259:2 / /nvme rw - xfs /dev/x rw")
    files.observe([])
    assert file.path is None
    proc.now += 1
    files.observe([])
    assert file.path == "/nvme/srv/w"


def test_a_raw_device_is_its_node(proc: Proc, files: Files) -> None:
    proc.write(
        {
            "sys/dev/block/259:0/uevent": "MAJOR=259\nMINOR=0\nDEVNAME=nvme0n1\nDEVTYPE=disk\n",
            "sys/dev/block/259:2/uevent": "MAJOR=259\nMINOR=2\nDEVNAME=nvme0n1p2\nDEVTYPE=partition\n",
            "sys/devices/cciss!c0d0/uevent": "MAJOR=104\nMINOR=0\n",
            "sys/dev/block/104:0": "-> ../../devices/cciss!c0d0",
        }
    )
    raw = replace(SIGHT, device=0, generation=0)
    numbers = (259 << 20, 259 << 20 | 2, 104 << 20, 8 << 20)
    indexes = files.resolve(asked(*(replace(raw, inode=number) for number in numbers))).tolist()
    found = [files.files[index] for index in indexes]
    assert [file.path for file in found] == ["/dev/nvme0n1", "/dev/nvme0n1p2", "/dev/cciss/c0d0", None]
    assert [file.deleted for file in found] == [False, False, False, None]
    files.refresh()
    assert [file.deleted for file in found] == [False, False, False, None]


# A daemon forgets


def numbered(*inodes: int) -> list[FileSight]:
    return [replace(SIGHT, inode=inode, path=f"/{inode}".encode()) for inode in inodes]


def known(files: Files) -> set[int]:
    return {file.inode for file in files.files.values()}


def test_the_least_recently_used_files_go(make_files: MakeFiles) -> None:
    files = make_files(limit=4)
    for inode in (1, 2, 3, 4):
        seen(files, *numbered(inode))
    files.resolve(asked(*numbered(1)))
    seen(files, *numbered(5))
    assert known(files) == {4, 1, 5}


def test_a_daemon_remembers_more_files_than_the_kernel_does() -> None:
    """So what it has forgotten the kernel has, too, and tells again."""
    kernels = re.search(r"#define FILES_MAX (\d+)", MAPS.read_text())
    assert kernels
    assert int(kernels[1]) < FILES * 15 // 16


def test_a_forgotten_files_index_is_not_used_again_soon(make_files: MakeFiles) -> None:
    files = make_files(limit=4)
    before = {file.index for file in seen(files, *numbered(1, 2, 3, 4))}
    seen(files, *numbered(5, 6, 7, 8))
    again = files.resolve(asked(*numbered(1))).tolist()
    assert not before & set(again)
    assert files.files[again[0]].inode == 1


def test_indexes_begin_anew_after_the_last_one_and_leave_out_those_in_use(make_files: MakeFiles) -> None:
    """A host that makes 1,000 files a second gets there within a month."""
    files = make_files(limit=8)
    kept = [replace(SIGHT, inode=inode) for inode in (1, 2)]
    assert [file.index for file in seen(files, *kept)] == [1, 2]
    last = int(np.iinfo(np.int32).max)
    files._next_index = last - 1
    indexes = []
    for inode in range(100, 130):
        files.resolve(asked(*kept))
        (file,) = seen(files, replace(SIGHT, inode=inode))
        indexes.append(file.index)
    assert indexes == [last - 1, last, *range(3, 31)]
    assert [file.index for file in seen(files, *kept)] == [1, 2]


def test_a_batch_with_more_files_than_the_limit_keeps_them_all(make_files: MakeFiles) -> None:
    files = make_files(limit=4)
    for inodes in (range(1, 100), range(100, 200)):
        assert [file.inode for file in seen(files, *numbered(*inodes))] == list(inodes)
    assert len(files.files) == 100
    files.resolve(asked())
    assert len(files.files) == 3


def test_what_was_announced_a_moment_ago_is_not_forgotten(make_files: MakeFiles) -> None:
    files = make_files(limit=4)
    (old, *_) = seen(files, *numbered(1, 2, 3, 4))
    for inode in (2, 3, 4):
        files.resolve(asked(*numbered(inode)))
    renamed = replace(numbered(1)[0], path=b"/new")
    assert seen(files, renamed, *numbered(5, 6, 7))[0] is old
    assert old.path == "/new"


def test_a_forgotten_file_is_found_again_by_its_next_announcement(make_files: MakeFiles) -> None:
    files = make_files(limit=2)
    for inode in range(1, 50):
        seen(files, *numbered(inode))
    assert seen(files, *numbered(1))[0].path == "/1"
    assert len(files.files) <= 3


# As the worker sees it

CONTAINER = ("44 75 0:42 / / rw - overlay o rw", "46 44 254:0 /srv /data rw - ext4 /dev/vda rw")


def test_a_worker_in_a_container_has_its_own_name_for_a_file(proc: Proc, files: Files) -> None:
    proc.process(7, THEIRS, *CONTAINER)
    (file,) = seen(files, SIGHT)
    assert files.worker_path(file.index, 7) == "/data/w"
    assert file.path == "/srv/w"


def test_mounts_that_come_right_after_the_first_look_are_found_without_another_request(
    proc: Proc, files: Files
) -> None:
    """A container's first process is seen before it has all of them."""
    proc.process(7, THEIRS, CONTAINER[0])
    (file,) = seen(files, SIGHT)
    proc.now += 0.01
    proc.process(7, THEIRS, *CONTAINER)
    files.observe([SIGHT])
    assert files.worker_path(file.index, 7) is None
    proc.now += 0.2
    files.observe([])
    assert files.worker_path(file.index, 7) == "/data/w"


def test_it_is_still_known_when_the_worker_is_gone(proc: Proc, files: Files) -> None:
    proc.process(7, THEIRS, *CONTAINER)
    (file,) = seen(files, SIGHT)
    proc.end(7)
    proc.now += 10
    files.observe([replace(SIGHT, path=b"/srv/new")])
    assert files.worker_path(file.index, 7) == "/data/new"


def test_another_process_with_the_same_tgid_sees_its_own(proc: Proc, files: Files) -> None:
    proc.process(7, THEIRS, *CONTAINER)
    (file,) = seen(files, SIGHT)
    proc.end(7)
    files.observe([replace(SIGHT, owner_start_ns=900)])
    assert files.worker_path(file.index, 7) is None


def test_processes_are_remembered_from_when_they_were_announced(proc: Proc, files: Files) -> None:
    proc.process(8, THEIRS, *CONTAINER)
    proc.process(9, THEIRS, *CONTAINER)
    kernel_thread = announced(9, flags=ProcessFlag.KERNEL_THREAD)
    files.observe([SIGHT], np.concatenate([announced(8), kernel_thread]))
    proc.end(8)
    proc.end(9)
    assert files.worker_path(1, 8) == "/data/w"
    assert files.worker_path(1, 9) is None


def test_a_process_that_nobody_announced_is_looked_at_when_asked_for(proc: Proc, files: Files) -> None:
    seen(files, SIGHT)
    proc.process(8, THEIRS, *CONTAINER)
    assert files.worker_path(1, 8) == "/data/w"
    assert files.worker_path(1, 9) is None


def test_a_worker_on_the_host_has_no_other_name(proc: Proc, files: Files) -> None:
    proc.process(7, "mnt:[4026531832]")
    (file,) = seen(files, SIGHT)
    assert files.worker_path(file.index, 7) is None


@pytest.mark.parametrize("sight", [replace(SIGHT, path=None), replace(SIGHT, cut=True)], ids=["nameless", "cut"])
def test_a_file_without_a_whole_name_has_none_for_the_worker_either(proc: Proc, files: Files, sight: FileSight) -> None:
    proc.process(7, THEIRS, *CONTAINER)
    (file,) = seen(files, sight)
    assert files.worker_path(file.index, 7) is None
    assert files.worker_path(4711, 7) is None


def test_a_daemon_asks_no_process_how_it_sees_files(proc: Proc, make_files: MakeFiles) -> None:
    files = make_files(limit=2)
    proc.process(7, THEIRS, *CONTAINER)
    files.observe([replace(SIGHT, tgid=7)])
    proc.end(7)
    assert files.worker_path(1, 7) is None


# What became of them: real files below a made-up mount


@dataclass
class FakeHandles(Handles):
    """A filesystem that finds the files it is told of. By inode: where it is now; unknown ones are deleted."""

    found: dict[int, Path] = field(default_factory=dict)
    generations: dict[str, int] = field(default_factory=dict)
    refuses: int | None = None

    def generation(self, name: str) -> int | None:
        return self.generations.get(name)

    def open(self, directory: int, kind: str, inode: int, generation: int) -> int:
        if self.refuses is not None:
            raise OSError(self.refuses, "no")
        if inode not in self.found:
            raise OSError(errno.ESTALE, "stale")
        return os.open(self.found[inode], os.O_PATH)


@dataclass
class Disk:
    """A folder that mountinfo calls a filesystem."""

    folder: Path
    proc: Proc
    handles: FakeHandles
    files: Files

    @property
    def device(self) -> int:
        number = self.folder.stat().st_dev
        return os.major(number) << 20 | os.minor(number)

    def mount(self, kind: str = "ext4") -> None:
        major, minor = self.device >> 20, self.device & 0xFFFFF
        self.proc.host("27 1 0:2 / / rw - rootfs rootfs rw", f"30 27 {major}:{minor} / {self.folder} rw - {kind} x rw")

    def make(self, name: str, **more: object) -> File:
        path = self.folder / name
        path.write_text("x")
        sight = replace(
            SIGHT, device=self.device, mount_device=self.device, inode=path.stat().st_ino, path=f"/{name}".encode()
        )
        self.handles.found[sight.inode] = path
        return seen(self.files, replace(sight, **more))[0]  # type: ignore[arg-type]

    def rename(self, file: File, name: str) -> None:
        old = self.handles.found[file.inode]
        self.handles.found[file.inode] = old.rename(self.folder / name)

    def delete(self, file: File) -> None:
        self.handles.found.pop(file.inode).unlink()


@pytest.fixture
def disk(proc: Proc, make_files: MakeFiles) -> Disk:
    folder = proc.root / "disk"
    folder.mkdir()
    handles = FakeHandles()
    disk = Disk(folder, proc, handles, make_files(handles=handles))
    disk.mount()
    return disk


def outcome(disk: Disk, file: File) -> tuple[str | None, bool | None]:
    disk.files.refresh()
    name = None if file.path is None else file.path.removeprefix(f"{disk.folder}/")
    return name, file.deleted


def test_a_file_that_stayed_is_there(disk: Disk) -> None:
    file = disk.make("a")
    disk.handles.refuses = errno.EPERM
    assert outcome(disk, file) == ("a", False)


def test_a_renamed_file_has_its_new_name(disk: Disk) -> None:
    file = disk.make("a.tmp")
    disk.rename(file, "a")
    assert outcome(disk, file) == ("a", False)
    assert file.inside == "/a"


def test_a_file_that_took_anothers_name_leaves_that_one_deleted(disk: Disk) -> None:
    old, new = disk.make("a"), disk.make("a.tmp")
    del disk.handles.found[old.inode]
    disk.rename(new, "a")
    assert outcome(disk, new) == ("a", False)
    assert outcome(disk, old) == ("a", True)


def test_a_deleted_file_keeps_its_last_name(disk: Disk) -> None:
    file = disk.make("a")
    disk.delete(file)
    assert outcome(disk, file) == ("a", True)


def test_a_deleted_file_that_is_still_open_is_deleted(disk: Disk) -> None:
    file = disk.make("a")
    with open(disk.folder / "a"):
        disk.handles.found[file.inode] = Path("/proc/self/fd") / str(os.open(disk.folder / "a", os.O_PATH))
        (disk.folder / "a").unlink()
        assert outcome(disk, file) == ("a", True)
        os.close(int(disk.handles.found[file.inode].name))


def test_an_inode_number_that_is_used_again_is_another_file(disk: Disk) -> None:
    file = disk.make("a")
    disk.handles.generations[f"{disk.folder}/a"] = file.generation
    assert outcome(disk, file) == ("a", False)
    disk.handles.generations[f"{disk.folder}/a"] = file.generation + 1
    disk.handles.found.clear()
    assert outcome(disk, file) == ("a", True)


def test_a_name_that_the_kernel_made_up_is_not_believed(disk: Disk) -> None:
    file = disk.make("a")
    disk.rename(file, "b")
    disk.handles.found[file.inode] = disk.folder  # as when it has forgotten the name and says "/"
    assert outcome(disk, file) == ("a", None)


@pytest.mark.parametrize("error", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOMEM])
def test_where_it_may_not_look_nothing_is_known(disk: Disk, error: int) -> None:
    renamed, deleted = disk.make("a"), disk.make("b")
    disk.handles.refuses = error
    disk.rename(renamed, "c")
    disk.delete(deleted)
    assert outcome(disk, renamed) == ("a", None)
    assert outcome(disk, deleted) == ("b", None)


def test_other_filesystems_are_not_asked(disk: Disk) -> None:
    disk.mount("btrfs")
    stayed, renamed, deleted = disk.make("a"), disk.make("b"), disk.make("c")
    disk.rename(renamed, "d")
    disk.delete(deleted)
    assert outcome(disk, stayed) == ("a", False)
    assert outcome(disk, renamed) == ("b", None)
    assert outcome(disk, deleted) == ("c", None)


def test_a_file_on_what_was_unmounted_is_not_called_deleted(disk: Disk) -> None:
    file = disk.make("a")
    disk.delete(file)
    disk.proc.host("27 1 0:2 / / rw - rootfs rootfs rw")
    disk.proc.now += 1
    assert outcome(disk, file) == ("a", None)


def test_a_mount_that_is_another_filesystem_by_now_is_not_asked(disk: Disk) -> None:
    file = disk.make("a", device=DATA, mount_device=DATA)
    disk.proc.host(TOP, f"30 27 259:2 / {disk.folder} rw - ext4 /dev/x rw")
    disk.proc.now += 1
    disk.handles.found.clear()
    assert outcome(disk, file)[1] is None


def test_a_file_whose_mount_has_moved_has_its_new_name(disk: Disk) -> None:
    file = disk.make("a")
    disk.folder = disk.folder.rename(disk.folder.with_name("moved"))
    disk.mount()
    disk.proc.now += 1
    assert outcome(disk, file) == ("a", False)


def test_what_the_kernel_called_deleted_stays_so(disk: Disk) -> None:
    file = disk.make("a", deleted=True)
    assert outcome(disk, file) == ("a", True)


@pytest.mark.parametrize("more", [{"path": None}, {"path": b"/x/a", "cut": True}], ids=["nameless", "cut"])
def test_a_file_without_a_whole_name_may_get_one(disk: Disk, more: dict[str, object]) -> None:
    assert outcome(disk, disk.make("a", **more)) == ("a", False)


def test_a_file_that_was_never_announced_may_get_a_name(disk: Disk) -> None:
    file = disk.make("a")
    disk.files = Files(disk.proc.mounts(), Devices(), handles=disk.handles)
    late = replace(SIGHT, device=file.device, inode=file.inode)
    assert disk.files.resolve(asked(late)).tolist() == [1]
    assert outcome(disk, disk.files.files[1]) == ("a", False)
    assert disk.files.files[1].mount_device == disk.device


def test_looking_leaves_no_descriptor_open(disk: Disk) -> None:
    files: Sequence[File] = [disk.make(name) for name in "abc"]
    disk.rename(files[0], "d")
    disk.delete(files[1])
    before = os.listdir("/proc/self/fd")
    disk.files.refresh()
    assert os.listdir("/proc/self/fd") == before


def test_the_c_librarys_calls_are_there_or_refuse(tmp_path: Path) -> None:
    """What they find is tried on real filesystems, as root."""
    handles, path = Handles(), tmp_path / "a"
    path.write_text("x")
    assert handles.generation(str(path)) == handles.generation(str(path))
    assert handles.generation(str(tmp_path / "none")) is None
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with pytest.raises(OSError, match="not supported"):
            handles.open(fd, "btrfs", 1, 1)
        with pytest.raises(OSError, match=r"."):
            handles.open(fd, "ext4", 1, 0xDEAD)
    finally:
        os.close(fd)


def test_it_runs_on_this_host(tmp_path: Path) -> None:
    """Real mounts, whatever they are."""
    path = tmp_path.resolve() / "a"
    path.write_text("x")
    mounts = Mounts()
    mount = mounts.table().at(str(path))
    assert mount is not None
    inside = mount.path_of(str(path))
    assert inside is not None
    found = mounts.host_path(mount.device, inside)
    assert found is not None
    assert path.samefile(found)
