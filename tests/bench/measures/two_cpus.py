"""What it costs a CPU that another one has records to hand over, too: each has a ring of its own (bpf/rings.h)."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.bench.setting import Setting
from tests.bench.table import Figure, Row
from tests.live.output_side import OutputSide, compiled, output_side, request, together

MOST_RECORDS = 50_000
"""At one go, if a ring has room for them."""
OVERLAP = 0.9
"""So much of the time both must have written for the time to tell anything."""
TRIES = 100


def two_cpus(setting: Setting) -> Iterator[Row]:
    if (os.cpu_count() or 1) < 2:
        return
    alone, shares = [], []
    with (
        tempfile.TemporaryDirectory(prefix="llmio-bench-") as folder,
        output_side(compiled(True, Path(folder)), True) as side,
    ):
        count = min(MOST_RECORDS, side.room * 3 // 4)
        for _ in range(setting.effort.pairs):
            single, both = _times(side, count, [0]), _times(side, count, [0, 1])
            if not both:
                print("two CPUs are never free at the same time here, so that they are not compared", file=sys.stderr)
                return
            alone.append(single[0] / count)
            shares.append(max(both) / single[0])
    yield Row("ns to hand over a record, one CPU alone", Figure(alone))
    yield Row("the same on each of two CPUs at the same time, as a share of that", Figure(shares, "{:.2f}"))


def _times(side: OutputSide, count: int, cpus: Sequence[int]) -> list[int]:
    """Nanoseconds for so many records, on these CPUs at the same time; none where that cannot be had."""
    for _ in range(TRIES):
        spans = side.push_together(request(), count, cpus)
        found = len(side.rings.read())
        if found != count * len(cpus):
            raise RuntimeError(f"{found} records came of {count} from each of {len(cpus)} CPUs")
        if together(spans) >= OVERLAP:
            return [span.end - span.begin for span in spans]
    return []
