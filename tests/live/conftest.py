"""Real devices for the live tests. Everything is given back, also on failure."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from tests.live.daemons import Daemon, running_daemon
from tests.live.harness import (
    Disk,
    Live,
    Observe,
    Observed,
    Watched,
    run,
    start_probe,
    stir,
    tracing_programs,
    transferred,
    undisturbed,
)
from tests.live.scenes import Part, Played
from tests.live.system import Volume, attach_loop, volume_of


@pytest.fixture(autouse=True)
def nothing_stays_attached() -> Iterator[None]:
    before = tracing_programs()
    yield
    deadline = time.monotonic() + 5  # the kernel frees programs a little after their last descriptor
    while (left := tracing_programs() - before) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left, "BPF programs are still loaded"


@pytest.fixture(scope="session")
def loop_disk() -> Iterator[Disk]:
    """A loop device over tmpfs, direct: fast, and nothing else uses it."""
    size = 256 << 20
    with tempfile.TemporaryDirectory(prefix="llmio-") as folder:
        run("mount", "-t", "tmpfs", "-o", "size=300m", "tmpfs", folder)
        try:
            backing = Path(folder) / "disk"
            run("dd", "if=/dev/zero", f"of={backing}", "bs=1M", f"count={size >> 20}")
            node = attach_loop(backing)
            try:
                yield Disk(node, node.name, size)
            finally:
                run("losetup", "--detach", node)
        finally:
            run("umount", folder)


@pytest.fixture(scope="session")
def ext4_folder() -> Iterator[Path]:
    """A folder on the virtual disk's ext4."""
    with tempfile.TemporaryDirectory(prefix="llmio-", dir="/var/tmp") as folder:
        assert run("stat", "-f", "-c", "%T", folder).strip() == "ext2/ext3", "/var/tmp is not on ext4 here"
        yield Path(folder)


@pytest.fixture(scope="session")
def ext4_disk(ext4_folder: Path) -> Disk:
    """A file there with real blocks, its page cache dropped."""
    size, path = 256 << 20, ext4_folder / "file"
    with open(path, "wb") as file:
        block = os.urandom(1 << 20)
        for _ in range(size >> 20):
            file.write(block)
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    device = os.stat(path).st_dev
    disk = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}").resolve()
    if (disk / "partition").exists():
        disk = disk.parent
    return Disk(path, disk.name, size)


@pytest.fixture(params=["loop", "ext4"])
def disk(request: pytest.FixtureRequest) -> Disk:
    found: Disk = request.getfixturevalue(f"{request.param}_disk")
    return found


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """Where everybody may read, as /etc: pytest's own folders are for their owner only."""
    with tempfile.TemporaryDirectory(prefix="llmio-", dir="/var/tmp") as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


@pytest.fixture
def daemon(open_folder: Path) -> Iterator[Callable[..., Daemon]]:
    """Start a daemon, with these lines in its configuration and the options of ``running_daemon``."""
    with ExitStack() as running:
        yield lambda more="", **options: running.enter_context(running_daemon(open_folder, more, **options))


@pytest.fixture
def live(tmp_path: Path) -> Iterator[Callable[..., Live]]:
    """Start ``llmio-probe --json OPTIONS`` and return once it watches."""
    with ExitStack() as running:
        numbers = count()
        yield lambda *options: running.enter_context(start_probe(tmp_path / f"session{next(numbers)}.json", *options))


@pytest.fixture
def observe(live: Callable[..., Live]) -> Observe:
    """Do something to a disk that nobody else uses, in a session on the whole host; again when it was disturbed."""

    def measure(place: Disk | Volume, scenario: Callable[[], Any]) -> Observed | None:
        disk = place.disk if isinstance(place, Volume) else place
        before = transferred(disk.device)
        session = live("--all", "--device", disk.device)
        idle = transferred(disk.device) == before
        told = scenario()
        if isinstance(place, Volume):
            place.settle()
        stir(disk)
        after = transferred(disk.device)
        watched = Watched(session.interrupt())
        if not idle or transferred(disk.device) != after:
            return None
        return Observed(watched, {op: after[op] - before[op] for op in before}, told)

    return lambda place, scenario: undisturbed(lambda: measure(place, scenario))


@pytest.fixture(scope="module")
def played(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Played]:
    """The scenes of this module that were chosen, on the parameter's kind of filesystem."""

    def chosen(item: pytest.Item) -> Part | None:
        variant: dict[str, Any] = getattr(getattr(item, "callspec", None), "params", {})
        mine = getattr(item, "module", None) is request.module and variant.get("played") == request.param
        return variant.get("part") if mine else None

    parts = {item: part for item in request.session.items if (part := chosen(item))}
    done = Played(request.param, parts, tmp_path_factory.mktemp("scenes") / "session.json")
    yield done
    done.close()


@pytest.fixture
def ext4_volume() -> Iterator[Volume]:
    with volume_of("ext4") as volume:
        volume.settle()
        yield volume
