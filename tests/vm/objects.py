"""The BPF object that a guest needs. The wheel of this machine's architecture does not carry that of another."""

from __future__ import annotations

import os
import platform
import subprocess

from tests.vm.architectures import Architecture
from tests.vm.archive import ArchiveError
from tests.vm.payload import PROJECT


def build_object(architecture: Architecture) -> None:
    """Of another architecture than this machine's: as it must be by now. Our own is as it was built last."""
    if architecture.name == platform.machine():
        return
    done = subprocess.run(
        ["make", "-s", "-C", PROJECT / "bpf"], env={**os.environ, "LLMIO_BPF_ARCH": architecture.name},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    if done.returncode:
        raise ArchiveError(f"the BPF object for {architecture.name} cannot be built: {done.stdout.strip()[-500:]}")
