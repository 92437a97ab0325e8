"""What an ad-hoc session costs beside the daemon: two probes at once."""

from __future__ import annotations

from collections.abc import Iterator

from tests.bench.load import load
from tests.bench.measures.throughput import kept
from tests.bench.setting import Setting
from tests.bench.table import Figure, Row
from tests.bench.tools.ours import DaemonAndSession, Ours


def two_probes(setting: Setting) -> Iterator[Row]:
    effort, loop = setting.effort, setting.loop
    both, one = DaemonAndSession(), Ours()
    costs, ratios = [], []
    with load(loop) as running:
        for _ in range(effort.fewer):
            alone = one.kernel_ns(loop, running, effort.seconds)
            costs.append(both.kernel_ns(loop, running, effort.seconds))
            ratios.append(costs[-1] / alone)
        yield Row("daemon and a session at once: kernel ns a request", Figure(costs))
        yield Row("the same as a multiple of one probe's", Figure(ratios, "{:.2f}"))
        found = kept(running, loop, both, effort.fewer, effort.seconds)
        yield Row("throughput kept by both on the loop device", found)
