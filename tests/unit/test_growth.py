"""A daemon runs for months: with workers coming and going all day, nothing that it keeps grows.

The daemon's rooms as they are put together there, fed by hand; sizes of what they hold, not the memory of a process.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llmio_probe.aggregate.rows import RequestDistributions, Stream
from llmio_probe.aggregate.series import Series
from llmio_probe.config import DaemonConfig
from llmio_probe.daemon import rooms
from llmio_probe.identity.devices import Devices
from llmio_probe.identity.files import Files
from llmio_probe.identity.frameworks import builtin_rules
from llmio_probe.identity.mounts import Mounts
from llmio_probe.identity.owners import Identity
from llmio_probe.identity.role_rules import builtin_role_rules
from llmio_probe.identity.roles import RoleBook
from llmio_probe.kernel.records import Batch, Engine, FileSight, Op, Records
from llmio_probe.pipeline import Pipeline
from tests.singly import add_requests
from tests.unit.identity.conftest import TICK_NS, Host, announced, requests, start_ns

NVME = 259 << 20
WORKERS = 200
GRACE = 10.0
FILES = 60
MOST_SERIES = 1500
"""Far fewer than these workers would have."""
PIDS = range(1000, 5000)


class Daemon:
    """One pass a simulated second; in each, ten workers end and ten others begin, with pids that come round."""

    def __init__(self, folder: Path) -> None:
        (folder / "self").mkdir()
        (folder / "self" / "mountinfo").write_text("22 1 259:0 / / rw - ext4 /dev/nvme0n1 rw\n")
        self._host = Host()
        self._random = np.random.default_rng(1)
        self._alive: list[int] = []
        self._started = 0
        self._batch = Batch()
        self.identity = Identity(
            self._host, builtin_rules(), self._host.clock, tick_ns=TICK_NS, per_process=False, limit=24, grace=GRACE
        )
        self.files = Files(Mounts(str(folder)), Devices(str(folder), str(folder)), limit=FILES)
        self.roles = RoleBook(
            builtin_role_rules(), self.files.files, self.identity.framework_of,
            undecided=False, clock=self._host.clock, read_header=None,
        )  # fmt: skip
        self.series = Series(
            detail=False, most_series=MOST_SERIES,
            preferred=lambda owner: self.identity.framework_of(owner) is not None,
        )  # fmt: skip
        self.pipeline = Pipeline(self, self.identity, self.files, self.roles, self.series)

    def read(self) -> Batch:
        return self._batch

    def run(self) -> None:
        self._host.now += 1
        while len(self._alive) > WORKERS - 10:
            self._host.end(self._alive.pop(int(self._random.integers(len(self._alive)))))
        new = []
        while len(self._alive) < WORKERS:
            pid = PIDS[self._started % len(PIDS)]
            self._started += 1
            argv = ("python3", "-m", "flexgen.flex_opt") if self._started % 2 else (f"job{self._started % 997}",)
            self._host.run(pid, *argv, start_ticks=self._started, cgroup=f"0::/job/{self._started}")
            self._alive.append(pid)
            new.append(pid)
        self._host.looks.clear()
        self._batch = Batch(self._requests(), processes=np.concatenate([self._announced(pid) for pid in new]),
                            files=self._sights())  # fmt: skip
        self.pipeline.run()
        ended = self.identity.expire()
        self.series.forget(ended)
        self.roles.forget(owners=ended)

    def _start(self, pid: int) -> int:
        return self._host.processes[pid].id.start_ticks

    def _announced(self, pid: int) -> Records:
        return announced(pid, self._host.processes[pid].comm, start_ticks=self._start(pid))

    def _requests(self) -> Records:
        """One of each worker; each too short to touch the one before it."""
        random = self._random
        records = requests(*self._alive)
        records["owner_start_ns"] = [start_ns(pid, self._start(pid)) for pid in self._alive]
        records["done_ns"] = int(self._host.now * 1e9) + np.arange(1, 1 + len(records)) * 1000
        records["issued_ns"] = records["made_ns"] = records["done_ns"] - 500
        records["device"] = records["file_device"] = NVME
        records["op"] = random.choice([Op.READ, Op.WRITE], len(records))
        records["engine"] = random.choice([Engine.POSIX, Engine.MMAP], len(records))
        records["inode"] = int(self._host.now) + random.integers(0, 10, len(records))
        records["bytes"] = records["request_bytes"] = random.integers(1, 256, len(records)) * 512
        return records

    def _sights(self) -> list[FileSight]:
        inode = int(self._host.now) + 9
        return [FileSight(NVME, inode, 0, NVME, 0, 0, 0, b"/nvme/t_%d" % inode, deleted=False, cut=False)]


def counters(daemon: Daemon) -> Counter[tuple[Any, ...]]:
    """What is shown of requests and their sizes."""
    found: Counter[tuple[Any, ...]] = Counter()
    for stream in daemon.series.streams():
        found[("requests", stream.owner, stream.op, stream.engine, stream.role)] += stream.requests
    for row in daemon.series.request_distributions():
        found[("sizes", row.owner, row.op, row.role)] += row.size_bytes.count
    return found


def sizes(thing: Any, seen: set[int], name: str = "") -> Iterator[tuple[str, int]]:
    """Of every container in it: how many elements, by its path."""
    if id(thing) in seen or isinstance(thing, (str, bytes, int, float, type(None), Host)):
        return
    seen.add(id(thing))
    if isinstance(thing, np.ndarray):
        yield name, thing.size
    elif isinstance(thing, (dict, list, tuple, set)):
        yield name, len(thing)
        for each in thing.values() if isinstance(thing, dict) else thing:
            yield from sizes(each, seen, f"{name}[]")
    elif type(thing).__module__.startswith("llmio_probe"):
        slots = getattr(thing, "__dict__", {})
        for key, each in slots.items():
            yield from sizes(each, seen, f"{name}.{key}")


def total_sizes(daemon: Daemon) -> dict[str, int]:
    totals: dict[str, int] = {}
    for name, size in sizes(daemon.pipeline, set()):
        totals[name] = totals.get(name, 0) + size
    return totals


def test_nothing_grows_while_workers_and_files_come_and_go(tmp_path: Path) -> None:
    passes = 1000
    daemon = Daemon(tmp_path)
    largest: list[dict[str, int]] = [{}, {}]
    for number in range(passes):
        daemon.run()
        if number % 7 == 0 and number >= passes // 4:
            half = largest[number >= passes * 5 // 8]
            for name, size in total_sizes(daemon).items():
                half[name] = max(half.get(name, 0), size)
    early, late = largest
    assert sum(early.values()) > 1000  # it looks where things are
    assert daemon.series.folded > 1000
    grown = {name: (early.get(name, 0), size) for name, size in late.items() if size > 1.2 * early.get(name, 0) + 50}
    assert grown == {}


def test_no_counter_falls_while_workers_come_and_go(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path)
    before: Counter[tuple[Any, ...]] = Counter()
    for _ in range(200):
        daemon.run()
        now = counters(daemon)
        assert not [labels for labels in before if labels[1] in daemon.identity.owners and now[labels] < before[labels]]
        before = now


def test_the_daemon_shows_as_many_series_as_it_is_told_to_and_frameworks_first(tmp_path: Path) -> None:
    """Room for some histograms of plain commands, which come first, and in the last quarter for one of a server."""
    (tmp_path / "self").mkdir()
    (tmp_path / "self" / "mountinfo").touch()
    host = Host()
    told = rooms(DaemonConfig(series=1000), host, Mounts(str(tmp_path)), Devices(str(tmp_path), str(tmp_path)))
    for pid in range(100, 112):
        host.run(pid, f"job{pid}")
    host.run(200, "python3", "-m", "flexgen.flex_opt")
    pids = [*range(100, 112), 200]
    records = requests(*pids)
    add_requests(told.series, records, told.identity.resolve(records))

    def workers(rows: Sequence[Stream | RequestDistributions]) -> set[str]:
        return {told.identity.owners[row.owner].worker for row in rows}

    everybody = {*(f"job{pid}" for pid in range(100, 112)), "flexgen"}
    assert workers(told.series.streams()) == everybody
    shown = workers(told.series.request_distributions())
    assert {"flexgen", "other"} < shown < everybody | {"other"}
