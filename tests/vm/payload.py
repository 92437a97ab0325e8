"""What a guest gets to work with and what comes back from it: tar archives on raw disks. Only that may go in here."""

from __future__ import annotations

import tarfile
from collections.abc import Sequence
from pathlib import Path

PROJECT = Path(__file__).parents[2]
OF_THE_PROJECT = ("LICENSE", "README.md", "bpf", "deploy", "docs", "grafana", "llmio_probe", "pyproject.toml", "tests")
LEFT_OUT = {".git", ".venv"}
SECTOR = 512


def pack(folder: Path | None, disk: Path, more: Sequence[Path] = ()) -> None:
    """A folder, or of the working tree what the tests need; and more files beside that."""
    members = sorted(folder.iterdir()) if folder else [PROJECT / name for name in OF_THE_PROJECT]
    members += more
    with tarfile.open(disk, "w") as archive:
        for path in members:
            if path.exists():
                archive.add(path, path.name, filter=_kept)


def unpack_result(disk: Path, into: Path | None) -> int | None:
    """The command's status, None without one; its files to that folder."""
    try:
        with tarfile.open(disk, "r:") as archive:  # others are looked for in all of an empty disk
            status = archive.extractfile("status")
            assert status
            code = int(status.read())
            if into:
                into.mkdir(parents=True, exist_ok=True)
                _unpack(archive, into)
    except (tarfile.TarError, KeyError, ValueError):
        return None
    return code


def _unpack(archive: tarfile.TarFile, into: Path) -> None:
    for member in archive.getmembers():
        name = member.name.partition("/")[2]
        path = into / name
        if ".." in name.split("/") or not name:
            continue
        if member.isdir():
            path.mkdir(parents=True, exist_ok=True)
        elif member.isfile() and (content := archive.extractfile(member)):
            path.write_bytes(content.read())


def _kept(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """Owned by root, as on a host that builds; without what would only be copied."""
    if Path(member.name).name in LEFT_OUT:
        return None
    member.uid = member.gid = 0
    member.uname = member.gname = "root"
    return member


def size_of(text: str) -> int:
    """1G, 512M, or bytes."""
    unit = {"K": 10, "M": 20, "G": 30}.get(text[-1:].upper())
    number = text[:-1] if unit else text
    if not number.isdigit() or int(number) == 0 or (int(number) << (unit or 0)) % SECTOR:
        raise ValueError(f"{text} is no size of a disk: use a number of bytes, or one with K, M or G, as 1G")
    return int(number) << (unit or 0)


Disks = Sequence[str]
"""Namespaces of the NVMe disk: a size each, or "null" for one that keeps nothing and is fast."""
