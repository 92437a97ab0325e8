"""Kernel time a request where each is for a file on ext4, and kernel time a page of one that is dirtied."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tests.bench.load import load
from tests.bench.setting import Setting
from tests.bench.table import Figure, Goal, Row
from tests.bench.tools.ours import all_three, measured, open_probe, program_ns
from tests.live.harness import Disk
from tests.live.system import Volume, fill, volume_of

VOLUME_BYTES = 512 << 20
FILE_BYTES = 128 << 20
DIRTIED_BYTES = 64 << 20
PAGE = 4096
DIRTIED = "writeback_dirty_folio"


def file_cost(setting: Setting) -> Iterator[Row]:
    with volume_of("ext4", VOLUME_BYTES) as volume:
        yield from _requests(setting, volume)
        yield _pages(setting, volume.folder / "dirtied")


def _requests(setting: Setting, volume: Volume) -> Iterator[Row]:
    """Direct reads."""
    effort, biolatency = setting.effort, setting.biolatency
    file = Disk(volume.folder / "file", volume.disk.device, FILE_BYTES)
    fill(file.path, FILE_BYTES)
    ours, theirs = [], []
    with load(file) as running:
        for _ in range(effort.rounds):
            ours.append(all_three(program_ns(running, effort.seconds)))
            theirs.append(biolatency.kernel_ns(file, running, effort.seconds))
    ratios = [mine / other for mine, other in zip(ours, theirs, strict=True)]
    yield Row(
        "kernel time a request, each of a file on ext4, as a share of biolatency's way", Figure(ratios, "{:.2f}"), None,
        {biolatency.name: Figure([1], "{:.2f}")},
    )  # fmt: skip
    others = {biolatency.name: Figure(theirs)}
    yield Row("kernel ns a request, each of a file on ext4", Figure(ours), Goal("≤", 600), others, quoted=True)


def _pages(setting: Setting, path: Path) -> Row:
    """One process writes a new file, a page a call, so that each page of it is dirtied once."""

    def dirty() -> None:
        path.unlink(missing_ok=True)
        with path.open("wb", buffering=0) as file:
            for _ in range(DIRTIED_BYTES // PAGE):
                file.write(bytes(PAGE))

    ours, floor = [], []
    for _ in range(setting.effort.rounds):
        with open_probe(calls=False) as probe:
            ours.append(measured([probe], dirty)[0][DIRTIED])
        floor.append(setting.nothing_dirtied.measured(dirty))
    others = {setting.nothing_dirtied.name: Figure(floor)}
    return Row("kernel ns a page dirtied, its owner unchanged", Figure(ours), Goal("≤", 100), others, quoted=True)
