"""One pass takes what is there, filters devices, identifies before it counts, and says how long to wait."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmio_probe.aggregate.series import Series
from llmio_probe.identity.devices import Devices
from llmio_probe.identity.files import Files
from llmio_probe.identity.frameworks import builtin_rules
from llmio_probe.identity.mounts import Mounts
from llmio_probe.identity.owners import Identity
from llmio_probe.identity.role_rules import builtin_role_rules
from llmio_probe.identity.roles import RoleBook
from llmio_probe.kernel.records import OVERFLOW, Batch, Engine, FileSight, Op, ProcessFlag, Records, RequestFlag
from llmio_probe.pipeline import LONGEST_WAIT, SHORTEST_WAIT, Pipeline
from tests.singly import add_requests
from tests.unit.identity.conftest import TICK_NS, Host, announced, calls, requests

NVME, SDA, SDB = 259 << 20, 8 << 20, 8 << 20 | 16


class HandSource:
    """Hands out what a test put in, then empty batches."""

    def __init__(self) -> None:
        self.batches: list[Batch] = []

    def read(self) -> Batch:
        return self.batches.pop(0) if self.batches else Batch()


@pytest.fixture
def source() -> HandSource:
    return HandSource()


@pytest.fixture
def host() -> Host:
    host = Host()
    host.run(5, "fio")
    return host


@pytest.fixture
def identity(host: Host) -> Identity:
    return Identity(host, builtin_rules(), host.clock, tick_ns=TICK_NS, per_process=True, limit=None)


@pytest.fixture
def series() -> Series:
    return Series(detail=True)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    (tmp_path / "self").mkdir()
    (tmp_path / "self" / "mountinfo").write_text("22 1 259:0 / / rw - ext4 /dev/nvme0n1 rw\n")
    return Files(Mounts(str(tmp_path)), Devices(str(tmp_path), str(tmp_path)))


@pytest.fixture
def roles(files: Files, identity: Identity) -> RoleBook:
    return RoleBook(
        builtin_role_rules(), files.files, identity.framework_of,
        undecided=True, clock=lambda: 0.0, read_header=None,
    )  # fmt: skip


@pytest.fixture
def pipeline(source: HandSource, identity: Identity, files: Files, roles: RoleBook, series: Series) -> Pipeline:
    return Pipeline(source, identity, files, roles, series)


def on(*devices: int) -> Records:
    records = requests(*[5] * len(devices))
    records["device"] = devices
    return records


def test_it_waits_longer_and_longer_while_there_is_nothing_and_shortest_under_load(
    pipeline: Pipeline, source: HandSource
) -> None:
    assert pipeline.wait == SHORTEST_WAIT == 0.5
    waits = []
    for _ in range(7):
        assert pipeline.run() == 0
        waits.append(pipeline.wait)
    assert waits == [1.0, 2.0, 4.0, 5.0, 5.0, 5.0, LONGEST_WAIT]
    source.batches = [Batch(requests=requests(5)), Batch(calls=calls(5))]
    assert (pipeline.run(), pipeline.wait) == (1, SHORTEST_WAIT)
    pipeline.run()
    assert pipeline.wait == SHORTEST_WAIT
    pipeline.run()
    assert pipeline.wait == 2 * SHORTEST_WAIT


def test_a_process_record_alone_is_no_load(pipeline: Pipeline, source: HandSource) -> None:
    source.batches = [Batch(processes=announced(5))]
    assert pipeline.run() == 0
    assert pipeline.wait == 2 * SHORTEST_WAIT


def test_records_are_counted_for_whom_they_belong_to(
    pipeline: Pipeline, source: HandSource, series: Series, identity: Identity
) -> None:
    source.batches = [Batch(requests(5, 5, 0), calls(5), announced(5, "fio", flags=ProcessFlag.FOLLOWED))]
    pipeline.run()
    found = {identity.owners[row.owner].worker: row.requests for row in series.streams()}
    assert found == {"fio": 2, "unknown": 1}
    assert [identity.owners[row.owner].worker for row in series.call_distributions()] == ["fio"]


def test_a_process_is_announced_before_its_requests_of_the_same_batch_are_counted(
    pipeline: Pipeline, source: HandSource, series: Series, identity: Identity, host: Host
) -> None:
    host.end(5)
    source.batches = [Batch(requests=requests(5), processes=announced(5, "dd"))]
    pipeline.run()
    assert [identity.owners[row.owner].worker for row in series.streams()] == ["dd"]


def test_only_the_devices_asked_for_are_counted(
    source: HandSource, identity: Identity, files: Files, roles: RoleBook, series: Series
) -> None:
    pipeline = Pipeline(source, identity, files, roles, series, devices={SDB, NVME})
    source.batches = [Batch(requests=on(NVME, SDA, SDB, SDA, NVME), calls=calls(5))]
    pipeline.run()
    assert {row.device: row.requests for row in series.streams()} == {NVME: 2, SDB: 1}
    assert {row.device for row in series.device_use()} == {NVME, SDB}


def test_what_the_filter_leaves_out_is_load_all_the_same(
    source: HandSource, identity: Identity, files: Files, roles: RoleBook, series: Series
) -> None:
    """It fills the rings, too: whoever reads them must not slow down."""
    pipeline = Pipeline(source, identity, files, roles, series, devices={NVME})
    source.batches = [Batch(requests=on(SDA, SDA))]
    assert pipeline.run() == 2
    assert (pipeline.wait, series.streams()) == (SHORTEST_WAIT, [])


def test_a_file_is_named_before_its_requests_of_the_same_batch_are_counted(
    pipeline: Pipeline, source: HandSource, series: Series, files: Files
) -> None:
    records = requests(5, 5)
    records["op"], records["request_bytes"], records["bytes"] = Op.READ, 4096, 4096
    records["file_device"], records["inode"], records["inode_generation"] = NVME, [7, 8], 1
    sight = FileSight(NVME, 7, 1, NVME, 5, 0, 1 << 20, b"/models/opt.safetensors", deleted=False, cut=False)
    source.batches = [Batch(requests=records, files=[sight])]
    pipeline.run()
    assert {files.files[row.file].path: row.read_bytes for row in series.file_use()} == {
        "/models/opt.safetensors": 4096,
        None: 4096,
    }
    assert {row.role: row.bytes for row in series.streams()} == {"weights": 4096, "other": 4096}


def test_many_batches_add_up(pipeline: Pipeline, source: HandSource, series: Series) -> None:
    source.batches = [Batch(requests=requests(*[5] * n)) for n in range(20)]
    total = sum(pipeline.run() for _ in range(20))
    (row,) = series.streams()
    assert total == row.requests == np.arange(20).sum()


@pytest.mark.parametrize("seed", range(4))
def test_counting_by_combination_gives_what_counting_each_record_gives(
    source: HandSource, host: Host, tmp_path: Path, seed: int
) -> None:
    """Workers come and restart, one of them FlexGen, whose files are told apart by their use; a session's detail."""

    def rooms(folder: Path) -> tuple[Identity, Files, RoleBook, Series]:
        (folder / "self").mkdir(parents=True)
        (folder / "self" / "mountinfo").write_text("22 1 259:0 / / rw - ext4 /dev/nvme0n1 rw\n")
        identity = Identity(host, builtin_rules(), host.clock, tick_ns=TICK_NS, per_process=True, limit=None)
        files = Files(Mounts(str(folder)), Devices(str(folder), str(folder)))
        roles = RoleBook(
            builtin_role_rules(), files.files, identity.framework_of,
            undecided=True, clock=lambda: 0.0, read_header=None,
        )  # fmt: skip
        return identity, files, roles, Series(detail=True)

    random = np.random.default_rng(seed)
    sights = [
        FileSight(NVME, inode, 1, NVME, 5, 0, 1 << 20, name, deleted=False, cut=False)
        for inode, name in enumerate((b"/nvme/a.safetensors", *(b"/nvme/t_%d" % n for n in range(7))), 1)
    ]
    host.run(6, "python3", "-m", "flexgen.flex_opt")
    singly, combined = rooms(tmp_path / "singly"), rooms(tmp_path / "combined")
    pipeline = Pipeline(source, *combined)
    for batch in range(6):
        records = traffic(random, 400, batch)
        if batch == 3:
            host.run(7, "python3", "-m", "flexgen.flex_opt")
        known = sights if batch else sights[:4]
        source.batches = [Batch(requests=records, files=known)]
        pipeline.run()
        identity, files, roles, series = singly
        files.observe(known)
        owners, indexes = identity.resolve(records), files.resolve(records)
        add_requests(series, records, owners, roles.resolve(records, owners, indexes), indexes)
    assert rows_of(*combined) == rows_of(*singly)
    assert {row.role for row in combined[-1].streams()} == {"weights", "kv_cache", "other"}


def traffic(random: np.random.Generator, count: int, batch: int) -> Records:
    records = requests(*random.choice([5, 6, 7, 0], count))
    done = (100 * batch + np.sort(random.integers(1, 100, count))) * 1_000_000_000
    records["done_ns"], records["issued_ns"] = done, done - random.integers(0, 9, count) * 100_000_000
    records["made_ns"] = records["issued_ns"] - random.integers(0, 5, count) * 1_000_000
    records["op"] = random.choice([Op.READ, Op.READ, Op.WRITE, Op.FLUSH], count)
    records["engine"] = random.choice([Engine.POSIX, Engine.MMAP], count)
    records["file_device"], records["inode_generation"] = NVME, 1
    records["inode"] = random.integers(0, 9, count)
    records["device"] = random.choice([NVME, SDA], count)
    records["bytes"] = records["request_bytes"] = random.choice([4096, 131072], count)
    records["flags"] = random.choice([0, 0, RequestFlag.SHARED], count)
    records["status"] = random.choice([0, 0, 10], count)
    part = random.random(count) < 0.1
    records["flags"][part] = RequestFlag.PART
    for name in ("made_ns", "issued_ns", "done_ns", "request_bytes", "status"):
        records[name][part] = 0
    return records


def rows_of(identity: Identity, files: Files, roles: RoleBook, series: Series) -> dict[str, list[Any]]:
    """As text, in an order of its own, with owners and files by name: their numbers differ from room to room."""
    series.settle_roles(roles.settle())

    def text(row: Any) -> str:
        fields = vars(row) | {"owner": identity.owners[row.owner].process} if hasattr(row, "owner") else vars(row)
        return repr(fields | {"file": files.files[row.file].inode} if hasattr(row, "file") else fields)

    rows: dict[str, Any] = {
        "streams": series.streams(), "distributions": series.request_distributions(), "errors": series.errors(),
        "files": series.file_use(), "devices": series.device_use(), "attributed": series.attributed_bytes(),
    }  # fmt: skip
    return {name: sorted(text(row) for row in found) for name, found in rows.items()}


def test_other_devices_count_from_then_on(pipeline: Pipeline, source: HandSource, series: Series) -> None:
    source.batches = [Batch(requests=on(NVME, SDA)) for _ in range(3)]
    pipeline.run()
    pipeline.choose({SDA})
    pipeline.run()
    pipeline.choose(None)
    pipeline.run()
    assert {row.device: row.requests for row in series.streams()} == {NVME: 2, SDA: 3}


def test_another_number_counts_from_then_on_and_choosing_goes_by_dev_t(
    pipeline: Pipeline, source: HandSource, series: Series
) -> None:
    other = 4095 << 20
    totals = np.zeros(2, OVERFLOW)
    totals["device"], totals["requests"] = [NVME, SDA], [100, 200]
    source.batches = [Batch(requests=on(NVME, SDA)), Batch(requests=on(NVME, SDA, NVME), overflow=totals)]
    pipeline.run()
    pipeline.choose({NVME})
    pipeline.renumber({NVME: other})
    pipeline.run()
    found: dict[int, int] = {}
    for row in series.streams():
        found[row.device] = found.get(row.device, 0) + row.requests
    assert found == {NVME: 1, SDA: 1, other: 102}
