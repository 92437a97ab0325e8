"""Which file a record is for: one index for each file that the kernel named, and what is known of the file.

Only this bookkeeping may go in here: names come from mounts.py, what became of a file from handles.py. A file is its
filesystem's number, inode number and generation: an inode number is used again. A record costs a few NumPy operations
in a batch; Python runs once for each file that was not known before.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmio_probe.identity.devices import Devices
from llmio_probe.identity.handles import FINDABLE, Handles, name_of
from llmio_probe.identity.index import Index, grown
from llmio_probe.identity.mounts import Mount, Mounts, View, decode, encode
from llmio_probe.kernel.records import FileSight, ProcessFlag, Records

NO_FILE = 0
"""The index of what no file is known for."""
_LAST_INDEX = int(np.iinfo(np.int32).max)

_PIECE = 1 << 15
"""Records at once: arrays so small that malloc keeps their pages (as in owners.py)."""

_MINOR_BITS = 20

Key = tuple[int, int, int]
"""Device, inode, generation."""


@dataclass(eq=False, slots=True)
class File:
    """What is not known is None. Strings are file names: undecodable bytes are surrogates (PEP 383)."""

    index: int
    device: int
    """What stat calls st_dev, as major << 20 | minor; 0 for a raw block device, whose own number is the inode."""
    inode: int
    generation: int
    mount_device: int | None = None
    """What mountinfo calls its filesystem."""
    inside: str | None = None
    """Its path from the root of its filesystem. A daemon keeps it only of those whose path on the host is not known."""
    path: str | None = None
    """Its path on the host. With "…" in front only the end of it is known: it is deeper than what the kernel reads."""
    deleted: bool | None = None
    """As last known: when seen, and by refresh() at the end."""
    size: int | None = None


class Files:
    """limit: at most so many are kept, for a daemon. The least recently used go. No other gets their indexes before two
    billion have come.

    For each batch observe() comes before resolve(). What resolve() returned is in ``files`` until its next call, even
    if that makes it more than ``limit`` for so long.
    """

    def __init__(
        self, mounts: Mounts, devices: Devices, *, limit: int | None = None, handles: Handles | None = None
    ) -> None:
        self._mounts = mounts
        self._devices = devices
        self._limit = limit
        self._handles = handles or Handles()
        self._table = _Table()
        self._next_index = NO_FILE + 1
        self._views: dict[int, tuple[int, View]] = {}  # by tgid: the process's start, and how it sees files
        self._again: dict[int, int] = {}  # tgids to be met again, and their starts
        self._unplaced: set[int] = set()  # files that no mount of the host shows, until its mounts change
        self._placed_at = 0
        self.files: dict[int, File] = {}

    def observe(self, sights: Sequence[FileSight], processes: Records | None = None) -> None:
        """What the kernel said of files, and PROCESS records: of whom it can be told later how they see files.

        That has to be found out now: at the end of a session its processes are gone, and their namespaces with them. A
        daemon, which shows no file, is not told and keeps nothing of it.
        """
        if self._limit is None:
            again, self._again = self._again, {}
            for tgid, start_ns in {**again, **_starts(sights, processes)}.items():
                self._meet(tgid, start_ns)
        if sights:
            self._see(sights)
        if self._unplaced and self._mounts.version != self._placed_at:
            self._placed_at = self._mounts.version
            for index in list(self._unplaced):
                self._place(self.files[index])

    def resolve(self, records: Records) -> NDArray[np.int32]:
        """The index of each REQUEST record's file, shape (n,); NO_FILE where the kernel could not name one."""
        if self._limit is not None and len(self.files) > self._limit:
            self._forget(self._limit)
        indexes = np.empty(len(records), dtype=np.int32)
        for first in range(0, len(records), _PIECE):
            indexes[first : first + _PIECE] = self._resolve_piece(records[first : first + _PIECE])
        self._table.passes += 1
        return indexes

    def worker_path(self, index: int, tgid: int) -> str | None:
        """The file's path as that process sees it; None when that is the host's path, and when it is not known."""
        file = self.files.get(index)
        if file is None or file.inside is None or file.mount_device is None:
            return None
        view = self._views[tgid][1] if tgid in self._views else self._mounts.view(tgid)
        if view is None:
            return None
        path = view.name_of(file.mount_device, file.inside, file.path)
        return None if path == file.path else path

    def refresh(self) -> None:
        """Look what became of the files: renamed ones get their new path, ``deleted`` is what it is now, or None.

        For a session's end, when nothing is counted any more. No file is read, but the kernel may have to look up
        names and inodes on the disk.
        """
        with ExitStack() as stack:
            search = _Search(self._mounts, self._handles, stack)
            for file in self.files.values():
                if file.device and not file.deleted:
                    search.follow(file)

    def _resolve_piece(self, records: Records) -> NDArray[np.int32]:
        inodes = np.ascontiguousarray(records["inode"])
        rests = _rest(records["file_device"], records["inode_generation"])
        rows = self._table.rows(inodes, rests)
        missing = np.flatnonzero((rows == 0) & (inodes != 0))
        if len(missing):
            self._learn_missing(records[missing])
            rows[missing] = self._table.rows(inodes[missing], rests[missing])
        if self._limit is not None:
            self._table.used[rows] = self._table.passes
        return self._table.indexes.take(rows)

    # Learning about one file

    def _see(self, sights: Sequence[FileSight]) -> None:
        keys = [(sight.device, sight.inode, sight.generation) for sight in sights]
        known = self._table.rows(*_columns(keys)) != 0
        self._add(dict.fromkeys(key for key, old in zip(keys, known.tolist(), strict=True) if not old))
        for index, sight in zip(self._table.touch(keys).tolist(), sights, strict=True):
            self._apply(self.files[index], sight)

    def _learn_missing(self, records: Records) -> None:
        """Records of files that the kernel did not announce: raw devices, which it never does, and lost ones."""
        names = ("file_device", "inode", "inode_generation")
        for file in self._add(dict.fromkeys(zip(*(records[name].tolist() for name in names), strict=True))):
            if file.device == 0:
                file.path = self._devices.path(file.inode)
                file.deleted = False if file.path is not None else None

    def _add(self, new: Collection[Key]) -> list[File]:
        """Each key once."""
        files = [File(self._free_index(), *key) for key in new]
        self.files.update((file.index, file) for file in files)
        self._table.add(list(new), [file.index for file in files])
        return files

    def _free_index(self) -> int:
        """After the last one they begin anew: what had the first ones is long forgotten, but for files still in use."""
        while (index := self._next_index) in self.files:
            self._next_index = _after(index)
        self._next_index = _after(index)
        return index

    def _apply(self, file: File, sight: FileSight) -> None:
        file.mount_device, file.deleted, file.size = sight.mount_device, sight.deleted, sight.size
        if sight.path is None:
            return  # the kernel has forgotten the name; of a file that had one, it is still the last known
        path = decode(sight.path)
        self._unplaced.discard(file.index)
        if sight.cut:
            file.inside, file.path = None, "…/" + path.lstrip("/")
        else:
            file.inside = path
            self._place(file)

    def _place(self, file: File) -> None:
        assert file.inside is not None
        assert file.mount_device is not None
        file.path = self._mounts.host_path(file.mount_device, file.inside)
        if file.path is None:
            self._unplaced.add(file.index)
            return
        self._unplaced.discard(file.index)
        if file.path == file.inside:
            file.path = file.inside  # one string, not two that are alike
        if self._limit is not None:
            file.inside = None  # a daemon does not ask for it again

    def _meet(self, tgid: int, start_ns: int) -> None:
        view = self._mounts.view(tgid)
        if view is not None:
            self._views.pop(tgid, None)  # to the end: the first ones are forgotten first
            self._views[tgid] = start_ns, view
            if not view.is_current:
                self._again[tgid] = start_ns
        elif tgid in self._views and self._views[tgid][0] != start_ns:
            del self._views[tgid]  # it was another process's

    def _forget(self, limit: int) -> None:
        """Down to fifteen sixteenths, so that not every batch has to."""
        for index in self._table.drop(limit - -(-limit // 16)).tolist():
            del self.files[index]
            self._unplaced.discard(index)


class _Table:
    """The known files as arrays. Row 0 is nobody's."""

    def __init__(self) -> None:
        self.passes = 1
        self.indexes = np.zeros(1, np.int32)
        self.used = np.zeros(1, np.int64)
        """The pass that a file was last seen in."""
        self._rows = Index(2)

    def rows(self, inodes: NDArray[np.uint64], rests: NDArray[np.uint64]) -> NDArray[np.int32]:
        """Each file's row, 0 where it is not known. Shapes (n,)."""
        return self._rows.find(inodes, rests)

    def add(self, keys: Sequence[Key], indexes: Sequence[int]) -> None:
        """Files that are not in it yet."""
        first = len(self._rows)
        self._rows.add(*_columns(keys))
        last = len(self._rows)
        self.indexes, self.used = grown(self.indexes, last), grown(self.used, last)
        self.indexes[first:last], self.used[first:last] = indexes, self.passes

    def touch(self, keys: Sequence[Key]) -> NDArray[np.int32]:
        """They are in it and used in this pass. Returns their indexes."""
        rows = self.rows(*_columns(keys))
        self.used[rows] = self.passes
        return self.indexes.take(rows)

    def drop(self, keep: int) -> NDArray[np.int32]:
        """All but the ``keep`` last used and those of this pass. Returns the indexes of the others."""
        indexes, used = self.indexes[: len(self._rows)], self.used[: len(self._rows)]
        chosen = used >= self.passes
        chosen[1 + np.argsort(-used[1:], kind="stable")[:keep]] = True
        chosen[0] = True
        self.indexes, self.used = indexes[chosen], used[chosen]
        self._rows.keep(chosen)
        return indexes[~chosen]


class _Search:
    """One look for files whose names may have changed. Directories that it opens are closed by the stack."""

    def __init__(self, mounts: Mounts, handles: Handles, stack: ExitStack) -> None:
        self._mounts = mounts
        self._handles = handles
        self._stack = stack
        self._directories: dict[int, tuple[Mount, int] | None] = {}

    def follow(self, file: File) -> None:
        if file.inside is not None and file.mount_device is not None:
            if file.path is not None and self._is_at(file, file.path):
                file.deleted = False
                return
            path = self._mounts.host_path(file.mount_device, file.inside)
            if path is not None and path != file.path and self._is_at(file, path):  # mounts have changed
                file.path, file.deleted = path, False
                return
        file.deleted = None
        # Never announced: then st_dev is its filesystem's number wherever inodes can be looked for.
        device = file.device if file.mount_device is None else file.mount_device
        opened = self._directory(device)
        if opened is None:
            return
        mount, directory = opened
        try:
            fd = self._handles.open(directory, mount.kind, file.inode, file.generation)
        except OSError as error:
            if error.errno == errno.ESTALE:
                file.deleted = True
            return
        try:
            links, name = os.fstat(fd).st_nlink, name_of(fd)
        finally:
            os.close(fd)
        if links == 0:
            file.deleted = True
            return
        inside = mount.path_of(name)
        path = None if inside is None else self._mounts.host_path(device, inside)
        if path is not None and self._is_at(file, path):  # a name that the kernel had to make up leads elsewhere
            file.mount_device, file.inside, file.path, file.deleted = device, inside, path, False

    def _is_at(self, file: File, path: str) -> bool:
        try:
            status = os.lstat(encode(path))
        except (OSError, ValueError):
            return False
        if (_device(status), status.st_ino) != (file.device, file.inode):
            return False
        return self._handles.generation(path) in (None, file.generation)  # deleted, and its inode used again?

    def _directory(self, device: int) -> tuple[Mount, int] | None:
        """A mount of the filesystem, and its directory opened."""
        if device not in self._directories:
            self._directories[device] = None
            for mount in self._mounts.table().of_device(device):
                if mount.kind not in FINDABLE:
                    break
                try:
                    fd = os.open(encode(mount.point), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                except OSError:
                    continue  # a file that is mounted, or not ours to read
                self._stack.callback(os.close, fd)
                if _device(os.fstat(fd)) != device:
                    continue  # unmounted just now
                self._directories[device] = mount, fd
                break
        return self._directories[device]


def _after(index: int) -> int:
    return index + 1 if index < _LAST_INDEX else NO_FILE + 1


def _rest(devices: NDArray[Any], generations: NDArray[Any]) -> NDArray[np.uint64]:
    """What a key has beside the inode, in one number."""
    rests: NDArray[np.uint64] = devices.astype(np.uint64) << np.uint64(32) | generations
    return rests


def _columns(keys: Sequence[Key]) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    columns = np.array(keys, np.uint64).reshape(-1, 3)
    return np.ascontiguousarray(columns[:, 1]), _rest(columns[:, 0], columns[:, 2])


def _device(status: os.stat_result) -> int:
    return os.major(status.st_dev) << _MINOR_BITS | os.minor(status.st_dev)


def _starts(sights: Sequence[FileSight], processes: Records | None) -> dict[int, int]:
    """The processes in them by tgid, each with its start; the latest where a tgid has changed hands."""
    starts = {sight.tgid: sight.owner_start_ns for sight in sights if sight.tgid}
    if processes is not None and len(processes):
        users = processes[(processes["flags"] & ProcessFlag.KERNEL_THREAD) == 0]
        starts.update(zip(users["tgid"].tolist(), users["start_ns"].tolist(), strict=True))
    return starts
