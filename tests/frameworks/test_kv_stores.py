"""KV cache on local disks: the storage code of vLLM, LMCache and SGLang, without the engines, which need a GPU.

Witnesses: the files' own sizes, and the disk's statistics.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.frameworks.environment import Environment
from tests.frameworks.harness import Seen, Workload, forget, observe
from tests.live.system import Volume

BLOCKS, BLOCK = 23, 256 << 10
READ_DIRECT, WRITE_DIRECT = ("read", "posix", "direct"), ("write", "posix", "direct")
READ, WRITE = ("read", "posix", "page_cache"), ("write", "posix", "writeback")


def store_and_load(frameworks: Environment, volume: Volume, script: str, *arguments: object) -> Seen:
    """What was stored is flushed and forgotten before it is loaded. Each file is one block, and KV cache."""
    folder = volume.folder / "kv"

    def start() -> Workload:
        folder.mkdir()
        return Workload(frameworks, script, folder, BLOCKS, *arguments, variables={"PYTHONPATH": str(frameworks.parts)})

    def scenario(workload: Workload) -> dict[str, Any]:
        workload.next()
        volume.settle()
        forget(folder)
        told = workload.next()
        workload.end()
        return {**told, "files": [path for path in folder.rglob("*") if path.is_file()]}

    seen = observe(volume, start, scenario)
    seen.check()
    files: list[Path] = seen.told["files"]
    assert len(files) == BLOCKS
    for path in files:
        size = path.stat().st_size
        assert seen.bytes_of(path) == {seen.told["pid"]: (size, size)}
        assert seen.entry(path)["role"] == "kv_cache"
    return seen


def test_vllms_file_tier(frameworks: Environment, volume: Volume) -> None:
    seen = store_and_load(frameworks, volume, "vllm_tier.py", BLOCK)
    worker = seen.worker(seen.told["pid"])
    assert (worker["worker"], worker["framework"], worker["rank"]) == ("vllm", "vllm", None)
    assert seen.kinds(seen.told["pid"]) == {READ_DIRECT: BLOCKS * BLOCK, WRITE_DIRECT: BLOCKS * BLOCK}
    assert sorted(map(str, seen.told["files"])) == sorted(seen.told["paths"])


@pytest.mark.parametrize(("mode", "ways"), [("direct", {READ_DIRECT, WRITE_DIRECT}), ("buffered", {READ, WRITE})])
def test_lmcaches_local_disk(
    frameworks: Environment, volume: Volume, mode: str, ways: set[tuple[str, str, str]]
) -> None:
    """Within a worker of vLLM, as it is used; with O_DIRECT if its option use_odirect asks for that."""
    seen = store_and_load(frameworks, volume, "lmcache_disk.py", 32, mode)
    worker = seen.worker(seen.told["pid"])
    assert (worker["worker"], worker["framework"], worker["rank"]) == ("vllm-tp1", "vllm", "tp1")
    assert seen.kinds(seen.told["pid"]) == dict.fromkeys(ways, BLOCKS * seen.told["size"])


def test_sglangs_hicache(frameworks: Environment, volume: Volume) -> None:
    """Written under a temporary name, then renamed: the file has the last name, and the role either way."""
    seen = store_and_load(frameworks, volume, "sglang_hicache.py", BLOCK)
    worker = seen.worker(seen.told["pid"])
    assert (worker["worker"], worker["framework"], worker["rank"]) == ("sglang-tp1", "sglang", "tp1")
    assert seen.kinds(seen.told["pid"]) == {READ: BLOCKS * BLOCK, WRITE: BLOCKS * BLOCK}
