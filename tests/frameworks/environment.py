"""Where the frameworks live: a virtual environment of their own, made once and kept, as tests/vm keeps its guests.

`python -m tests.frameworks.environment` makes it: downloads, and compiles DeepSpeed's I/O library (minutes). It lies in
one cache folder, named after what went into it, and can be removed at any time.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import subprocess
import sys
import tempfile
import venv
import zipfile
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

HERE = Path(__file__).parent
REQUIREMENTS = HERE / "requirements.txt"
ALONE = HERE / "requirements-alone.txt"
PARTS = HERE / "parts.txt"
COMPILE = "from deepspeed.ops.op_builder import AsyncIOBuilder; AsyncIOBuilder().load(verbose=False)"


@dataclass(frozen=True)
class Environment:
    folder: Path

    @property
    def python(self) -> Path:
        return self.folder / "venv" / "bin" / "python"

    @property
    def parts(self) -> Path:
        """A folder for PYTHONPATH: the chosen modules of packages that cannot be installed whole."""
        return self.folder / "parts"

    @property
    def stamp(self) -> Path:
        return self.folder / "ready"

    @property
    def ready(self) -> bool:
        return self.stamp.exists()

    def variables(self) -> dict[str, str]:
        """What its programs need in their environment."""
        return {
            "PATH": f"{self.python.parent}:{os.environ['PATH']}",
            "TORCH_EXTENSIONS_DIR": str(self.folder / "extensions"),
            "DS_ACCELERATOR": "cpu",
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "2",
            "LMCACHE_TRACK_USAGE": "false",
        }


def environment() -> Environment:
    named = os.environ.get("LLMIO_FRAMEWORKS_CACHE")
    cache = Path(named) if named else Path.home() / ".cache" / "llmio-probe" / "frameworks"
    inputs = [path.read_bytes() for path in (REQUIREMENTS, ALONE, PARTS)]
    key = hashlib.sha256(b"\0".join([sys.version.encode(), *inputs])).hexdigest()[:12]
    return Environment(cache / key)


def make(made: Environment) -> None:
    """Nothing to do if it is there. Whoever else makes it is waited for."""
    made.folder.mkdir(parents=True, exist_ok=True)
    with open(made.folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if made.ready:
            return
        print(f"making {made.folder}: some minutes", flush=True)
        venv.create(made.folder / "venv", clear=True, with_pip=True)
        pip: list[str | Path] = [made.python, "-m", "pip", "-q", "--disable-pip-version-check"]
        _run(*pip, "install", "-r", REQUIREMENTS)
        _run(*pip, "install", "--no-deps", "-r", ALONE)
        for line in PARTS.read_text().splitlines():
            if line and not line.startswith("#"):
                _take_parts(pip, line.split(), made.parts)
        print("compiling DeepSpeed's async_io", flush=True)
        _run(made.python, "-c", COMPILE, env={**os.environ, **made.variables()})
        made.stamp.touch()


def _take_parts(pip: list[str | Path], line: list[str], target: Path) -> None:
    """Of a wheel only the files that a pattern names: their folders are packages without an __init__.py."""
    requirement, *patterns = line
    with tempfile.TemporaryDirectory(prefix="llmio-") as folder:
        _run(*pip, "download", "--no-deps", "--dest", folder, requirement)
        [wheel] = Path(folder).iterdir()
        with zipfile.ZipFile(wheel) as archive:
            names = archive.namelist()
            for pattern in patterns:
                found = [name for name in names if fnmatch(name, pattern)]
                assert found, f"{requirement} has no {pattern}"
                archive.extractall(target, found)


def _run(*argv: str | Path, env: dict[str, str] | None = None) -> None:
    subprocess.run([str(word) for word in argv], check=True, env=env)


if __name__ == "__main__":
    make(environment())
