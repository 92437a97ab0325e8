"""How much of its throughput a load keeps while a tool watches: bpf_stats off, pairs of with and without."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack

from tests.bench.load import Load, load
from tests.bench.setting import Setting
from tests.bench.table import Figure, Goal, Row
from tests.bench.tools.ours import Ours
from tests.bench.tools.tool import Tool
from tests.live.harness import Disk

SETTLE_SECONDS = 0.1


def throughput(setting: Setting) -> Iterator[Row]:
    goal = Goal("≥", 0.95)
    yield from _on(setting, setting.real, "the machine's own disk", Goal("≥", 0.99))
    yield from _on(setting, setting.loop, "a loop device that saturates the CPU", goal)
    with load(setting.loop) as running:
        blocks = kept(running, setting.loop, Ours(("--no-calls",)), setting.effort.pairs, setting.effort.seconds)
    yield Row("throughput kept on the loop device with --no-calls", blocks, goal, quoted=True)


def _on(setting: Setting, disk: Disk, where: str, goal: Goal) -> Iterator[Row]:
    effort = setting.effort
    with load(disk) as running:
        alone: list[float] = []
        ours = kept(running, disk, Ours(), effort.pairs, effort.seconds, alone)
        pairs: dict[Tool, int] = {setting.floor: effort.pairs, setting.biolatency: effort.pairs}
        pairs |= dict.fromkeys(setting.scripts, effort.fewer)  # slow to start, and what they take is plain to see
        others = {
            tool.name: kept(running, disk, tool, count, effort.seconds, alone)
            for tool, count in pairs.items()
            if effort.thorough or disk is setting.loop
        }
    yield Row(f"throughput kept on {where}", ours, goal, others, quoted=True)
    yield Row(f"k requests/s on {where}, nobody watching", Figure([rate / 1e3 for rate in alone]))


def kept(running: Load, disk: Disk, tool: Tool, pairs: int, seconds: float, alone: list[float] | None = None) -> Figure:
    """Rate with the tool / rate without it, a value a pair.

    Every second pair begins with the tool, so that a drift evens out. alone: takes the rates without it.
    """
    rates: dict[bool, list[float]] = {False: [], True: []}
    with ExitStack() as stack:
        now = False
        for watched in order(pairs):
            if watched != now:
                # Starting and ending are not what is measured here, and take their time beside a load.
                with running.paused():
                    stack.enter_context(tool.running(disk)) if watched else stack.close()
                now = watched
                time.sleep(SETTLE_SECONDS)
            rates[watched].append(running.rate(seconds))
        with running.paused():
            stack.close()
    if alone is not None:
        alone += rates[False]
    return Figure([on / off for on, off in zip(rates[True], rates[False], strict=True)], "{:.2f}")


def order(pairs: int) -> list[bool]:
    """Whether the tool watches, look by look: off, on, then on, off, and so on."""
    return [number % 4 in (1, 2) for number in range(2 * pairs)]
