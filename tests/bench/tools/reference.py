"""The programs of reference.bpf.c: biolatency's way to count latencies, and the floor, programs that do nothing."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from llmio_probe.kernel.libbpf import Libbpf
from llmio_probe.kernel.program_info import program_runs
from llmio_probe.kernel.tracepoints import attach_tracepoint, tracepoint_ids
from tests.bench.load import Load
from tests.live.harness import Disk, run

SOURCE = Path(__file__).with_name("reference.bpf.c")
PROGRAMS = Path(__file__).parents[3] / "bpf"
_STATS_RUN_TIME = 0  # enum bpf_stats_type


def build(folder: Path) -> Path:
    """Compile them with clang; the object."""
    built = folder / "reference.o"
    target = {"x86_64": "x86", "aarch64": "arm64"}[platform.machine()]
    run(
        "clang", "-O2", "-g", "-target", "bpf", "-mcpu=v3", f"-D__TARGET_ARCH_{target}", f"-I{PROGRAMS}",
        f"-I/usr/include/{platform.machine()}-linux-gnu", "-c", SOURCE, "-o", built,
    )  # fmt: skip
    return built


@dataclass(frozen=True)
class Reference:
    """Those whose names begin with ``kind``; nobody reads what they count, as nobody does until biolatency's end."""

    built: Path
    kind: str
    name: str

    @contextmanager
    def running(self, disk: Disk) -> Iterator[None]:
        with self._attached(Libbpf()):
            yield

    def kernel_ns(self, disk: Disk, running: Load, seconds: float) -> float:
        return self.measured(lambda: running.rate(seconds))

    def measured(self, work: Callable[[], object]) -> float:
        """Kernel nanoseconds a run while work is done, summed over the programs."""
        libbpf = Libbpf()
        with self._attached(libbpf) as programs:
            with statistics(libbpf):
                work()
            runs = [program_runs(libbpf, program) for program in programs]
        return sum(each.run_ns / each.runs for each in runs)

    @contextmanager
    def _attached(self, libbpf: Libbpf) -> Iterator[list[int]]:
        with ExitStack() as stack:
            opened = libbpf.pointer("bpf_object__open_file", os.fsencode(self.built), None)
            stack.callback(libbpf.bpf_object__close, opened)
            libbpf.number("bpf_object__load", opened)
            programs = {
                libbpf.number("bpf_program__fd", item): libbpf.bpf_program__section_name(item).decode()
                for item in libbpf.each("bpf_object__next_program", opened)
                if libbpf.bpf_program__name(item).decode().startswith(self.kind)
            }
            for program, section in programs.items():
                stack.callback(os.close, _attach(libbpf, program, section))
            yield list(programs)


def _attach(libbpf: Libbpf, program: int, section: str) -> int:
    kind, _, tracepoint = section.partition("/")
    if kind == "tracepoint":
        return attach_tracepoint(tracepoint_ids([tracepoint])[tracepoint], program)
    return libbpf.number("bpf_raw_tracepoint_open", None, program)


@contextmanager
def statistics(libbpf: Libbpf) -> Iterator[None]:
    """The kernel times all BPF programs of the host meanwhile."""
    fd = libbpf.number("bpf_enable_stats", _STATS_RUN_TIME)
    try:
        yield
    finally:
        os.close(fd)
