"""llmio-probe demo: an offload-shaped workload with the probe on it, for a first look without GPU and framework.

fio plays a worker that keeps its weights and its KV cache on NVMe (facts of the CHEOPS'25 study): weights are read
again and again with libaio and O_DIRECT, the KV cache is read and, far less, written through a shared mapping. Only
the workload, its scratch folder and their end may go in here; watching it is a plain session.
"""

from __future__ import annotations

import errno
import mmap
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

import psutil

from llmio_probe.errors import ProbeError
from llmio_probe.identity.mounts import Mounts
from llmio_probe.identity.pidns import require_host_pids
from llmio_probe.outputs.units import MIB, bytes_text
from llmio_probe.outputs.writer import Writer
from llmio_probe.rights import require_loading
from llmio_probe.session import Live, Session, SessionOptions
from llmio_probe.text import escape

WEIGHTS = "demo.safetensors"
KV_CACHE = "demo@1@0@0@float16.pt"  # as LMCache names them
LOG = "fio.log"

KV_SHARE = 8
"""The KV cache is this part of the weights."""
KV_LEAST_BYTES = 16 * MIB
KV_READS_PER_WRITE = 16
SPARE_BYTES = 256 * MIB
"""What has to stay free beside the files."""
CHUNK_BYTES = 4 * MIB
INTERVAL_SECONDS = 1.0
GRACE_SECONDS = 5.0
"""How long fio may take to end by itself when the demo is aborted."""

FIO_INTERRUPTED = 128
"""fio's exit status after a SIGINT or SIGTERM (sig_int, fio's backend.c)."""

_HELP = "name a directory on a local disk with --directory"


def run(directory: str, weights_bytes: int, seconds: float, *, as_json: bool) -> int:
    """Lay out, watch, show, clean up. ProbeError when this host or directory cannot do it."""
    require_loading()
    require_host_pids()
    if shutil.which("fio") is None:
        raise ProbeError("the demo's workload is made by fio, which is missing: install the package fio")
    kv_bytes = max(weights_bytes // KV_SHARE, KV_LEAST_BYTES)
    require_block_device(directory, Mounts())
    require_room(directory, weights_bytes + kv_bytes)
    with _ending_by_exception(), _scratch(directory) as folder:
        # A document must have standard output to itself.
        print(
            f"Demo in {escape(folder)}, removed afterwards. For {seconds:g} s\n"
            f"fio reads weights ({bytes_text(weights_bytes)}) by libaio "
            f"and a KV cache ({bytes_text(kv_bytes)}) by mmap.\n",
            file=sys.stderr if as_json else sys.stdout,
            flush=True,
        )
        write_file(os.path.join(folder, WEIGHTS), weights_bytes)
        write_file(os.path.join(folder, KV_CACHE), kv_bytes)
        command = fio_command(folder, kv_bytes, seconds)
        live = None if as_json else Live(sys.stdout, INTERVAL_SECONDS, alone=False)
        with _no_orphan(folder):
            outcome = Session(SessionOptions(command=command), live).run(lambda summary: None)
        if outcome.status not in (0, FIO_INTERRUPTED):
            raise ProbeError(f"fio ended with status {outcome.status}: {last_error(folder)}")
        if not as_json:
            print(flush=True)
        with Writer(None, as_json=as_json) as writer:
            writer.write(outcome.document)
    return 0


def fio_command(folder: str, kv_bytes: int, seconds: float) -> tuple[str, ...]:
    """One process with a thread for either file, as a framework has; one sweep of the KV cache lasts for the run."""

    def file(name: str) -> str:
        return "--filename=" + os.path.join(folder, name).replace(":", r"\:")  # fio separates names by colons

    reads = max(int(kv_bytes / seconds), CHUNK_BYTES)
    return (
        "fio",
        "--thread",
        "--time_based",
        f"--runtime={round(seconds * 1000)}ms",
        "--eta=never",
        f"--output={os.path.join(folder, LOG)}",
        "--name=weights",
        file(WEIGHTS),
        "--ioengine=libaio",
        "--direct=1",
        "--rw=read",
        "--bssplit=128k/40:256k/20:512k/20:1m/20",
        "--iodepth=32",
        "--name=kv_cache",
        file(KV_CACHE),
        "--ioengine=mmap",
        "--rw=randrw",
        f"--rwmixread={100 - 100 // (KV_READS_PER_WRITE + 1)}",
        "--bs=128k",
        f"--rate={reads},{reads // KV_READS_PER_WRITE}",
        "--fsync=4",
        "--fadvise_hint=0",  # else it advises random access, and every page is a request of its own
    )


# --- may it be done here


def require_block_device(directory: str, mounts: Mounts) -> None:
    """ProbeError unless what is read and written in there goes to a block device."""
    try:
        device = os.stat(os.path.join(directory, "")).st_dev
    except OSError as error:
        raise ProbeError(f"{escape(directory)}: {error.strerror}; {_HELP}") from None
    mount = mounts.table().at(os.path.realpath(directory))
    # In a chroot mountinfo may lack what is above.
    if not (os.major(device) if mount is None else mount.on_block_devices):
        kind = "an unknown filesystem" if mount is None else mount.kind
        raise ProbeError(f"{escape(directory)} is on {escape(kind)}, which has no block device to watch; {_HELP}")


def require_room(directory: str, files_bytes: int) -> None:
    status = os.statvfs(directory)
    free, needed = status.f_bavail * status.f_frsize, files_bytes + files_bytes // 10 + SPARE_BYTES
    if free < needed:
        raise ProbeError(
            f"the demo needs {bytes_text(needed)} free in {escape(directory)}, there are {bytes_text(free)}: "
            "take a smaller --size or another --directory"
        )


# --- the scratch folder, and its end


def write_file(path: str, size: int) -> None:
    """Real data, written past the page cache: neither a hole nor what is cached asks a disk when it is read."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_DIRECT, 0o600)
        try:
            with mmap.mmap(-1, CHUNK_BYTES) as noise:  # O_DIRECT wants it aligned
                noise.write(os.urandom(CHUNK_BYTES))
                _write_all(fd, noise, size)
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)  # some filesystems cache it nonetheless
        finally:
            os.close(fd)
    except OSError as error:
        why = "its filesystem knows no O_DIRECT" if error.errno == errno.EINVAL else error.strerror
        raise ProbeError(f"{escape(path)} cannot be written: {why}; {_HELP}") from None


def _write_all(fd: int, noise: mmap.mmap, size: int) -> None:
    written = 0
    with memoryview(noise) as chunk:
        while written < size:
            with chunk[: size - written] as rest:
                written += os.write(fd, rest)


def last_error(folder: str) -> str:
    """What fio said last of itself, else last at all."""
    try:
        with open(os.path.join(folder, LOG), errors="surrogateescape") as file:
            lines = [line.strip() for line in file if line.strip()]
    except OSError:
        lines = []
    own = [line for line in lines if line.startswith("fio:")]
    return escape((own or lines or ["it said nothing"])[-1])


@contextmanager
def _scratch(directory: str) -> Iterator[str]:
    """A private folder that goes whatever happens."""
    try:
        folder = tempfile.mkdtemp(prefix="llmio-probe-demo-", dir=directory)
    except OSError as error:
        raise ProbeError(f"nothing can be written in {escape(directory)}: {error.strerror}; {_HELP}") from None
    try:
        yield folder
    finally:
        with _undisturbed():
            shutil.rmtree(folder)


@contextmanager
def _no_orphan(folder: str) -> Iterator[None]:
    """A session leaves COMMAND alone when it is aborted; ours has nothing to live for then."""
    try:
        yield
    finally:
        with _undisturbed():
            for child in psutil.Process().children():
                with suppress(psutil.NoSuchProcess):
                    if any(folder in word for word in child.cmdline()):
                        _end(child)


def _end(child: psutil.Process) -> None:
    child.terminate()
    try:
        child.wait(GRACE_SECONDS)
    except psutil.TimeoutExpired:
        child.kill()
        child.wait()


@contextmanager
def _ending_by_exception() -> Iterator[None]:
    """What would end us without cleaning up raises SystemExit instead. What we were told to ignore stays ignored."""

    def end(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    fatal = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) == signal.SIG_DFL]
    for number in fatal:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in fatal:
            signal.signal(number, signal.SIG_DFL)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """No signal ends the cleaning up. Not by a mask: another thread would take it, and Python raises in ours."""
    before = {
        number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
