"""The order in which modules load, and their bytes."""

from __future__ import annotations

import lzma
from pathlib import Path

from tests.vm.modules import load_order, plain_bytes

DEPENDENCIES = """\
kernel/fs/ext4/ext4.ko.xz: kernel/fs/mbcache.ko.xz kernel/fs/jbd2/jbd2.ko.xz kernel/lib/crc16.ko.xz
kernel/fs/jbd2/jbd2.ko.xz: kernel/lib/crc16.ko.xz
kernel/lib/crc16.ko.xz:
kernel/fs/mbcache.ko.xz:
kernel/drivers/block/virtio_blk.ko.xz: kernel/drivers/virtio/virtio.ko.xz
kernel/drivers/virtio/virtio.ko.xz:
kernel/drivers/nvme/host/nvme-core.ko.xz:
""".splitlines()


def test_what_a_module_needs_loads_before_it_and_once() -> None:
    order = [Path(path).name for path in load_order(["virtio_blk", "ext4", "jbd2"], DEPENDENCIES)]
    assert order == [
        "virtio.ko.xz", "virtio_blk.ko.xz", "crc16.ko.xz", "jbd2.ko.xz", "mbcache.ko.xz", "ext4.ko.xz"
    ]  # fmt: skip


def test_a_module_that_is_not_there_is_built_in() -> None:
    assert load_order(["virtio_pci"], DEPENDENCIES) == []


def test_a_dash_and_an_underscore_are_the_same() -> None:
    assert load_order(["nvme_core"], DEPENDENCIES) == ["kernel/drivers/nvme/host/nvme-core.ko.xz"]


def test_compressed_modules_are_unpacked(tmp_path: Path) -> None:
    for name, content in {"a.ko": b"plain", "b.ko.xz": lzma.compress(b"packed")}.items():
        (tmp_path / name).write_bytes(content)
    assert [plain_bytes(tmp_path / name) for name in ("a.ko", "b.ko.xz")] == [b"plain", b"packed"]
