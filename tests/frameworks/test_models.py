"""Loading models from disk: llama.cpp, safetensors, and accelerate's offload, each the real library.

Witnesses: the model file's size, the sizes of the framework's own tensors, /proc/PID/io, and the disk's statistics.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.frameworks.environment import Environment
from tests.frameworks.harness import WORKLOADS, Seen, Workload, forget, observe, pages, task_io
from tests.live.harness import run
from tests.live.system import Volume, drop

MAPPED, BUFFERED, DIRECT = ("read", "mmap", "page_cache"), ("read", "posix", "page_cache"), ("read", "posix", "direct")


@pytest.fixture(scope="module")
def models(frameworks: Environment, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """model.safetensors of 92 MiB, model.gguf of about 40."""
    folder = tmp_path_factory.mktemp("models")
    for kind, size in (("safetensors", 92), ("gguf", 3)):
        run(frameworks.python, WORKLOADS / "make_models.py", kind, folder / f"model.{kind}", str(size))
    return folder


def load(frameworks: Environment, volume: Volume, model: Path, script: str, *arguments: str) -> Seen:
    """Load a model that nothing has in memory."""
    path = volume.folder / model.name

    def start() -> Workload:
        shutil.copyfile(model, path)
        volume.settle()
        drop(path)
        return Workload(frameworks, script, path, *arguments)

    def scenario(workload: Workload) -> dict[str, Any]:
        before = task_io(workload.pid)
        told = workload.next()
        after = task_io(workload.pid)
        workload.end()
        return {**told, "path": path, "read": after["read_bytes"] - before["read_bytes"]}

    seen = observe(volume, start, scenario)
    seen.check()
    assert seen.entry(path)["role"] == "weights"
    assert path.stat().st_size == model.stat().st_size
    assert seen.told["read"] >= seen.watched.total("bytes", pid=seen.told["pid"], op="read")
    return seen


def test_safetensors_is_mapped(frameworks: Environment, volume: Volume, models: Path) -> None:
    seen = load(frameworks, volume, models / "model.safetensors", "safetensors_load.py")
    pid, path, size = seen.told["pid"], seen.told["path"], (models / "model.safetensors").stat().st_size
    assert seen.told["tensors"] <= size
    assert seen.bytes_of(path) == {pid: (pages(size), 0)}
    assert seen.kinds(pid)[MAPPED] >= 0.99 * size
    assert seen.worker(pid)["framework"] is None  # it is any Python program; the file alone says what it is for


@pytest.mark.parametrize(("mode", "way"), [("mmap", MAPPED), ("none", BUFFERED), ("direct", DIRECT)])
def test_llama_cpp_loads_a_model_in_each_of_its_ways(
    frameworks: Environment, volume: Volume, models: Path, mode: str, way: tuple[str, str, str]
) -> None:
    seen = load(frameworks, volume, models / "model.gguf", "llama_cpp.py", mode)
    pid, path, size = seen.told["pid"], seen.told["path"], (models / "model.gguf").stat().st_size
    worker = seen.worker(pid)
    assert (worker["worker"], worker["framework"], worker["rank"]) == ("llama.cpp", "llama.cpp", None)
    assert seen.told["answer"]
    [(read, written)] = seen.bytes_of(path).values()
    assert written == 0
    if mode == "direct":  # its header is read through the page cache before, and ends of blocks twice
        assert pages(size) <= read <= 1.02 * size
    else:
        assert read == pages(size)
    assert seen.kinds(pid)[way] >= 0.99 * size


@pytest.mark.parametrize("launcher", [(), ("-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1")])
def test_accelerate_offloads_to_disk(frameworks: Environment, volume: Volume, launcher: tuple[str, ...]) -> None:
    """A plain Python program that uses it is no framework's; one that `accelerate launch` started is accelerate's."""
    folder, passes = volume.folder / "offload", 3

    def start() -> Workload:
        return Workload(frameworks, "accelerate_offload.py", folder, 512, 4, passes, launcher=launcher)

    def scenario(workload: Workload) -> dict[str, Any]:
        for _ in range(passes):
            told = workload.next()
            volume.settle()
            forget(folder)
        last = workload.next()
        workload.end()
        return {**told, **last}

    seen = observe(volume, start, scenario)
    seen.check()
    pid = seen.told["pid"]
    worker = seen.worker(pid)
    expected = ("accelerate", "accelerate") if launcher else ("python", None)
    assert (worker["worker"], worker["framework"]) == expected
    # A file is made by writing its last byte, which is all of a small one's only page.
    assert seen.ways(pid) == {MAPPED, ("write", "mmap", "writeback"), ("write", "posix", "writeback")}
    total = 0
    for path, size in seen.told["sizes"].items():
        assert seen.bytes_of(path) == {pid: (passes * pages(size), pages(size))}
        assert seen.entry(path)["role"] == "weights"
        total += pages(size)
    assert seen.by_role(pid) == {
        ("read", "weights"): passes * total, ("write", "weights"): total, ("write", "other"): other_written(seen, pid),
    }  # fmt: skip


def other_written(seen: Seen, pid: int) -> int:
    """accelerate's index of what it has offloaded."""
    [index] = [f for f in seen.watched.report["files"] if f["pid"] == pid and f["role"] == "other"]
    assert Path(index["path"]).name == "index.json"
    return int(index["write_bytes"])
