"""The app's view: attached to the system calls' functions where the kernel can, else to its tracepoints."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.live.harness import Actor, Disk, Live, Watched, fio, fio_totals, run

pytestmark = pytest.mark.guest

BLOCK = 4096
REQUESTS = 1009
CALLS = (3, 17, 64)
"""Requests of each of the calls that are counted one by one."""
TRAMPOLINES_SINCE = (5, 11)
"""What comes before lacks what reads a system call's arguments in a program of that kind."""


def test_submissions_are_what_the_application_asked_for(
    nvme_disk: Disk, live: Callable[..., Live], tmp_path: Path
) -> None:
    report = tmp_path / "fio.json"
    job = fio(
        nvme_disk, "--direct=1", "--rw=randrw", "--bs=4k", "--blockalign=8k", "--ioengine=libaio", "--iodepth=16",
        "--iodepth_batch_submit=4", requests=REQUESTS, report=report,
    )  # fmt: skip
    session = live("--all", "--device", nvme_disk.device)
    run(*job)
    with Actor() as actor:
        for requests in CALLS:
            actor.do("submit", nvme_disk.path, "read", BLOCK, requests, 0, 2 * BLOCK)
    seen = Watched(session.interrupt())

    hooks = {hook for hook in seen.report["host"]["hooks"] if hook.endswith("io_submit")}
    major, minor = map(int, os.uname().release.split(".")[:2])
    if (major, minor) < TRAMPOLINES_SINCE:
        assert hooks == {"tracepoint/syscalls/sys_enter_io_submit", "tracepoint/syscalls/sys_exit_io_submit"}
    else:
        assert hooks == {"fentry/__x64_sys_io_submit", "fexit/__x64_sys_io_submit"}

    submissions = seen.report["submissions"]
    [mine] = [s for s in submissions if s["pid"] == actor.pid and s["op"]]
    assert (mine["engine"], mine["op"]) == ("libaio", "read")
    assert (mine["calls"], mine["requests"], mine["bytes"]) == (len(CALLS), sum(CALLS), sum(CALLS) * BLOCK)
    for op, counted in fio_totals(report).items():
        [entry] = [s for s in submissions if s["worker"] == "fio" and s["op"] == op]
        assert (entry["requests"], entry["bytes"]) == counted
        assert 0 < entry["calls"] <= entry["requests"]
