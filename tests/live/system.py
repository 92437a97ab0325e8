"""What live tests change on the host: loop devices, filesystems, mounts, swap, sysctls, memory cgroups.

Each is a context manager that gives back what it took, also on failure. No test's own logic may go in here.
"""

from __future__ import annotations

import errno
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.live.harness import HANG, Disk, run

FORMAT = {
    "ext4": ["mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0"],
    "xfs": ["mkfs.xfs", "-q", "-f"],
    "btrfs": ["mkfs.btrfs", "-q", "-f"],
}


@dataclass(frozen=True)
class Volume:
    """A filesystem on a disk of its own, mounted on a folder."""

    kind: str
    disk: Disk
    mount_point: Path
    folder: Path
    """In it, or the same."""

    def settle(self) -> None:
        """Nothing is left to be written; cached pages may be dropped."""
        run("sync", "--file-system", self.folder)


@contextmanager
def mounted(*arguments: str | Path) -> Iterator[Path]:
    """Mount; the last argument is where."""
    run("mount", *arguments)
    folder = Path(arguments[-1])
    try:
        yield folder
    finally:
        run("umount", folder)


def attach_loop(backing: Path, *options: str) -> Path:
    """The node. It reads and writes past the page cache where the backing file's filesystem can: tmpfs since 6.6."""
    node = Path(run("losetup", *options, "--find", "--show", backing).strip())
    subprocess.run(["losetup", "--direct-io=on", node], capture_output=True, timeout=HANG, check=False)
    return node


@contextmanager
def loop_device(size: int, folder: Path | None = None) -> Iterator[Disk]:
    """A direct loop device over a sparse file, which only takes the memory that is written.

    In a folder, or on a tmpfs of its own: that is fast, and nothing else uses it.
    """
    with ExitStack() as stack:
        if folder is None:
            name = stack.enter_context(tempfile.TemporaryDirectory(prefix="llmio-"))
            folder = stack.enter_context(mounted("-t", "tmpfs", "-o", f"size={size + (1 << 20)}", "tmpfs", name))
        backing = folder / "disk"
        with open(backing, "wb") as file:
            file.truncate(size)
        stack.callback(backing.unlink)
        node = attach_loop(backing, "--partscan")
        stack.callback(_until_detached, node.name)
        stack.callback(run, "losetup", "--detach", node)
        yield Disk(node, node.name, size)


def backing_file(disk: Disk) -> Path:
    return Path(Path(f"/sys/block/{disk.device}/loop/backing_file").read_text().rstrip("\n"))


def _until_detached(device: str) -> None:
    """Detaching waits for whoever has the device open for a moment; its backing file cannot be unmounted before."""
    deadline = time.monotonic() + 10
    while Path(f"/sys/block/{device}/loop").exists() and time.monotonic() < deadline:
        time.sleep(0.01)


@contextmanager
def queue(disk: Disk, **settings: int | str) -> Iterator[None]:
    """Change ``/sys/block/DISK/queue/*``: they would outlive a loop device's detaching."""
    folder = Path(f"/sys/block/{disk.device}/queue")
    before = {name: _selected((folder / name).read_text()) for name in settings}
    try:
        for name, value in settings.items():
            (folder / name).write_text(str(value))
            assert _selected((folder / name).read_text()) == str(value), name
        yield
    finally:
        for name in reversed(before):
            (folder / name).write_text(before[name])


def _selected(text: str) -> str:
    """``none [mq-deadline]`` shows the one in use in brackets."""
    return text.partition("[")[2].partition("]")[0] if "[" in text else text.strip()


@contextmanager
def partition(disk: Disk, number: int, start: int, size: int) -> Iterator[Disk]:
    """A part of the disk with a node of its own; no table is written."""
    run("addpart", disk.path, str(number), str(start // 512), str(size // 512))
    try:
        yield Disk(Path(f"{disk.path}p{number}"), disk.device, size)
    finally:
        run("delpart", disk.path, str(number))


@contextmanager
def filesystem(kind: str, disk: Disk, *options: str, shape: Sequence[str] = ()) -> Iterator[Volume]:
    """Format the disk and mount it; options are the mount's, shape is the format's."""
    run(*FORMAT[kind], *shape, disk.path)
    with tempfile.TemporaryDirectory(prefix="llmio-") as name, mounted("-t", kind, *options, disk.path, name) as folder:
        yield Volume(kind, disk, folder, folder)


@contextmanager
def volume_of(kind: str, size: int = 1 << 30, shape: Sequence[str] = ()) -> Iterator[Volume]:
    with loop_device(size) as disk, filesystem(kind, disk, shape=shape) as made:
        yield made


@contextmanager
def frozen(folder: Path) -> Iterator[None]:
    """Nothing is written to that filesystem meanwhile: whoever wants to, waits."""
    run("fsfreeze", "--freeze", folder)
    try:
        yield
    finally:
        run("fsfreeze", "--unfreeze", folder)


@contextmanager
def sysctl(name: str, value: int) -> Iterator[None]:
    path = Path("/proc/sys") / name.replace(".", "/")
    before = path.read_text()
    try:
        path.write_text(str(value))
        yield
    finally:
        path.write_text(before)


@contextmanager
def swap_on(disk: Disk) -> Iterator[None]:
    run("mkswap", disk.path)
    run("swapon", "--priority", "100", disk.path)
    try:
        yield
    finally:
        run("swapoff", disk.path)


@contextmanager
def memory_cgroup(limit: int) -> Iterator[Path]:
    """A group whose processes may keep that much in memory; writing a pid to the yielded file moves it there."""
    with ExitStack() as stack:
        root, limit_name = _memory_controller(stack)
        group = Path(tempfile.mkdtemp(prefix="llmio-", dir=root))
        stack.callback(_remove_group, group)
        (group / limit_name).write_text(str(limit))
        yield group / "cgroup.procs"


def _memory_controller(stack: ExitStack) -> tuple[Path, str]:
    """Where groups with a memory limit can be made: v1, mounted if need be, or v2."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, where, kind, options = line.split()[:4]
        if kind == "cgroup" and "memory" in options.split(","):
            return Path(where), "memory.limit_in_bytes"
        if kind == "cgroup2" and "memory" in (Path(where) / "cgroup.controllers").read_text().split():
            control = Path(where) / "cgroup.subtree_control"
            if "memory" not in control.read_text().split():
                control.write_text("+memory")
                stack.callback(control.write_text, "-memory")
            return Path(where), "memory.max"
    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="llmio-"))
    return stack.enter_context(mounted("-t", "cgroup", "-o", "memory", "memory", folder)), "memory.limit_in_bytes"


def _remove_group(group: Path) -> None:
    """A group is busy for a moment after its last process."""
    deadline = time.monotonic() + 10
    while True:
        try:
            return group.rmdir()
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > deadline:
                raise
        time.sleep(0.01)


def drop(path: Path | bytes) -> None:
    """Take a file's clean pages out of the page cache."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)


def fill(path: Path, size: int) -> None:
    """A file with real blocks that nothing has in memory. Its pages are on the disk, not yet its inode: see settle."""
    block = bytes(1 << 20)
    with open(path, "r+b" if path.exists() else "xb") as file:
        for begin in range(0, size, len(block)):
            file.write(block[: size - begin])
        file.flush()
        os.fsync(file.fileno())
    drop(path)


def written_directly(place: Volume, path: Path) -> None:
    """Make a file that O_DIRECT writes really go around the page cache of: with checksums, on btrfs they do not."""
    path.touch()
    if place.kind == "btrfs":
        run("chattr", "+C", path)
