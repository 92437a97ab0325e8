"""The shipped unit where a kernel hides its types: with deploy/bcc.conf BCC compiles in what is left of the sandbox."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.live.harness import run
from tests.live.system import Volume
from tests.vm.guest.service import installed_service, logged, scrape, shown
from tests.vm.guest.test_systemd import BLOCK, READ, READS, WRITES, WRITTEN, play, served

pytestmark = pytest.mark.guest("systemd-no-btf")

SYS_PTRACE, BPF = 1 << 19, 1 << 39
ROUNDS = 3
SOON = 5.0
"""Seconds in which the daemon has surely read what was done."""


def counted(device: str) -> dict[tuple[str, ...], float]:
    time.sleep(SOON)
    return {key: size for key, (_, size) in served(device).items()}


@pytest.fixture(autouse=True)
def nothing_stays_attached() -> None:
    """In place of the live tests': the service is looked after when it has gone."""


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with installed_service(tmp_path_factory.mktemp("pip"), ["bcc.conf"]) as name:
        yield name


def test_a_service_by_way_of_bcc_counts_and_then_holds_no_more_rights_than_any(
    service: str, ext4_volume: Volume
) -> None:
    assert 'loader="bcc"' in scrape()
    assert "the app's view is missing, this user gets no perf events" in logged(service)  # as Debian's kernels have it
    once = {READ: READS * BLOCK, WRITTEN: WRITES * BLOCK}
    play(ext4_volume)
    for _ in range(ROUNDS):
        if counted(ext4_volume.disk.device) == once:
            break
        run("systemctl", "restart", service)  # the kernel skipped a program, as it does since 7.0 (docs/kernel.md)
        play(ext4_volume)
    run("systemctl", "reload", service)
    assert counted(ext4_volume.disk.device) == once
    status = Path(f"/proc/{shown(service, 'MainPID')}/status").read_text()
    held = int(dict(re.findall(r"^(\w+):\t(.*)$", status, re.MULTILINE))["CapPrm"], 16)
    assert held & ~BPF == SYS_PTRACE
