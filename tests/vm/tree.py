"""A folder of unpacked Debian packages, and running its programs here with its own libraries.

So that a guest's image is made by the guest's own tools, and qemu is the one that works, whatever this machine has.
"""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

LIBRARIES = "usr/lib/x86_64-linux-gnu"


@dataclass(frozen=True)
class Tree:
    folder: Path

    def argv(self, program: str, *arguments: str | Path) -> list[str]:
        libraries = self.folder / LIBRARIES
        loader = libraries / "ld-linux-x86-64.so.2"
        return [str(word) for word in (loader, "--library-path", libraries, self.folder / program, *arguments)]

    def run(self, program: str, *arguments: str | Path, **environment: str) -> None:
        done = subprocess.run(
            self.argv(program, *arguments), capture_output=True, text=True, env={**os.environ, **environment}
        )
        if done.returncode:
            raise RuntimeError(f"{program} failed: {done.stderr.strip()}")
