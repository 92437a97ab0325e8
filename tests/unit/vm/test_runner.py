"""`python3 -m tests.vm run` and `btf` with an emulator that is none: exit statuses, the console, what comes back."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.vm import emulator
from tests.vm.__main__ import main
from tests.vm.emulator import BOOTS_AT_MOST, DIED, STOOD_STILL, TIMED_OUT, shell_line

END = 'echo {status} >"$folder/status"; tar -cf "$disk" -C "$folder" out status'


def run(*options: str, payload: Path) -> int:
    return main(["run", "6.1", f"--payload={payload}", *options, "--", "true"])


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("status", [0, 1, 77, 255])
def test_the_commands_status_is_ours(payload: Path, monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    monkeypatch.setenv("GUEST", END.format(status=status))
    assert run(payload=payload) == status


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("guest", ["exit 1", "exit 0", 'echo rubbish >"$disk"', 'tar -cf "$disk" -C "$folder" out'])
def test_a_guest_that_reports_nothing_has_died(
    payload: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], guest: str
) -> None:
    monkeypatch.setenv("GUEST", f"echo panic; {guest}")
    assert run(payload=payload) == DIED
    said = capfd.readouterr().out
    assert "panic\n" in said
    assert "died before its command ended" in said


@pytest.mark.usefixtures("cache")
def test_a_guest_that_takes_too_long_is_stopped(payload: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GUEST", "exec sleep 60")
    begin = time.monotonic()
    assert run("--timeout=0.5", payload=payload) == TIMED_OUT
    assert time.monotonic() - begin < 30


@pytest.mark.usefixtures("cache")
def test_a_guest_that_stands_still_before_it_is_up_is_booted_again(
    tmp_path: Path, payload: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(emulator, "UP_SECONDS", 2)
    once = tmp_path / "once"
    monkeypatch.setenv("GUEST", f"[ -e {once} ] || {{ touch {once}; exec sleep 60; }}; " + END.format(status=7))
    assert run(payload=payload) == 7
    assert capfd.readouterr().out.count("its kernel stands still") == 1
    monkeypatch.setenv("GUEST", "exec sleep 60")
    assert run(payload=payload) == STOOD_STILL
    assert capfd.readouterr().out.count("its kernel stands still") == BOOTS_AT_MOST


@pytest.mark.usefixtures("cache")
def test_a_guest_that_is_up_is_not_booted_again(
    payload: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(emulator, "UP_SECONDS", 0.5)
    monkeypatch.setenv("GUEST", "printf message; echo vm: Linux 6.1 is up after 0.1 s; exec sleep 60")
    assert run("--timeout=1.5", payload=payload) == TIMED_OUT
    assert capfd.readouterr().out.count("booting: ") == 1


@pytest.mark.usefixtures("cache")
def test_what_the_command_leaves_in_out_comes_back(
    tmp_path: Path, payload: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GUEST", 'mkdir "$folder/out/sub"; echo made >"$folder/out/sub/file"; ' + END.format(status=0))
    assert run(f"--out={tmp_path / 'back'}", payload=payload) == 0
    assert (tmp_path / "back" / "sub" / "file").read_text() == "made\n"


@pytest.mark.usefixtures("cache")
def test_options_reach_the_kernels_command_line(
    payload: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GUEST", END.format(status=0))
    run("--append=one=1 two", payload=payload)
    assert "nvme_core.multipath=N one=1 two\n" in capfd.readouterr().out
    run("--multipath", payload=payload)
    assert "multipath" not in capfd.readouterr().out


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize(
    ("name", "emulator", "console"),
    [("6.1", "qemu-system-x86_64", "ttyS0"), ("6.12-arm64", "qemu-system-aarch64", "ttyAMA0")],
)
def test_each_architecture_has_its_machine(
    payload: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], name: str, emulator: str,
    console: str,
) -> None:  # fmt: skip
    monkeypatch.setenv("GUEST", END.format(status=0))
    assert main(["run", name, f"--payload={payload}", "--", "true"]) == 0
    said = capfd.readouterr().out
    assert f"emulator: {emulator}\n" in said
    assert f"booting: console={console} " in said


@pytest.mark.usefixtures("cache")
def test_nothing_is_left_behind(tmp_path: Path, payload: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    monkeypatch.setenv("GUEST", "exit 1")
    run(payload=payload)
    assert not list(temporary.glob("llmio-vm-*"))


def test_types_are_fetched_once(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GUEST", 'echo types >"$folder/out/vmlinux.btf"; ' + END.format(status=0))
    assert main(["btf", "6.1"]) == 0
    path = Path(capfd.readouterr().out.strip())
    assert path.is_relative_to(cache)
    assert path.read_text() == "types\n"
    monkeypatch.setenv("GUEST", "exit 1")
    assert main(["btf", "6.1"]) == 0


@pytest.mark.usefixtures("cache")
def test_a_guest_without_types_says_so(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("GUEST", "echo no such file; " + END.format(status=1))
    assert main(["btf", "6.1"]) == DIED
    assert "no such file" in capfd.readouterr().err


def test_mistakes_on_the_command_line_are_one_sentence(
    cache: Path, payload: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "windows", "--", "true"]) == DIED
    assert "there is no kernel windows" in capfd.readouterr().err
    assert run("--nvme=many", payload=payload) == DIED
    assert "many is no size of a disk" in capfd.readouterr().err
    assert cache.exists()


def test_one_word_is_a_line_for_the_shell_and_several_are_a_program() -> None:
    assert shell_line(["a && b"]) == "a && b"
    assert shell_line(["a", "b c"]) == "a 'b c'"
