"""The object for arm64 is built here, too, and asks its kernel for what that one has."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from llmio_probe.kernel.libbpf import Libbpf
from llmio_probe.kernel.loading import ProbeObject

BPF = Path(__file__).parents[3] / "bpf"


@pytest.fixture(scope="module")
def sections(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    """What its programs attach to, by name; the layouts of its records are checked while it is opened."""
    folder = tmp_path_factory.mktemp("arm64")
    shutil.copytree(BPF, folder / "bpf")
    subprocess.run(["make", "-s", "-C", folder / "bpf"], env={**os.environ, "LLMIO_BPF_ARCH": "aarch64"}, check=True)
    opened = ProbeObject(Libbpf(), folder / "llmio_probe" / "kernel" / "objects" / "probe.aarch64.bpf.o")
    try:
        return opened.sections
    finally:
        opened.close()


def test_it_has_the_programs_of_the_one_for_this_machine(sections: Mapping[str, str]) -> None:
    for program in ("block_io_start", "block_rq_issue", "block_rq_complete"):
        assert sections[program] == f"tp_btf/{program}"
        assert sections[f"{program}__probe"] == f"raw_tp/{program}"


def test_the_apps_view_is_at_its_own_system_calls(sections: Mapping[str, str]) -> None:
    functions = {section.partition("/")[2] for section in sections.values() if section.startswith(("fentry", "fexit"))}
    assert "__arm64_sys_io_submit" in functions
    assert all(name.startswith("__arm64_sys_") for name in functions)
