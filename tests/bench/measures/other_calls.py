"""What the app's view costs tasks that do no I/O: the time of a system call while its tracepoints are armed."""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from tests.bench.setting import Setting
from tests.bench.table import Figure, Row
from tests.bench.tools.ours import session
from tests.live.harness import run

CALLS_A_SECOND = 5_000_000
"""About: so many make a look as long as the others."""


def other_calls(setting: Setting) -> Iterator[Row]:
    watching: dict[str, Callable[[], AbstractContextManager[None]]] = {
        "nobody watching": nullcontext,
        "a session with --no-calls": lambda: session("--no-calls"),
        "a session with the app's view": session,
    }
    times: Mapping[str, list[float]] = defaultdict(list)
    calls = str(int(CALLS_A_SECOND * setting.effort.seconds))
    with tempfile.TemporaryDirectory(prefix="llmio-bench-") as folder:
        program = Path(folder) / "getppid"
        run("clang", "-O2", "-o", program, Path(__file__).with_name("getppid.c"))
        for _ in range(setting.effort.fewer):
            for what, begin in watching.items():
                with begin():
                    times[what].append(float(run(program, calls)))
    for what, ns in times.items():
        yield Row(f"ns of a getppid(), {what}", Figure(ns))
    before = times["nobody watching"]
    added = [with_it - alone for with_it, alone in zip(times["a session with the app's view"], before, strict=True)]
    yield Row("ns that the app's view adds to every system call of the host, I/O or not", Figure(added), quoted=True)
