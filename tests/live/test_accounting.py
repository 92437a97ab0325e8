"""Everything adds up, also when the tables are too small for the load: counted, told, and never attributed wrongly."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import numpy as np

from llmio_probe.kernel.loading import ProbeOptions
from llmio_probe.kernel.probe import Probe
from llmio_probe.kernel.records import OwnerKind, RequestFlag
from tests.live.harness import HANG, Disk, fio, fio_totals

REQUESTS = 20011


def test_a_request_table_that_is_too_small_costs_names_but_no_request(loop_disk: Disk, tmp_path: Path) -> None:
    report = tmp_path / "fio.json"
    job = fio(
        loop_disk, "--direct=1", "--rw=randread", "--bs=4k", "--blockalign=8k", "--ioengine=libaio", "--iodepth=64",
        "--iodepth_batch=64", "--iodepth_batch_complete_min=64",  # plugged, so that many are made before any is issued
        requests=REQUESTS, report=report,
    )  # fmt: skip
    node = os.stat(loop_disk.path).st_rdev
    device = os.major(node) << 20 | os.minor(node)
    for _ in range(8):  # see harness.whole
        with Probe(ProbeOptions(request_entries=8, calls=False)) as probe:
            probe.start()
            subprocess.run(job, check=True, timeout=HANG)
            time.sleep(0.1)
            probe.stop()
            records = probe.read().requests
            [shortage] = probe.shortages()
            state = probe.state()
        loop = next(counts for counts in state.devices if counts.device == device)
        in_flight = sum(loop.in_flight.values())
        assert loop.started == loop.finished + loop.merged + in_flight + loop.expired
        assert state.losses.requests == 0
        if in_flight == 0 and loop.finished + loop.unowned == REQUESTS:  # of an untracked one nothing is in flight
            break
    assert loop.untracked > 0
    assert "requests found no room in the request table" in shortage
    mine = records[records["device"] == loop.device]
    unowned = mine["flags"] & RequestFlag.UNSTARTED != 0
    assert len(mine) == fio_totals(report)["read"][0] == REQUESTS
    assert np.all(mine["bytes"] == 4096)
    assert loop.unowned == unowned.sum() == (mine["owner"] == OwnerKind.UNKNOWN).sum() <= loop.untracked
