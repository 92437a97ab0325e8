"""One daemon a host: two would count everything twice into the same series.

The lock is on a file that only root, or the account that systemd made the folder for, may open (flock(2)): the kernel
gives it back when the process ends, however it ends, and nobody else can hold it. Only that may go in here.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO

from llmio_probe.errors import ProbeError

FOLDER = Path("/run/llmio-probe")


def lock_folder(environ: Mapping[str, str]) -> Path:
    """systemd's RuntimeDirectory=, or the same made by root."""
    return Path(environ.get("RUNTIME_DIRECTORY", "").partition(":")[0] or FOLDER)


def only_daemon(folder: Path) -> IO[str]:
    """What to keep as long as the daemon runs. ProbeError when there is one, or no lock to be had."""
    try:
        folder.mkdir(mode=0o755, exist_ok=True)
        lock = open(os.open(folder / "daemon", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), "r+")  # noqa: SIM115
    except OSError as error:
        raise ProbeError(
            f"the lock that keeps a host to one daemon cannot be opened in {folder} ({error.strerror}): "
            "run as root, or under systemd with RuntimeDirectory=llmio-probe"
        ) from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        with lock:
            holder = lock.read().strip()
        who = f" (process {holder})" if holder.isdecimal() else ""
        raise ProbeError(
            f"a daemon runs on this host already{who}: stop it first, or watch beside it with llmio-probe --all"
        ) from None
    with suppress(OSError):  # the lock is what counts, a full /run leaves it nameless
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
    return lock
