"""Shared libraries: the system's first, and where it has none, the one that our wheel brings (bpf/hatch_build.py).

Only finding them may go in here; what is called in them is for libbpf.py and atomics.py.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import TypeVar

Library = TypeVar("Library", bound=ctypes.CDLL)

NEEDS = {"libbpf.so.1": ("libelf.so.1",), "libelf.so.1": ("libz.so.1",)}
"""Those have to be there before: the linker looks for them by these names, and finds what is loaded already."""


def carried() -> Path:
    return Path(__file__).parent / "carried"


def load(name: str, kind: type[Library], folder: Path | None = None) -> Library:
    """OSError when there is neither. folder: where the wheel's are, for tests."""
    try:
        return kind(name, use_errno=True)
    except OSError:
        path = (folder or carried()) / name
        if not path.is_file():
            raise
    for needed in NEEDS.get(name, ()):
        load(needed, ctypes.CDLL, folder)
    return kind(str(path), use_errno=True)
