"""Whether the process ids that the kernel reports mean anything to us: only in the host's PID namespace do they.

Only this one check may go in here.
"""

from __future__ import annotations

import os

from llmio_probe.errors import ProbeError

HOST_PID_NAMESPACE = "pid:[4026531836]"
"""PROC_PID_INIT_INO of include/linux/proc_ns.h: fixed, so that a container cannot mistake its own for the host's."""

_HELP = "run it with --pid=host (Kubernetes: hostPID: true)"


def require_host_pids(proc_root: str = "/proc") -> None:
    link = f"{proc_root}/self/ns/pid"
    try:
        namespace = os.readlink(link)
    except OSError as error:
        raise ProbeError(
            f"cannot tell the PID namespace: {link}: {error.strerror}; mount /proc, and in a container {_HELP}"
        ) from error
    if namespace != HOST_PID_NAMESPACE:
        raise ProbeError(
            f"this is not the host's PID namespace ({namespace}), so the kernel's process ids mean nothing; {_HELP}"
        )
