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
ENGINES = ("libaio", "io_uring")
CALLS = (3, 17, 64, 1021)
"""Requests of each of the calls that are counted one by one; the last as many as the older variants still look at."""
TRAMPOLINES_SINCE = {"x86_64": (5, 11), "aarch64": (6, 4)}
"""What comes before lacks what reads a system call's arguments in a program of that kind."""


def test_submissions_are_what_the_application_asked_for(
    nvme_disk: Disk, live: Callable[..., Live], tmp_path: Path
) -> None:
    session = live("--all", "--device", nvme_disk.device)
    for engine in ENGINES:
        job = fio(
            nvme_disk, "--direct=1", "--rw=randrw", "--bs=4k", "--blockalign=8k", f"--ioengine={engine}",
            "--iodepth=16", "--iodepth_batch_submit=4", requests=REQUESTS, report=tmp_path / engine,
        )  # fmt: skip
        run(*job)
    with Actor() as actor:
        for requests in CALLS:
            actor.do("submit", nvme_disk.path, "read", BLOCK, requests, 0, 2 * BLOCK)
    seen = Watched(session.interrupt())

    kinds = {hook.partition("/")[0] for hook in seen.report["host"]["hooks"] if hook.endswith("io_submit")}
    system = os.uname()
    release = tuple(map(int, system.release.split(".")[:2]))
    assert kinds == ({"tracepoint"} if release < TRAMPOLINES_SINCE[system.machine] else {"fentry", "fexit"})

    submissions = seen.report["submissions"]
    [mine] = [s for s in submissions if s["pid"] == actor.pid and s["op"]]
    assert (mine["engine"], mine["op"]) == ("libaio", "read")
    assert (mine["calls"], mine["requests"], mine["bytes"]) == (len(CALLS), sum(CALLS), sum(CALLS) * BLOCK)
    for engine in ENGINES:
        rows = {s["op"]: s for s in submissions if s["worker"] == "fio" and s["engine"] == engine}
        for op, counted in fio_totals(tmp_path / engine).items():
            assert (rows[op]["requests"], rows[op]["bytes"]) == counted
            assert 0 < rows[op]["calls"] <= rows[op]["requests"]
            assert rows[op]["submit_seconds"] > 0
        assert rows[None]["wait_seconds"] > 0
