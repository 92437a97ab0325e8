"""The scripts beside this file, run by bpftrace; what they print goes to a file, as in the study."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from llmio_probe.identity.devices import Devices
from llmio_probe.kernel.libbpf import Libbpf
from tests.bench.load import Load
from tests.bench.tools.reference import statistics
from tests.live.harness import Disk

START_SECONDS = 30
"""After which it has failed to start; it takes less than one."""
LEAST_LINES = 20
"""Of what it prints, its own words at the start among them; a load gives thousands."""
_IN_OWN_TRACEFS = (
    "unshare", "--mount", "--propagation", "private",
    "sh", "-c", 'test -e /sys/kernel/tracing/events || mount -t tracefs tracefs /sys/kernel/tracing && exec "$@"', "sh",
)  # fmt: skip
"""bpftrace needs one, many hosts have none; this one is gone with its mount namespace."""


@dataclass(frozen=True)
class Bpftrace:
    """script: a file beside this one. The disk's dev_t is its argument."""

    script: str
    name: str

    @contextmanager
    def running(self, disk: Disk) -> Iterator[subprocess.Popen[bytes]]:
        if shutil.which("bpftrace") is None:
            raise RuntimeError("bpftrace is missing: make setup-dev installs it")
        script = Path(__file__).with_name(self.script)
        probes = script.read_text().count("\ntracepoint:")
        with tempfile.NamedTemporaryFile(prefix="llmio-bench-") as printed:
            command = [*_IN_OWN_TRACEFS, "bpftrace", str(script), str(Devices().resolve(disk.device))]
            with subprocess.Popen(command, stdout=printed, stderr=subprocess.STDOUT) as process:
                try:
                    if not _attaches(process, probes):
                        process.kill()
                        raise RuntimeError(f"bpftrace did not start: {Path(printed.name).read_text()}")
                    yield process
                finally:
                    process.terminate()
            if Path(printed.name).read_bytes().count(b"\n") < LEAST_LINES:
                raise RuntimeError(f"bpftrace {self.script} has printed nothing under load")

    def kernel_ns(self, disk: Disk, running: Load, seconds: float) -> float:
        with self.running(disk) as process, statistics(Libbpf()):
            before = _runs(process.pid)
            running.rate(seconds)
            after = _runs(process.pid)
        return sum((after[program][0] - ns) / (after[program][1] - runs) for program, (ns, runs) in before.items())


def _attaches(process: subprocess.Popen[bytes], probes: int) -> bool:
    """Then it has a program and a perf event for each probe, and a perf event for what each CPU prints."""
    deadline = time.monotonic() + START_SECONDS
    events = probes + (os.cpu_count() or 1)
    while process.poll() is None and time.monotonic() < deadline:
        links = [_target(link) for link in Path(f"/proc/{process.pid}/fd").iterdir()]
        if links.count("anon_inode:bpf-prog") == probes and links.count("anon_inode:[perf_event]") >= events:
            return True
        time.sleep(0.02)
    return False


def _target(link: Path) -> str:
    try:
        return str(link.readlink())
    except FileNotFoundError:
        return ""


def _runs(pid: int) -> dict[str, tuple[int, int]]:
    """Nanoseconds run and runs of a process's programs, by id."""
    found = {}
    for entry in Path(f"/proc/{pid}/fdinfo").iterdir():
        fields = dict(line.split(":\t", 1) for line in entry.read_text().splitlines() if ":\t" in line)
        if "prog_id" in fields:
            found[fields["prog_id"]] = int(fields["run_time_ns"]), int(fields["run_cnt"])
    return found
