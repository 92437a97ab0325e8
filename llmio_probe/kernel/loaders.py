"""Which of the two loaders is used: CO-RE where the kernel offers its types, BCC where it does not.

Only this choice may go in here. Neither loader is imported before it is used.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from llmio_probe.kernel.btf import VMLINUX_BTF
from llmio_probe.kernel.libbpf import Libbpf
from llmio_probe.kernel.loading import Loaded, LoaderName, ProbeOptions


def which(asked: LoaderName, types: Path = VMLINUX_BTF) -> Literal["core", "bcc"]:
    """``auto`` is decided, and only that: what was asked for by name may be impossible here."""
    if asked == "auto":
        return "core" if types.exists() else "bcc"
    return asked


def load(libbpf: Libbpf, options: ProbeOptions) -> Loaded:
    """Load by the loader that was asked for. ProbeError when it cannot."""
    if which(options.loader) == "core":
        from llmio_probe.kernel import core_loader

        return core_loader.load(libbpf, options)
    from llmio_probe.kernel import bcc_loader

    return bcc_loader.load(libbpf, options)
