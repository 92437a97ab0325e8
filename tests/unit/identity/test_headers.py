"""Looking at a file's first bytes: only in the page cache, only of the very file. On real files on the disk."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest

from llmio_probe.identity import headers
from llmio_probe.identity.headers import LENGTH, cached_start, npy_shape

READ_BYTES = "read_bytes: "


@pytest.fixture
def folder() -> Iterator[Path]:
    with TemporaryDirectory(dir="/var/tmp") as name:  # /tmp may be a tmpfs, which has no disk to read from
        yield Path(name)


@pytest.fixture
def file(folder: Path) -> Path:
    path = folder / "t_0"
    save(path, (64, 512))
    return path


def save(path: Path, shape: tuple[int, ...]) -> None:
    with path.open("wb") as stream:  # np.save would give a name of its own to what has no suffix
        np.save(stream, np.ones(shape, np.float16))


def start_of(path: Path, inode: int | None = None, device: int | None = None) -> bytes | None:
    status = path.lstat()
    encoded = os.major(status.st_dev) << 20 | os.minor(status.st_dev)
    return cached_start(str(path), encoded if device is None else device, status.st_ino if inode is None else inode)


def drop(path: Path) -> None:
    """Out of the page cache."""
    with path.open("rb+") as stream:
        os.fsync(stream.fileno())
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def bytes_read_from_disk() -> int:
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.removeprefix(READ_BYTES)) for line in lines if line.startswith(READ_BYTES))


def test_what_is_in_the_page_cache_is_read_from_there(file: Path) -> None:
    assert start_of(file) == file.read_bytes()[:LENGTH]


def test_what_is_not_in_the_page_cache_is_not_read_and_stays_out(file: Path) -> None:
    drop(file)
    before = bytes_read_from_disk()
    assert [start_of(file) for _ in range(3)] == [None] * 3
    assert bytes_read_from_disk() == before
    file.read_bytes()
    if bytes_read_from_disk() == before:
        pytest.skip("this filesystem reads from no disk")
    assert start_of(file) is not None


def test_a_page_that_goes_just_before_it_is_read_is_not_waited_for(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def would_block(*_: object) -> int:
        raise BlockingIOError

    monkeypatch.setattr("os.preadv", would_block)
    assert start_of(file) is None


def test_the_access_time_stays(file: Path) -> None:
    os.utime(file, (1, 1))
    start_of(file)
    assert file.stat().st_atime == 1


def test_a_short_file_and_an_empty_one(folder: Path) -> None:
    short, empty = folder / "short", folder / "empty"
    short.write_bytes(b"abc")
    empty.touch()
    assert (start_of(short), start_of(empty)) == (b"abc", None)


def test_another_file_of_that_name_is_not_read(file: Path) -> None:
    assert start_of(file, inode=1) is None
    assert start_of(file, device=1) is None


def test_a_name_may_be_any_bytes(folder: Path) -> None:
    path = Path(os.fsdecode(bytes(folder) + b"/t_\xff\n"))
    save(path, (3,))
    assert start_of(path) is not None


def test_no_link_is_followed(file: Path, folder: Path) -> None:
    link = folder / "link"
    link.symlink_to(file)
    assert start_of(link) is None
    assert start_of(link, inode=file.stat().st_ino) is None


def test_a_fifo_does_not_hold_us_up(folder: Path) -> None:
    fifo = folder / "fifo"
    os.mkfifo(fifo)
    assert start_of(fifo) is None


def test_a_file_that_is_gone_is_an_error(folder: Path) -> None:
    with pytest.raises(FileNotFoundError):
        cached_start(str(folder / "gone"), 1, 1)


def test_no_descriptor_stays_open(file: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = os.listdir("/proc/self/fd")
    start_of(file)
    start_of(file, inode=1)
    drop(file)
    start_of(file)
    monkeypatch.setattr(headers, "_read_cached", lambda fd: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        start_of(file)
    assert len(os.listdir("/proc/self/fd")) == len(before)


@pytest.mark.parametrize("shape", [(), (7,), (50272, 768), (71, 48, 64), (1, 2, 3, 4)])
@pytest.mark.parametrize("mapped", [False, True])
def test_the_shape_of_an_array_as_flexgen_writes_it(folder: Path, shape: tuple[int, ...], mapped: bool) -> None:
    path = folder / "t_1"
    if mapped and shape:
        np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=shape)
    else:
        save(path, shape)
    assert npy_shape(path.read_bytes()[:LENGTH]) == shape


def test_later_versions_of_the_header(folder: Path) -> None:
    for version in ((2, 0), (3, 0)):
        with (folder / "a").open("wb") as stream:
            np.lib.format.write_array(stream, np.ones((2, 3)), version=version)
        assert npy_shape((folder / "a").read_bytes()[:LENGTH]) == (2, 3)


@pytest.mark.parametrize(
    "start",
    [
        b"",
        b"\0" * LENGTH,
        b"'shape': (1, 2)",
        b"\x93NUMPY",
        b"\x93NUMPY\x01\x00v\x00{'descr': '<f2'}",
        b"\x93NUMPY\x01\x00v\x00{'shape': (" + b"9" * 300,
        b"\x93NUMPY\x01\x00v\x00{'shape': (1; 2)}",
    ],
)
def test_what_is_no_header_has_no_shape(start: bytes) -> None:
    assert npy_shape(start) is None
