"""Measures what README quotes: python -m tests.bench [--quick]. Root, the real kernel, a loop device over tmpfs, fio.

Prints one Markdown table. Absolute figures live here and in README, never in a test; --quick runs every measurement
once and short, so that none of them can rot.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path

import numpy as np

from llmio_probe.aggregate.series import Series
from llmio_probe.identity.devices import Devices
from llmio_probe.identity.facts import PsutilSource, clock_tick_ns
from llmio_probe.identity.files import Files
from llmio_probe.identity.frameworks import builtin_rules
from llmio_probe.identity.mounts import Mounts
from llmio_probe.identity.owners import Identity
from llmio_probe.identity.role_rules import builtin_role_rules
from llmio_probe.identity.roles import RoleBook
from llmio_probe.kernel.atomics import Atomics
from llmio_probe.kernel.libbpf import Libbpf
from llmio_probe.kernel.loading import ProbeOptions
from llmio_probe.kernel.probe import Probe, request_entries
from llmio_probe.kernel.program_info import program_runs
from llmio_probe.kernel.records import REQUEST, Batch, Engine, Records
from llmio_probe.kernel.ring import Ring, RingMemory
from llmio_probe.pipeline import Pipeline

DISK_BYTES = 512 << 20
FILE_BYTES = 128 << 20
ALL_THREE = "kernel ns a request, all three"
BIOLATENCY = "the same of a biolatency by tp_btf (2 programs)"
RATIO = "ours / that biolatency"
HOT_PROGRAMS = ("block_io_start", "block_getrq", "block_rq_issue", "block_rq_complete")
"""On a request's path; of the first two a kernel has one."""
OLDER = {
    "as on kernels before 6.2": ("bpf_rdonly_cast",),
    "as on kernels before 6.5": ("bpf_rdonly_cast", "block_io_start"),
}
"""Variants (docs/kernel.md), and what a kernel lacks that needs them."""

Row = tuple[str, str]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="once and short: does it still run?")
    quick = parser.parse_args().quick
    rounds, seconds = (1, 1.0) if quick else (5, 4.0)
    print(f"| what ({platform.release()}, {os.cpu_count()} CPUs, {date.today()}) | measured |\n|---|---|")
    with loop_device() as device:
        measurements: list[Callable[[], list[Row]]] = [
            lambda: kernel_cost(device, rounds, seconds),
            lambda: kernel_cost_of_files(device, rounds, seconds),
            lambda: reader_rates(rounds),
            lambda: losses(device, rounds, seconds),
            lambda: first_record(device, rounds),
            lambda: memory(device, seconds),
        ]
        for measure in measurements:
            for what, figure in measure():
                print(f"| {what} | {figure} |", flush=True)


@contextmanager
def loop_device() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="llmio-bench-") as folder:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600m", "tmpfs", folder], check=True)
        try:
            backing = Path(folder) / "disk"
            with open(backing, "wb") as file:
                for _ in range(DISK_BYTES >> 20):
                    file.write(bytes(1 << 20))
            command = ["losetup", "--direct-io=on", "--find", "--show", str(backing)]
            node = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
            try:
                yield node
            finally:
                subprocess.run(["losetup", "--detach", node], check=True)
        finally:
            subprocess.run(["umount", folder], check=True)


DEEP = ("--bs=4k", "--ioengine=libaio", "--iodepth=32")
"""The job of facts and figures: one system call a request."""
FAST = ("--bs=512", "--ioengine=io_uring", "--iodepth=64", "--iodepth_batch=32", "--iodepth_batch_complete=32",
        "--fixedbufs", "--registerfiles")  # fmt: skip
"""As many requests a second as this machine can make."""


@contextmanager
def load(
    device: str, seconds: float, jobs: int = 1, how: tuple[str, ...] = DEEP, size: int = DISK_BYTES
) -> Iterator[subprocess.Popen[bytes]]:
    """fio, random direct reads."""
    command = [
        "fio", "--name=bench", f"--filename={device}", f"--size={size}", "--rw=randread", "--direct=1",
        "--norandommap", "--time_based", f"--runtime={seconds}", f"--numjobs={jobs}", "--thread", "--group_reporting",
        "--output-format=json", *how,
    ]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        yield process


def fio_requests(output: bytes) -> tuple[int, float]:
    """Reads done, and reads a second."""
    read = json.loads(output)["jobs"][0]["read"]
    return read["total_ios"], read["iops"]


def spread(values: list[float], form: str = "{:,.0f}") -> str:
    """Median (lowest to highest)."""
    text = form.format(statistics.median(values))
    return text if len(values) == 1 else f"{text} ({form.format(min(values))}-{form.format(max(values))})"


def drain(probe: Probe, process: subprocess.Popen[bytes]) -> tuple[list[Records], bytes]:
    """Read as the daemon does until the load has ended."""
    assert process.stdout
    batches = []
    while process.poll() is None:
        time.sleep(0.05)
        batches.append(probe.read().requests)
    return batches, process.stdout.read()


def open_probe(calls: bool = True, without: Iterable[str] = ()) -> Probe:
    return Probe(ProbeOptions(request_entries(cpus=os.cpu_count() or 1), calls=calls, without=frozenset(without)))


def own_cost(device: str, seconds: float, size: int, without: Iterable[str] = ()) -> dict[str, float]:
    """Nanoseconds a run, by program, and of all on a request's path together."""
    with open_probe(without=without) as probe:
        probe.start()
        end = probe.begin_cost()
        with load(device, seconds, size=size) as process:
            drain(probe, process)
        end()
        ours = {name: cost * 1e9 for name, cost in probe.state().program_cost_seconds.items()}
    return {**ours, "all three": sum(ours.get(name, 0) for name in HOT_PROGRAMS)}


def kernel_cost(device: str, rounds: int, seconds: float, size: int = DISK_BYTES) -> list[Row]:
    """Interleaved: ours, its variants for older kernels, the reference, the floor, in each round."""
    costs: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        reference = build_reference(Path(folder))
        for _ in range(rounds):
            ours = own_cost(device, seconds, size)
            for name, without in OLDER.items():
                ours[name] = own_cost(device, seconds, size, without)["all three"]
            theirs = {kind: reference_cost(reference, kind, device, seconds, size) for kind in ("latency", "empty")}
            for name, cost in (ours | theirs | {"ratio": ours["all three"] / theirs["latency"]}).items():
                costs.setdefault(name, []).append(cost)
    rows = [(f"kernel ns a run of `{name}`", spread(costs[name])) for name in HOT_PROGRAMS if name in costs]
    rows.append((ALL_THREE, spread(costs["all three"])))
    rows += [(f"the same, {name}", spread(costs[name])) for name in OLDER]
    rows.append(("the same of three empty programs, the floor", spread(costs["empty"])))
    rows.append((BIOLATENCY, spread(costs["latency"])))
    rows.append((RATIO, spread(costs["ratio"], "{:.2f}")))
    calls = ("enter_io_submit", "exit_io_submit", "enter_io_getevents", "exit_io_getevents")
    return rows + [(f"kernel ns a run of `{name}` (the app's view)", spread(costs[name])) for name in calls]


def kernel_cost_of_files(device: str, rounds: int, seconds: float) -> list[Row]:
    """The same, where each request is for a file: direct reads of one on ext4, and pages of one dirtied."""
    subprocess.run(["mkfs.ext4", "-q", "-F", device], check=True)
    with tempfile.TemporaryDirectory(prefix="llmio-bench-") as folder:
        subprocess.run(["mount", device, folder], check=True)
        try:
            file = Path(folder) / "file"
            with file.open("wb") as stream:
                for _ in range(FILE_BYTES >> 20):
                    stream.write(bytes(1 << 20))
                os.fsync(stream.fileno())
            found = dict(kernel_cost(str(file), rounds, seconds, FILE_BYTES))
            rows = [(f"{name}, of a file on ext4", found[name]) for name in (ALL_THREE, BIOLATENCY, RATIO)]
            return rows + dirty_cost(Path(folder) / "dirtied", rounds)
        finally:
            subprocess.run(["umount", folder], check=True)


def dirty_cost(path: Path, rounds: int) -> list[Row]:
    """One process writes a new file, 4 KiB a call; each page of it is dirtied once."""
    program = "writeback_dirty_folio"

    def dirty() -> None:
        path.unlink(missing_ok=True)
        with path.open("wb", buffering=0) as file:
            for _ in range(FILE_BYTES >> 12):
                file.write(bytes(4096))

    ours, floor = [], []
    with tempfile.TemporaryDirectory() as folder:
        reference = build_reference(Path(folder))
        for _ in range(rounds):
            with open_probe(calls=False) as probe:
                probe.start()
                end = probe.begin_cost()
                dirty()
                end()
                ours.append(probe.state().program_cost_seconds[program] * 1e9)
            floor.append(program_cost(reference, "nothing", dirty))
    return [
        ("kernel ns a page dirtied, its owner unchanged", spread(ours)),
        ("the same of an empty program, the floor", spread(floor)),
    ]


def build_reference(folder: Path) -> Path:
    path = folder / "reference.o"
    here = Path(__file__).parent
    target = {"x86_64": "x86", "aarch64": "arm64"}[platform.machine()]
    subprocess.run(
        ["clang", "-O2", "-g", "-target", "bpf", "-mcpu=v3", f"-D__TARGET_ARCH_{target}",
         f"-I{here.parent.parent / 'bpf'}", f"-I/usr/include/{platform.machine()}-linux-gnu",
         "-c", here / "reference.bpf.c", "-o", path], check=True,
    )  # fmt: skip
    return path


def reference_cost(path: Path, kind: str, device: str, seconds: float, size: int) -> float:
    """Kernel ns a request of the reference's programs whose name begins with kind."""

    def work() -> None:
        with load(device, seconds, size=size) as process:
            process.communicate()

    return program_cost(path, kind, work)


def program_cost(path: Path, kind: str, work: Callable[[], None]) -> float:
    """Kernel ns a run while work is done, summed over the reference's programs whose name begins with kind."""
    libbpf = Libbpf()
    loaded = libbpf.pointer("bpf_object__open_file", os.fsencode(path), None)
    try:
        libbpf.number("bpf_object__load", loaded)
        programs = [
            item for item in libbpf.each("bpf_object__next_program", loaded)
            if libbpf.bpf_program__name(item).startswith(kind.encode())
        ]  # fmt: skip
        fds = [libbpf.number("bpf_program__fd", program) for program in programs]
        attached = [libbpf.number("bpf_raw_tracepoint_open", None, fd) for fd in fds]
        stats = libbpf.number("bpf_enable_stats", 0)
        work()
        os.close(stats)
        runs = [program_runs(libbpf, fd) for fd in fds]
        for link in attached:
            os.close(link)
    finally:
        libbpf.bpf_object__close(loaded)
    return sum(each.run_ns / each.runs for each in runs)


def recorded(count: int) -> Records:
    """Requests such as a busy host makes, of four processes on two disks, of a hundred files."""
    random = np.random.default_rng(1)
    records = np.zeros(count, REQUEST)
    records["made_ns"] = 10**12 + np.cumsum(random.integers(1, 8000, count))
    records["issued_ns"] = records["made_ns"] + random.integers(500, 200_000, count)
    records["done_ns"] = records["issued_ns"] + random.integers(20_000, 900_000, count)
    records["device"] = (7 << 20) + random.integers(0, 2, count)
    records["request_bytes"] = random.choice([4096, 8192, 131072, 1 << 20], count)
    records["bytes"] = records["request_bytes"]
    records["op"] = random.integers(0, 2, count)
    records["file_device"], records["inode"] = 259 << 20, random.integers(1, 101, count)
    records["engine"] = records["path"] = records["owner"] = 1
    records["tgid"] = os.getpid() + random.integers(0, 4, count)
    records["owner_start_ns"] = 10**9
    return records


class Recorded:
    """A source that hands out one batch again and again."""

    def __init__(self, records: Records) -> None:
        self._batch = Batch(requests=records)

    def read(self) -> Batch:
        return self._batch


def reader_rates(rounds: int) -> list[Row]:
    count = 43_690  # half a ring
    records = recorded(count)
    size = 8 << 20
    ring_rates, all_rates = [], []
    positions = np.zeros(2, np.uint64)
    data = np.zeros(2 * size, np.uint8)
    slots = np.ndarray(count, np.dtype([("length", "u4"), ("page", "u4"), ("record", REQUEST)]), data)
    slots["length"], slots["record"] = REQUEST.itemsize, records
    consumer, producer = positions.ctypes.data, positions.ctypes.data + 8
    for _ in range(3 * rounds):
        positions[:] = 0, count * slots.itemsize
        ring = Ring(RingMemory(consumer, producer, data), REQUEST, Atomics())
        begin = time.perf_counter()
        assert len(ring.read()) == count
        ring_rates.append(count / (time.perf_counter() - begin) / 1e6)
        identity = Identity(
            PsutilSource(), builtin_rules(), time.monotonic, tick_ns=clock_tick_ns(), per_process=False, limit=24
        )
        files = Files(Mounts(), Devices(), limit=20_000)
        roles = RoleBook(
            builtin_role_rules(), files.files, identity.framework_of,
            undecided=False, clock=time.monotonic, read_header=None,
        )  # fmt: skip
        pipeline = Pipeline(Recorded(records), identity, files, roles, Series(detail=False))
        pipeline.run()  # the processes are new once
        begin = time.perf_counter()
        for _ in range(10):
            pipeline.run()
        all_rates.append(10 * count / (time.perf_counter() - begin) / 1e6)
    return [
        ("M records/s out of the ring", spread(ring_rates, "{:.1f}")),
        ("M records/s identified and aggregated, one core", spread(all_rates, "{:.1f}")),
    ]


def losses(device: str, rounds: int, seconds: float) -> list[Row]:
    rates, alone, lost, missing = [], [], 0, 0
    for _ in range(rounds):
        with load(device, seconds, 2, FAST) as process:
            alone.append(fio_requests(process.communicate()[0])[1] / 1e3)
        with open_probe(calls=False) as probe:
            probe.start()
            with load(device, seconds, 2, FAST) as process:
                batches, output = drain(probe, process)
            probe.stop()
            batches.append(probe.read().requests)
            requests, rate = fio_requests(output)
            own = sum(int((batch["engine"] == Engine.IO_URING).sum()) for batch in batches)
            rates.append(rate / 1e3)
            state = probe.state()
            lost += state.losses.requests
            missing += requests - own
    return [
        ("k requests/s of two fio jobs (512 B, io_uring), alone; probed", f"{spread(alone)}; {spread(rates)}"),
        (
            f"records lost in {rounds} x {seconds:.0f} s of that; requests of fio's without a record",
            f"{lost}; {missing}",
        ),
    ]


FIRST_RECORD = """
import os, sys, time
from llmio_probe import cli, session
from llmio_probe.kernel.libbpf import Libbpf
from llmio_probe.kernel.loading import ProbeOptions
from llmio_probe.kernel.probe import Probe, request_entries
with Probe(ProbeOptions(request_entries(cpus=os.cpu_count()))) as probe:
    probe.start()
    while not len(probe.read().requests):
        time.sleep(0.001)
    print(time.monotonic(), flush=True)
    os._exit(0)
"""


def first_record(device: str, rounds: int) -> list[Row]:
    """From the start of the interpreter, all imports of a session included, to the first record in user space."""
    times = []
    command = [
        "fio", "--name=bench", f"--filename={device}", f"--size={DISK_BYTES}", "--rw=randread", "--bs=4k", "--direct=1",
        "--rate_iops=1000", "--time_based", "--runtime=120", "--output=/dev/null",
    ]  # fmt: skip
    with subprocess.Popen(command) as process:
        try:
            for _ in range(2 * rounds):
                begin = time.monotonic()
                done = subprocess.run([sys.executable, "-c", FIRST_RECORD], check=True, capture_output=True)
                times.append(float(done.stdout) - begin)
        finally:
            process.terminate()
    return [("seconds from start to first record", spread(times, "{:.2f}"))]


def resident(pid: int) -> tuple[float, float]:
    """MiB resident: rings (mapped twice, so counted twice), everything else."""
    rings = rest = 0
    ring = False
    with open(f"/proc/{pid}/smaps") as file:
        for line in file:
            if "-" in line.split(":")[0].split()[0] and " " in line and not line.split()[0].endswith(":"):
                ring = "bpf-map" in line
            elif line.startswith("Rss:"):
                if ring:
                    rings += int(line.split()[1])
                else:
                    rest += int(line.split()[1])
    return rings / 1024, rest / 1024


def memory(device: str, seconds: float) -> list[Row]:
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as config:
        config.write('listen: "127.0.0.1:0"\n')
        config.flush()
        command = [sys.executable, "-m", "llmio_probe", "daemon", "--config", config.name]
        with subprocess.Popen(command, stderr=subprocess.PIPE) as daemon:
            assert daemon.stderr
            try:
                daemon.stderr.readline()
                before = cpu_seconds(daemon.pid)
                begin = time.monotonic()
                with load(device, seconds) as process:
                    output, _ = process.communicate()
                share = (cpu_seconds(daemon.pid) - before) / (time.monotonic() - begin)
                time.sleep(1)
                rings, rest = resident(daemon.pid)
            finally:
                daemon.terminate()
    return [
        ("daemon after that load: MiB resident beside the rings; rings, as mapped", f"{rest:.0f}; {rings:.0f}"),
        (f"daemon's share of one core at {fio_requests(output)[1] / 1e3:.0f} k requests/s", f"{share:.1%}"),
    ]


def cpu_seconds(pid: int) -> float:
    """User and system time of a process, from /proc/PID/stat."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
