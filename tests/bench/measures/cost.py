"""Kernel time a request: of ours program by program, of its variants for older kernels, of the other tools."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping

from tests.bench.load import load
from tests.bench.setting import Setting
from tests.bench.table import Figure, Goal, Row
from tests.bench.tools.ours import HOT_PROGRAMS, NAME, all_three, program_ns

OLDER = {
    "as on kernels before 6.2": ("bpf_rdonly_cast",),
    "as on kernels before 6.5": ("bpf_rdonly_cast", "block_io_start"),
}
"""Variants (docs/kernel.md), and what a kernel lacks that needs them."""
CALLS = ("enter_io_submit", "exit_io_submit", "enter_io_getevents", "exit_io_getevents")


def kernel_cost(setting: Setting) -> Iterator[Row]:
    """Interleaved, under one load that goes on: each tool once a round; what comes slowly, in the first ones only."""
    effort = setting.effort
    programs: Mapping[str, list[float]] = defaultdict(list)
    tools: Mapping[str, list[float]] = defaultdict(list)
    shares: Mapping[str, list[float]] = defaultdict(list)
    with load(setting.loop) as running:
        for number in range(effort.pairs):
            ours = program_ns(running, effort.seconds)
            for name, cost in ours.items():
                programs[name].append(cost)
            further = number < effort.fewer
            for name, without in OLDER.items() if further else ():
                programs[name].append(all_three(program_ns(running, effort.seconds, without)))
            scripts = setting.scripts if further else ()
            costs = {NAME: all_three(ours)} | {
                tool.name: tool.kernel_ns(setting.loop, running, effort.seconds)
                for tool in (setting.floor, setting.biolatency, *scripts)
            }
            for name, cost in costs.items():
                tools[name].append(cost)
                shares[name].append(cost / costs[setting.biolatency.name])
    cost_of = {name: Figure(costs) for name, costs in tools.items()}
    share_of = {name: Figure(costs, "{:.2f}") for name, costs in shares.items()}
    yield Row(
        "kernel time a request, as a share of biolatency's way", share_of[NAME], Goal("≤", 0.8), share_of, quoted=True
    )
    yield Row(
        "kernel ns a request, all programs on its path, without the app's view",
        cost_of[NAME],
        None,
        cost_of,
        quoted=True,
    )
    for name in HOT_PROGRAMS:
        if name in programs:
            yield Row(f"of these, a run of `{name}`, ns", Figure(programs[name]))
    for name in OLDER:
        yield Row(f"kernel ns a request, {name}", Figure(programs[name]))
    called = [name for name in CALLS if name in programs]
    together = [sum(costs) for costs in zip(*(programs[name] for name in called), strict=True)]
    yield Row(
        "the app's view beside that: kernel ns for one io_submit and one io_getevents", Figure(together), quoted=True
    )
    for name in called:
        yield Row(f"of these, a run of `{name}`, ns", Figure(programs[name]))
