"""Names on real I/O: frameworks told by what a worker is, names kept after it ended, another program after exec."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.live.harness import HANG, Disk, Live, Watched, watch, whole

WORKLOAD = Path(__file__).parent / "workload.py"


def workers(report: dict[str, object]) -> dict[str, str]:
    return {w["worker"]: w["framework"] for w in report["workers"]}  # type: ignore[attr-defined]


def test_framework_and_rank_are_found_on_real_io(loop_disk: Disk, tmp_path: Path) -> None:
    """Stand-ins for launchers, as the frameworks start their workers: what counts is cmdline and environment."""
    package = tmp_path / "flexgen"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "flex_opt.py").write_text(WORKLOAD.read_text())
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"}
    flexgen = watch(
        ["env", f"PYTHONPATH={environment['PYTHONPATH']}", sys.executable, "-m", "flexgen.flex_opt", "-",
         loop_disk.path, "pread", "101"]
    )  # fmt: skip
    assert workers(flexgen.report) == {"flexgen": "flexgen"} | {
        name: None for name, framework in workers(flexgen.report).items() if framework is None
    }
    script = tmp_path / "train.py"
    script.write_text("import sys; sys.argv = sys.argv[:5]\n" + WORKLOAD.read_text())
    deepspeed = watch(
        ["env", "RANK=1", "LOCAL_RANK=1", sys.executable, script, "-", loop_disk.path, "pread", "101", "--deepspeed",
         "--deepspeed_config", "ds.json"]
    )  # fmt: skip
    [row] = [w for w in deepspeed.report["workers"] if w["framework"] == "deepspeed"]
    assert (row["worker"], row["rank"]) == ("deepspeed-rank1", "1")
    [stream] = deepspeed.streams(worker="deepspeed-rank1", device=loop_disk.device)
    assert stream["bytes"] == 101 * 4096


def test_a_process_that_ended_before_anybody_looked_keeps_its_name(loop_disk: Disk) -> None:
    """A hundred short processes, each with one read: all are named and none is lost."""
    read = f"dd if={loop_disk.path} of=/dev/null bs=4096 count=1 iflag=direct status=none"
    script = f"for i in $(seq 101); do {read}; done"
    watched = whole(loop_disk.device, lambda: watch(["sh", "-c", script], "--device", loop_disk.device))
    assert watched.total("requests", worker="dd") == 101
    assert {s["worker"] for s in watched.report["streams"]} == {"dd"}


def test_a_shell_that_becomes_another_program_is_named_after_that(loop_disk: Disk) -> None:
    read = f"dd if={loop_disk.path} of=/dev/null bs=4096 count=1 iflag=direct status=none"
    script = f"{read}; exec {sys.executable} {WORKLOAD} - {loop_disk.path} pread 101"
    watched = watch(["sh", "-c", script], "--device", loop_disk.device)
    assert {"dd", Path(sys.executable).name} == {s["worker"] for s in watched.report["streams"]}


def test_two_processes_side_by_side_are_kept_apart(loop_disk: Disk, live: Callable[..., Live]) -> None:
    gate = [sys.executable, str(WORKLOAD), "gate", str(loop_disk.path), "pread"]
    witness: dict[int, int] = {}

    def measure() -> Watched:
        witness.clear()
        with (
            subprocess.Popen([*gate, "503"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as first,
            subprocess.Popen([*gate, "709"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as second,
        ):
            pids = []
            for process in (first, second):
                assert process.stdout
                pids.append(process.stdout.readline().strip())
            running = live("--pid", pids[0], "--pid", pids[1], "--device", loop_disk.device)
            for process in (first, second):
                assert process.stdin
                process.stdin.write("go\n")
                process.stdin.flush()
            for process in (first, second):
                output = json.loads(process.communicate(timeout=HANG)[0])
                witness[output["pid"]] = output["read_bytes"]
            return Watched(running.finish())

    watched = whole(loop_disk.device, measure)
    assert {s["pid"]: s["bytes"] for s in watched.report["streams"]} == witness
    assert sorted(witness.values()) == [503 * 4096, 709 * 4096]
