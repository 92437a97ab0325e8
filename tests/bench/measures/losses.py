"""Whether the rings have room at the highest rate that this machine can make, and what that rate is."""

from __future__ import annotations

from collections.abc import Iterator

from llmio_probe.kernel.records import Engine
from tests.bench.load import FAST, Reads, counted
from tests.bench.setting import Setting
from tests.bench.table import Figure, Goal, Row
from tests.bench.tools.ours import open_probe


def losses(setting: Setting) -> Iterator[Row]:
    effort = setting.effort
    seconds = 4 * effort.seconds
    alone, probed, kept = [], [], []
    lost = missing = 0
    for _ in range(effort.fewer):
        alone.append(counted(setting.loop, FAST, seconds).per_second / 1e3)
        watched, records, unwritten = _watched(setting, seconds)
        probed.append(watched.per_second / 1e3)
        kept.append(probed[-1] / alone[-1])
        lost += unwritten
        missing += watched.count - records - unwritten
    yield Row("k requests/s of two fio jobs (512 B, io_uring), nobody watching", Figure(alone))
    yield Row("the same, with the programs and a reader that only reads", Figure(probed))
    yield Row("throughput kept by these", Figure(kept, "{:.2f}"))
    yield Row(
        f"requests that found no room in a ring, {effort.fewer} x {seconds:g} s of two fio jobs (512 B, io_uring)",
        Figure([lost]), Goal("≤", 0), quoted=True,
    )  # fmt: skip
    yield Row("requests of fio's without a record (the sandbox, docs/kernel.md)", Figure([missing]))


def _watched(setting: Setting, seconds: float) -> tuple[Reads, int, int]:
    """fio's count, its requests among the records, and how many records found no room in a ring."""
    seen = 0

    def read() -> None:
        nonlocal seen
        seen += int((probe.read().requests["engine"] == Engine.IO_URING).sum())

    with open_probe(calls=False) as probe:
        probe.start()
        reads = counted(setting.loop, FAST, seconds, read)
        probe.stop()
        read()
        lost = probe.state().losses
        return reads, seen, lost.overflowed_requests + lost.requests
