"""What the probe needs of the host: a missing library is named with its package; the table fits the disks."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest

from llmio_probe.errors import ProbeError
from llmio_probe.kernel.atomics import Atomics
from llmio_probe.kernel.libbpf import Libbpf
from llmio_probe.kernel.libraries import load
from llmio_probe.kernel.probe import request_entries


def test_a_missing_libbpf_names_the_package() -> None:
    with pytest.raises(ProbeError, match=r"^no-such-library\.so\.1 cannot be loaded: .* libbpf1 "):
        Libbpf("no-such-library.so.1")


def test_a_library_that_is_no_libbpf_is_called_too_old() -> None:
    with pytest.raises(ProbeError, match=r"older than 1\.0, it lacks libbpf_set_print: install a newer libbpf"):
        Libbpf("libc.so.6")


def test_a_missing_libatomic_names_the_package() -> None:
    with pytest.raises(ProbeError, match=r"^no-such-library\.so\.1 cannot be loaded: .* libatomic1 "):
        Atomics("no-such-library.so.1")


def test_what_is_stored_is_loaded(atomics: Atomics) -> None:
    word = ctypes.c_uint64(5)
    address = ctypes.addressof(word)
    assert atomics.load_acquire(address) == 5
    atomics.store_release(address, (1 << 64) - 1)
    atomics.fence_acquire()
    assert atomics.load_acquire(address) == word.value == (1 << 64) - 1


def disk(sys_root: Path, name: str, requests: str | None, queues: int = 0) -> None:
    queue = sys_root / "block" / name / "queue"
    queue.mkdir(parents=True)
    if requests is not None:
        (queue / "nr_requests").write_text(requests)
    for number in range(queues):
        (queue.parent / "mq" / str(number)).mkdir(parents=True)


@pytest.mark.parametrize(
    ("disks", "cpus", "entries"),
    [
        ({}, 1, 4096),
        ({}, 32, 512 * 32),
        ({"nvme0n1": ("1023\n", 16)}, 8, 2 * 16 * 1023),
        ({"nvme0n1": ("1023\n", 16), "sda": ("64\n", 1), "loop0": ("128\n", 0)}, 8, 2 * (16 * 1023 + 64 + 128)),
        ({"nvme0n1": ("1023\n", 128), "nvme1n1": ("1023\n", 128)}, 128, 1 << 17),
        ({"dm-0": (None, 0), "md0": ("what?\n", 4)}, 2, 4096),
    ],
)
def test_there_is_room_for_every_request_of_the_host_within_bounds(
    tmp_path: Path, disks: dict[str, tuple[str | None, int]], cpus: int, entries: int
) -> None:
    for name, (requests, queues) in disks.items():
        disk(tmp_path, name, requests, queues)
    assert request_entries(tmp_path, cpus) == entries


# What the wheel brings


def test_the_systems_library_comes_before_the_wheels(tmp_path: Path) -> None:
    (tmp_path / "libc.so.6").write_text("no library")
    assert load("libc.so.6", ctypes.CDLL, tmp_path)._name == "libc.so.6"


def test_where_the_system_has_none_the_wheels_is_taken_and_what_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = next(line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "/libc.so.6" in line)
    for name in ("no-such-library.so.1", "what-it-needs.so.1"):
        (tmp_path / name).symlink_to(path)
    monkeypatch.setattr("llmio_probe.kernel.libraries.NEEDS", {"no-such-library.so.1": ("what-it-needs.so.1",)})
    assert load("no-such-library.so.1", ctypes.PyDLL, tmp_path)._name == f"{tmp_path}/no-such-library.so.1"
    (tmp_path / "what-it-needs.so.1").unlink()
    with pytest.raises(OSError, match=r"what-it-needs\.so\.1"):
        load("no-such-library.so.1", ctypes.PyDLL, tmp_path)


def test_where_neither_has_one_it_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"no-such-library\.so\.1"):
        load("no-such-library.so.1", ctypes.CDLL, tmp_path)
