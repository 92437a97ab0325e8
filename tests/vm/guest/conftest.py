"""For tests that only make sense in a guest: the emulated NVMe disk, and what the live tests have.

On any other machine they are skipped with the reason; in a guest a test that is skipped does not apply to its kernel.
A module says in which guests it runs: `pytestmark = pytest.mark.guest` or `pytest.mark.guest("multipath")`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.live.conftest import (  # noqa: F401
    ext4_volume,
    live,
    loop_disk,
    nothing_stays_attached,
    observe,
    played,
)
from tests.live.harness import Disk

SETTINGS = Path("/run/guest/settings")


def pytest_runtest_setup(item: pytest.Item) -> None:
    if not SETTINGS.exists():
        pytest.skip("only in a guest: make test-vm")


@pytest.fixture(scope="session")
def nvme_disks() -> Sequence[Disk]:
    """All namespaces of the emulated disk; the default boot's second one keeps nothing and is fast."""
    return [_disk(Path(node)) for node in os.environ["NVME_ALL"].split()]


@pytest.fixture(scope="session")
def nvme_disk(nvme_disks: Sequence[Disk]) -> Disk:
    return nvme_disks[0]


def _disk(node: Path) -> Disk:
    sectors = int(Path(f"/sys/block/{node.name}/size").read_text())
    return Disk(node, node.name, sectors * 512)
