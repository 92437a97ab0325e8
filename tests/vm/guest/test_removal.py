"""A disk that goes away while it is busy."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.live.harness import HANG, Disk, Live, Watched, disk_statistics, fio
from tests.vm.guest.devices import controller, nvme_comes_back, wait_until

pytestmark = pytest.mark.guest

BLOCK = 4096


def load(disk: Disk, report: Path) -> subprocess.Popen[str]:
    """fio, once it has many requests in flight."""
    job = fio(
        disk, "--direct=1", "--rw=randwrite", "--bs=4k", "--blockalign=8k", "--ioengine=libaio", "--iodepth=64",
        "--time_based", "--runtime=60", requests=1 << 30, report=report,
    )  # fmt: skip
    process = subprocess.Popen(job, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    wait_until(lambda: disk_statistics(disk.device)["in_flight"] >= 32, "fio does nothing")
    return process


def test_a_session_survives_the_removal_of_a_busy_disk(
    nvme_disk: Disk, live: Callable[..., Live], tmp_path: Path
) -> None:
    report = tmp_path / "fio.json"
    session = live("--all", "--device", nvme_disk.device)
    with nvme_comes_back():
        with load(nvme_disk, report) as job:
            (controller() / "remove").write_text("1")
            assert job.wait(HANG) != 0
        assert not nvme_disk.path.exists()
        assert session.process.poll() is None
        seen = Watched(session.interrupt())
    assert seen.whole
    [stream] = seen.streams(pid=job.pid)
    assert stream["requests"] - stream["errors"] == fio_successes(report)
    assert stream["bytes"] == stream["requests"] * BLOCK
    assert stream["device"] == nvme_disk.device


def fio_successes(report: Path) -> int:
    """Writes whose time fio measured: of the others, most never got to the disk."""
    text = report.read_text()
    [job] = json.loads(text[text.index("{") :])["jobs"]
    return int(job["write"]["clat_ns"]["N"])
