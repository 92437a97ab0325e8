"""The demo on the real kernel, as a user runs it. That no program stays attached is checked by conftest.py."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path

import psutil

from tests.live.harness import HANG, PROBE, check


def demo(directory: Path, *options: str) -> list[str]:
    return [*PROBE, "demo", "--directory", str(directory), "--size", "64", *options]


def left_over(directory: Path) -> list[str]:
    """Scratch folders, and whoever still works in one."""
    folders = [str(path) for path in directory.glob("llmio-probe-demo-*")]
    users = [" ".join(p.info["cmdline"] or ()) for p in psutil.process_iter(["cmdline"]) if p.info["cmdline"]]
    return folders + [user for user in users if f"{directory}/llmio-probe-demo-" in user]


def test_the_document_shows_both_ways_of_offloading(ext4_folder: Path) -> None:
    done = subprocess.run(
        demo(ext4_folder, "--duration", "3", "--json"), capture_output=True, text=True, timeout=HANG
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = check(json.loads(done.stdout))
    assert report["command"]["exit_status"] == 0
    assert report["duration_seconds"] >= 3

    reads = {(s["engine"], s["path"], s["role"]): s for s in report["streams"] if s["op"] == "read"}
    weights, cache = reads["libaio", "direct", "weights"], reads["mmap", "page_cache", "kv_cache"]
    assert weights["size_bytes"]["p50"] >= 128 << 10
    assert weights["bytes"] > 64 << 20, "not even one sweep"
    assert 8 << 20 < cache["bytes"] <= 32 << 20, "about one sweep of 16 MiB"
    assert weights["pid"] == cache["pid"]
    read = {file["role"]: file["read_bytes"] for file in report["files"] if file["path"].startswith(str(ext4_folder))}
    assert read["weights"] == weights["bytes"]
    assert read["kv_cache"] >= cache["bytes"]
    assert {row["op"] for row in report["submissions"] if row["engine"] == "libaio"} == {"read", None}
    assert left_over(ext4_folder) == []


def start(directory: Path, seconds: int) -> subprocess.Popen[str]:
    """A demo, once it shows its first live line."""
    command = demo(directory, "--duration", str(seconds))
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if line.lstrip()[:1].isdigit():
            break
    return process


def test_a_closed_pipe_ends_all_of_it_quietly(ext4_folder: Path) -> None:
    with start(ext4_folder, 5) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.wait(timeout=HANG) == 0
        assert process.stderr is not None
        assert process.stderr.read() == ""
    assert left_over(ext4_folder) == []


def test_a_sigterm_is_passed_on_and_summed_up(ext4_folder: Path) -> None:
    with start(ext4_folder, 60) as process:
        process.send_signal(signal.SIGTERM)
        out, errors = process.communicate(timeout=HANG)
    assert (process.returncode, errors) == (0, "")
    assert "llmio-probe watched fio" in out
    assert left_over(ext4_folder) == []
