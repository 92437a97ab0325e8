"""A real NVMe driver with two hardware queues: a known workload from both processors at once."""

from __future__ import annotations

import platform
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.live.harness import Disk, Live, Watched, fio, fio_totals, run

REQUESTS = 1009
CROWD = 8
"""Jobs, for two processors: what runs is mostly preempted, also in the middle of our programs where that can be."""
ENGINES = ("libaio", "io_uring")


@pytest.mark.guest
def test_each_request_of_both_queues_is_the_workers(nvme_disk: Disk, live: Callable[..., Live], tmp_path: Path) -> None:
    session = live("--all", "--device", nvme_disk.device)
    for engine in ENGINES:
        job = fio(
            nvme_disk, "--direct=1", "--rw=randrw", "--bs=4k", "--blockalign=8k", f"--ioengine={engine}",
            "--iodepth=16", "--numjobs=2", "--cpus_allowed=0-1", "--cpus_allowed_policy=split", requests=REQUESTS,
            report=tmp_path / engine,
        )  # fmt: skip
        run(*job)
    seen = Watched(session.interrupt())
    assert seen.whole
    for engine in ENGINES:
        totals = fio_totals(tmp_path / engine)
        assert sum(requests for requests, _ in totals.values()) == 2 * REQUESTS
        for op, counted in totals.items():
            [stream] = seen.streams(worker="fio", op=op, engine=engine, path="direct", device=nvme_disk.device)
            assert (stream["requests"], stream["bytes"]) == counted


@pytest.mark.guest
def test_requests_have_their_owner_where_more_tasks_submit_than_there_are_processors(
    nvme_disk: Disk, live: Callable[..., Live], tmp_path: Path
) -> None:
    session = live("--all", "--device", nvme_disk.device)
    job = fio(
        nvme_disk, "--direct=1", "--rw=randread", "--bs=4k", "--blockalign=8k", "--ioengine=libaio", "--iodepth=32",
        f"--numjobs={CROWD}", requests=REQUESTS, report=tmp_path / "report",
    )  # fmt: skip
    run(*job)
    seen = Watched(session.interrupt())
    assert fio_totals(tmp_path / "report")["read"] == (CROWD * REQUESTS, CROWD * REQUESTS * 4096)
    owned, unknown = (
        sum(s["requests"] for s in seen.streams(worker=worker, op="read", device=nvme_disk.device))
        for worker in ("fio", "unknown")
    )
    assert owned + unknown == CROWD * REQUESTS
    # Since 7.0 the kernel skips programs then (docs/kernel.md). Before, none.
    assert unknown <= CROWD * REQUESTS // 100 if preemptible_tracepoints() else seen.whole and not unknown


def preemptible_tracepoints() -> bool:
    return tuple(int(part) for part in platform.release().split(".")[:2]) >= (7, 0)
