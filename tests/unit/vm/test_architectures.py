"""What a guest of another architecture gets, and what it is spared."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.vm import suite
from tests.vm.architectures import AMD64, ARM64
from tests.vm.archive import ArchiveError
from tests.vm.objects import build_object
from tests.vm.store import Store

MAKE = '#!/bin/sh\necho "making $LLMIO_BPF_ARCH: $*"\nexit {status}\n'


def own_make(folder: Path, status: int) -> Path:
    program = folder / "make"
    program.write_text(MAKE.format(status=status))
    program.chmod(0o755)
    return folder


def test_the_object_of_another_machine_is_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(own_make(tmp_path, 1)))
    other = replace(AMD64, name="mips")
    with pytest.raises(ArchiveError, match=r"object for mips cannot be built: making mips: .*/bpf"):
        build_object(other)


def test_ours_stays_as_it_was_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(own_make(tmp_path, 1)))
    monkeypatch.setattr("platform.machine", lambda: AMD64.name)
    build_object(AMD64)


@pytest.mark.parametrize(("name", "boots"), [("6.1", {"default", "no-btf"}), ("6.12-arm64", {"default"})])
def test_a_boot_that_makes_no_sense_there_is_left_out(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], name: str, boots: set[str]
) -> None:
    monkeypatch.setattr(suite, "chosen_tests", lambda: {"default": ["a.py::b"], "no-btf": ["a.py::c"]})
    monkeypatch.setattr(suite, "BOOTS", {way: replace(boot, headers=False) for way, boot in suite.BOOTS.items()})
    monkeypatch.setattr("tests.vm.emulator.build_object", lambda _: None)
    monkeypatch.setenv("GUEST", "exit 1")
    assert suite.run_suite(Store(cache), [name], 1, None, None) == 1
    begun = [line for line in capfd.readouterr().out.splitlines() if line.startswith("==") and "tests" in line]
    assert {line.partition("boot ")[2].partition(":")[0] for line in begun} == boots


def test_a_slow_architecture_has_more_time() -> None:
    assert ARM64.patience > AMD64.patience
    line = suite.pytest_line(["a.py"], 3)
    assert f" faulthandler_timeout={3 * suite.FIRST_OF_A_HANG} " in line
    assert f" LLMIO_PATIENCE={3 * suite.HANG_FACTOR} " in line
