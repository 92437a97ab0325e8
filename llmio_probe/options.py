"""What the commands ask of the probe on this host, made in one place for all of them."""

from __future__ import annotations

import os
from pathlib import Path

from llmio_probe.kernel.loading import LoaderName, ProbeOptions
from llmio_probe.kernel.probe import request_entries

WITHOUT = "LLMIO_WITHOUT"
"""Tracepoints and functions of the kernel to do without, for developers: docs/kernel.md, Variants."""


def probe_options(
    *, calls: bool = True, follow: bool = False, loader: LoaderName = "auto", sys_root: Path = Path("/sys")
) -> ProbeOptions:
    """With a request table that fits the host."""
    return ProbeOptions(
        request_entries(sys_root, os.cpu_count() or 1),
        calls,
        follow,
        loader,
        frozenset(os.environ.get(WITHOUT, "").split()),
    )
