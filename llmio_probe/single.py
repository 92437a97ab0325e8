"""One daemon a host: two would count everything twice into the same series.

The lock is a name that a socket is bound to and that no file stands for (unix(7), abstract): the kernel gives it back
when the process ends, however it ends. Only that may go in here.
"""

from __future__ import annotations

import errno
import socket
import struct
from contextlib import suppress

from llmio_probe.errors import ProbeError

NAME = "\0llmio-probe/daemon"
_CREDENTIALS = struct.Struct("=iII")  # struct ucred: pid, uid, gid
_WAITING = 128


def only_daemon(name: str = NAME) -> socket.socket:
    """What to keep as long as the daemon runs. ProbeError when there is one."""
    lock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        lock.bind(name)
        lock.listen(_WAITING)  # only so that others can ask whose it is
    except OSError as error:
        lock.close()
        if error.errno != errno.EADDRINUSE:
            raise
        holder = _holder(name)
        who = f" (process {holder})" if holder else ""
        raise ProbeError(
            f"a daemon runs on this host already{who}: stop it first, or watch beside it with llmio-probe --all"
        ) from None
    return lock


def _holder(name: str) -> int | None:
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
        asking.setblocking(False)
        asking.connect(name)
        credentials = asking.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        return int(_CREDENTIALS.unpack(credentials)[0]) or None  # 0: in another PID namespace
    return None
