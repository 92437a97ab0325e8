"""The trial whether programs can attach to functions: the kernel's answer counts, and nothing stays open."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from llmio_probe.kernel.functions import can_attach


class Kernel:
    """Stands in for libbpf: refuses what it is told to, and gives a descriptor otherwise."""

    def __init__(self, refused: str | None) -> None:
        self.refused = refused
        self.called: list[str] = []
        self.given: list[int] = []

    def number(self, name: str, *arguments: Any) -> int:
        self.called.append(name)
        if name == self.refused:
            raise PermissionError(errno.EPERM, "no")
        self.given.append(os.open("/dev/null", os.O_RDONLY))
        return self.given[-1]


@pytest.mark.parametrize(
    ("refused", "answer"), [(None, True), ("bpf_prog_load", False), ("bpf_raw_tracepoint_open", False)]
)
def test_the_kernels_answer_counts_and_nothing_stays_open(refused: str | None, answer: bool) -> None:
    kernel = Kernel(refused)
    assert can_attach(kernel, 1234) is answer  # type: ignore[arg-type]
    assert kernel.called[-1] == (refused or "bpf_raw_tracepoint_open")
    assert [fd for fd in kernel.given if Path(f"/proc/self/fd/{fd}").exists()] == []
