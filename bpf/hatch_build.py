"""The wheel's build hook: bpf/Makefile compiles the programs, this puts the object and their source into the wheel.

It runs for `pip install .`, `pip install -e .` and `python -m build`. How to compile is the Makefile's; what belongs
into a wheel of ours for which machine is said here, and nothing else.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class ProgramsHook(BuildHookInterface[Any]):
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        arch = os.environ.get("LLMIO_BPF_ARCH") or platform.machine()
        self._compile(arch)
        build_data["artifacts"] += [
            f"/llmio_probe/kernel/objects/probe.{arch}.bpf.o",
            "/llmio_probe/kernel/objects/source/*.[ch]",  # for the BCC loader, which compiles on the host
        ]
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-linux_{arch}"  # no CPython ABI in it, but one machine's object

    def _compile(self, arch: str) -> None:
        if shutil.which("make") is None:
            self.app.abort("llmio-probe compiles its BPF programs with make: install the package make")
        # A make above us must not lend us its job slots: pip has closed them.
        inherited = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MFLAGS")}
        command = ["make", "--no-print-directory", "-C", os.path.join(self.root, "bpf"), "all"]
        run = subprocess.run(
            command,
            env={**inherited, "LLMIO_BPF_ARCH": arch},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        if run.returncode != 0:
            self.app.abort(f"llmio-probe's BPF programs did not compile:\n{run.stdout}")
