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

MAPPED, SAVED, BUFFERED, DIRECT = (
    ("read", "mmap", "page_cache"), ("write", "posix", "writeback"), ("read", "posix", "page_cache"),
    ("read", "posix", "direct"),
)  # fmt: skip


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
    print(mode, seen.kinds(pid), seen.bytes_of(path), size, seen.told)


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
    print(worker, seen.kinds(pid), seen.by_role(pid))
    for path, size in seen.told["sizes"].items():
        print(path, size, seen.bytes_of(path), seen.entry(path)["role"])
