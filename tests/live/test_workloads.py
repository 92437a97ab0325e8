"""Known workloads on the real kernel: each request and byte of a prime number of them, by process, as fio counts."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from llmio_probe.kernel.probe import Probe
from llmio_probe.options import probe_options
from tests.live.harness import HANG, Disk, Live, Watched, fio, fio_totals, run, watch, whole

REQUESTS = 10007
WORKLOAD = Path(__file__).parent / "workload.py"

Gated = Callable[[Disk, str, int], Watched]


@pytest.mark.parametrize(
    ("engine", "arguments"),
    [
        ("libaio", ["--ioengine=libaio", "--iodepth=32"]),
        ("posix", ["--ioengine=psync"]),
        ("io_uring", ["--ioengine=io_uring", "--iodepth=32"]),
        ("io_uring", ["--ioengine=io_uring", "--iodepth=32", "--sqthread_poll=1"]),
        ("io_uring", ["--ioengine=io_uring", "--iodepth=32", "--fixedbufs=1", "--registerfiles=1"]),
    ],
    ids=["libaio", "psync", "io_uring", "io_uring-sqpoll", "io_uring-fixed"],
)
@pytest.mark.parametrize("op", ["read", "write"])
def test_every_direct_request_and_byte_is_the_workers(
    disk: Disk, op: str, engine: str, arguments: list[str], tmp_path: Path
) -> None:
    report = tmp_path / "fio.json"
    job = fio(
        disk, "--direct=1", f"--rw=rand{op}", "--bs=4k", "--blockalign=8k", *arguments, requests=REQUESTS, report=report
    )
    watched = whole(disk.device, lambda: watch(job, "--device", disk.device))
    requests, size = fio_totals(report)[op]
    assert requests == REQUESTS
    labels = {"device": disk.device, "op": op, "engine": engine, "path": "direct"}
    [stream] = watched.streams(**labels)
    assert (stream["requests"], stream["bytes"]) == (requests, size)
    assert stream["size_bytes"] == {"p50": 4096, "p90": 4096, "p99": 4096, "max": 4096, "sum": size}
    assert [w["pid"] for w in watched.report["workers"] if w["worker"] == stream["worker"]] == [stream["pid"]]


@pytest.mark.parametrize("size", [131072, 1 << 20])
def test_large_requests_add_up_however_they_are_split(disk: Disk, size: int, tmp_path: Path) -> None:
    report = tmp_path / "fio.json"
    job = fio(
        disk,
        "--direct=1",
        "--rw=randread",
        f"--bs={size}",
        "--ioengine=libaio",
        "--iodepth=8",
        requests=211,
        report=report,
    )
    watched = whole(disk.device, lambda: watch(job, "--device", disk.device))
    requests, bytes_read = fio_totals(report)["read"]
    assert requests == 211
    assert watched.total("bytes", engine="libaio", op="read", path="direct") == bytes_read


def test_the_calls_say_what_was_asked(loop_disk: Disk, tmp_path: Path) -> None:
    report = tmp_path / "fio.json"
    for engine in ("libaio", "io_uring"):
        job = fio(
            loop_disk, "--direct=1", "--rw=randrw", "--bs=8k", f"--ioengine={engine}", "--iodepth=32",
            "--iodepth_batch=8", "--iodepth_batch_complete=8", requests=REQUESTS, report=report,
        )  # fmt: skip
        watched = watch(job)
        totals = fio_totals(report)
        rows = {row["op"]: row for row in watched.report["submissions"] if row["engine"] == engine}
        for op in ("read", "write"):
            assert (rows[op]["requests"], rows[op]["bytes"]) == totals[op]
            assert 0 < rows[op]["calls"] <= rows[op]["requests"]
            assert rows[op]["submit_seconds"] > 0
        assert rows[None]["wait_seconds"] > 0
        if engine == "libaio":
            assert rows[None]["requests"] == sum(requests for requests, _ in totals.values())


def test_calls_of_who_has_ended_give_back_their_room_when_they_have_been_read(loop_disk: Disk, tmp_path: Path) -> None:
    """The daemon's table has to last for months."""
    report = tmp_path / "fio.json"
    job = fio(
        loop_disk, "--direct=1", "--rw=randread", "--bs=4k", "--ioengine=libaio", requests=REQUESTS, report=report
    )
    with Probe(probe_options()) as probe:
        probe.start()
        found: list[int] = []
        for _ in range(3):
            run(*job)
            calls = probe.read().calls
            found.append(int(calls["requests"][:, 0].sum()))
            probe.give_back(lambda pid, start_ns: not Path(f"/proc/{pid}").exists())
        assert len(json.loads(run("bpftool", "-j", "map", "dump", "name", "call_totals"))) > 0
        assert not len(probe.read().calls)
        assert json.loads(run("bpftool", "-j", "map", "dump", "name", "call_totals")) == []
    assert found == [REQUESTS] * 3


def test_sqpoll_requests_are_asked_for_without_calls(loop_disk: Disk, tmp_path: Path) -> None:
    report = tmp_path / "fio.json"
    job = fio(
        loop_disk, "--direct=1", "--rw=randread", "--bs=4k", "--ioengine=io_uring", "--iodepth=32", "--sqthread_poll=1",
        requests=REQUESTS, report=report,
    )  # fmt: skip
    watched = watch(job)
    [row] = [r for r in watched.report["submissions"] if r["engine"] == "io_uring" and r["op"] == "read"]
    assert (row["requests"], row["bytes"]) == fio_totals(report)["read"]
    assert row["submit_seconds"] is None


@pytest.fixture
def gated(live: Callable[..., Live]) -> Gated:
    """Start a workload and watch it by --pid from its gate on."""

    def run(disk: Disk, kind: str, count: int) -> Watched:
        with subprocess.Popen(
            [sys.executable, WORKLOAD, "gate", disk.path, kind, str(count)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        ) as process:  # fmt: skip
            assert process.stdout
            pid = int(process.stdout.readline())
            session = live("--pid", str(pid), "--device", disk.device)
            output, _ = process.communicate("go\n", timeout=HANG)
            return Watched(session.finish(), pid=pid, told=json.loads(output))

    return run


@pytest.mark.parametrize("kind", ["pread", "mmap", "child"])
def test_a_pid_and_its_children_are_watched_until_they_end(disk: Disk, kind: str, gated: Gated) -> None:
    """Witness: the process's own read_bytes, which the kernel keeps. Pages are one request each: no read-ahead."""
    count = 1009
    for _ in range(8):
        watched = whole(disk.device, lambda: gated(disk, kind, count))
        worker, witness = watched.told["pid"], watched.told["read_bytes"]
        assert (worker == watched.pid) == (kind != "child")
        assert watched.report["end"] == "completed"
        total = watched.total("bytes", op="read", pid=worker)
        assert total >= witness >= count * 4096
        # On the virtual disk the interpreter's own files may have to be read again, meanwhile or at its end.
        if total == count * 4096 or disk.device.startswith("loop"):
            break
    assert total == witness == count * 4096
    [stream] = watched.streams(op="read")
    engine, path = ("mmap", "page_cache") if kind == "mmap" else ("posix", "direct")
    assert (stream["pid"], stream["engine"], stream["path"]) == (worker, engine, path)
    assert stream["requests"] == count


def test_what_others_do_to_the_device_is_totalled_beside_the_session(
    loop_disk: Disk, live: Callable[..., Live], tmp_path: Path
) -> None:
    """Two workers on one device: the session's bytes are its own, the neighbour's are in devices.others_bytes."""
    report = tmp_path / "fio.json"

    def measure() -> Watched:
        with subprocess.Popen(
            [sys.executable, WORKLOAD, "gate", loop_disk.path, "pread", "1009"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        ) as process:  # fmt: skip
            assert process.stdout
            pid = int(process.stdout.readline())
            session = live("--pid", str(pid), "--device", loop_disk.device)
            job = fio(
                loop_disk, "--direct=1", "--rw=randread", "--bs=4k", "--blockalign=8k", "--ioengine=libaio",
                "--iodepth=32", requests=REQUESTS, report=report,
            )  # fmt: skip
            subprocess.run(job, check=True, timeout=HANG)
            process.communicate("go\n", timeout=HANG)
            return Watched(session.finish())

    found = whole(loop_disk.device, measure).report
    [device] = found["devices"]
    assert device["session_bytes"] == 1009 * 4096
    assert device["others_bytes"] == fio_totals(report)["read"][1]
    assert found["attribution"]["data_bytes"] == device["session_bytes"] + device["others_bytes"]


def test_a_process_that_asks_only_the_page_cache_still_shows_what_it_asked(tmp_path: Path) -> None:
    """On tmpfs: no block request would ever introduce it."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        disk, report = Disk(Path(folder) / "file", "", 4 << 20), tmp_path / "fio.json"
        disk.path.write_bytes(bytes(disk.size))
        job = fio(disk, "--rw=randread", "--bs=4k", "--ioengine=io_uring", requests=1009, report=report)
        for _ in range(2):  # the second time fio itself comes from the page cache, too
            watched = watch(job)
        [row] = [r for r in watched.report["submissions"] if r["op"] == "read"]
        assert (row["requests"], row["bytes"]) == fio_totals(report)["read"] == (1009, 1009 * 4096)


def test_a_large_batch_is_walked_to_its_end(loop_disk: Disk, tmp_path: Path) -> None:
    report = tmp_path / "fio.json"
    job = fio(
        loop_disk, "--direct=1", "--rw=randread", "--bs=4k", "--ioengine=libaio", "--iodepth=1024",
        "--iodepth_batch=1024", "--iodepth_batch_complete=1024", requests=8 * 1024, report=report,
    )  # fmt: skip
    rows = {row["op"]: row for row in watch(job).report["submissions"]}
    assert set(rows) == {"read", None}
    assert (rows["read"]["requests"], rows["read"]["bytes"]) == fio_totals(report)["read"]
    assert rows["read"]["calls"] < 8 * 1024 / 100
