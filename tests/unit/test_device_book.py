"""A daemon's devices over a made-up sysfs whose disks come, go and swap their dev_t. No kernel, no root."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from llmio_probe.device_book import DeviceBook
from llmio_probe.errors import ProbeError
from llmio_probe.identity.devices import Devices
from llmio_probe.kernel.records import Op
from llmio_probe.kernel.state import DeviceCounts

A, B, C = (259 << 20 | minor for minor in (0, 5, 9))


class Host:
    """Its disks, and what the kernel counts of each dev_t: ten times as many starts as merges."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.started: dict[int, int] = {}
        self.asked = 0
        self.devices = Devices(str(root / "sys"), str(root / "proc"))

    def disks(self, **names: int) -> None:
        shutil.rmtree(self.root / "sys", ignore_errors=True)
        for name, dev in names.items():
            numbers = f"259:{dev & 0xFFFFF}"
            folder = self.root / "sys/devices" / name
            folder.mkdir(parents=True)
            (folder / "dev").write_text(f"{numbers}\n")
            (folder / "size").write_text("8\n")
            for link in (f"block/{name}", f"class/block/{name}", f"dev/block/{numbers}"):
                (self.root / "sys" / link).parent.mkdir(parents=True, exist_ok=True)
                (self.root / "sys" / link).symlink_to(folder)

    def start(self, dev: int, count: int) -> None:
        self.started[dev] = self.started.get(dev, 0) + count

    def counts(self) -> list[DeviceCounts]:
        self.asked += 1
        return [
            DeviceCounts(dev, n, n - n // 10 - 1, n // 10, 0, 0, 0, 0, {Op.READ: 1}) for dev, n in self.started.items()
        ]


@pytest.fixture
def host(tmp_path: Path) -> Host:
    host = Host(tmp_path)
    host.disks(nvme0n1=A, nvme1n1=B)
    return host


def started(host: Host, book: DeviceBook) -> dict[str, int]:
    """As Prometheus sees it: summed by name."""
    sums: dict[str, int] = {}
    for row in book.divided(host.counts()):
        name = host.devices.name(row.device)
        sums[name] = sums.get(name, 0) + row.started
        assert row.merged == row.started // 10
    return sums


def test_disks_that_swap_their_dev_t_keep_what_was_counted_under_their_name(host: Host) -> None:
    book = DeviceBook(host.devices, None)
    host.start(A, 100)
    host.start(B, 1000)
    assert not book.look(host.counts)
    assert started(host, book) == {"nvme0n1": 100, "nvme1n1": 1000}
    host.disks(nvme0n1=B, nvme1n1=A)
    assert book.look(host.counts)
    assert started(host, book) == {"nvme0n1": 100, "nvme1n1": 1000}
    host.start(A, 30)
    host.start(B, 50)
    assert started(host, book) == {"nvme0n1": 150, "nvme1n1": 1030}
    host.disks(nvme0n1=A, nvme1n1=B)  # and back
    assert book.look(host.counts)
    host.start(A, 10)
    assert started(host, book) == {"nvme0n1": 160, "nvme1n1": 1030}
    assert host.devices.renumbered() == {}


def test_what_is_in_flight_is_that_of_now(host: Host) -> None:
    book = DeviceBook(host.devices, None)
    host.start(A, 100)
    host.disks(nvme2n1=A)
    book.look(host.counts)
    found = {host.devices.name(row.device): row.in_flight for row in book.divided(host.counts())}
    assert found == {"nvme0n1": {}, "nvme2n1": {Op.READ: 1}}


def test_where_nothing_has_changed_the_kernel_is_not_asked(host: Host) -> None:
    book = DeviceBook(host.devices, ["nvme0n1"])
    host.asked = 0
    assert not book.look(host.counts)
    assert host.asked == 0


def test_a_chosen_disk_counts_again_when_it_comes_back_with_another_dev_t(host: Host) -> None:
    book = DeviceBook(host.devices, ["nvme0n1", "nvme1n1"])
    assert book.chosen == frozenset({A, B})
    host.start(A, 100)
    host.disks(nvme1n1=B)
    assert book.look(host.counts)
    assert (book.chosen, book.missing) == (frozenset({B}), ("nvme0n1",))
    assert started(host, book) == {"nvme0n1": 100}, "still shown"
    host.disks(nvme1n1=B, nvme0n1=C)
    assert book.look(host.counts)
    assert (book.chosen, book.missing) == (frozenset({B, C}), ())
    host.start(C, 10)
    assert started(host, book) == {"nvme0n1": 110}


def test_another_disk_with_a_chosen_ones_dev_t_does_not_count(host: Host) -> None:
    book = DeviceBook(host.devices, ["nvme0n1"])
    host.start(A, 100)
    host.disks(nvme2n1=A, nvme1n1=B)
    assert book.look(host.counts)
    assert (book.chosen, book.missing) == (frozenset(), ("nvme0n1",))
    host.start(A, 50)
    assert started(host, book) == {"nvme0n1": 100}


def test_a_name_that_does_not_exist_at_the_start_is_an_error(host: Host) -> None:
    with pytest.raises(ProbeError, match="there is no block device 'nvme7n1'; this host has nvme0n1, nvme1n1"):
        DeviceBook(host.devices, ["nvme0n1", "nvme7n1"])


def test_other_names_show_other_disks_but_take_nothing_from_a_name_that_stays(host: Host) -> None:
    book = DeviceBook(host.devices, ["nvme0n1", "nvme1n1"])
    host.start(A, 100)
    host.start(B, 1000)
    host.disks(nvme0n1=B, nvme1n1=A)
    book.look(host.counts)
    host.start(B, 20)
    book.use(["nvme0n1"], book.resolve(["nvme0n1"]))
    assert book.chosen == frozenset({B})
    assert started(host, book) == {"nvme0n1": 120}
    book.use(None, None)
    assert started(host, book) == {"nvme0n1": 120, "nvme1n1": 1000}
    book.use(["nvme1n1"], book.resolve(["nvme1n1"]))
    assert started(host, book) == {"nvme1n1": 1000}


def test_a_disk_that_was_there_at_the_start_has_its_name_when_it_is_gone(host: Host) -> None:
    book = DeviceBook(host.devices, None)
    host.disks()
    host.start(A, 1)
    assert started(host, book) == {"nvme0n1": 1}


def test_a_disk_that_came_since_the_last_look_has_its_name(host: Host) -> None:
    book = DeviceBook(host.devices, None)
    host.disks(nvme0n1=A, nvme1n1=B, nvme2n1=C)
    host.start(C, 1)
    book.divided(host.counts())
    assert host.devices.known().name(C) == "nvme2n1"
