"""Several hardware queues of a real NVMe driver: which one a request took, and whose it is wherever it completes.

Witnesses: what sysfs says of the queues, /proc/diskstats, /proc/PID/io, fio, and the completions that ftrace counts.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pytest

from llmio_probe.kernel.records import Engine, Op, OwnerKind, Records
from tests.live.harness import HANG, Actor, Disk, disk_statistics, fio, fio_totals
from tests.live.system import queue
from tests.vm.guest.devices import BLOCK_DEVICES, number_of, nvme_queues, traced, wait_until
from tests.vm.guest.recording import record

pytestmark = pytest.mark.guest

BLOCK = 4096
REQUESTS = 301
CPUS = (0, 1)
WRITE_QUEUES, POLL_QUEUES = 1, 1
POLLED = 3
"""The number of the polled queue: the driver has those for writes first, then one a CPU for reads."""


def hardware_queue(disk: Disk, cpu: int) -> int:
    """Which of the queues, numbered in sysfs, serves a processor."""
    [found] = [
        path.parent
        for path in (BLOCK_DEVICES / disk.device / "mq").glob("*/cpu_list")
        if str(cpu) in path.read_text().replace(",", " ").split()
    ]
    return int(found.name)


def on_both(disk: Disk, op: str, first: Actor, second: Actor) -> None:
    """As many requests by each at the same time, so far apart that none can merge."""
    for number, actor in enumerate((first, second)):
        actor.begin("submit", disk.path, op, BLOCK, REQUESTS, number * (64 << 20), 2 * BLOCK)
    for actor in (first, second):
        assert actor.answer() == {"done": REQUESTS * BLOCK}


@contextmanager
def actors() -> Iterator[tuple[Actor, Actor]]:
    """A process on each processor, which it never leaves."""
    with ExitStack() as stack:
        first, second = (stack.enter_context(Actor("taskset", "--cpu-list", str(cpu))) for cpu in CPUS)
        yield first, second


def check_all_mine(requests: Records, op: Op) -> None:
    assert len(requests) == REQUESTS
    assert requests["bytes"].sum() == REQUESTS * BLOCK
    assert set(requests["op"]) == {op}
    assert set(requests["owner"]) == {OwnerKind.PROCESS}
    assert set(requests["engine"]) == {Engine.LIBAIO}
    assert not requests["status"].any()


@pytest.mark.parametrize("scheduler", ["none", "mq-deadline"])
def test_the_hardware_queue_of_each_request_is_told(nvme_disk: Disk, scheduler: str) -> None:
    with queue(nvme_disk, scheduler=scheduler), actors() as pair:
        before = [actor.io()["read_bytes"] for actor in pair]
        done = disk_statistics(nvme_disk.device)["reads"]
        recorded = record(nvme_disk.device, lambda: on_both(nvme_disk, "read", *pair))
        assert disk_statistics(nvme_disk.device)["reads"] - done == len(recorded.requests) == 2 * REQUESTS
        for cpu, actor, read in zip(CPUS, pair, before, strict=True):
            mine = recorded.of(actor.pid)
            check_all_mine(mine, Op.READ)
            assert mine["bytes"].sum() == actor.io()["read_bytes"] - read
            assert set(mine["hw_queue"]) == {hardware_queue(nvme_disk, cpu)}
    assert len(np.unique(recorded.requests["hw_queue"])) == 2


@pytest.fixture(scope="module")
def uneven_disk(nvme_disk: Disk) -> Iterator[Disk]:
    """Both processors share a queue, and its interrupt, for writes; each has one for reads; one is for who polls."""
    with nvme_queues(WRITE_QUEUES, POLL_QUEUES):
        yield nvme_disk


@pytest.mark.parametrize("rq_affinity", [0, 2])
def test_a_request_is_its_owners_on_whichever_processor_it_completes(uneven_disk: Disk, rq_affinity: int) -> None:
    """0: wherever the interrupt is taken, for one of the two on the other processor. 2: where it was submitted."""
    device = number_of(uneven_disk.device)
    with (
        queue(uneven_disk, rq_affinity=rq_affinity),
        actors() as pair,
        traced("block/block_rq_complete", f"dev == {device}") as completions,
    ):
        before = [actor.io()["write_bytes"] for actor in pair]
        recorded = record(uneven_disk.device, lambda: on_both(uneven_disk, "write", *pair))
        counts = completions()
        for actor, written in zip(pair, before, strict=True):
            mine = recorded.of(actor.pid)
            check_all_mine(mine, Op.WRITE)
            assert mine["bytes"].sum() == actor.io()["write_bytes"] - written
            assert set(mine["hw_queue"]) == {0}
    assert len(recorded.requests) == 2 * REQUESTS
    expected = [REQUESTS, REQUESTS] if rq_affinity else [0, 2 * REQUESTS]
    assert sorted(counts) == expected


def test_polled_requests_are_seen_to_end(uneven_disk: Disk, tmp_path: Path) -> None:
    """No interrupt: two processes that look for completions on one queue, whichever of them finds one."""
    report = tmp_path / "fio.json"
    job = fio(
        uneven_disk, "--direct=1", "--rw=randrw", "--bs=4k", "--blockalign=8k", "--ioengine=io_uring", "--hipri",
        "--iodepth=8", "--numjobs=2", "--cpus_allowed=0-1", "--cpus_allowed_policy=split", requests=REQUESTS,
        report=report,
    )  # fmt: skip

    def scenario() -> int:
        with subprocess.Popen(job) as process:
            assert process.wait(HANG) == 0
        wait_until(lambda: not disk_statistics(uneven_disk.device)["in_flight"], "requests are left")
        return process.pid

    recorded = record(uneven_disk.device, scenario)
    mine = recorded.of(recorded.told)
    assert len(mine) == 2 * REQUESTS
    for op, counted in fio_totals(report).items():
        of_op = mine[mine["op"] == Op[op.upper()]]
        assert (len(of_op), of_op["bytes"].sum()) == counted
    assert set(mine["hw_queue"]) == {POLLED}
    assert set(mine["engine"]) == {Engine.IO_URING}
    assert (mine["done_ns"] >= mine["issued_ns"]).all()
    assert not mine["status"].any()
