"""DeepSpeed, the real one: its async_io in all its ways, ZeRO-Inference and ZeRO-3 training with NVMe below.

Witnesses: the sizes of DeepSpeed's own tensors, /proc/PID/io, and the disk's statistics.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.frameworks.environment import Environment
from tests.frameworks.harness import Seen, Workload, observe, task_io
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
    assert (told["io"]["read_bytes"], told["io"]["write_bytes"]) == (way.size, way.size)
    assert Path(path).stat().st_size == way.size
    assert swapped.bytes_of(path) == {pid: (way.size, way.size)}
    assert swapped.entry(path)["role"] == "weights"
    worker = swapped.worker(pid)
    assert (worker["worker"], worker["framework"], worker["rank"]) == ("deepspeed-rank3", "deepspeed", "3")


@pytest.mark.parametrize("name", WAYS)
def test_what_async_io_asked_for_is_told_from_what_the_disk_saw(swapped: Seen, name: str) -> None:
    """One io_submit a block with single_submit, else as many blocks at once as the depth; larger ones are split."""
    way, pid = WAYS[name], swapped.told[list(WAYS).index(name)]["pid"]
    blocks = way.size // way.block
    largest = int(Path(f"/sys/block/{swapped.watched.report['devices'][0]['device']}/queue/max_sectors_kb").read_text())
    for op in ("read", "write"):
        asked = swapped.submissions(pid, op)
        assert (asked["engine"], asked["requests"], asked["bytes"]) == ("libaio", blocks, way.size)
        assert asked["calls"] == blocks if way.single else asked["calls"] <= blocks
        seen = swapped.watched.total("requests", pid=pid, op=op)
        print(name, op, asked, seen, largest)
