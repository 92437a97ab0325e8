"""Addresses of the kernel's functions, from kallsyms: by them programs tell what a bio is for (bpf/symbols.h).

Only the look-up may go in here; which names, the object says. The file has a line for each of some 100,000 symbols, so
that an array operation picks the few to look at.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

KALLSYMS = Path("/proc/kallsyms")
_NAME = len("ffffffff81000000 t ")
"""Where in a line the name begins."""


def addresses_of(names: Iterable[str], path: Path = KALLSYMS) -> dict[str, int]:
    """Those of the names that the kernel has. All are 0 where it hides them (kptr_restrict, no CAP_SYSLOG).

    Empty when there is no such file. Of several functions with one name none can be told: it is left out.
    names: of at least 8 characters each.
    """
    try:
        text = path.read_bytes()
    except OSError:
        return {}
    wanted = {name.encode(): name for name in names}
    found: dict[str, set[int]] = {}
    for start in _lines_like(text, wanted):
        address, _, name = text[start : text.find(b"\n", start)].split(maxsplit=3)[:3]
        if name in wanted:
            found.setdefault(wanted[name], set()).add(int(address, 16))
    return {name: addresses.pop() for name, addresses in found.items() if len(addresses) == 1}


def _lines_like(text: bytes, names: Iterable[bytes]) -> list[int]:
    """Where the lines begin whose name begins with the same 8 bytes as one of these."""
    words = np.ndarray(max(len(text) - 7, 0), np.uint64, text, strides=(1,))  # from each place on
    starts = np.flatnonzero(np.frombuffer(text, np.uint8) == ord("\n")) + 1
    starts = np.concatenate([[0], starts])
    starts = starts[starts + _NAME < len(words)]
    beginnings = np.frombuffer(b"".join(name[:8] for name in names), np.uint64)
    lines: list[int] = starts[np.isin(words[starts + _NAME], beginnings)].tolist()
    return lines
