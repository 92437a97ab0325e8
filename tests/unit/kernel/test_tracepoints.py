"""How tracepoints are found and attached to, with system calls that only pretend."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmio_probe.kernel import tracepoints
from llmio_probe.kernel.tracepoints import attach_tracepoint, tracepoint_ids

EVENT, PROGRAM = 417, 55
SET_BPF, ENABLE = 0x40042408, 0x2400  # linux/perf_event.h
FSOPEN, FSCONFIG, FSMOUNT = 430, 431, 432


class Kernel:
    """Notes the system calls; each gives what ``answers`` says, or an open descriptor."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.answers: dict[int, Callable[[], int]] = {}
        self.given: list[int] = []

    def __call__(self, number: int, *arguments: Any) -> int:
        self.calls.append((number, *arguments))
        if number == FSCONFIG:
            return 0
        fd = self.answers.get(number, lambda: os.open("/dev/null", os.O_RDONLY))()
        self.given.append(fd)
        return fd

    def open_descriptors(self) -> list[int]:
        return [fd for fd in self.given if fd >= 0 and Path(f"/proc/self/fd/{fd}").exists()]


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    kernel = Kernel()
    monkeypatch.setattr(tracepoints, "_syscall", lambda: kernel)
    return kernel


@pytest.fixture
def ioctls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    done: list[tuple[int, ...]] = []
    monkeypatch.setattr(fcntl, "ioctl", lambda *arguments: done.append(arguments))
    return done


def test_one_event_that_takes_no_samples_is_for_all_tasks(kernel: Kernel, ioctls: list[tuple[int, ...]]) -> None:
    os.close(attach_tracepoint(EVENT, PROGRAM))
    [(_, attributes, pid, cpu, group, flags)] = kernel.calls
    assert (pid, cpu, group, flags) == (-1, 0, -1, 8)  # PERF_FLAG_FD_CLOEXEC
    assert len(attributes) == 112
    kind, size, config, period, sample, form, bits = struct.unpack_from("=IIQQQQQ", attributes)
    assert (kind, size, config, period) == (2, 112, EVENT, 1)  # PERF_TYPE_TRACEPOINT
    assert (sample, form, bits) == (0, 0, 0)


def test_the_program_is_attached_before_the_event_is_enabled(kernel: Kernel, ioctls: list[tuple[int, ...]]) -> None:
    fd = attach_tracepoint(EVENT, PROGRAM)
    os.close(fd)
    assert ioctls == [(fd, SET_BPF, PROGRAM), (fd, ENABLE, 0)]


def test_what_the_kernel_refuses_leaves_nothing_open(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any) -> None:
        raise PermissionError(errno.EPERM, "no")

    monkeypatch.setattr(fcntl, "ioctl", refuse)
    with pytest.raises(PermissionError):
        attach_tracepoint(EVENT, PROGRAM)
    assert kernel.open_descriptors() == []
    ctypes.set_errno(errno.EACCES)
    kernel.answers = dict.fromkeys((298, 241), lambda: -1)
    with pytest.raises(PermissionError):
        attach_tracepoint(EVENT, PROGRAM)


@pytest.fixture
def tracefs(kernel: Kernel, tmp_path: Path) -> Path:
    """What is mounted, with one event."""
    folder = tmp_path / "events" / "syscalls" / "sys_enter_io_submit"
    folder.mkdir(parents=True)
    (folder / "id").write_text("417\n")
    kernel.answers[FSMOUNT] = lambda: os.open(tmp_path, os.O_RDONLY)
    return folder


def test_ids_come_from_a_tracefs_of_our_own(kernel: Kernel, tracefs: Path) -> None:
    names = ["syscalls/sys_enter_io_submit", "syscalls/sys_enter_nothing"]
    assert tracepoint_ids(names) == {"syscalls/sys_enter_io_submit": 417}
    assert [number for number, *_ in kernel.calls] == [FSOPEN, FSCONFIG, FSMOUNT]
    assert kernel.open_descriptors() == []


def test_whom_the_kernel_refuses_one_of_his_own_takes_the_mounted(
    kernel: Kernel, tracefs: Path, tmp_path: Path
) -> None:
    ctypes.set_errno(errno.EPERM)
    kernel.answers[FSOPEN] = lambda: -1
    assert tracepoint_ids(["syscalls/sys_enter_io_submit"], tmp_path) == {"syscalls/sys_enter_io_submit": 417}


def test_without_tracefs_nothing_stays_open(kernel: Kernel, tmp_path: Path) -> None:
    ctypes.set_errno(errno.EPERM)
    kernel.answers[FSMOUNT] = lambda: -1
    with pytest.raises(PermissionError):
        tracepoint_ids(["syscalls/sys_enter_io_submit"], tmp_path)
    assert kernel.open_descriptors() == []
