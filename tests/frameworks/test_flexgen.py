"""FlexGen, the real one on a CPU: weights on disk, the KV cache on disk, and both, with and without memory enough.

Its files are read and written through mappings, so the disk sees read-ahead and, later, writeback by kworkers.
Witnesses: the sizes of FlexGen's own tensors, /proc/PID/io, and the disk's statistics.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass

import pytest

from tests.frameworks.environment import Environment
from tests.frameworks.harness import PAGE, Seen, Workload, forget, observe, pages, task_io
from tests.live.system import Volume, memory_cgroup, sysctl

LAYERS, VOCABULARY, HIDDEN = 2, 4096, 768
BATCH, PROMPT, TOKENS = 4, 48, 5
READ, SAVED, WRITTEN = ("read", "mmap", "page_cache"), ("write", "posix", "writeback"), ("write", "mmap", "writeback")
HEADER_READ = ("read", "posix", "page_cache")
"""NumPy reads the header by read(2), and the kernel some of the file with it, before the mapping does the rest."""

WEIGHTS_ON_DISK, KV_ON_DISK, BOTH_ON_DISK = "0 0 100 0 100 0", "100 0 0 0 100 0", "0 0 0 0 100 0"


@dataclass(frozen=True)
class Generated:
    """What the workload told, and the kernel of it: sizes of its files at each gate, /proc/PID/io before and after."""

    pid: int
    before: dict[str, int]
    after: dict[str, int]
    gates: list[dict[str, int]]

    def files(self, kv: bool) -> dict[str, int]:
        """Its files' sizes, of those with KV cache or of the others: KV cache comes and goes with each generate()."""
        weights = self.gates[0]
        every = {path: size for gate in self.gates for path, size in gate.items()}
        return {path: size for path, size in every.items() if (path not in weights) == kv}


def generate(
    frameworks: Environment, volume: Volume, percent: str, memory: int | None = None, batch: int = BATCH,
    layers: int = LAYERS, pause: float = 0,
) -> Seen:  # fmt: skip
    """memory: at most so many bytes for what it touches from its first gate on; else, at each gate all that is dirty is
    written and the page cache forgotten, which makes what reaches the disk the same each time.
    """
    folder = volume.folder / "offload"

    def start() -> Workload:
        return Workload(
            frameworks, "flexgen_cpu.py", "--model", "facebook/opt-125m", "--path", "_DUMMY_",
            "--offload-dir", folder, "--percent", *percent.split(), "--gpu-batch-size", batch,
            "--prompt-len", PROMPT, "--gen-len", TOKENS, "--log-file", "log",
            variables={
                "FLEXGEN_LAYERS": str(layers), "FLEXGEN_VOCABULARY": str(VOCABULARY), "FLEXGEN_PAUSE": str(pause),
            },
        )  # fmt: skip

    def scenario(workload: Workload) -> Generated:
        gates, before = [], task_io(workload.pid)
        with ExitStack() as stack:
            if memory is not None:
                stack.enter_context(memory_cgroup(memory)).write_text(str(workload.pid))
                stack.enter_context(sysctl("vm.dirty_expire_centisecs", 100))  # the study's runs took 25 minutes
                stack.enter_context(sysctl("vm.dirty_writeback_centisecs", 50))
            while (told := workload.next())["at"] != "end":
                if memory is None:
                    volume.settle()
                    forget(folder)
                gates.append(told["files"])
            volume.settle()
            after = task_io(workload.pid)
            workload.end()
        return Generated(workload.pid, before, after, gates)

    seen = observe(volume, start, scenario)
    seen.check()
    worker = seen.worker(seen.told.pid)
    assert (worker["worker"], worker["framework"], worker["rank"]) == ("flexgen", "flexgen", None)
    for op in ("read", "write"):  # beside this disk it may have read, from another, a module that it imported late
        assert seen.told.after[f"{op}_bytes"] - seen.told.before[f"{op}_bytes"] >= seen.watched.total(
            "bytes", pid=seen.told.pid, op=op
        )
    return seen


def check_weights(seen: Seen, layers: int = LAYERS, forgotten: bool = True) -> None:
    """Each file was written once, whole, and read at least once if it was forgotten in between."""
    files = seen.told.files(kv=False)
    assert sum(files.values()) > 2 * (12 * HIDDEN**2 * layers + 2 * VOCABULARY * HIDDEN)  # OPT's own matrices, fp16
    for path, size in files.items():
        read, written = seen.bytes_of(path)[seen.told.pid]
        assert written == pages(size), path
        assert read >= pages(size) * forgotten, path
        assert seen.entry(path)["role"] == "weights"
    total = sum(map(pages, files.values()))
    assert seen.by_role(seen.told.pid)["write", "weights"] == total


def kv_bytes(tokens: int, batch: int) -> int:
    """Of a file with so many tokens' keys, or values, of one layer: fp16, after an .npy header."""
    return 128 + tokens * batch * HIDDEN * 2


def check_kv(seen: Seen, layers: int = LAYERS, batch: int = BATCH) -> None:
    """Each file has the size of its tensor; what reached the disk is FlexGen's, whoever wrote it back."""
    pid, files = seen.told.pid, seen.told.files(kv=True)
    assert len(files) == 2 * layers
    assert set(files.values()) == {kv_bytes(PROMPT + TOKENS - 1, batch)}
    for path in files:
        assert seen.entry(path)["role"] == "kv_cache"
        assert not seen.entry(path)["shared_writers"]
    kv = [s for s in seen.watched.streams(role="kv_cache", op="write") if s["pid"] is not None]
    assert {(s["pid"], s["path"]) for s in kv} == {(pid, "writeback")}
    assert "mmap" in {s["engine"] for s in kv} <= {"mmap", "posix"}  # NumPy writes the header, a page of its own


def check_flushed_kv(seen: Seen) -> None:
    """All rows of the prompt, then a few pages for each token."""
    for path in seen.told.files(kv=True):
        _, written = seen.bytes_of(path)[seen.told.pid]
        assert written >= pages(kv_bytes(PROMPT, BATCH)) + (TOKENS - 2) * PAGE, path


def test_weights_on_disk_are_saved_once_and_mapped_for_each_pass(frameworks: Environment, volume: Volume) -> None:
    seen = generate(frameworks, volume, WEIGHTS_ON_DISK)
    check_weights(seen)
    assert seen.ways(seen.told.pid) == {SAVED, READ, HEADER_READ}
    assert {role for _, role in seen.by_role(seen.told.pid)} == {"weights"}
    assert not seen.told.files(kv=True)


def test_kv_cache_on_disk_is_flexgens_and_not_the_kworkers(frameworks: Environment, volume: Volume) -> None:
    seen = generate(frameworks, volume, KV_ON_DISK)
    check_kv(seen)
    check_flushed_kv(seen)
    assert seen.ways(seen.told.pid) == {WRITTEN, READ, HEADER_READ}
    assert {role for _, role in seen.by_role(seen.told.pid)} == {"kv_cache"}


def test_weights_and_kv_cache_with_the_same_names_are_told_apart(frameworks: Environment, volume: Volume) -> None:
    seen = generate(frameworks, volume, BOTH_ON_DISK)
    check_weights(seen)
    check_kv(seen)
    check_flushed_kv(seen)
    assert seen.by_role(seen.told.pid).keys() == {(op, r) for op in ("read", "write") for r in ("weights", "kv_cache")}


@pytest.mark.parametrize("pause", [0, 0.3], ids=["a fast host", "a slow host"])
def test_in_a_memory_limit_the_same_holds_without_anybodys_flush(
    frameworks: Environment, volume: Volume, pause: float
) -> None:
    """As in the study, which gave FlexGen 10 GiB: what does not fit is read again, and KV cache is written back.

    A slow host's KV cache may reach the disk as two pages a file, written by calls, and be gone before its header can
    be read.
    """
    layers, batch = 4, 16
    seen = generate(frameworks, volume, BOTH_ON_DISK, memory=128 << 20, layers=layers, batch=batch, pause=pause)
    check_weights(seen, layers, forgotten=False)
    check_kv(seen, layers, batch)
    found = seen.by_role(seen.told.pid)
    assert found["read", "weights"] > 2 * found["write", "weights"]
    assert found["write", "kv_cache"] > 0
