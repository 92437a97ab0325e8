"""Known workloads: engine x access x filesystem x request size x neighbour; every byte by process, file, engine, path.

All cases of a round run within one session on one disk with one mount, each in processes and files of its own, at a
depth that fills the disk's queue. `make test` runs a pairwise choice (any two values of two factors meet in some case),
`make test-matrix` (LLMIO_MATRIX=full) all of them. Nothing is compared with the probe's own records only: fio's totals,
the size of the file, /proc/PID/io and the disk's statistics stand beside each.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.live.harness import (
    HANG,
    Actor,
    Depth,
    Disk,
    Watched,
    run,
    start_probe,
    stir,
    task_io,
    transferred,
    undisturbed,
)
from tests.live.system import drop, filesystem, fill, loop_device, partition, queue, written_directly

QUEUE = 4
"""nr_requests, the least that the kernel takes: full with every engine."""
LIMIT = 64 << 10
"""max_sectors_kb in bytes."""
JOBS, DEPTH = 8, 32
CALLS = {
    "posix-pread": ("posix", ["--ioengine=psync"]),
    "posix-preadv2": ("posix", ["--ioengine=pvsync2"]),
    "libaio": ("libaio", ["--ioengine=libaio"]),
    "io_uring": ("io_uring", ["--ioengine=io_uring"]),
    "io_uring-sqpoll": ("io_uring", ["--ioengine=io_uring", "--sqthread_poll=1"]),
    "io_uring-workers": ("io_uring", ["--ioengine=io_uring", "--force_async=1"]),
    "io_uring-fixed": ("io_uring", ["--ioengine=io_uring", "--fixedbufs=1", "--registerfiles=1"]),
}
"""By name, the engine and what fio needs for it."""
MAPPINGS = {"mmap-touch": "touch", "mmap-populate": "populate", "mmap-madvise": "madvise"}
ENGINES = (*CALLS, *MAPPINGS)
SIZES = {"below": (4096, 1009), "at": (LIMIT, 61), "above": (3 * LIMIT + 7 * 4096, 19)}
"""Bytes of a block, blocks a job."""


ROUND = 14
"""Cases, at most. The pairwise ones of a filesystem fit into one round."""


class Case(NamedTuple):
    filesystem: str
    engine: str
    access: str
    size: str
    neighbour: str

    def __str__(self) -> str:
        return "-".join(self)


FACTORS = (
    ("raw", "ext4", "xfs", "btrfs"),
    ENGINES,
    ("direct_read", "direct_write", "cached_read", "written_fsync", "written_sync"),
    tuple(SIZES),
    ("alone", "neighbour"),
)


def every_case() -> list[Case]:
    cases = (Case(*values) for values in itertools.product(*FACTORS))
    return [case for case in cases if case.engine in CALLS or not case.access.startswith("direct")]


def pairwise(cases: Sequence[Case]) -> list[Case]:
    """Greedily, the case with most pairs of values that no case before had, until none is left; filesystems in turn."""
    pairs = {case: set(itertools.combinations(enumerate(case), 2)) for case in cases}
    left: set[object] = set().union(*pairs.values())
    chosen: list[Case] = []
    while left:
        used = Counter(case.filesystem for case in chosen)
        best = max(pairs, key=lambda case: (len(pairs[case] & left), -used[case.filesystem]))
        left -= pairs[best]
        chosen.append(best)
    return chosen


def rounds() -> dict[str, list[Case]]:
    """What runs in one session, by name. So few cases that the host shows every completion of most rounds."""
    found: dict[str, list[Case]] = {}
    for case in every_case() if os.environ.get("LLMIO_MATRIX") == "full" else pairwise(every_case()):
        found.setdefault(case.filesystem, []).append(case)
    return {
        f"{filesystem}-{first // ROUND}": cases[first : first + ROUND]
        for filesystem, cases in found.items()
        for first in range(0, len(cases), ROUND)
    }


ROUNDS = rounds()


@dataclass
class Job:
    """One process of a case, what it must have done, and what others say that it did."""

    case: Case
    pid: int
    path: Path
    size: int
    streams: dict[tuple[str, str, str], int]
    io: dict[str, int] = field(default_factory=dict)
    told: dict[str, int] = field(default_factory=dict)
    file_size: int = 0

    def total(self, op: str) -> int:
        return sum(size for (name, _, _), size in self.streams.items() if name == op)


@dataclass
class Outcome:
    watched: Watched
    jobs: dict[Case, list[Job]] = field(default_factory=dict)
    depths: dict[Case, Depth] = field(default_factory=dict)
    more_read: dict[Case, int] = field(default_factory=dict)
    """Bytes that all disks together have read meanwhile beyond what the jobs had to: programs, metadata."""
    others: dict[int, int] = field(default_factory=dict)
    """Bytes that this test itself has read, by pid."""
    transferred: dict[str, int] = field(default_factory=dict)


def test_every_byte_has_its_worker_file_engine_and_path(outcome: Outcome, case: Case) -> None:
    for job in outcome.jobs[case]:
        kinds = outcome.watched.kinds(job.pid)
        if case.filesystem == "btrfs" and case.access == "direct_read":
            # What it cannot read directly at once, btrfs reads into the page cache.
            cached = kinds.pop(("read", CALLS[case.engine][0], "page_cache"), 0)
            kinds["read", CALLS[case.engine][0], "direct"] += cached
        assert kinds == job.streams
        files = [f for f in outcome.watched.report["files"] if f["pid"] == job.pid]
        assert [(f["path"], f["read_bytes"], f["write_bytes"], f["shared_writers"]) for f in files] == [
            (str(job.path), job.total("read"), job.total("write"), False)
        ]


def test_witnesses_agree_with_what_a_case_must_have_done(outcome: Outcome, case: Case) -> None:
    """So that a case that did something else is not taken for a mistake of the probe, nor hides one."""
    for job in outcome.jobs[case]:
        assert all(job.total(op) == size for op, size in job.told.items())
        assert job.file_size == job.size
        # io_uring tries without waiting first: what a full queue turns away is counted and asked for again.
        again = case.engine in ("io_uring", "io_uring-sqpoll", "io_uring-fixed")
        read, written = job.io["read_bytes"] - job.total("read"), job.io["write_bytes"] - job.total("write")
        assert read >= 0
        assert read <= outcome.more_read[case] or again
        assert written >= 0
        assert written == 0 or again or case.filesystem == "btrfs"  # whose trees are pages like a file's


def test_all_that_is_left_is_the_kernels(outcome: Outcome) -> None:
    """By the disk's own statistics."""
    report = outcome.watched.report
    jobs = [job for case in outcome.jobs.values() for job in case]
    known = {job.pid for job in jobs} | set(outcome.others)
    streams = [s for s in report["streams"] if s["bytes"]]
    workers = {(s["worker"], s["pid"]) for s in streams if not s["worker"].startswith("kernel:")}
    assert {pid for _, pid in workers} == known, workers
    mine = {op: sum(job.total(op) for job in jobs) for op in ("read", "write")}
    mine["read"] += sum(outcome.others.values())
    for op, size in outcome.transferred.items():
        kernel = sum(s["bytes"] for s in streams if s["op"] == op and s["worker"].startswith("kernel:"))
        assert kernel == size - mine[op], op
    total = sum(outcome.transferred.values())
    [device] = report["devices"]
    assert (device["session_bytes"], device["others_bytes"]) == (total, 0)
    assert report["attribution"] == {
        "data_bytes": total,
        "worker_bytes": sum(mine.values()),
        "kernel_bytes": total - sum(mine.values()),
        "unknown_bytes": 0,
        "file_bytes": total,
        "shared_writers_bytes": 0,
    }


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" in metafunc.fixturenames:
        chosen = [pytest.param(name, case, id=str(case)) for name, cases in ROUNDS.items() for case in cases]
        metafunc.parametrize(("outcome", "case"), chosen, indirect=["outcome"], scope="module")
    elif "outcome" in metafunc.fixturenames:
        metafunc.parametrize("outcome", list(ROUNDS), indirect=True, scope="module")


@pytest.fixture(scope="module")
def outcome(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    cases = ROUNDS[request.param]
    output = tmp_path_factory.mktemp("matrix") / "session.json"
    return undisturbed(lambda: run_round(cases, output))


def is_full(depth: Depth) -> bool:
    """A queue that was never full proves nothing."""
    return depth.most >= QUEUE or depth.mean >= QUEUE / 2


def run_round(cases: list[Case], output: Path) -> Outcome | None:
    """All of it from scratch, so that it can be repeated.

    None: the disk did something before or after the session, or was faster than a case, whose queue did not fill.
    """
    with ExitStack() as stack:
        disk = stack.enter_context(loop_device(2 << 30))
        stack.enter_context(queue(disk, nr_requests=QUEUE, max_sectors_kb=LIMIT >> 10))
        place = prepare(stack, cases, disk)
        before = transferred(disk.device)
        with start_probe(output, "--all", "--device", disk.device) as session:
            if transferred(disk.device) != before:
                return None
            outcome = Outcome(Watched({}))
            for case in cases:
                run_case(case, disk, place, outcome)
            if cases[0].filesystem != "raw":
                run("sync", "--file-system", place(cases[0], 0))
            outcome.others = stir(disk)
            after = transferred(disk.device)
            outcome.watched = Watched(session.interrupt())
            if transferred(disk.device) != after:
                return None
    outcome.transferred = {op: after[op] - before[op] for op in before}
    if idle := [str(case) for case, depth in outcome.depths.items() if not is_full(depth)]:
        print("disturbed: no queue has filled of", ", ".join(idle))
        return None
    return outcome


def prepare(stack: ExitStack, cases: list[Case], disk: Disk) -> Callable[[Case, int], Path]:
    """Where each job of a case has its file: of the right size where it must exist, and in nobody's memory."""
    paths: dict[tuple[Case, int], Path] = {}
    volume = None if cases[0].filesystem == "raw" else stack.enter_context(filesystem(cases[0].filesystem, disk))
    start = 1 << 20
    for case in cases:
        for number in range(1 + (case.neighbour == "neighbour")):
            size = case_size(case)
            if volume is None:
                part = stack.enter_context(partition(disk, len(paths) + 1, start, size))
                start += -(-size // (1 << 20)) << 20
                paths[case, number] = part.path
                continue
            path = paths[case, number] = volume.folder / f"{case}-{number}"
            if case.access.startswith("written") and case.engine in CALLS:
                continue  # new, its blocks are allocated as it is written back
            if case.access == "direct_write":
                written_directly(volume, path)
            fill(path, size)
    if volume is not None:
        volume.settle()
        for path in filter(Path.exists, paths.values()):
            drop(path)
    return lambda case, number: paths[case, number]


def case_size(case: Case) -> int:
    block, count = SIZES[case.size]
    return block * count * JOBS


def run_case(case: Case, disk: Disk, place: Callable[[Case, int], Path], outcome: Outcome) -> None:
    start = start_mapping if case.engine in MAPPINGS else start_calls
    count = 1 + (case.neighbour == "neighbour")
    paths = [place(case, number) for number in range(count)]
    read = all_reads()
    with ExitStack() as stack, Depth(disk.device) as depth:
        if case.filesystem == "raw":  # closing it last would write it back
            for path in paths:
                stack.callback(os.close, os.open(path, os.O_RDONLY))
        running = [start(stack, case, path) for path in paths]
        jobs = outcome.jobs[case] = [finish() for finish in running]
        for job in jobs:
            with open(job.path, "rb") as file:
                job.file_size = file.seek(0, os.SEEK_END)
        # Of a file that it has registered, fio 3.33 flushes nothing.
        if case.access == "written_sync" or (case.access, case.engine) == ("written_fsync", "io_uring-fixed"):
            for path in paths:
                run("sync", *(["--file-system"] if case.filesystem != "raw" else []), path)
    outcome.depths[case] = depth
    outcome.more_read[case] = all_reads() - read - sum(job.total("read") for job in jobs)


def all_reads() -> int:
    return sum(transferred(path.name)["read"] for path in Path("/sys/block").iterdir())


def start_calls(stack: ExitStack, case: Case, path: Path) -> Callable[[], Job]:
    """fio: reads or writes each block once, in random order."""
    engine, arguments = CALLS[case.engine]
    block, count = SIZES[case.size]
    direct, op = case.access.startswith("direct"), "read" if case.access.endswith("read") else "write"
    jobs = JOBS if engine == "posix" or (engine == "libaio" and not direct) else 1
    share = block * count * JOBS // jobs
    process = subprocess.Popen(
        ["fio", "--name=known", f"--filename={path}", f"--size={share}", f"--offset_increment={share}",
         f"--numjobs={jobs}", f"--iodepth={DEPTH}", f"--bs={block}", f"--rw=rand{op}", f"--direct={int(direct)}",
         f"--end_fsync={int(case.access == 'written_fsync')}", "--invalidate=0", "--fallocate=none", "--thread",
         "--group_reporting", "--randrepeat=1", "--output-format=json", *arguments],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    stack.callback(process.kill)

    def finish() -> Job:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        io = task_io(process.pid)
        output, _ = process.communicate(timeout=HANG)
        assert process.returncode == 0
        [told] = json.loads(output[output.index("{") :])["jobs"]
        way = "direct" if direct else "page_cache" if op == "read" else "writeback"
        return Job(
            case, process.pid, path, case_size(case), {(op, engine, way): case_size(case)}, io,
            {name: told[name]["io_bytes"] for name in ("read", "write")},
        )  # fmt: skip

    return finish


def start_mapping(stack: ExitStack, case: Case, path: Path) -> Callable[[], Job]:
    """Reads or dirties a whole file through a shared mapping. Dirtying reads, too: the file is in nobody's memory."""
    actor = stack.enter_context(Actor())
    op = "read" if case.access.endswith("read") else "write"
    before = actor.io()
    actor.begin("map_file", path, op, MAPPINGS[case.engine], JOBS)

    def finish() -> Job:
        size = actor.answer()["done"]
        if case.access == "written_fsync":
            actor.do("msync", path)
        io = {name: value - before[name] for name, value in actor.io().items()}
        actor.end()
        streams = {("read", "mmap", "page_cache"): size}
        if op == "write":
            streams["write", "mmap", "writeback"] = size
        return Job(case, actor.pid, path, size, streams, io)

    return finish
