"""Commands that go around the block layer's reads and writes: by ioctl, and by io_uring to a namespace's own node.

Witnesses: nvme-cli asks for one command each, besides what it asks the controller; fio's own count; ftrace.
"""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.live.harness import HANG, Disk, Watched, fio, fio_totals, run, start_probe
from tests.vm.guest.devices import traced

pytestmark = pytest.mark.guest

BLOCK = 4096
REQUESTS = 301


def character_node(disk: Disk) -> Path:
    """Since 5.13: for commands of NVMe's own."""
    return Path("/dev") / disk.device.replace("nvme", "ng")


def nvme(*words: str | Path) -> tuple[int, str]:
    """nvme-cli's pid, and what it had to say against it."""
    with subprocess.Popen(["nvme", *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        _, errors = process.communicate(timeout=HANG)
    return process.pid, errors


@dataclass
class Commands:
    """A session on the whole host, and who did what in it."""

    watched: Watched
    identify: int
    read: int
    write: int
    fail: int
    failures: int
    """That the kernel's own tracer was told."""
    report: Path
    """fio's."""

    @property
    def owned(self) -> bool:
        """Whether such a command is seen to begin. block_getrq, which stands in before 6.5, is for what has a bio."""
        return any(hook.endswith("/block_io_start") for hook in self.watched.report["host"]["hooks"])

    def by_fio(self) -> tuple[int, int]:
        """Requests and bytes."""
        totals = fio_totals(self.report).values() if self.report.exists() else ()
        return sum(requests for requests, _ in totals), sum(size for _, size in totals)

    def ioctls(self, device: str) -> dict[int | None, tuple[str, str | None, int, int]]:
        """Worker, engine, requests and bytes by pid; not fio's."""
        return {
            s["pid"]: (s["worker"], s["engine"], s["requests"], s["bytes"])
            for s in self.watched.streams(op="passthrough", device=device)
            if s["worker"] != "fio"
        }


@pytest.fixture(scope="module")
def seen(nvme_disk: Disk, tmp_path_factory: pytest.TempPathFactory) -> Commands:
    folder = tmp_path_factory.mktemp("passthrough")
    report, memory = folder / "fio.json", folder / "memory"
    memory.write_bytes(bytes(3 * BLOCK))
    reading = ("read", nvme_disk.path, "--block-count=7", f"--data-size={BLOCK}")
    writing = ("write", nvme_disk.path, "--block-count=23", f"--data-size={3 * BLOCK}", f"--data={memory}")
    with start_probe(folder / "session.json", "--all") as session:
        identify, _ = nvme("id-ctrl", Path("/dev") / nvme_disk.device.rpartition("n")[0])
        read, _ = nvme(*reading, "--start-block=0")
        write, _ = nvme(*writing, "--start-block=8")
        with traced("block/block_rq_complete", "error != 0") as failures:
            fail, errors = nvme(*reading, f"--start-block={nvme_disk.size // 512}")
            failed = sum(failures())
        assert "LBA Out of Range" in errors
        if (node := character_node(nvme_disk)).is_char_device():
            job = fio(
                Disk(node, nvme_disk.device, nvme_disk.size), "--rw=randrw", "--bs=4k", "--ioengine=io_uring_cmd",
                "--cmd_type=nvme", "--iodepth=8", requests=REQUESTS, report=report,
            )  # fmt: skip
            run(*job)
        watched = Watched(session.interrupt())
    return Commands(watched, identify, read, write, fail, failed, report)


def test_a_command_for_the_controller_is_on_no_disk(seen: Commands) -> None:
    """Its queue has none. What the controller says of itself has 4096 bytes."""
    found = seen.ioctls("unknown")
    if seen.owned:
        assert found[seen.identify] == ("nvme", "posix", 1, BLOCK)
    else:
        [(worker, engine, requests, size)] = found.values()
        assert (worker, engine, size) == ("unknown", None, requests * BLOCK)
        assert requests >= 1


def test_commands_by_ioctl_are_their_callers(seen: Commands, nvme_disk: Disk) -> None:
    """Of nobody that is known where the kernel does not show where they begin, but counted nonetheless."""
    if not seen.owned:
        assert sum(size for *_, size in seen.ioctls(nvme_disk.device).values()) - seen.by_fio()[1] == 5 * BLOCK
        assert {worker for worker, *_ in seen.ioctls(nvme_disk.device).values()} == {"unknown"}
        return
    assert seen.ioctls(nvme_disk.device) == {
        seen.read: ("nvme", "posix", 1, BLOCK),
        seen.write: ("nvme", "posix", 1, 3 * BLOCK),
        seen.fail: ("nvme", "posix", 1, BLOCK),
    }


def test_a_command_that_fails_is_an_error_where_the_kernel_tells(seen: Commands, nvme_disk: Disk) -> None:
    """Not all do: where completions are batched, those of such commands have a status in the driver only."""
    assert seen.watched.total("errors", op="passthrough") == seen.failures
    assert seen.watched.total("errors", device=nvme_disk.device) == seen.failures


def test_commands_by_io_uring_are_all_counted(seen: Commands, nvme_disk: Disk) -> None:
    if not character_node(nvme_disk).is_char_device():
        pytest.skip("this kernel has no nodes for NVMe's own commands: they came with 5.13")
    assert seen.by_fio()[0] == REQUESTS
    if seen.owned:
        [stream] = seen.watched.streams(worker="fio", device=nvme_disk.device)
        assert (stream["op"], stream["engine"], stream["errors"]) == ("passthrough", "io_uring", 0)
        assert (stream["requests"], stream["bytes"]) == seen.by_fio()
    else:  # with the three of nvme-cli
        [stream] = seen.watched.streams(op="passthrough", device=nvme_disk.device)
        assert (stream["worker"], stream["requests"]) == ("unknown", REQUESTS + 3)
        assert stream["bytes"] == seen.by_fio()[1] + 5 * BLOCK


def test_no_command_moves_data_in_the_sense_of_the_totals(seen: Commands, nvme_disk: Disk) -> None:
    assert {s["op"] for s in seen.watched.streams(device=nvme_disk.device)} == {"passthrough"}
    others = seen.watched.total("bytes", op="read") + seen.watched.total("bytes", op="write")
    assert seen.watched.report["attribution"]["data_bytes"] == others
    [device] = [d for d in seen.watched.report["devices"] if d["device"] == nvme_disk.device]
    assert (device["session_bytes"], device["others_bytes"]) == (0, 0)
