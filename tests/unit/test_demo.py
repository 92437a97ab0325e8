"""The demo's workload, its refusals and its cleaning up, with a session that only pretends. No root, no fio."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llmio_probe import demo
from llmio_probe.errors import ProbeError
from llmio_probe.identity.mounts import Mounts
from llmio_probe.outputs.writer import Writer

MIB = 1 << 20

Act = Callable[[tuple[str, ...]], int]
"""What a pretended session does with its command; returns the command's status."""


class Stage:
    """The demo, with everything that needs root or a disk replaced."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.directory = directory
        self.act: Act = lambda command: 0
        self.files: dict[str, int] = {}
        stage = self

        class PretendedSession:
            def __init__(self, options: Any, live: Any) -> None:
                self.options, self.live = options, live

            def run(self, finish: Callable[[Any], None]) -> Any:
                (folder,) = stage.directory.iterdir()
                stage.files = {path.name: path.stat().st_size for path in folder.iterdir()}
                assert folder.stat().st_mode & 0o777 == 0o700
                return SimpleNamespace(document={}, status=stage.act(self.options.command))

        for name in ("require_loading", "require_host_pids"):
            monkeypatch.setattr(demo, name, lambda: None)
        monkeypatch.setattr(demo, "require_block_device", lambda directory, mounts: None)
        monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
        monkeypatch.setattr(demo, "write_file", lambda path, size: Path(path).write_bytes(bytes(size)))
        monkeypatch.setattr(Writer, "write", lambda writer, report: print("the summary"))
        monkeypatch.setattr(demo, "Session", PretendedSession)

    def run(self, act: Act | None = None, *, as_json: bool = False) -> int:
        self.act = act or self.act
        return demo.run(str(self.directory), 1 * MIB, 2.5, as_json=as_json)

    def is_clean(self) -> bool:
        return not list(self.directory.iterdir())


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    return Stage(tmp_path, monkeypatch)


def test_it_says_what_will_happen_then_sums_up_and_cleans_up(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    assert stage.run() == 0
    assert stage.files == {"demo.safetensors": 1 * MIB, "demo@1@0@0@float16.pt": demo.KV_LEAST_BYTES}
    assert stage.is_clean()
    out = capsys.readouterr().out
    assert out.startswith(f"Demo in {stage.directory}/llmio-probe-demo-")
    assert "For 2.5 s" in out
    assert "weights (1.0 MiB)" in out
    assert "KV cache (16.0 MiB)" in out
    assert out.endswith("\nthe summary\n")


def test_a_document_has_standard_output_to_itself(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    stage.run(as_json=True)
    said = capsys.readouterr()
    assert said.out == "the summary\n"
    assert said.err.startswith("Demo in ")


def test_a_cache_is_an_eighth_of_larger_weights(stage: Stage) -> None:
    demo.run(str(stage.directory), 256 * MIB, 1, as_json=True)
    assert stage.files["demo@1@0@0@float16.pt"] == 32 * MIB


def test_an_interrupted_fio_is_summed_up(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    assert stage.run(lambda command: demo.FIO_INTERRUPTED) == 0
    assert "the summary" in capsys.readouterr().out


def test_a_fio_that_fails_is_quoted(stage: Stage) -> None:
    def fail(command: tuple[str, ...]) -> int:
        (log,) = (word.partition("=")[2] for word in command if word.startswith("--output="))
        Path(log).write_text("weights: (g=0)\nfio: first\nfio: engine libaio not loadable\n\nRun status:\n")
        return 1

    with pytest.raises(ProbeError, match=r"fio ended with status 1: fio: engine libaio not loadable$"):
        stage.run(fail)
    assert stage.is_clean()


def test_a_fio_that_says_nothing(stage: Stage) -> None:
    with pytest.raises(ProbeError, match="it said nothing"):
        stage.run(lambda command: 139)


@pytest.mark.parametrize("error", [BrokenPipeError, KeyboardInterrupt, ProbeError])
def test_whatever_ends_it_the_folder_and_fio_go(stage: Stage, error: type[BaseException]) -> None:
    children = []

    def abort(command: tuple[str, ...]) -> int:
        program = "import time; time.sleep(60)"
        children.append(subprocess.Popen([sys.executable, "-c", program, *command]))
        raise error

    with pytest.raises(error):
        stage.run(abort)
    children[0].wait(timeout=0)
    assert stage.is_clean()


def test_other_children_are_left_alone(stage: Stage) -> None:
    with subprocess.Popen(["sleep", "60"]) as other:
        stage.run()
        assert other.poll() is None
        other.terminate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_fatal_signal_cleans_up_first(stage: Stage, number: signal.Signals) -> None:
    def end(command: tuple[str, ...]) -> int:
        os.kill(os.getpid(), number)
        raise AssertionError("it went on")

    with pytest.raises(SystemExit) as caught:
        stage.run(end)
    assert caught.value.code == 128 + number
    assert stage.is_clean()
    assert signal.getsignal(number) == signal.SIG_DFL


def test_an_ignored_signal_stays_ignored(stage: Stage) -> None:
    def hang_up(command: tuple[str, ...]) -> int:
        os.kill(os.getpid(), signal.SIGHUP)
        return 0

    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert stage.run(hang_up) == 0
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


# --- refusals


def test_fio_is_needed(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ProbeError, match="install the package fio"):
        stage.run()
    assert stage.is_clean()


def test_a_full_disk_is_refused_with_figures(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    files = 1 * MIB + demo.KV_LEAST_BYTES
    blocks = (files + files // 10 + demo.SPARE_BYTES) // 4096
    monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(f_bavail=blocks - 1, f_frsize=4096))
    with pytest.raises(ProbeError, match=r"needs 274\.7 MiB free in .*, there are 274\.7 MiB: .*--size"):
        stage.run()
    monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(f_bavail=blocks + 1, f_frsize=4096))
    assert stage.run() == 0


@pytest.fixture
def mounts(tmp_path: Path) -> Callable[..., Mounts]:
    """mounts(line, …): of mountinfo, DIR being a directory that is there."""

    def make(*lines: str) -> Mounts:
        process = tmp_path / "proc" / "self"
        process.mkdir(parents=True)
        (process / "mountinfo").write_text("".join(f"{line}\n" for line in lines).replace("DIR", str(tmp_path)))
        return Mounts(str(tmp_path / "proc"))

    return make


ROOT = "27 1 254:0 / / rw - ext4 /dev/vda rw"


@pytest.mark.parametrize("kind", ["tmpfs", "nfs4", "fuse.sshfs", "virtiofs"])
def test_what_has_no_block_device_is_refused(mounts: Callable[..., Mounts], tmp_path: Path, kind: str) -> None:
    found = mounts(ROOT, f"28 27 0:40 / DIR rw - {kind} none rw", "29 28 254:16 / DIR/pro rw - ext4 /dev/vdb rw")
    with pytest.raises(ProbeError, match=rf"/proc is on {kind}, which has no block device.*--directory"):
        demo.require_block_device(str(tmp_path / "proc"), found)


@pytest.mark.parametrize(
    ("device", "kind"), [("259:1", "xfs"), ("0:40", "btrfs"), ("0:40", "zfs"), ("0:40", "overlay")]
)
def test_what_lies_on_one_is_taken(mounts: Callable[..., Mounts], tmp_path: Path, device: str, kind: str) -> None:
    found = mounts("27 1 0:30 / / rw - tmpfs tmpfs rw", f"28 27 {device} / DIR rw - {kind} none rw")
    demo.require_block_device(str(tmp_path / "proc"), found)


@pytest.mark.parametrize("major", [0, 254])
def test_where_no_mount_is_known_the_device_number_decides(
    mounts: Callable[..., Mounts], monkeypatch: pytest.MonkeyPatch, major: int
) -> None:
    found = mounts()
    monkeypatch.setattr(os, "stat", lambda path: SimpleNamespace(st_dev=os.makedev(major, 40)))
    with nullcontext() if major else pytest.raises(ProbeError, match="/x/y is on an unknown filesystem"):
        demo.require_block_device("/x/y", found)


def test_a_directory_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ProbeError, match="No such file or directory"):
        demo.require_block_device(str(tmp_path / "none"), Mounts())
    (tmp_path / "file").touch()
    with pytest.raises(ProbeError, match="Not a directory"):
        demo.require_block_device(str(tmp_path / "file"), Mounts())


def test_a_filesystem_without_o_direct_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any) -> int:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(ProbeError, match=r"knows no O_DIRECT; .*--directory"):
        demo.write_file(str(tmp_path / "file"), MIB)


# --- the workload


def test_the_command(tmp_path: Path) -> None:
    assert shlex.join(demo.fio_command("/var/tmp/a", 64 * MIB, 10)) == (
        "fio --thread --time_based --runtime=10000ms --eta=never --output=/var/tmp/a/fio.log"
        " --name=weights --filename=/var/tmp/a/demo.safetensors --ioengine=libaio --direct=1 --rw=read"
        " --bssplit=128k/40:256k/20:512k/20:1m/20 --iodepth=32"
        " --name=kv_cache --filename=/var/tmp/a/demo@1@0@0@float16.pt --ioengine=mmap --rw=randrw --rwmixread=95"
        " --bs=128k --rate=6710886,419430 --fsync=4 --fadvise_hint=0"
    )


def test_fio_takes_a_colon_in_a_name_for_two_files() -> None:
    assert r"--filename=/a\:b/demo.safetensors" in demo.fio_command("/a:b", 16 * MIB, 1)
