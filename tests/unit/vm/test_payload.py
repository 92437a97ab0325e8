"""What goes into a guest, and what may come out of it."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from tests.vm.initrd import FILE, FOLDER, Entry, archive
from tests.vm.payload import pack, size_of, unpack_result


def test_the_working_tree_goes_without_what_is_only_kept_here(tmp_path: Path) -> None:
    pack(None, tmp_path / "disk")
    with tarfile.open(tmp_path / "disk") as packed:
        names = packed.getnames()
        assert {member.uid for member in packed.getmembers()} == {0}
    assert {"llmio_probe/cli.py", "bpf/probe.bpf.c", "tests/conftest.py", "pyproject.toml"} <= set(names)
    assert not [name for name in names if name.startswith((".git", ".venv"))]


def test_what_comes_back_stays_in_its_folder(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "disk", "w") as made:
        for name, content in {"status": b"3\n", "out/fine": b"fine", "out/../../escaped": b"bad"}.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            made.addfile(member, io.BytesIO(content))
        link = tarfile.TarInfo("out/link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        made.addfile(link)
    assert unpack_result(tmp_path / "disk", tmp_path / "a" / "back") == 3
    assert [path.name for path in (tmp_path / "a").rglob("*")] == ["back", "fine"]
    assert not list(tmp_path.rglob("escaped"))


@pytest.mark.parametrize(("text", "size"), [("1G", 1 << 30), ("512m", 512 << 20), ("4096", 4096), ("3K", 3072)])
def test_sizes(text: str, size: int) -> None:
    assert size_of(text) == size


@pytest.mark.parametrize("text", ["", "0", "1X", "-1G", "100", "G"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match="is no size of a disk"):
        size_of(text)


def test_the_first_file_system_is_newc() -> None:
    made = archive([Entry("a", FOLDER), Entry("a/file", FILE, b"content")])
    assert made.startswith(b"070701")
    assert len(made) % 4 == 0
    header = made.index(b"a/file\0") - 110
    assert made[header : header + 6] == b"070701"
    assert int(made[header + 54 : header + 62], 16) == len(b"content")
    begin = header + 110 + len(b"a/file\0")
    begin += -begin % 4
    assert made[begin : begin + 7] == b"content"
    assert b"TRAILER!!!" in made
