"""The child process in which BCC compiles and loads: 200 MB of compiler go with it, and so does what it prints.

bcc_loader.py starts it as a script, with nothing but the standard library on sys.path: PyPI's `bcc` is another project.
It gets a job as JSON on its standard input, and sends the programs' descriptors through a socket. Only that may go in
here, and nothing of ours is imported.
"""

from __future__ import annotations

import ctypes
import errno
import importlib.util
import json
import os
import socket
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

PLACES = (
    "usr/lib/python3/dist-packages",  # Debian, Ubuntu
    "usr/lib/python3.*/site-packages",  # Fedora, RHEL, Arch
    "usr/lib64/python3.*/site-packages",
    "usr/local/lib/python3*/*-packages",  # by hand
)
MAIN = '#include "probe.bpf.c"\n'


class Refused(Exception):
    """What the user is told, a sentence."""


def bcc_folder(root: Path = Path("/")) -> Path:
    """Where the distribution has put IOVisor's bcc."""
    for folder in _folders(root):
        if (folder / "__init__.py").is_file() and (folder / "libbcc.py").is_file():
            return folder
    raise Refused(
        "BCC is not installed: install the package python3-bpfcc (Debian, Ubuntu) or python3-bcc (Fedora, RHEL)"
    )


def _folders(root: Path) -> Iterator[Path]:
    for place in PLACES:
        yield from sorted(root.glob(f"{place}/bcc"), reverse=True)


def imported(folder: Path) -> ModuleType:
    """That one package, and nothing else of what lies beside it."""
    spec = importlib.util.spec_from_file_location(
        "bcc", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["bcc"] = module
    try:
        spec.loader.exec_module(module)
    except (ImportError, OSError, SyntaxError, AttributeError) as error:
        raise Refused(f"BCC in {folder} cannot be used ({error}): reinstall the package it came with") from None
    return module


def loaded(bcc: Any, job: dict[str, Any]) -> dict[str, int]:
    """Descriptors by program. job: flags for the compiler; programs: whether each is for a raw tracepoint, by name."""
    try:
        module = bcc.BPF(text=MAIN.encode(), cflags=job["flags"])
    except Exception:  # BCC raises nothing else
        raise Refused("the BPF programs cannot be compiled against this kernel's headers") from None
    descriptors = {}
    for name, raw in job["programs"].items():
        kind = bcc.BPF.RAW_TRACEPOINT if raw else bcc.BPF.TRACEPOINT
        try:
            descriptors[name] = module.load_func(name.encode(), kind).fd
        except Exception as error:
            number = ctypes.get_errno()
            if number == errno.EPERM:
                raise Refused("the kernel does not let this user load BPF programs: run as root") from None
            raise Refused(f"the BPF program {name}, compiled by BCC, cannot be loaded ({error})") from None
    return descriptors


def main(arguments: Sequence[str]) -> int:
    answer: dict[str, Any]
    with socket.socket(fileno=int(arguments[0])) as parent:
        try:
            descriptors = loaded(imported(bcc_folder()), json.load(sys.stdin))
            answer = {"programs": list(descriptors)}
        except Refused as refused:
            descriptors, answer = {}, {"refused": str(refused)}
        socket.send_fds(parent, [json.dumps(answer).encode()], list(descriptors.values()))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # what BCC wants to tidy up is gone with this process


if __name__ == "__main__":
    main(sys.argv[1:])
