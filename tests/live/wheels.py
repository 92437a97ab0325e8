"""The wheel as a user gets it, in an environment of its own that every user of the host may read."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.live.harness import run

PROJECT = Path(__file__).parents[2]
DEPENDENCIES = ("numpy", "numpy.libs", "psutil", "yaml", "prometheus_client")
MINUTES = 600
"""A build compiles the programs if they are not there yet."""


@dataclass(frozen=True)
class Installed:
    folder: Path

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    @property
    def program(self) -> Path:
        return self.folder / "bin" / "llmio-probe"


def build_wheel(folder: Path) -> Path:
    """From the working tree, by the build backend that is installed here."""
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(PROJECT)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=MINUTES)
    assert done.returncode == 0, done.stdout + done.stderr
    [wheel] = folder.glob("*.whl")
    return wheel


@contextmanager
def installed_wheel() -> Iterator[Installed]:
    """Its dependencies are this environment's, copied: what is to be tried is our wheel."""
    with tempfile.TemporaryDirectory(prefix="llmio-wheel-", dir="/var/tmp") as name:
        folder = Path(name)
        folder.chmod(0o755)
        wheel = build_wheel(folder / "dist")
        made = Installed(folder / "venv")
        run(everybodys_python(), "-m", "venv", "--without-pip", made.folder)
        run(sys.executable, "-m", "pip", "-q", "--disable-pip-version-check", "--python", made.python,
            "install", "--no-deps", wheel)  # fmt: skip
        ours = Path(sysconfig.get_path("platlib"))
        [theirs] = made.folder.glob("lib/python3*/site-packages")
        for dependency in DEPENDENCIES:
            if (ours / dependency).exists():
                shutil.copytree(ours / dependency, theirs / dependency)
        yield made


def everybodys_python() -> Path:
    """This Python, or the system's of the same version, whichever does not lie in somebody's home."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    for candidate in (Path(sys.base_prefix) / "bin" / version, Path("/usr/bin") / version):
        if candidate.exists() and all(may_enter(folder) for folder in candidate.resolve().parents):
            return candidate
    raise AssertionError(f"there is no {version} that every user may run: make setup PYTHON=/usr/bin/python3")


def may_enter(folder: Path) -> bool:
    return bool(os.stat(folder).st_mode & stat.S_IXOTH)
