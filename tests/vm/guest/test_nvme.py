"""A real NVMe driver with two hardware queues: a known workload from both processors at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.live.harness import Disk, fio, fio_totals, watch

REQUESTS = 2003


@pytest.mark.guest
@pytest.mark.parametrize("engine", ["libaio", "io_uring"])
def test_each_request_of_both_queues_is_the_workers(nvme_disk: Disk, engine: str, tmp_path: Path) -> None:
    report = tmp_path / "fio.json"
    job = fio(
        nvme_disk, "--direct=1", "--rw=randrw", "--bs=4k", "--blockalign=8k", f"--ioengine={engine}", "--iodepth=16",
        "--numjobs=2", "--cpus_allowed=0-1", "--cpus_allowed_policy=split", requests=REQUESTS, report=report,
    )  # fmt: skip
    watched = watch(job, "--device", nvme_disk.device)
    assert watched.whole
    totals = fio_totals(report)
    assert sum(requests for requests, _ in totals.values()) == 2 * REQUESTS
    for op, counted in totals.items():
        [stream] = watched.streams(op=op, engine=engine, path="direct", device=nvme_disk.device)
        assert (stream["requests"], stream["bytes"]) == counted
