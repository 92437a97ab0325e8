"""What llmio-probe costs: python -m tests.bench [--quick] [--only MEASURE] [--pairs N]. Needs root, fio, bpftrace.

Prints one Markdown table, ours beside other tools on the same job, and puts it into docs/bench.md, its most telling
rows into README. Absolute figures live there, never in a test. --quick measures everything once and short, so that none
of it can rot; --only measures one thing, --pairs more often than there is time for in the whole table. With any of them
nothing is written.
"""

from __future__ import annotations

import argparse
import compileall
import platform
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from datetime import date
from pathlib import Path

import psutil

from tests.bench.measures.call_cost import call_cost
from tests.bench.measures.cost import kernel_cost
from tests.bench.measures.daemon import daemon
from tests.bench.measures.file_cost import file_cost
from tests.bench.measures.losses import losses
from tests.bench.measures.reader import reader
from tests.bench.measures.remembered import remembered
from tests.bench.measures.scrape import scrape
from tests.bench.measures.start import start
from tests.bench.measures.throughput import throughput
from tests.bench.measures.two_cpus import two_cpus
from tests.bench.measures.two_probes import two_probes
from tests.bench.setting import FULL, QUICK, Setting, setting
from tests.bench.table import Row, Table
from tests.bench.tools.ours import NAME
from tests.live.harness import run
from tests.page import put

Measure = Callable[[Setting], Iterator[Row]]
MEASURES = (
    kernel_cost, file_cost, throughput, two_probes, call_cost, losses, two_cpus, reader, start, daemon, remembered,
    scrape,
)  # fmt: skip
"""In the order of the table."""
ROOT = Path(__file__).parents[2]
BEGIN = "<!-- table: make bench -->"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="once and short: does it still run?")
    parser.add_argument("--only", choices=[one.__name__ for one in MEASURES], help="this measure alone")
    parser.add_argument(
        "--pairs", type=int, choices=range(1, 1001), metavar="N", help=f"compare so often, not {FULL.pairs} times"
    )
    asked = parser.parse_args()
    effort = QUICK if asked.quick else FULL
    if asked.pairs is not None:
        effort = replace(effort, pairs=asked.pairs)
    measures = [one for one in MEASURES if asked.only in (None, one.__name__)]
    begin, load = time.monotonic(), psutil.getloadavg()[0]
    compileall.compile_dir(ROOT / "llmio_probe", quiet=1)  # as pip does for whoever installs it
    with setting(effort) as where:
        table, rows = measure(where, measures)
        described = machine(where, load)
    described += f", in {time.monotonic() - begin:.0f} s"
    print(f"\nMeasured on {described}.")
    if not (asked.quick or asked.only or asked.pairs):
        put(ROOT / "docs" / "bench.md", BEGIN, f"Measured on {described}.\n\n{table.text(rows)}")
        quoted = table.text(row for row in rows if row.quoted)
        put(ROOT / "README.md", BEGIN, f"Measured on {described}:\n\n{quoted}")


def measure(where: Setting, measures: Iterable[Measure]) -> tuple[Table, list[Row]]:
    """Print each row when it is known."""
    table = Table((NAME, where.floor.name, where.biolatency.name, *(tool.name for tool in where.scripts)))
    print(table.head())
    rows = []
    for one in measures:
        begin = time.monotonic()
        for row in one(where):
            print(table.row(row), flush=True)
            rows.append(row)
        print(f"{one.__name__}: {time.monotonic() - begin:.0f} s", file=sys.stderr)
    return table, rows


def machine(where: Setting, load: float) -> str:
    """What the figures depend on. load: by others, before anything was measured."""
    cpu = next(
        (line.partition(": ")[2] for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.machine(),
    )
    memory = psutil.virtual_memory().total / (1 << 30)
    return (
        f"{date.today()}, Linux {platform.release()}, {psutil.cpu_count()} CPUs ({cpu}), {memory:.0f} GiB, "
        f"disk {where.real.device}, load average {load:.1f} before it began; "
        f"{run('fio', '--version').strip()}, {run('bpftrace', '--version').strip()}"
    )


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # what was made for it is removed then, too
    main()
