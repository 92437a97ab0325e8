"""The BCC loader on a kernel whose types are hidden: picked by itself, and it counts what the CO-RE loader counts.

Emulated, BCC compiles for minutes, so there is one session by each loader, in which the same known workloads run; every
test here looks at both. What nobody can know under BCC (bpf/bcc.h) is no part of the workloads.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.live.harness import Actor, Disk, Document, Watched, fio_totals, run, start_probe, transferred
from tests.live.system import Volume, filesystem, partition

pytestmark = pytest.mark.guest("no-btf")

TYPES = Path("/sys/kernel/btf")
LIBAIO, IO_URING, POSIX = 1009, 503, 211
"""Requests of each engine."""
BLOCK = 4096
ROUNDS = 4
CACHED, WRITTEN = 307 * BLOCK, 401 * BLOCK
KINDS = {
    ("libaio", "read", "libaio", "direct"): LIBAIO * BLOCK,
    ("io_uring", "write", "io_uring", "direct"): IO_URING * 2 * BLOCK,
    ("psync", "read", "posix", "direct"): POSIX * BLOCK,
    ("reader", "read", "posix", "page_cache"): CACHED,
    ("writer", "write", "posix", "writeback"): WRITTEN,
    ("raw", "read", "posix", "direct"): POSIX * BLOCK,
}
"""Who, op, engine, path: bytes."""


@dataclass
class Seen:
    """A session on the NVMe disk. who: by pid, whose I/O that was."""

    report: Document = field(default_factory=dict)
    transferred: dict[str, int] = field(default_factory=dict)
    who: dict[int, str] = field(default_factory=dict)
    fio: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Of each fio job its own count: requests and bytes."""

    @property
    def watched(self) -> Watched:
        return Watched(self.report)

    def kinds(self) -> dict[tuple[str, str, str | None, str | None], int]:
        """As KINDS."""
        return {(who, *kind): size for pid, who in self.who.items() for kind, size in self.watched.kinds(pid).items()}

    def files(self) -> dict[tuple[str, str, str], int]:
        """Name, who, op: bytes."""
        found: dict[tuple[str, str, str], int] = {}
        for file in self.report["files"]:
            if who := self.who.get(file["pid"]):
                name = Path(file["path"]).name
                found |= {(name, who, op): size for op in ("read", "write") if (size := file[f"{op}_bytes"])}
        return found


@contextmanager
def types_shown() -> Iterator[None]:
    """For a while, the kernel's types are there."""
    run("umount", TYPES)
    try:
        assert (TYPES / "vmlinux").exists()
        yield
    finally:
        run("mount", "-t", "tmpfs", "empty", TYPES)


@pytest.fixture(scope="module")
def raw(nvme_disk: Disk) -> Iterator[Disk]:
    """A part of the disk that no filesystem holds."""
    with partition(nvme_disk, 2, 512 << 20, 256 << 20) as made:
        yield made


@pytest.fixture(scope="module")
def volume(nvme_disk: Disk) -> Iterator[Volume]:
    with partition(nvme_disk, 1, 1 << 20, 256 << 20) as part, filesystem("ext4", part) as made:
        for name, size in (("direct", 64 << 20), ("cached", CACHED)):
            path = made.folder / name
            run("dd", "if=/dev/urandom", f"of={path}", "bs=4096", f"count={size // 4096}", "conv=fsync")
        yield made


@pytest.fixture(scope="module")
def by_bcc(volume: Volume, raw: Disk, tmp_path_factory: pytest.TempPathFactory) -> Seen:
    """Nothing is asked for: the types are hidden."""
    return session(volume, raw, tmp_path_factory.mktemp("bcc"))


@pytest.fixture(scope="module")
def by_core(by_bcc: Seen, volume: Volume, raw: Disk, tmp_path_factory: pytest.TempPathFactory) -> Seen:
    with types_shown():
        return session(volume, raw, tmp_path_factory.mktemp("core"), "--loader", "core")


def session(volume: Volume, raw: Disk, folder: Path, *options: str) -> Seen:
    """One in which the kernel skipped no program, as it does now and then (docs/kernel.md), mostly since 7.0."""
    for _ in range(ROUNDS):
        seen = one_session(volume, raw, folder, *options)
        if not seen.report["losses"]["missed_probes"]:  # unknown before 5.12
            break
    return seen


def one_session(volume: Volume, raw: Disk, folder: Path, *options: str) -> Seen:
    """Each workload by a process of its own, one after the other."""
    with suppress(FileNotFoundError):
        (volume.folder / "written").unlink()
    volume.settle()
    run("sysctl", "-q", "vm.drop_caches=3")
    with start_probe(folder / "session.json", *options, "--all", "--device", raw.device) as live:
        before = transferred(raw.device)  # not earlier: BCC compiles for so long that somebody may have read meanwhile
        seen = Seen()
        play(volume, raw, folder, seen)
        volume.settle()
        seen.report = live.interrupt()
    seen.transferred = {op: size - before[op] for op, size in transferred(raw.device).items()}
    return seen


def play(volume: Volume, raw: Disk, folder: Path, seen: Seen) -> None:
    direct = volume.folder / "direct"
    for engine, op, size, count in (
        ("libaio", "randread", BLOCK, LIBAIO),
        ("io_uring", "randwrite", 2 * BLOCK, IO_URING),
        ("psync", "randread", BLOCK, POSIX),
    ):
        report = folder / f"{engine}.json"
        job = subprocess.Popen(
            ["fio", "--name=known", f"--filename={direct}", "--size=64M", f"--number_ios={count}", "--thread",
             "--norandommap", "--randrepeat=1", "--direct=1", f"--rw={op}", f"--bs={size}", f"--blockalign={2 * size}",
             f"--ioengine={engine}", "--iodepth=16", f"--output={report}", "--output-format=json"],
        )  # fmt: skip
        assert job.wait() == 0
        seen.who[job.pid] = engine
        seen.fio[engine] = fio_totals(report)["read" if op == "randread" else "write"]
    with Actor() as reader, Actor() as writer, Actor() as alone:
        seen.who |= {reader.pid: "reader", writer.pid: "writer", alone.pid: "raw"}
        assert reader.do("read", volume.folder / "cached", 0, BLOCK, BLOCK) == CACHED
        assert writer.do("write", volume.folder / "written", 0, WRITTEN) == WRITTEN
        volume.settle()
        assert alone.do("direct", raw.path, "read", 0, BLOCK, POSIX, "anonymous", 2 * BLOCK) == POSIX * BLOCK


def test_without_types_bcc_is_picked_by_itself(by_bcc: Seen) -> None:
    assert not (TYPES / "vmlinux").exists()
    assert by_bcc.report["host"]["loader"] == "bcc"
    hooks = by_bcc.report["host"]["hooks"]
    assert "raw_tp/block_rq_complete" in hooks
    assert all(hook.startswith(("raw_tp/", "tracepoint/syscalls/")) for hook in hooks)


def test_core_is_what_it_is_compared_with(by_core: Seen) -> None:
    assert by_core.report["host"]["loader"] == "core"


def test_owners_engines_and_paths_are_exact_and_the_same(by_bcc: Seen, by_core: Seen) -> None:
    assert by_bcc.kinds() == KINDS
    assert by_core.kinds() == KINDS


def test_direct_requests_are_as_many_as_fio_made(by_bcc: Seen, by_core: Seen) -> None:
    for seen in (by_bcc, by_core):
        requests = {
            engine: seen.watched.total("requests", pid=pid, path="direct")
            for pid, engine in seen.who.items()
            if engine in seen.fio
        }
        assert requests == {engine: count for engine, (count, _) in seen.fio.items()}


def test_files_are_known_by_name_and_to_the_byte(by_bcc: Seen, by_core: Seen) -> None:
    named = {"libaio": "direct", "io_uring": "direct", "psync": "direct", "reader": "cached", "writer": "written"}
    expected = {(named[who], who, op): size for (who, op, _, _), size in KINDS.items() if who in named}
    assert {file: size for file, size in by_bcc.files().items() if file[1] in named} == expected
    assert {file: size for file, size in by_core.files().items() if file[1] in named} == expected


def test_all_that_the_disk_did_is_in_both(by_bcc: Seen, by_core: Seen) -> None:
    for seen in (by_bcc, by_core):
        for op, size in seen.transferred.items():
            assert seen.watched.total("bytes", op=op) == size, op
        assert seen.report["accounting"]["in_flight"] == 0


def test_without_headers_their_package_is_named() -> None:
    """As on a host where nobody has installed them."""
    release = run("uname", "-r").strip()
    hidden = f"mount -t tmpfs empty /lib/modules && exec {sys.executable} -m llmio_probe --all --duration 1"
    done = subprocess.run(["unshare", "--mount", "sh", "-c", hidden], capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    assert f"install the package linux-headers-{release} (Debian, Ubuntu)" in done.stderr
