"""DeepSpeed, the real one: its async_io in all its ways, ZeRO-Inference and ZeRO-3 training with NVMe below.

Witnesses: the sizes of DeepSpeed's own tensors, /proc/PID/io, and the disk's statistics.
"""

from __future__ import annotations

import json
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.frameworks.environment import Environment
from tests.frameworks.harness import PAGE, Seen, Workload, observe, task_io
from tests.live.system import Volume

MIB = 1 << 20
READ, WRITE = ("read", "libaio", "direct"), ("write", "libaio", "direct")


@dataclass(frozen=True)
class Way:
    """How async_io is asked for a tensor: the arguments of aio_handle, and the tensor's bytes."""

    block: int
    depth: int
    single: bool
    overlap: bool
    threads: int
    size: int


WAYS = {
    "depth1": Way(MIB, 1, False, True, 1, 23 * MIB),
    "depth2": Way(MIB, 2, False, True, 1, 23 * MIB),
    "depth4": Way(MIB, 4, False, True, 1, 23 * MIB),
    "depth8": Way(MIB, 8, False, True, 1, 23 * MIB),
    "depth16": Way(MIB, 16, False, True, 1, 37 * MIB),
    "depth32": Way(MIB, 32, False, True, 1, 97 * MIB),
    "single": Way(MIB, 32, True, True, 1, 97 * MIB),
    "in-turns": Way(MIB, 8, False, False, 1, 37 * MIB),
    "small": Way(128 << 10, 32, False, True, 1, 23 * MIB),
    "threads": Way(MIB, 8, False, True, 4, 4 * 11 * MIB),
}


@pytest.fixture(scope="module")
def swapped(frameworks: Environment, volume: Volume) -> Seen:
    """All ways in one session, each by a process of its own."""
    folder = volume.folder / "zero_stage_3" / "bfloat16params" / "rank3"

    def start() -> Workload:
        folder.mkdir(parents=True)
        ways = json.dumps([list(vars(way).values()) for way in WAYS.values()])
        return Workload(frameworks, "deepspeed_aio.py", folder, ways, variables={"RANK": "3"})

    def scenario(workload: Workload) -> list[dict[str, Any]]:
        told = []
        for _ in WAYS:
            child = workload.next()
            told.append({**child, "io": task_io(child["pid"])})
        workload.next()
        workload.end()
        return told

    seen = observe(volume, start, scenario)
    seen.check()
    return seen


@pytest.mark.parametrize("name", WAYS)
def test_each_way_of_async_io_is_seen_to_the_byte(swapped: Seen, name: str) -> None:
    way, told = WAYS[name], swapped.told[list(WAYS).index(name)]
    pid, path = told["pid"], told["path"]
    assert told["same"], "what was read back is not what was written"
    assert swapped.kinds(pid) == {READ: way.size, WRITE: way.size}
    # Beside this disk it may have read, from another, a page that the import left out, and written a line of a log.
    assert all(way.size <= told["io"][f"{op}_bytes"] for op in ("read", "write"))
    assert Path(path).stat().st_size == way.size
    assert swapped.bytes_of(path) == {pid: (way.size, way.size)}
    assert swapped.entry(path)["role"] == "weights"
    worker = swapped.worker(pid)
    assert (worker["worker"], worker["framework"], worker["rank"]) == ("deepspeed-rank3", "deepspeed", "3")


@pytest.mark.parametrize("name", WAYS)
def test_what_async_io_asked_for_is_told_from_what_the_disk_saw(swapped: Seen, volume: Volume, name: str) -> None:
    """One io_submit a block with single_submit, else as many blocks at once as the depth; larger ones are split."""
    way, pid = WAYS[name], swapped.told[list(WAYS).index(name)]["pid"]
    blocks = way.size // way.block
    largest = int(Path(f"/sys/block/{volume.disk.device}/queue/max_sectors_kb").read_text()) << 10
    for op in ("read", "write"):
        asked = swapped.submissions(pid, op)
        assert (asked["engine"], asked["requests"], asked["bytes"]) == ("libaio", blocks, way.size)
        assert asked["calls"] == blocks if way.single else asked["calls"] <= blocks
        # Larger ones are split; those that wait together for the disk are merged again.
        assert swapped.watched.total("bytes", pid=pid, op=op) == asked["bytes"]
        requests = swapped.watched.total("requests", pid=pid, op=op)
        assert -(-way.size // largest) <= requests <= way.size // way.block * -(-way.block // PAGE)
        if way.depth == 1:
            assert requests >= blocks


STEPS = 2


def zero(frameworks: Environment, volume: Volume, mode: str) -> Seen:
    """A few steps, after a first one that makes the files."""

    def start() -> Workload:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        rank = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        return Workload(frameworks, "deepspeed_zero.py", volume.folder, mode, 512, 2, STEPS, variables=rank)

    def scenario(workload: Workload) -> dict[str, Any]:
        before = task_io(workload.pid)
        told = workload.next()
        after = task_io(workload.pid)
        workload.end()
        return {**told, "io": {op: after[f"{op}_bytes"] - before[f"{op}_bytes"] for op in ("read", "write")}}

    seen = observe(volume, start, scenario)
    seen.check()
    pid = seen.told["pid"]
    worker = seen.worker(pid)
    assert (worker["worker"], worker["framework"], worker["rank"]) == ("deepspeed-rank0", "deepspeed", "0")
    for op in ("read", "write"):
        total = seen.watched.total("bytes", pid=pid, op=op)
        assert seen.told["io"][op] >= total  # from another disk it may have read a module that it imported late
        direct = seen.watched.total("bytes", pid=pid, op=op, engine="libaio", path="direct")
        assert direct >= 0.99 * total
        if direct:
            asked = seen.submissions(pid, op)
            assert (asked["engine"], asked["bytes"]) == ("libaio", direct)
    return seen


def check_files(seen: Seen) -> tuple[dict[str, int], dict[str, int]]:
    """The sizes of all files of parameters and of optimizer state. Each has its role, and parameters their own size."""
    sizes, own = seen.told["sizes"], seen.told["parameters"]
    ending = "_param.tensor.swp"
    swapped = {path: Path(path).name.removesuffix(ending) for path in sizes if path.endswith(ending)}
    parameters = {path: sizes[path] for path, number in swapped.items() if number in own}  # not one that was tied later
    optimizer = {path: size for path, size in sizes.items() if path not in swapped}
    assert all(size == own[swapped[path]] for path, size in parameters.items())
    roles = seen.roles(seen.told["pid"])
    assert {roles[path] for path in parameters if path in roles} <= {"weights"}
    assert {roles[path] for path in optimizer if path in roles} <= {"optimizer"}
    return parameters, optimizer


def test_zero_inference_reads_every_parameter_at_each_pass(frameworks: Environment, volume: Volume) -> None:
    seen = zero(frameworks, volume, "infer")
    parameters, optimizer = check_files(seen)
    assert len(parameters) >= 4
    assert not optimizer
    pid = seen.told["pid"]
    for path, size in parameters.items():
        read, written = seen.bytes_of(path)[pid]
        assert written == 0
        assert read in (STEPS * size, 2 * STEPS * size), path  # twice: the embedding, which is the last layer too
    direct = {s["op"]: s["bytes"] for s in seen.watched.streams(pid=pid, engine="libaio", role="weights")}
    assert direct == {"read": sum(seen.bytes_of(path)[pid][0] for path in parameters)}


def test_a_training_step_swaps_optimizer_state(frameworks: Environment, volume: Volume) -> None:
    """Gradients and the optimizer's state; parameters, once they are made, DeepSpeed 0.19 leaves in memory here."""
    seen = zero(frameworks, volume, "train")
    parameters, optimizer = check_files(seen)
    pid = seen.told["pid"]
    roles = {s["role"] for s in seen.watched.streams(pid=pid, engine="libaio")}
    assert roles - {"weights"} == {"optimizer"}
    swapped = {path: size for path, size in parameters.items() if seen.files(path)}
    assert bool(swapped) == ("weights" in roles)
    for path, size in swapped.items():
        read, written = seen.bytes_of(path)[pid]
        assert read % size == written % size == 0
    state = [path for path in optimizer if Path(path).name.startswith("exp_avg")]
    assert len(state) >= 2
    for path in state:
        read, written = seen.bytes_of(path)[pid]
        assert read >= STEPS * optimizer[path] * 0.99
        assert written >= STEPS * optimizer[path] * 0.99
