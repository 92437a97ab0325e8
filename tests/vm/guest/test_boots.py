"""That a guest is what the way it was booted says: else tests would pass for the wrong reason."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.live.harness import Disk

BTF = Path("/sys/kernel/btf/vmlinux")


@pytest.mark.guest
def test_the_disk_has_a_queue_for_each_processor(nvme_disks: Sequence[Disk]) -> None:
    assert os.cpu_count() == 2
    assert [disk.size for disk in nvme_disks] == [1 << 30, 4 << 30]
    for disk in nvme_disks:
        assert len(list(Path(f"/sys/block/{disk.device}/mq").iterdir())) == 2
    assert not hidden_paths()
    assert BTF.exists()


@pytest.mark.guest("multipath")
def test_with_multipath_a_hidden_path_carries_the_requests(nvme_disk: Disk) -> None:
    assert not list(Path(f"/sys/block/{nvme_disk.device}").glob("mq/*"))
    assert len(hidden_paths()) == 1


@pytest.mark.guest("no-btf")
def test_without_types_there_are_headers(nvme_disk: Disk) -> None:
    assert nvme_disk.path.is_block_device()
    assert not BTF.exists()
    assert Path(f"/lib/modules/{os.uname().release}/build/include").exists()


@pytest.mark.guest
@pytest.mark.parametrize("module", ["dm-crypt", "dm-mod", "null_blk", "raid1", "xfs"])
def test_what_the_kernel_has_as_modules_can_be_loaded(module: str) -> None:
    subprocess.run(["modprobe", module], check=True)


def hidden_paths() -> Sequence[Path]:
    return list(Path("/sys/block").glob("nvme*c*n*"))
