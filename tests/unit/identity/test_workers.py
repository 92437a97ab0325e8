"""Slots and names, without any process."""

from __future__ import annotations

import pytest

from llmio_probe.identity.workers import Slot, SlotKey, Slots, kernel_name, plain_name


def flexgen(cgroup: str | None = "a") -> SlotKey:
    return SlotKey("flexgen", "flexgen", None, cgroup)


def fio(cgroup: str | None = "a") -> SlotKey:
    return SlotKey("fio", None, None, cgroup)


def occupied(slot: Slot) -> bool:
    return False


def vacant(slot: Slot) -> bool:
    return True


def test_a_taken_name_gives_the_lowest_free_number() -> None:
    slots = Slots()
    opened = [slots.open(flexgen(cgroup)) for cgroup in "abc"]
    assert [slot.worker for slot in opened] == ["flexgen", "flexgen#2", "flexgen#3"]
    slots.close(opened[1])
    assert slots.open(flexgen("d")).worker == "flexgen#2"
    assert len(slots) == 3


def test_a_frameworks_slot_is_joined_only_when_vacant() -> None:
    slots = Slots()
    slot = slots.open(flexgen())
    assert slots.join(flexgen(), occupied) is None
    assert slots.join(flexgen(), vacant) is slot
    assert slots.join(flexgen("b"), vacant) is None


def test_a_plain_commands_slot_has_room_for_all_of_its_cgroup() -> None:
    slots = Slots()
    slot = slots.open(fio())
    assert slots.join(fio(), occupied) is slot
    assert slots.join(fio("b"), occupied) is None


def test_a_closed_slot_is_not_joined() -> None:
    slots = Slots()
    slots.close(slots.open(fio()))
    assert slots.join(fio(), vacant) is None
    assert list(slots) == []


@pytest.mark.parametrize(
    ("argv0", "comm", "name"),
    [
        ("/usr/bin/fio", "fio", "fio"),
        ("-bash", "bash", "bash"),
        ("postgres: writer /x", "postgres", "postgres"),
        ("sshd:", "sshd", "sshd"),
        ("", "cp", "cp"),
        ("/", "cp", "cp"),
        ("", "", None),
        (" ", "\x20", None),
        ("unknown", "x", "process:unknown"),
        ("./other", "x", "process:other"),
        (" other ", "x", "process:other"),
        ("", "kernel:flush", "process:kernel:flush"),
        ("kernel:kworker", "x", "process:kernel:kworker"),
        ("otherwise", "x", "otherwise"),
        ("kernelshark", "x", "kernelshark"),
        ("a\x1b[2J\nb", "x", r"a\x1b[2J\x0ab"),
        ("a\udcff", "x", r"a\xff"),
        ("x" * 1000, "x", "x" * 64),
    ],
)
def test_a_plain_command_is_called_by_its_executable_and_never_a_reserved_name(
    argv0: str, comm: str, name: str | None
) -> None:
    assert plain_name(argv0, comm) == name


@pytest.mark.parametrize(
    ("comm", "name"),
    [
        ("kworker/u8:1-flush-254:0", "kernel:kworker"),
        ("kworker/0:1H", "kernel:kworker"),
        ("jbd2/vda-8", "kernel:jbd2"),
        ("jbd2/dm-0-8", "kernel:jbd2"),
        ("loop0", "kernel:loop"),
        ("kswapd0", "kernel:kswapd"),
        ("kcompactd1", "kernel:kcompactd"),
        ("xfsaild/vda1", "kernel:xfsaild"),
        ("xfs-buf/vda1", "kernel:xfs-buf"),
        ("md0_raid1", "kernel:md_raid1"),
        ("md127_raid10", "kernel:md_raid10"),
        ("dmcrypt_write/253:0", "kernel:dmcrypt_write"),
        ("f2fs_gc-8:16", "kernel:f2fs_gc"),
        ("btrfs-transaction", "kernel:btrfs-transaction"),
        ("btrfs-cleaner", "kernel:btrfs-cleaner"),
        ("scsi_eh_12", "kernel:scsi_eh"),
        ("kthreadd", "kernel:kthreadd"),
        ("z\x07", r"kernel:z\x07"),
        ("", "kernel:other"),
        ("/0", "kernel:other"),
    ],
)
def test_kernel_threads_of_a_kind_share_a_name(comm: str, name: str) -> None:
    assert kernel_name(comm) == name
