"""What tests in guests make of disks, and change about them: null_blk, dm, md, the NVMe driver's queues; ftrace.

Each is a context manager that gives back what it took, also on failure. No test's own logic may go in here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.live.harness import Disk, run

BLOCK_DEVICES = Path("/sys/block")
CONFIGFS = Path("/sys/kernel/config")
NVME_DRIVER = Path("/sys/bus/pci/drivers/nvme")
SECTOR = 512


def number_of(device: str) -> int:
    """A disk's dev_t as the kernel has it."""
    major, minor = (BLOCK_DEVICES / device / "dev").read_text().split(":")
    return int(major) << 20 | int(minor)


def wait_until(true: Callable[[], bool], what: str | Callable[[], object]) -> None:
    """what: to say of it when it does not come true, or what to ask then."""
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline, what if isinstance(what, str) else what()
        time.sleep(0.01)


@contextmanager
def setting(path: Path, value: object) -> Iterator[None]:
    before = path.read_text().strip()
    try:
        path.write_text(str(value))
        yield
    finally:
        path.write_text(before)


@contextmanager
def traced(event: str, only: str) -> Iterator[Callable[[], Sequence[int]]]:
    """How often a tracepoint fired on each processor, as the kernel's own tracer counts it. only: its filter."""
    tracer = Path("/sys/kernel/tracing/instances/llmio")
    tracer.mkdir()
    folder = tracer / "events" / event

    def entries() -> Sequence[int]:
        statistics = [path.read_text().splitlines() for path in sorted(tracer.glob("per_cpu/cpu*/stats"))]
        return [int(line.split()[1]) for lines in statistics for line in lines if line.startswith("entries:")]

    try:
        (folder / "filter").write_text(only)
        (folder / "enable").write_text("1")
        yield entries
    finally:
        (folder / "enable").write_text("0")
        tracer.rmdir()


# null_blk


@contextmanager
def null_disk(**attributes: object) -> Iterator[Disk]:
    """A disk of the null_blk driver, 256 MiB unless told otherwise; attributes as configfs names them."""
    attributes = {"size": 256, "blocksize": 4096, "submit_queues": 2} | attributes
    with ExitStack() as stack:
        run("modprobe", "null_blk", "nr_devices=0")
        if not CONFIGFS.is_mount():
            run("mount", "-t", "configfs", "configfs", CONFIGFS)
        before = set(BLOCK_DEVICES.iterdir())
        folder = CONFIGFS / "nullb" / "llmio"
        folder.mkdir()
        stack.callback(folder.rmdir)
        for name, value in attributes.items():
            (folder / name).write_text(str(value))
        stack.callback((folder / "power").write_text, "0")
        (folder / "power").write_text("1")
        [made] = set(BLOCK_DEVICES.iterdir()) - before  # called nullb0 before 6.1
        yield Disk(Path("/dev") / made.name, made.name, int(str(attributes["size"])) << 20)


# dm and md


@contextmanager
def mapped(*targets: str) -> Iterator[Disk]:
    """A device-mapper device of such parts: ``SECTORS linear /dev/x 0``. Nobody runs udev here."""
    sectors, table = 0, ""
    for target in targets:
        table += f"{sectors} {target}\n"
        sectors += int(target.split()[0])
    run("modprobe", "dm-mod")
    run("dmsetup", "create", "--noudevsync", "--noudevrules", "llmio", "--table", table)
    try:
        [name] = [
            path.parent.parent.name for path in BLOCK_DEVICES.glob("dm-*/dm/name") if path.read_text() == "llmio\n"
        ]
        yield Disk(Path("/dev") / name, name, sectors * SECTOR)
    finally:
        run("dmsetup", "remove", "--noudevsync", "--retry", "llmio")


@contextmanager
def striped(members: Sequence[Disk]) -> Iterator[Disk]:
    """An md array that spreads 64 KiB at a time over its members."""
    node = Path("/dev/md0")
    paths = [member.path for member in members]
    run("modprobe", "raid0")
    run(
        "mdadm", "--create", node, "--run", "--level=0", "--chunk=64", f"--raid-devices={len(paths)}", *paths,
        env={"MDADM_NO_UDEV": "1", "PATH": "/usr/sbin:/usr/bin"},
    )  # fmt: skip
    try:
        yield Disk(node, node.name, int((BLOCK_DEVICES / node.name / "size").read_text()) * SECTOR)
    finally:
        run("mdadm", "--stop", node)
        run("mdadm", "--zero-superblock", *paths)


# NVMe


def namespaces() -> Mapping[str, int]:
    """Namespace ids of the NVMe disks that have a node, by name: not of paths hidden below a multipath head."""
    return {
        path.parent.name: int(path.read_text())
        for path in BLOCK_DEVICES.glob("nvme*n*/nsid")
        if (Path("/dev") / path.parent.name).is_block_device()
    }


def controller() -> Path:
    """The only one there is, as a PCI device."""
    [found] = Path("/sys/class/nvme").glob("nvme*")
    return (found / "device").resolve()


def rebind(expected: Mapping[str, int]) -> None:
    """Let the driver begin anew until namespaces are called as expected: they are numbered as they are discovered."""
    for _ in range(20):
        address = controller().name
        (NVME_DRIVER / "unbind").write_text(address)
        (NVME_DRIVER / "bind").write_text(address)
        _until_found(expected)
        if namespaces() == expected:
            return
    raise AssertionError(f"{namespaces()} after twenty attempts, and not {expected}")


def _until_found(expected: Mapping[str, int]) -> None:
    wait_until(lambda: len(namespaces()) == len(expected), "the namespaces do not come back")


@contextmanager
def nvme_queues(write: int, poll: int) -> Iterator[None]:
    """Hardware queues that the driver is asked for: for writes alone, and for who polls."""
    parameters = Path("/sys/module/nvme/parameters")
    expected = namespaces()
    try:
        with setting(parameters / "write_queues", write), setting(parameters / "poll_queues", poll):
            rebind(expected)
            yield
    finally:
        rebind(expected)


@contextmanager
def nvme_comes_back() -> Iterator[None]:
    """Whatever is removed in it."""
    expected = namespaces()
    try:
        yield
    finally:
        Path("/sys/bus/pci/rescan").write_text("1")
        _until_found(expected)
        if namespaces() != expected:
            rebind(expected)
