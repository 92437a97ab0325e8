"""What the daemon takes of its host: CPU while nothing happens and under load, and memory after that."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import psutil

from tests.bench.load import DEEP, load
from tests.bench.measures.scrape import scraped
from tests.bench.setting import Setting
from tests.bench.table import Figure, Goal, Row
from tests.bench.tools import ours

RATE = 80_000
"""Requests a second under load, as far as this machine makes them."""
MIB = 1 << 20
T = TypeVar("T")


def daemon(setting: Setting) -> Iterator[Row]:
    seconds = 10 * setting.effort.seconds
    with ours.daemon() as (pid, url):
        with load(setting.loop, DEEP, f"--rate_iops={RATE}") as running:
            busy, rate = _share(pid, lambda: running.rate(seconds))
        scrapes = []
        for _ in range(setting.effort.rounds):
            time.sleep(1)
            scrapes.append(scraped(url))
        rings, rest = _resident(pid)
        # Last, since the first request of all costs 20 ms once; and long, for it looks every 5 s.
        idle, _ = _share(pid, lambda: time.sleep(3 * seconds))
    yield Row(
        "daemon's CPU while idle, % of one core", Figure([100 * idle], "{:.2f}"), Goal("≤", 0.1), quoted=True
    )  # fmt: skip
    yield Row(
        f"daemon's CPU at {rate / 1e3:.0f} k requests/s, % of one core", Figure([100 * busy], "{:.1f}"), Goal("≤", 3),
        quoted=True,
    )  # fmt: skip
    yield Row("daemon's memory after that beside the rings, MiB", Figure([rest]), Goal("≤", 64), quoted=True)
    yield Row("its rings as mapped, MiB", Figure([rings]))
    yield Row(f"ms for a scrape of it, {scrapes[-1][1]} series", Figure([took for took, _ in scrapes]))


def _share(pid: int, work: Callable[[], T]) -> tuple[float, T]:
    """Of one CPU, while that is done; and what it gives."""
    before, begin = _cpu_seconds(pid), time.monotonic()
    result = work()
    return (_cpu_seconds(pid) - before) / (time.monotonic() - begin), result


def _cpu_seconds(pid: int) -> float:
    """Of all threads, to the nanosecond: /proc/PID/stat has ticks, of which an idle second has none."""
    tasks = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9


def _resident(pid: int) -> tuple[float, float]:
    """MiB: maps of the kernel that it has mapped, everything else."""
    maps = [(area.path, area.rss) for area in psutil.Process(pid).memory_maps()]
    rings = sum(rss for path, rss in maps if "bpf-map" in path)
    return rings / MIB, (sum(rss for _, rss in maps) - rings) / MIB
