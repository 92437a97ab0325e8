"""The guest's first file system: an uncompressed cpio archive in the kernel's newc format, made without any program."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

FOLDER, FILE, PROGRAM, CHARACTER_DEVICE = 0o040755, 0o100644, 0o100755, 0o020600


@dataclass(frozen=True)
class Entry:
    name: str
    mode: int
    content: bytes = b""
    device: tuple[int, int] = (0, 0)


CONSOLE = Entry("dev/console", CHARACTER_DEVICE, device=(5, 1))
"""What the kernel opens as the first process's output."""


def archive(entries: Iterable[Entry]) -> bytes:
    made = bytearray()
    for number, entry in enumerate([*entries, Entry("TRAILER!!!", 0)], 1):
        name = entry.name.encode() + b"\0"
        size = len(entry.content)
        fields = (number, entry.mode, 0, 0, 1, 0, size, 0, 0, *entry.device, len(name), 0)
        made += b"070701" + b"".join(b"%08x" % field for field in fields) + name
        made += bytes(-len(made) % 4)
        made += entry.content
        made += bytes(-len(made) % 4)
    return bytes(made)
