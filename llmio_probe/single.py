"""One daemon a host: two would count everything twice into the same series.

The lock is on a file that only root, or the account that systemd made the folder for, may open (flock(2)): the kernel
gives it back when the process ends, however it ends, and nobody else can hold it. Only that may go in here.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from pathlib import Path
from typing import IO

from llmio_probe.errors import ProbeError
from llmio_probe.text import escape

FOLDER = Path("/run/llmio-probe")
"""One for whoever starts it: RuntimeDirectory= of the unit, or made by root."""


def only_daemon(folder: Path = FOLDER) -> IO[str]:
    """What to keep as long as the daemon runs. ProbeError when there is one, or no lock to be had."""
    # No link is followed: the folder may be that of a service's account, and we root.
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        folder.mkdir(mode=0o755, exist_ok=True)
        lock = open(os.open(folder / "daemon", flags, 0o600), "r+", errors="replace")  # noqa: SIM115
    except OSError as error:
        raise ProbeError(
            f"the lock that keeps a host to one daemon cannot be opened in {folder} ({error.strerror}): "
            "run as root, or under systemd with RuntimeDirectory=llmio-probe"
        ) from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        with lock:
            holder = _process(lock.read(64).strip())
        raise ProbeError(
            f"a daemon runs on this host already{holder}: stop it first, or watch beside it with llmio-probe --all"
        ) from None
    except OSError as error:
        lock.close()
        raise ProbeError(
            f"{folder / 'daemon'} cannot be locked ({error.strerror}), so that nothing keeps this host to one daemon: "
            "let /run be a tmpfs, as it is usual"
        ) from None
    with suppress(OSError):  # the lock is what counts, a full /run leaves it nameless
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
    return lock


def _process(pid: str) -> str:
    """Its number and command, as far as they are known."""
    if not (pid.isascii() and pid.isdigit()):
        return ""
    with suppress(OSError):
        command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        if command:
            return f" (process {pid}: {escape(command)})"
    return f" (process {pid})"
