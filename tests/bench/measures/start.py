"""From the start of the interpreter, all imports of a session included, to the first record in user space."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator

from tests.bench.load import DEEP, load
from tests.bench.setting import Setting
from tests.bench.table import Figure, Goal, Row
from tests.live.harness import run

FIRST_RECORD = """
import os, time
from llmio_probe import cli, session
from llmio_probe.kernel.probe import Probe
from llmio_probe.options import probe_options
with Probe(probe_options()) as probe:
    probe.start()
    while not len(probe.read().requests):
        time.sleep(0.001)
    print(time.monotonic(), flush=True)
    os._exit(0)
"""


def start(setting: Setting) -> Iterator[Row]:
    times = []
    with load(setting.loop, DEEP, "--rate_iops=1000"):
        for _ in range(setting.effort.rounds):
            begin = time.monotonic()
            times.append(float(run(sys.executable, "-c", FIRST_RECORD)) - begin)
    yield Row("seconds from start to first record", Figure(times, "{:.2f}"), Goal("≤", 0.5), quoted=True)
