"""Requests that a disk fails, and ones that the driver has to send again.

Witnesses: which blocks are bad, the errors that the workload itself got, fio's own count of them.
"""

from __future__ import annotations

import errno
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.live.harness import HANG, Actor, Disk, Live, Watched, disk_statistics, fio, fio_totals, transferred
from tests.vm.guest.devices import controller, mapped, null_disk, setting, wait_until

pytestmark = pytest.mark.guest

BLOCK = 4096
SECTORS = BLOCK // 512
GOOD, BAD = 23, 7
DEPTH = 64
REQUESTS = 1501
MAX_RETRIES = Path("/sys/module/nvme_core/parameters/max_retries")


def test_requests_for_bad_blocks_are_errors_of_who_asked(live: Callable[..., Live]) -> None:
    with null_disk(badblocks=f"+{1 << 11}-{(1 << 11) + BAD * SECTORS - 1}") as disk, Actor() as actor:
        session = live("--all", "--device", disk.device)
        actor.do("direct", disk.path, "read", 0, BLOCK, GOOD)
        for number in range(BAD):
            assert actor.fail("direct", disk.path, "read", (1 << 20) + number * BLOCK, BLOCK) == errno.EIO
        seen = Watched(session.interrupt())
    [stream] = seen.streams(pid=actor.pid)
    assert (stream["op"], stream["requests"], stream["errors"]) == ("read", GOOD + BAD, BAD)
    assert seen.total("errors") == BAD


def test_what_device_mapper_refuses_is_no_request(nvme_disk: Disk, live: Callable[..., Live]) -> None:
    """As with dm-error: only who asked learns of it."""
    size = GOOD * BLOCK
    targets = f"{size // 512} linear {nvme_disk.path} 0", f"{size // 512} error"
    with mapped(*targets) as disk, Actor() as actor:
        session = live("--all", "--device", nvme_disk.device)
        actor.do("direct", disk.path, "read", 0, BLOCK, GOOD)
        for number in range(BAD):
            assert actor.fail("direct", disk.path, "read", size + number * BLOCK, BLOCK) == errno.EIO
        seen = Watched(session.interrupt())
    [stream] = seen.streams(pid=actor.pid)
    assert (stream["op"], stream["requests"], stream["bytes"], stream["errors"]) == ("read", GOOD, size, 0)
    assert seen.total("errors") == 0


@contextmanager
def stalled(disk: Disk, report: Path) -> Iterator[subprocess.Popen[str]]:
    """fio, which goes on when a request fails, with all its requests in flight.

    None of them is answered any more: the controller has lost its access to memory, until it is reset.
    """
    begun = disk_statistics(disk.device)["reads"]
    job = fio(
        disk, "--direct=1", "--rw=randread", "--bs=4k", "--blockalign=8k", "--ioengine=libaio", f"--iodepth={DEPTH}",
        "--iodepth_batch_complete_min=1", "--continue_on_error=io", requests=REQUESTS, report=report,
    )  # fmt: skip
    with subprocess.Popen(job, text=True) as process:
        try:
            wait_until(lambda: disk_statistics(disk.device)["reads"] > begun + 100, "fio does nothing")
            take_memory_access(controller())
            wait_until(lambda: disk_statistics(disk.device)["in_flight"] == DEPTH, "requests are answered")
            yield process
        finally:
            process.kill()


def take_memory_access(device: Path) -> None:
    """Clear what PCI calls bus master, which the driver sets when it starts the device."""
    with open(device / "config", "r+b", buffering=0) as config:
        config.seek(4)
        command = int.from_bytes(config.read(2), "little")
        config.seek(4)
        config.write((command & ~4).to_bytes(2, "little"))


def test_what_a_reset_interrupts_is_sent_again_or_fails(
    nvme_disk: Disk, live: Callable[..., Live], tmp_path: Path
) -> None:
    """The driver sends again what the controller had not answered; forbidden to, it gives up with an error."""
    if tuple(map(int, os.uname().release.split(".")[:2])) < (6, 12):
        pytest.skip("this kernel's driver may lose a request in such a reset, and then gives up the controller")
    reset = Path("/sys/class/nvme") / nvme_disk.device.rpartition("n")[0] / "reset_controller"
    again, failed = tmp_path / "again.json", tmp_path / "failed.json"
    before = transferred(nvme_disk.device)["read"]
    session = live("--all", "--device", nvme_disk.device)
    pids = {}
    for report, retries in ((again, 5), (failed, 0)):
        with setting(MAX_RETRIES, retries), stalled(nvme_disk, report) as job:
            reset.write_text("1")
            assert job.wait(HANG) == 0
        pids[report] = job.pid
    moved = transferred(nvme_disk.device)["read"] - before
    seen = Watched(session.interrupt())
    assert seen.whole
    assert seen.total("bytes", device=nvme_disk.device) == moved  # by the block layer's count, failed ones too
    [stream] = seen.streams(pid=pids[again])
    assert (stream["requests"], stream["errors"], stream["requeues"]) == (REQUESTS, 0, DEPTH)
    assert (stream["requests"], stream["bytes"]) == fio_totals(again)["read"]
    assert fio_errors(again) == 0
    [stream] = seen.streams(pid=pids[failed])
    assert (stream["errors"], stream["requeues"]) == (DEPTH, 0)
    assert stream["errors"] == fio_errors(failed)
    assert stream["requests"] == fio_totals(failed)["read"][0]
    assert stream["bytes"] - DEPTH * BLOCK == fio_totals(failed)["read"][1]


def fio_errors(report: Path) -> int:
    """Requests that failed, by fio's own count."""
    text = report.read_text()
    return sum(job["total_err"] for job in json.loads(text[text.index("{") :])["jobs"])
