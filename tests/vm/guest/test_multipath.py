"""Native NVMe multipath: a hidden disk carries the requests, and what users know is the head above it.

Witnesses: the hidden disk's own statistics, what was written and read, the files' own paths.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.live.harness import Actor, Disk, Observed, Watched, start_probe
from tests.live.system import filesystem, fill
from tests.vm.guest.devices import BLOCK_DEVICES, SECTOR

pytestmark = pytest.mark.guest("multipath")

BLOCK = 4096
DIRECT, CACHED, WRITTEN, RAW = (number * BLOCK for number in (37, 53, 71, 19))
USES = ("direct", "cached", "written", "raw")


def hidden_transferred() -> dict[str, int]:
    """Bytes that the only path has moved."""
    [path] = BLOCK_DEVICES.glob("nvme*c*n*")
    fields = (path / "stat").read_text().split()
    return {"read": int(fields[2]) * SECTOR, "write": int(fields[6]) * SECTOR}


@pytest.fixture(scope="module")
def seen(nvme_disk: Disk, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Observed]:
    """A session in which a process each uses ext4 on the head, and then the head itself. told: pid and path by use."""
    with ExitStack() as stack:
        actors = {use: stack.enter_context(Actor()) for use in USES}
        with filesystem("ext4", nvme_disk) as place:
            paths = {use: place.folder / use for use in USES} | {"raw": nvme_disk.path}
            fill(paths["direct"], 2 * DIRECT)
            fill(paths["cached"], CACHED)
            place.settle()
            before = hidden_transferred()
            output = tmp_path_factory.mktemp("multipath") / "session.json"
            session = stack.enter_context(start_probe(output, "--all", "--device", nvme_disk.device))
            actors["direct"].do("direct", paths["direct"], "read", 0, DIRECT)
            actors["direct"].do("direct", paths["direct"], "write", DIRECT, BLOCK, DIRECT // BLOCK)
            actors["cached"].do("read", paths["cached"], 0, CACHED)
            actors["written"].do("write", paths["written"], 0, WRITTEN)
        actors["raw"].do("submit", nvme_disk.path, "read", BLOCK, RAW // BLOCK, 0, 2 * BLOCK)
        actors["raw"].do("direct", nvme_disk.path, "write", 1 << 20, RAW)
        after = hidden_transferred()
        told = {use: (actors[use].pid, paths[use]) for use in USES}
        yield Observed(Watched(session.interrupt()), {op: after[op] - before[op] for op in before}, told)


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
