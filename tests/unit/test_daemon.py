"""The exporter over a made-up host and a probe that only pretends: what a scrape is given, and who looks it up."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from llmio_probe import daemon
from llmio_probe.config import DaemonConfig
from llmio_probe.daemon import Exporter
from llmio_probe.identity.devices import Devices
from llmio_probe.kernel.records import REQUEST, Batch, Op
from llmio_probe.kernel.state import DeviceCounts, Losses, ProbeState
from llmio_probe.outputs.prometheus import exposition
from llmio_probe.systemd import Manager

LOOP, NVME, RETURNED = 7 << 20, 259 << 20, 259 << 20 | 3


class PretendedProbe:
    """Each pass brings what a test has put in."""

    loader = "core"

    def __init__(self) -> None:
        self.batch = Batch()
        self.started: dict[int, int] = {}

    def read_of(self, *devices: int) -> None:
        """4,096 bytes from each."""
        records = np.zeros(len(devices), REQUEST)
        records["device"], records["op"] = devices, Op.READ
        records["bytes"] = records["request_bytes"] = 4096
        self.batch = Batch(requests=records)
        for device in devices:
            self.started[device] = self.started.get(device, 0) + 1

    def read(self) -> Batch:
        batch, self.batch = self.batch, Batch()
        return batch

    def state(self) -> ProbeState:
        counts = [DeviceCounts(device, n, n, 0, 0, 0, 0, 0, {}) for device, n in self.started.items()]
        return ProbeState(counts, Losses(0, 0, 0, {}), {}, {})


class Host:
    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "proc/1").mkdir(parents=True)
        (root / "proc/1/mountinfo").write_text(
            "27 1 259:2 / / rw - ext4 /dev/nvme0n1p2 rw\n28 27 0:25 / /dev/shm rw - tmpfs tmpfs rw\n"
        )

    def disk(self, name: str, numbers: str, backing: str | None = None) -> None:
        folder = self.root / "sys/devices" / name
        (folder / "loop").mkdir(parents=True)
        for file, text in (("dev", numbers), ("size", "8"), ("loop/backing_file", backing)):
            if text is not None:
                (folder / file).write_text(f"{text}\n")
        for link in (f"block/{name}", f"class/block/{name}", f"dev/block/{numbers}"):
            (self.root / "sys" / link).parent.mkdir(parents=True, exist_ok=True)
            (self.root / "sys" / link).symlink_to(folder)

    def end(self, what: str) -> None:
        shutil.rmtree(self.root / what)


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


@pytest.fixture
def probe() -> PretendedProbe:
    return PretendedProbe()


MakeExporter = Callable[..., Exporter]


@pytest.fixture
def make_exporter(host: Host, probe: Any, monkeypatch: pytest.MonkeyPatch) -> MakeExporter:
    def make(**config: Any) -> Exporter:
        devices = Devices(str(host.root / "sys"), str(host.root / "proc"), host="1")
        monkeypatch.setattr(daemon, "Devices", lambda host: devices)
        nobody: Any = None
        return Exporter("", DaemonConfig(**config), probe, nobody, nobody)

    return make


def scraped(exporter: Exporter) -> CollectorRegistry:
    return exposition(lambda: exporter._snapshot)


def test_a_scrape_looks_nothing_up(host: Host, probe: PretendedProbe, make_exporter: MakeExporter) -> None:
    """Its thread may not be shown PID 1's mounts: a loop device on tmpfs would turn into one on a disk."""
    host.disk("loop0", "7:0", "/dev/shm/image")
    exporter = make_exporter()
    host.disk("nvme0n1", "259:0")
    probe.read_of(LOOP, NVME)
    exporter._pipeline.run()
    exporter._renew()
    host.end("sys")
    host.end("proc")
    value = scraped(exporter).get_sample_value
    assert value("llmio_device_info", {"device": "loop0", "layer": "disk"}) == 1
    assert value("llmio_device_info", {"device": "nvme0n1", "layer": "disk"}) == 1, "come since the last sweep"
    assert value("llmio_attributed_bytes_total", {"kind": "unknown"}) == 8192


def test_a_disk_that_is_gone_before_the_first_scrape_has_its_name(
    host: Host, probe: PretendedProbe, make_exporter: MakeExporter
) -> None:
    host.disk("nvme0n1", "259:0")
    exporter = make_exporter()
    host.end("sys")
    probe.read_of(NVME)
    exporter._pipeline.run()
    exporter._renew()
    assert scraped(exporter).get_sample_value("llmio_requests_started_total", {"device": "nvme0n1"}) == 1


def test_a_disk_to_count_that_comes_back_with_another_dev_t_counts_from_then_on(
    host: Host, probe: PretendedProbe, make_exporter: MakeExporter, caplog: pytest.LogCaptureFixture
) -> None:
    host.disk("nvme0n1", "259:0")
    exporter = make_exporter(devices=("nvme0n1",))
    probe.read_of(NVME)
    exporter._pipeline.run()
    host.end("sys")
    exporter._look_at_devices()
    assert caplog.messages == ["of the devices to count these are not there: nvme0n1"]
    host.disk("nvme1n1", "259:0")
    host.disk("nvme0n1", "259:3")
    exporter._look_at_devices()
    probe.read_of(NVME, RETURNED, RETURNED)
    exporter._pipeline.run()
    exporter._renew()
    for metric, expected in (("llmio_bytes_total", 3 * 4096), ("llmio_requests_started_total", 3)):
        found = [s for f in scraped(exporter).collect() for s in f.samples if s.name == metric]
        assert [(s.labels["device"], s.value) for s in found] == [("nvme0n1", expected)]


def test_disks_that_swap_their_dev_t_move_no_counter_to_another_name(
    host: Host, probe: PretendedProbe, make_exporter: MakeExporter
) -> None:
    host.disk("nvme0n1", "259:0")
    host.disk("nvme1n1", "259:3")
    exporter = make_exporter()
    probe.read_of(NVME, RETURNED, RETURNED)
    exporter._pipeline.run()
    host.end("sys")
    host.disk("nvme0n1", "259:3")
    host.disk("nvme1n1", "259:0")
    exporter._look_at_devices()
    probe.read_of(NVME)
    exporter._pipeline.run()
    exporter._renew()
    for metric in ("llmio_requests_total", "llmio_requests_started_total", "llmio_request_size_bytes_count"):
        found = [s for f in scraped(exporter).collect() for s in f.samples if s.name == metric]
        assert {s.labels["device"]: s.value for s in found} == {"nvme0n1": 1, "nvme1n1": 3}


class Passes:
    """Events that come without waiting: so many passes, then the end."""

    def __init__(self, passes: int) -> None:
        self.left = passes

    def wait(self, seconds: float) -> None:
        pass

    def signals(self) -> list[signal.Signals]:
        self.left -= 1
        return [signal.SIGTERM] if self.left < 0 else []


def test_who_asks_during_a_pass_is_shown_what_was_done_during_it(
    host: Host, probe: PretendedProbe, make_exporter: MakeExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.disk("nvme0n1", "259:0")
    exporter = make_exporter()
    read = probe.read

    def read_then_ask() -> Batch:
        batch = read()
        if not exporter._asked.is_set() and not exporter._answered.is_set():
            exporter._asked.set()
            probe.read_of(NVME)  # after the rings were read
        return batch

    nobody: Any = Passes(2)
    exporter._events, exporter._manager = nobody, Manager({})
    monkeypatch.setattr(probe, "read", read_then_ask)
    monkeypatch.setattr(probe, "give_back", lambda has_ended: None, raising=False)
    monkeypatch.setattr(probe, "shortages", list, raising=False)
    exporter._loop(nobody, None)
    assert exporter._answered.is_set()
    assert scraped(exporter).get_sample_value("llmio_attributed_bytes_total", {"kind": "unknown"}) == 4096
