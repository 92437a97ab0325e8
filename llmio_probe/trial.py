"""Whether the probe sees a request at all, tried on this host: loaded, attached, a read of our own, detached.

For doctor, which says what came of it. Nothing is left behind, and nothing else may go in here.
"""

from __future__ import annotations

import mmap
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from llmio_probe.kernel.loading import ProbeOptions
from llmio_probe.kernel.probe import Probe
from llmio_probe.kernel.records import Op
from llmio_probe.kernel.records import Path as IoPath

READ_BYTES = 4096
TRIES = 5
RECORD_SECONDS = 0.2
"""How long the record of one read may take to come."""


@dataclass(frozen=True)
class Trial:
    """What came of it. first_record: from the beginning, None when none came."""

    programs: int
    memory: Mapping[str, int]
    first_record: float | None
    path: IoPath | None
    warnings: Sequence[str] = ()
    """What a session would be told."""


def try_out(directory: str, options: ProbeOptions) -> Trial:
    """directory: where the file to read is made, for as long as it takes. ProbeError when it cannot be loaded."""
    with tempfile.TemporaryDirectory(prefix="llmio-probe-doctor-", dir=directory) as folder:
        path = os.path.join(folder, "read")
        _write(path)
        start = time.monotonic()
        with Probe(options) as probe:
            probe.start()
            came = _first_record(probe, path)
            seconds = time.monotonic() - start
            probe.stop()
            programs, memory = probe.programs, probe.state().kernel_memory_bytes
            warnings = tuple(probe.warnings)
    return Trial(programs, memory, None if came is None else seconds, came, warnings)


def _write(path: str) -> None:
    """Written out: what is not on the disk yet would be read without asking it."""
    with open(path, "wb") as file:
        file.write(os.urandom(READ_BYTES))
        file.flush()
        os.fsync(file.fileno())


def _read_directly(path: str) -> bool:
    """False where the filesystem knows no O_DIRECT."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    except OSError:
        return False
    try:
        with mmap.mmap(-1, READ_BYTES) as aligned:
            return os.preadv(fd, [aligned], 0) == READ_BYTES
    except OSError:
        return False
    finally:
        os.close(fd)


def _first_record(probe: Probe, path: str) -> IoPath | None:
    """The path in the first record of a read of ours; None when there is none after some tries.

    More than one: now and then a kernel skips our programs (the session counts that).
    """
    for _ in range(TRIES):
        if not _read_directly(path):
            return None
        deadline = time.monotonic() + RECORD_SECONDS
        while time.monotonic() < deadline:
            requests = probe.read().requests
            own = requests[(requests["tgid"] == os.getpid()) & (requests["op"] == Op.READ)]
            own = own[own["bytes"] == READ_BYTES]
            if len(own):
                return IoPath(int(own[0]["path"]))
            time.sleep(0.001)
    return None
