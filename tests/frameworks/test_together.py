"""Two frameworks at once on one disk, one restarted in between: every byte to the right one, names that stay."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tests.frameworks.environment import Environment
from tests.frameworks.harness import Workload, observe, pages
from tests.live.daemons import Daemon
from tests.live.system import Volume

SIZE = 41 << 20
WAY = [1 << 20, 16, False, True, 1, SIZE]
"""Block, queue depth, single submit, overlap, threads and bytes of DeepSpeed's async_io."""
GRACE = 8


def flexgen(frameworks: Environment, folder: Path) -> Workload:
    return Workload(
        frameworks, "flexgen_cpu.py", "--model", "facebook/opt-125m", "--path", "_DUMMY_", "--offload-dir", folder,
        "--percent", 0, 0, 100, 0, 100, 0, "--prompt-len", 32, "--gen-len", 3, "--log-file", "log",
        variables={"FLEXGEN_LAYERS": "2", "FLEXGEN_VOCABULARY": "4096"},
    )  # fmt: skip


def deepspeed(frameworks: Environment, volume: Volume, name: str) -> Workload:
    """Swaps one tensor out and in, in a child."""
    folder = volume.folder / name / "zero_stage_3" / "bfloat16params" / "rank0"
    folder.mkdir(parents=True)
    return Workload(frameworks, "deepspeed_aio.py", folder, json.dumps([WAY]), variables={"RANK": "0"})


def run_together(swapper: Workload, generator: Workload) -> tuple[dict[str, Any], dict[str, Any]]:
    """Both to their next gates at once, and the swapper to its end: what they told."""
    generator.go()
    told = swapper.next()
    swapper.next()
    swapper.end()
    return told, generator.told()


def test_two_at_once_and_one_restarted(frameworks: Environment, volume: Volume) -> None:
    folder = volume.folder / "offload"

    def scenario(generator: Workload) -> dict[str, Any]:
        swapped = []
        for name in ("first", "second"):
            with deepspeed(frameworks, volume, name) as swapper:
                swapper.told()
                told, gate = run_together(swapper, generator)
                swapped.append(told)
                volume.settle()
        files = gate["files"]  # gone at its end
        while gate["at"] != "end":
            gate = generator.next()
        generator.end()
        return {"swapped": swapped, "pid": generator.pid, "files": files}

    seen = observe(volume, lambda: flexgen(frameworks, folder), scenario)
    seen.check()
    for told in seen.told["swapped"]:
        assert told["same"]
        assert seen.kinds(told["pid"]) == {("read", "libaio", "direct"): SIZE, ("write", "libaio", "direct"): SIZE}
        assert seen.bytes_of(told["path"]) == {told["pid"]: (SIZE, SIZE)}
        # Where the parent, which has the same rank, has read something meanwhile, the slot was its.
        assert seen.worker(told["pid"])["worker"].removesuffix("#2") == "deepspeed-rank0"
    for path, size in seen.told["files"].items():
        assert seen.bytes_of(path)[seen.told["pid"]][1] == pages(size)
        assert seen.entry(path)["role"] == "weights"
    assert seen.worker(seen.told["pid"])["worker"] == "flexgen"
    assert seen.by_role(seen.told["pid"])["write", "weights"] == sum(map(pages, seen.told["files"].values()))


def test_the_daemons_counters_go_on_over_a_restart_and_end_after_the_grace_time(
    frameworks: Environment, volume: Volume, daemon: Callable[..., Daemon]
) -> None:
    folder = volume.folder / "daemons"
    with ExitStack() as stack:
        generator = stack.enter_context(flexgen(frameworks, folder))
        swappers = [stack.enter_context(deepspeed(frameworks, volume, name)) for name in ("third", "fourth")]
        for workload in (generator, *swappers):
            workload.told()
        running = daemon(f"devices: [{volume.disk.device}]\ngrace_seconds: {GRACE}\n")
        direct = {"worker": "deepspeed-rank0", "engine": "libaio", "path": "direct", "role": "weights"}
        for number, swapper in enumerate(swappers, 1):
            run_together(swapper, generator)
            running.eventually("llmio_bytes_total", number * SIZE, op="write", **direct)
            running.eventually("llmio_bytes_total", number * SIZE, op="read", **direct)
        assert running.value("llmio_bytes_total", worker="deepspeed-rank0#2") == 0
        volume.settle()
        saved = sum(pages(path.stat().st_size) for path in folder.iterdir())
        running.eventually("llmio_bytes_total", saved, worker="flexgen", op="write", path="writeback", role="weights")
        while generator.next()["at"] != "end":
            pass
        generator.end()
        assert running.value("llmio_worker_info", worker="flexgen") == 1
        deadline = time.monotonic() + 10 * GRACE
        while running.value("llmio_worker_info", worker="flexgen") and time.monotonic() < deadline:
            time.sleep(0.5)
        assert running.value("llmio_worker_info", worker="flexgen") == 0
        assert running.value("llmio_worker_info", worker="deepspeed-rank0") == 0
        assert running.value("llmio_bytes_total", worker="deepspeed-rank0") == 0
