"""Addresses of the kernel's functions, from kallsyms: by them programs tell what a bio is for (bpf/symbols.h).

Only the look-up may go in here; which names, the object says.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

KALLSYMS = Path("/proc/kallsyms")


def addresses_of(names: Iterable[str], path: Path = KALLSYMS) -> dict[str, int]:
    """Those of the names that the kernel has. All are 0 where it hides them (kptr_restrict, no CAP_SYSLOG).

    Empty when there is no such file. Of several functions with one name none can be told: it is left out.
    """
    try:
        text = path.read_bytes()
    except OSError:
        return {}
    found = {}
    for name in names:
        lines = {line for end in (b"\n", b"\t") for line in _lines(text, b" " + name.encode() + end)}
        if len(lines) == 1:
            found[name] = lines.pop()
    return found


def _lines(text: bytes, end: bytes) -> Iterable[int]:
    """The address at the beginning of each line in which the text stands."""
    at = text.find(end)
    while at >= 0:
        start = text.rfind(b"\n", 0, at) + 1
        yield int(text[start:at].split(b" ", 1)[0], 16)
        at = text.find(end, at + 1)
