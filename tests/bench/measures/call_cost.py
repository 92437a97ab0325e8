"""What the app's view costs: the time of system calls that it watches, and of one that does no I/O. By CPU time."""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from tests.bench.setting import Setting
from tests.bench.table import Figure, Row
from tests.bench.tools.ours import session
from tests.live.harness import run

CALLS = {"getppid": 5_000_000, "libaio": 1_000_000}
"""What calls.c can do, and about how much of it in a second, so that a look is about as long as the others."""
ALONE, FLOOR, WITHOUT, WITH = "nobody watching", "empty programs", "--no-calls", "the app's view"


def call_cost(setting: Setting) -> Iterator[Row]:
    watching: dict[str, Callable[[], AbstractContextManager[object]]] = {
        ALONE: nullcontext,
        FLOOR: lambda: setting.nothing_called.running(setting.loop),
        WITHOUT: lambda: session("--no-calls"),
        WITH: session,
    }
    times: Mapping[tuple[str, str], list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory(prefix="llmio-bench-") as folder:
        program = Path(folder) / "calls"
        run("clang", "-O2", "-o", program, Path(__file__).with_name("calls.c"))
        for number in range(setting.effort.rounds):
            # Every second round backwards, so that a drift evens out.
            for what, begin in list(watching.items())[:: -1 if number % 2 else 1]:
                with begin():
                    for kind, count in CALLS.items():
                        rounds = str(int(count * setting.effort.seconds))
                        times[kind, what].append(float(run(program, kind, rounds)))

    def added(kind: str, what: str) -> Figure:
        return Figure(_differences(times[kind, what], times[kind, ALONE]))

    for what in (ALONE, WITHOUT, WITH):
        yield Row(f"ns of a getppid(), {what}", Figure(times["getppid", what]))
    yield Row(
        "ns that the app's view adds to every system call of the host, I/O or not", added("getppid", WITH), quoted=True
    )
    yield Row("ns of an io_submit and an io_getevents, of what is cached, alone", Figure(times["libaio", ALONE]))
    yield Row(
        "ns that the app's view adds to an io_submit and an io_getevents together", added("libaio", WITH), None,
        {setting.nothing_called.name: added("libaio", FLOOR)}, quoted=True,
    )  # fmt: skip


def _differences(figures: Sequence[float], before: Sequence[float]) -> list[float]:
    return [figure - alone for figure, alone in zip(figures, before, strict=True)]
