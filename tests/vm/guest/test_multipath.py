"""Native NVMe multipath: a hidden disk carries the requests, and what users know is the head above it.

Witnesses: the hidden disk's own statistics, what was written and read, the files' own paths.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.live.harness import Actor, Disk, Observed, Watched, start_probe, undisturbed
from tests.live.system import Volume, filesystem, fill, partition
from tests.vm.guest.devices import BLOCK_DEVICES, SECTOR

pytestmark = pytest.mark.guest("multipath")

BLOCK = 4096
DIRECT, CACHED, WRITTEN, RAW = (number * BLOCK for number in (37, 53, 71, 19))
PART, BEHIND = 256 << 20, 512 << 20
"""The size of the part that is mounted, and where the rest is used."""
USES = ("direct", "cached", "written", "raw")


def hidden_transferred() -> dict[str, int]:
    """Bytes that the only path has moved."""
    [path] = BLOCK_DEVICES.glob("nvme*c*n*")
    fields = (path / "stat").read_text().split()
    return {"read": int(fields[2]) * SECTOR, "write": int(fields[6]) * SECTOR}


@pytest.fixture(scope="module")
def seen(nvme_disk: Disk, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Observed]:
    """A session in which a process each uses ext4 on a part of the head, and the head itself. told: pid, path by use.

    The part stays mounted until it is over: who looks for a file's path later finds no mount.
    """
    output = tmp_path_factory.mktemp("multipath") / "session.json"
    with partition(nvme_disk, 1, 1 << 20, PART) as part, filesystem("ext4", part) as place:
        yield undisturbed(lambda: watch_uses(nvme_disk, place, output))


def watch_uses(disk: Disk, place: Volume, output: Path) -> Observed | None:
    """None when somebody else has used the disk."""
    paths = {use: place.folder / use for use in USES} | {"raw": disk.path}
    fill(paths["direct"], 2 * DIRECT)
    fill(paths["cached"], CACHED)
    place.settle()
    before = hidden_transferred()
    with start_probe(output, "--all", "--device", disk.device) as session, ExitStack() as stack:
        idle = hidden_transferred() == before
        actors = {use: stack.enter_context(Actor()) for use in USES}
        actors["direct"].do("direct", paths["direct"], "read", 0, DIRECT)
        actors["direct"].do("direct", paths["direct"], "write", DIRECT, BLOCK, DIRECT // BLOCK)
        actors["cached"].do("read", paths["cached"], 0, CACHED)
        actors["written"].do("write", paths["written"], 0, WRITTEN)
        place.settle()
        actors["raw"].do("submit", disk.path, "read", BLOCK, RAW // BLOCK, BEHIND, 2 * BLOCK)
        actors["raw"].do("direct", disk.path, "write", BEHIND, RAW)
        after = hidden_transferred()
        watched = Watched(session.interrupt())
        if not idle or hidden_transferred() != after:
            return None
        told = {use: (actors[use].pid, paths[use]) for use in USES}
    return Observed(watched, {op: after[op] - before[op] for op in before}, told)


def test_the_device_is_the_head_that_users_know(seen: Observed, nvme_disk: Disk) -> None:
    report = seen.watched.report
    assert {s["device"] for s in report["streams"]} == {f["device"] for f in report["files"]} == {nvme_disk.device}
    assert [(d["device"], d["layer"]) for d in report["devices"]] == [(nvme_disk.device, "disk")]


def test_nothing_that_the_hidden_path_did_is_left_over(seen: Observed) -> None:
    seen.check_totals()


@pytest.mark.parametrize(
    ("use", "kinds", "moved"),
    [
        pytest.param(
            "direct", {("read", "posix", "direct"): DIRECT, ("write", "posix", "direct"): DIRECT}, (DIRECT, DIRECT),
            id="direct",
        ),
        pytest.param("cached", {("read", "posix", "page_cache"): CACHED}, (CACHED, 0), id="page-cache"),
        pytest.param("written", {("write", "posix", "writeback"): WRITTEN}, (0, WRITTEN), id="writeback"),
        pytest.param(
            "raw", {("read", "libaio", "direct"): RAW, ("write", "posix", "direct"): RAW}, (RAW, RAW), id="raw"
        ),
    ],
)  # fmt: skip
def test_below_the_head_are_the_users_worker_engine_path_and_file(
    seen: Observed, use: str, kinds: dict[tuple[str, str, str], int], moved: tuple[int, int]
) -> None:
    pid, path = seen.told[use]
    assert seen.kinds(pid) == kinds
    assert seen.bytes_of(path) == {pid: moved}
