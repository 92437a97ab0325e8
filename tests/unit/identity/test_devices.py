"""Devices over a made-up sysfs: an NVMe disk with partitions, md, dm and loop devices."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from llmio_probe.errors import ProbeError
from llmio_probe.identity.devices import Devices
from tests.unit.identity.conftest import WriteTree

NVME, PARTITION, RAID, LOOP, CCISS = 259 << 20, 259 << 20 | 2, 9 << 20 | 127, 7 << 20, 104 << 20


@pytest.fixture
def root(write_tree: WriteTree) -> Path:
    files = {
        "proc/self/mountinfo": (
            "27 1 259:2 / / rw - ext4 /dev/nvme0n1p2 rw\n"
            "28 27 0:25 / /dev/shm rw - tmpfs tmpfs rw\n"
            "29 27 0:40 / /pool rw - btrfs /dev/sda rw\n"
            "30 27 0:41 / /share\\040one rw - nfs4 server:/x rw\n"
            "31 27 0:42 / /mnt rw - ext4 /dev/x rw\n"
            "32 31 0:43 / /mnt rw - tmpfs tmpfs rw\n"
        )
    }
    disks = {"nvme0n1": "259:0", "md127": "9:127", "loop0": "7:0", "loop1": "7:1", "cciss!c0d0": "104:0"}
    for name, numbers in disks.items():
        files[f"sys/devices/block/{name}/dev"] = f"{numbers}\n"
        files[f"sys/devices/block/{name}/size"] = "0\n" if name == "loop1" else "8\n"
        for link in (f"dev/block/{numbers}", f"class/block/{name}", f"block/{name}"):
            files[f"sys/{link}"] = f"-> {'../' * link.count('/')}devices/block/{name}"
    files["sys/devices/block/nvme0n1/nvme0n1p2/dev"] = "259:2\n"
    files["sys/devices/block/nvme0n1/nvme0n1p2/partition"] = "2\n"
    files["sys/dev/block/259:2"] = "-> ../../devices/block/nvme0n1/nvme0n1p2"
    files["sys/class/block/nvme0n1p2"] = "-> ../../devices/block/nvme0n1/nvme0n1p2"
    files["sys/devices/block/md127/slaves/nvme0n1"] = "-> ../../nvme0n1"
    files["dev/nvme0n1p2"] = ""
    files["dev/disk/by-id/nvme-X"] = "-> ../../nvme0n1p2"
    return write_tree(files)


@pytest.fixture
def devices(root: Path) -> Devices:
    return Devices(str(root / "sys"), str(root / "proc"))


@pytest.mark.parametrize(
    ("dev", "name"),
    [(NVME, "nvme0n1"), (PARTITION, "nvme0n1"), (RAID, "md127"), (CCISS, "cciss/c0d0"), (8 << 20 | 16, "8:16")],
)
def test_a_device_is_called_by_its_disk_or_by_its_numbers(devices: Devices, dev: int, name: str) -> None:
    assert devices.name(dev) == name


def test_a_queue_without_a_disk_has_an_unknown_device(devices: Devices) -> None:
    assert devices.name(0) == "unknown"


def test_name_and_layer_outlive_the_device(devices: Devices, root: Path) -> None:
    assert (devices.name(RAID), devices.layer(RAID)) == ("md127", "upper")
    shutil.rmtree(root / "sys")
    assert (devices.name(RAID), devices.layer(RAID)) == ("md127", "upper")


def test_a_disk_that_was_there_at_the_start_is_known_after_its_removal(devices: Devices, root: Path) -> None:
    devices.remember()
    shutil.rmtree(root / "sys")
    assert (devices.name(RAID), devices.layer(RAID)) == ("md127", "upper")


def test_a_device_that_appears_later_is_named_then(devices: Devices, root: Path) -> None:
    dev = 8 << 20
    assert devices.name(dev) == "8:0"
    (root / "sys/dev/block/8:0").symlink_to("../../devices/block/nvme0n1")
    assert devices.name(dev) == "nvme0n1"


def test_a_disk_has_nothing_below_it_and_md_has(devices: Devices) -> None:
    assert devices.layer(NVME) == "disk"
    assert devices.layer(RAID) == "upper"
    assert devices.layer(8 << 20) == "disk"


@pytest.mark.parametrize(
    ("backing", "layer"),
    [
        ("/var/image", "upper"),
        ("/var/image (deleted)", "upper"),
        ("/dev/shm/image", "disk"),
        ("/pool/image", "upper"),
        ("/poolside", "upper"),
        ("/share one/image", "disk"),
        ("/mnt/image", "disk"),
    ],
    ids=["ext4", "deleted", "tmpfs", "btrfs", "a longer name", "nfs", "the later mount hides the earlier"],
)
def test_a_loop_device_is_stacked_where_its_file_lies_on_a_disk(
    devices: Devices, write_tree: WriteTree, backing: str, layer: str
) -> None:
    write_tree({"sys/devices/block/loop0/loop/backing_file": f"{backing}\n"})
    assert devices.layer(LOOP) == layer


def test_a_loop_device_whose_file_is_gone_stays_what_it_was(
    devices: Devices, root: Path, write_tree: WriteTree
) -> None:
    write_tree({"sys/devices/block/loop0/loop/backing_file": "/dev/shm/image\n"})
    devices.remember()
    write_tree({"sys/devices/block/loop0/size": "0\n"})
    shutil.rmtree(root / "sys/devices/block/loop0/loop")
    devices.remember()
    assert devices.layer(LOOP) == "disk"


def test_a_loop_device_that_was_never_seen_with_a_file_is_taken_for_stacked(devices: Devices) -> None:
    assert devices.layer(LOOP) == "upper"


def test_what_is_known_stays_as_it_was_and_needs_neither_sys_nor_proc(
    devices: Devices, root: Path, write_tree: WriteTree
) -> None:
    """A thread without rights is not shown PID 1's mounts: it must not come to another result."""
    write_tree({"sys/devices/block/loop0/loop/backing_file": "/dev/shm/image\n"})
    devices.remember()
    known = devices.known()
    write_tree({"sys/devices/block/loop0/loop/backing_file": "/var/image\n"})
    shutil.rmtree(root / "proc")
    devices.remember()
    shutil.rmtree(root / "sys")
    named = (NVME, RAID, LOOP, PARTITION, 0)
    assert [known.name(dev) for dev in named] == ["nvme0n1", "md127", "loop0", "259:2", "unknown"]
    assert [known.layer(dev) for dev in named] == ["disk", "upper", "disk", "disk", "disk"]


def rename(root: Path, name: str, new: str) -> None:
    (root / "sys/devices/block" / name).rename(root / "sys/devices/block" / new)
    (root / "sys/block" / name).unlink()
    (root / "sys/block" / new).symlink_to(f"../devices/block/{new}")
    numbers = (root / "sys/devices/block" / new / "dev").read_text().strip()
    (root / "sys/dev/block" / numbers).unlink()
    (root / "sys/dev/block" / numbers).symlink_to(f"../../devices/block/{new}")


def test_a_dev_t_that_is_another_disk_now_has_another_number_for_it(devices: Devices, root: Path) -> None:
    devices.remember()
    assert (devices.number(NVME), devices.renumbered()) == (NVME, {})
    rename(root, "nvme0n1", "nvme1n1")
    devices.remember()
    number = devices.number(NVME)
    assert devices.renumbered() == {NVME: number}
    assert (devices.name(NVME), devices.name(number)) == ("nvme0n1", "nvme1n1")
    rename(root, "nvme1n1", "nvme0n1")
    devices.remember()
    assert (devices.number(NVME), devices.renumbered()) == (NVME, {})
    rename(root, "nvme0n1", "nvme1n1")
    devices.remember()
    assert devices.number(NVME) == number, "the same as last time"


def test_a_loop_device_with_another_file_has_another_number_where_it_was_a_disk(
    devices: Devices, write_tree: WriteTree
) -> None:
    """The bytes of before must stay in the totals that they are in."""
    write_tree({"sys/devices/block/loop0/loop/backing_file": "/dev/shm/image\n"})
    devices.remember()
    write_tree({"sys/devices/block/loop0/loop/backing_file": "/var/image\n"})
    devices.remember()
    number = devices.number(LOOP)
    assert number != LOOP
    known = devices.known()
    assert [(known.name(n), known.layer(n), known.layer_now(n)) for n in (LOOP, number)] == [
        ("loop0", "disk", "upper"),
        ("loop0", "upper", "upper"),
    ]


def test_numbers_of_their_own_are_no_dev_t_and_told_apart(devices: Devices, root: Path) -> None:
    devices.remember()
    for name in ("nvme0n1", "md127", "cciss!c0d0"):
        rename(root, name, f"new-{name}")
    devices.remember()
    numbers = set(devices.renumbered().values())
    assert len(numbers) == 3
    assert {devices.name(number) for number in numbers} == {"new-nvme0n1", "new-md127", "new-cciss/c0d0"}
    assert all(number >> 20 == 4095 for number in numbers)


def test_who_was_gone_before_anybody_looked_keeps_its_counts_from_who_gets_its_dev_t(
    devices: Devices, root: Path
) -> None:
    dev = 8 << 20
    assert devices.number(dev) == dev
    assert (devices.name(dev), devices.layer(dev)) == ("8:0", "disk")
    (root / "sys/dev/block/8:0").symlink_to("../../devices/block/nvme0n1")
    devices._look(dev)
    number = devices.number(dev)
    assert number != dev
    assert devices.renumbered() == {dev: number}
    assert (devices.name(dev), devices.name(number)) == ("8:0", "nvme0n1")


def test_an_unknown_device_stands_for_itself(devices: Devices) -> None:
    assert (devices.number(8 << 20), devices.number(0)) == (8 << 20, 0)


def test_the_mounts_are_those_of_the_host(root: Path, write_tree: WriteTree) -> None:
    """A service's own show it another filesystem there, such as with ProtectHome=."""
    write_tree(
        {
            "proc/1/mountinfo": "27 1 259:2 / / rw - ext4 /dev/nvme0n1p2 rw\n",
            "sys/devices/block/loop0/loop/backing_file": "/dev/shm/image\n",
        }
    )
    assert Devices(str(root / "sys"), str(root / "proc"), host="1").layer(LOOP) == "upper"


@pytest.mark.parametrize("text", ["nvme0n1", "/dev/nvme0n1", "/dev/nvme0n1p2", "nvme0n1p2"])
def test_a_user_may_name_the_disk_or_a_partition(devices: Devices, text: str) -> None:
    assert devices.resolve(text) == NVME


def test_a_user_may_name_a_link(devices: Devices, root: Path) -> None:
    assert devices.resolve(str(root / "dev/disk/by-id/nvme-X")) == NVME


def test_a_name_with_a_slash_is_found(devices: Devices) -> None:
    assert devices.resolve("cciss/c0d0") == CCISS
    assert devices.resolve("/dev/cciss/c0d0") == CCISS


@pytest.mark.parametrize("text", ["sdz", "/dev/sdz", "", "..", "/", "a\0b"])
def test_an_unknown_device_is_refused_with_those_there_are(devices: Devices, text: str) -> None:
    with pytest.raises(ProbeError, match=r"this host has cciss/c0d0, loop0, md127, nvme0n1$"):
        devices.resolve(text)


def test_a_disks_and_a_partitions_node_is_the_one_that_the_kernel_makes(
    devices: Devices, root: Path, write_tree: WriteTree
) -> None:
    write_tree(
        {
            "sys/devices/block/nvme0n1/uevent": "MAJOR=259\nMINOR=0\nDEVNAME=nvme0n1\nDEVTYPE=disk\n",
            "sys/devices/block/nvme0n1/nvme0n1p2/uevent": "MAJOR=259\nMINOR=2\nDEVNAME=nvme0n1p2\nPARTN=2\n",
            "sys/devices/block/cciss!c0d0/uevent": "MAJOR=104\nMINOR=0\n",
        }
    )
    found = [devices.path(dev) for dev in (NVME, PARTITION, CCISS, 8 << 20)]
    assert found == ["/dev/nvme0n1", "/dev/nvme0n1p2", "/dev/cciss/c0d0", None]
    write_tree({"sys/devices/block/nvme0n1/nvme0n1p2/uevent": "DEVNAME=nvme1n1p1\n"})
    assert devices.path(PARTITION) == "/dev/nvme1n1p1"
    shutil.rmtree(root / "sys")
    assert devices.path(PARTITION) == "/dev/nvme1n1p1"
