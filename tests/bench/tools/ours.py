"""llmio-probe as it is measured: as a session, as the daemon, or only its programs with somebody who reads."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Thread
from typing import IO

from llmio_probe.daemon import COST_SECONDS
from llmio_probe.kernel.loading import ProbeOptions
from llmio_probe.kernel.probe import Probe, request_entries
from llmio_probe.kernel.variants import AGAIN
from tests.bench.load import Load
from tests.live.harness import PROBE, Disk

NAME = "llmio-probe"
HOT_PROGRAMS = (
    "block_io_start", "block_getrq", "block_rq_issue", "block_rq_complete",
    *(f"block_{name}{AGAIN}" for name in ("io_start", "rq_issue", "rq_complete")),
)  # fmt: skip
"""On a request's path; of the first two a kernel has one, the last three it has since 7.0."""


@dataclass(frozen=True)
class Ours:
    """A session on the whole host. options: further ones, such as --no-calls."""

    options: tuple[str, ...] = ()
    name: str = NAME

    @contextmanager
    def running(self, disk: Disk) -> Iterator[None]:
        with session(*self.options):
            yield

    def kernel_ns(self, disk: Disk, running: Load, seconds: float) -> float:
        return all_three(program_ns(running, seconds))


class DaemonAndSession(Ours):
    """Both at once, which is the common case of an ad-hoc session."""

    @contextmanager
    def running(self, disk: Disk) -> Iterator[None]:
        with daemon(), session(*self.options):
            yield

    def kernel_ns(self, disk: Disk, running: Load, seconds: float) -> float:
        with open_probe() as first, open_probe() as second:
            costs = measured((first, second), lambda: running.rate(seconds, lambda: (first.read(), second.read())))
        return sum(map(all_three, costs))


@contextmanager
def session(*options: str) -> Iterator[None]:
    """``llmio-probe --all`` from the moment that it watches."""
    with subprocess.Popen(
        [*PROBE, "--all", "--json", "--output", os.devnull, *options], stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            _await(process, "watching")
            yield
            if process.poll() is not None:
                raise RuntimeError(f"{process.args!r} ended under load")
        finally:
            process.terminate()


@contextmanager
def daemon() -> Iterator[tuple[int, str]]:
    """``llmio-probe daemon``, with its defaults, from when it no longer times its own programs on: its pid, its URL."""
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as config:
        config.write('listen: "127.0.0.1:0"\n')
        config.flush()
        with subprocess.Popen(
            [*PROBE, "daemon", "--config", config.name], stderr=subprocess.PIPE, text=True
        ) as process:
            try:
                url = _await(process, "serving").split()[-1]
                time.sleep(1.2 * COST_SECONDS)
                yield process.pid, url
            finally:
                process.terminate()


def _await(process: subprocess.Popen[str], word: str) -> str:
    """The line in which it says that word; what it says later is let through, so that it never waits for us."""
    assert process.stderr
    said = []
    for line in process.stderr:
        if word in line:
            Thread(target=_forward, args=(process.stderr,), daemon=True).start()
            return line
        said.append(line)
    raise RuntimeError(f"{process.args!r} did not start: {''.join(said)}")


def _forward(stream: IO[str]) -> None:
    for line in stream:
        sys.stderr.write(line)


def open_probe(calls: bool = True, without: Iterable[str] = ()) -> Probe:
    """Loaded programs that are not attached yet."""
    return Probe(ProbeOptions(request_entries(cpus=os.cpu_count() or 1), calls=calls, without=frozenset(without)))


def measured(probes: Sequence[Probe], work: Callable[[], object]) -> list[dict[str, float]]:
    """Attach them, do the work: kernel nanoseconds a run, by program, for each probe."""
    for probe in probes:
        probe.start()
    ends = [probe.begin_cost() for probe in probes]
    work()
    for end in ends:
        end()
    return [{name: cost * 1e9 for name, cost in probe.state().program_cost_seconds.items()} for probe in probes]


def program_ns(running: Load, seconds: float, without: Iterable[str] = ()) -> dict[str, float]:
    """Kernel nanoseconds a run, by program, under that load, while the rings are read so that they never get full."""
    with open_probe(without=without) as probe:
        return measured([probe], lambda: running.rate(seconds, probe.read))[0]


def all_three(costs: dict[str, float]) -> float:
    """Kernel nanoseconds a request, of the programs that every request runs."""
    return sum(costs.get(name, 0) for name in HOT_PROGRAMS)
