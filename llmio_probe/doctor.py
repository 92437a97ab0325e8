"""llmio-probe doctor: what this host offers, what will not work and what to do about it.

One check per thing that a session needs, from basic to specific, each from the host itself and none from a table of
versions. A check says what it found and what helps; nothing is changed, and nothing stays attached. Without root it
says what it can. What the checks ask of the host goes through Host, so that tests need none.
"""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import subprocess
import textwrap
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal, TextIO

from llmio_probe.errors import ProbeError
from llmio_probe.identity.devices import Devices
from llmio_probe.identity.pidns import require_host_pids
from llmio_probe.kernel.atomics import Atomics
from llmio_probe.kernel.bcc_compiler import Refused, bcc_folder
from llmio_probe.kernel.bcc_loader import require_headers
from llmio_probe.kernel.core_loader import variant_for
from llmio_probe.kernel.libbpf import LIBRARY, Libbpf
from llmio_probe.kernel.loaders import which
from llmio_probe.kernel.loading import RING_MAPS, LoaderName, ProbeObject, ProbeOptions, object_path
from llmio_probe.kernel.records import Path as IoPath
from llmio_probe.kernel.symbols import addresses_of
from llmio_probe.kernel.tracepoints import tracepoint_ids
from llmio_probe.kernel.variants import Variant
from llmio_probe.options import probe_options
from llmio_probe.outputs.units import bytes_text, seconds_text
from llmio_probe.rights import CHANGING, Capability, lacking_for_loading
from llmio_probe.rights import names as capability_names
from llmio_probe.text import escape
from llmio_probe.trial import Trial, try_out

WIDTH = 80
OLDEST_KERNEL = (5, 10)
MACHINES = ("x86_64", "aarch64")

_HELPFUL = frozenset({Capability.SYSLOG, Capability.SYS_PTRACE, Capability.SYS_ADMIN})
_USE = "SYSLOG tells direct I/O, SYS_PTRACE names others' workers, SYS_ADMIN shows the app's view and modules' types"

_DIRECT_SYMBOLS = (
    ("iomap_dio_bio_end_io",),
    ("bio_chain_endio",),
    ("blkdev_bio_end_io", "blkdev_bio_end_io_async"),
)
"""Of each group every kernel has one at least; by them direct I/O is told. Others come and go with the version."""

_NO_CALLS = "run sessions with --no-calls: they will not say how long programs submit and wait"
_NOT_TRIED = "not tried: it needs the rights above"

NVME_CLASS = "0x0108"
USER_SPACE_DRIVERS = ("uio_pci_generic", "vfio-pci")
"""A disk that is bound to one of these is driven by a program (SPDK) or a virtual machine."""

State = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """One check's answer. fail: no session will work; warn: it will, with less; helps: what to do about it."""

    state: State
    found: str
    helps: str = ""


@dataclass(frozen=True)
class Contents:
    """What the BPF object holds."""

    sections: Mapping[str, str]
    """Its programs and what they attach to."""
    symbols: Collection[str]
    """The kernel's functions that it asks for."""


@dataclass
class Host:
    """Where the checks look and what they ask. The methods are what needs a real kernel."""

    asked: LoaderName = "auto"
    sys_root: Path = Path("/sys")
    proc_root: Path = Path("/proc")
    scratch: str = "/var/tmp"
    libbpf: str = LIBRARY
    libatomic: str = "libatomic.so.1"
    release: str = field(default_factory=platform.release)
    machine: str = field(default_factory=platform.machine)
    euid: int = field(default_factory=os.geteuid)

    @property
    def types(self) -> Path:
        return self.sys_root / "kernel" / "btf" / "vmlinux"

    @property
    def loader(self) -> Literal["core", "bcc"]:
        return which(self.asked, self.types)

    @property
    def options(self) -> ProbeOptions:
        return probe_options(follow=True, loader=self.asked, sys_root=self.sys_root)

    @cached_property
    def contents(self) -> Contents:
        """ProbeError when the object is missing or not this version's."""
        opened = ProbeObject(Libbpf(self.libbpf), object_path())
        with closing(opened):
            return Contents(opened.sections, tuple(opened.symbols))

    @cached_property
    def variant(self) -> Variant:
        """Which of the object's programs fit; ProbeError when none do, or the kernel offers no types."""
        return variant_for(Libbpf(self.libbpf), self.contents.sections, self.options.without)

    @cached_property
    def held(self) -> frozenset[Capability] | None:
        """The capabilities in force; None where they cannot be read."""
        with suppress(OSError, ValueError):
            for line in (self.proc_root / "self" / "status").read_text().splitlines():
                if line.startswith("CapEff:"):
                    bits = int(line.split()[1], 16)
                    return frozenset(capability for capability in Capability if bits >> capability & 1)
        return None

    @property
    def may_load(self) -> bool:
        return self.held is None or not lacking_for_loading(self.held)

    def require_bcc(self) -> None:
        """ProbeError naming the package that lacks."""
        require_headers(self.release)
        try:
            bcc_folder()
        except Refused as error:
            raise ProbeError(str(error)) from None

    def tracepoint_ids(self, names: Iterable[str]) -> dict[str, int]:
        return tracepoint_ids(names)

    def enable_statistics(self) -> None:
        """On and off again; OSError when the kernel refuses."""
        os.close(Libbpf(self.libbpf).number("bpf_enable_stats", 0))

    def trial(self) -> Trial:
        return try_out(self.scratch, self.options)


def run(stream: TextIO, host: Host) -> int:
    """Write the findings. 0 when a session would work, warnings or not, else 1."""
    states: list[State] = []
    for name, check in CHECKS.items():
        finding = _answer(check, host)
        states.append(finding.state)
        stream.write(_render(name, finding))
        stream.flush()  # the trial takes a moment
    if "fail" in states:
        stream.write("\nA session will not work here: begin with the first FAIL.\n")
        return 1
    less = " What is marked warn will be missing." if "warn" in states else ""
    stream.write(f"\nA session will work here.{less}\n")
    return 0


def _answer(check: Callable[[Host], Finding], host: Host) -> Finding:
    try:
        return check(host)
    except ProbeError as error:  # says what helps
        return Finding("fail", str(error))
    except OSError as error:
        return Finding("warn", f"cannot be checked: {escape(str(error))}")


def _render(name: str, finding: Finding) -> str:
    state = "FAIL" if finding.state == "fail" else finding.state
    indent = " " * 20
    lines = _wrap(finding.found, f"{state:<6}{name:<14}", indent)
    lines += _wrap(finding.helps, f"{indent}-> ", f"{indent}   ")
    return "\n".join(lines) + "\n"


def _wrap(text: str, first: str, others: str) -> list[str]:
    """Names of packages stay in one piece."""
    return textwrap.wrap(text, WIDTH, initial_indent=first, subsequent_indent=others, break_on_hyphens=False)


# --- the checks


def _rights(host: Host) -> Finding:
    who = "root" if host.euid == 0 else f"user id {host.euid}"
    held = host.held
    if held is None:
        return Finding("warn", f"{who}; its capabilities cannot be read", "mount /proc")
    if lacking := lacking_for_loading(held):
        names_of = capability_names(lacking)
        helps = f"give the container {names_of}, or run it privileged" if host.euid == 0 else "run it with sudo"
        return Finding("fail", f"{who}, without {names_of}, which loading BPF programs needs", helps)
    if lacking := _HELPFUL - held:
        names_of = capability_names(lacking)
        return Finding("warn", f"{who}, without {names_of}", f"give it {names_of}: {_USE}")
    if host.euid == 0 and (lacking := CHANGING - held):
        names_of = capability_names(lacking)
        helps = "give the container these, or set user: root in the daemon's configuration"
        return Finding("warn", f"root, without {names_of}, which the daemon needs to become another user", helps)
    return Finding("ok", f"{who}, with every capability that is of use")


def _kernel(host: Host) -> Finding:
    found = f"{escape(host.release)} on {escape(host.machine)}"
    if host.machine not in MACHINES:
        return Finding("fail", found, f"there are BPF objects for {' and '.join(MACHINES)} only")
    version = tuple(int(number) for number in host.release.split("-")[0].split(".")[:2] if number.isdigit())
    if version < OLDEST_KERNEL:
        return Finding("fail", found, f"it needs Linux {'.'.join(map(str, OLDEST_KERNEL))} or newer")
    with suppress(OSError):
        if "[confidentiality]" in (host.sys_root / "kernel" / "security" / "lockdown").read_text():
            return Finding("fail", f"{found}, locked down", "boot with lockdown=integrity: BPF may not read the kernel")
    return Finding("ok", found)


def _btf(host: Host) -> Finding:
    """What CO-RE goes by; BCC needs its compiler and the kernel's headers instead."""
    there = host.types.exists()
    found = f"{host.types}, {bytes_text(host.types.stat().st_size)}" if there else f"{host.types} is missing"
    helps = "" if there else "use a kernel built with CONFIG_DEBUG_INFO_BTF=y"
    if host.loader == "bcc":
        try:
            host.require_bcc()
        except ProbeError as error:
            return Finding("fail", f"{found}; {error}", helps and f"or {helps}")
        return Finding("ok", f"{found}; BCC compiles the programs at each start, against the kernel's headers")
    return Finding("ok" if there else "fail", found, helps)


def _libbpf(host: Host) -> Finding:
    Libbpf(host.libbpf)
    version = ctypes.CDLL(host.libbpf).libbpf_version_string
    version.restype = ctypes.c_char_p
    return Finding("ok", f"{host.libbpf}, {version().decode()}")


def _libatomic(host: Host) -> Finding:
    Atomics(host.libatomic)
    return Finding("ok", host.libatomic)


def _object(host: Host) -> Finding:
    return Finding("ok", f"{len(host.contents.sections)} programs, records as this version reads them")


def _pid_namespace(host: Host) -> Finding:
    require_host_pids(str(host.proc_root))
    return Finding("ok", "the host's")


def _tracepoints(host: Host) -> Finding:
    """Which of the programs' variants fits them (bpf/variant.h)."""
    if host.loader == "bcc":
        return Finding("ok", "BCC, which goes by the kernel's headers: the trial below says whether it works")
    found = f"CO-RE, {host.variant.text}"
    if missing := host.variant.missing:
        return Finding(
            "warn", f"{found}; no {', '.join(missing)}", "the app's view will lack what io_uring is asked for"
        )
    return Finding("ok", found)


def _symbols(host: Host) -> Finding:
    """Nothing fails without them (bpf/symbols.h)."""
    addresses = addresses_of(host.contents.symbols, host.proc_root / "kallsyms")
    if not any(addresses.values()):
        helps = "run as root with CAP_SYSLOG and sysctl kernel.kptr_restrict at 0 or 1"
        return Finding("warn", "addresses are hidden: paths and files of requests will be unknown", helps)
    if missing := [" and ".join(names) for names in _DIRECT_SYMBOLS if not addresses.keys() & set(names)]:
        # Without the first one the programs take all of them for hidden (bpf/files.h).
        unknown = _DIRECT_SYMBOLS[0][0] in missing
        less = (
            "paths and files of requests will be unknown" if unknown else "some direct I/O may show with another path"
        )
        return Finding("warn", f"not in this kernel, or twice: {', '.join(missing)}", less)
    return Finding("ok", "visible: direct I/O is told from page_cache, and its files are known")


def _calls(host: Host) -> Finding:
    """The app's view. Only tracefs knows the ids of syscall tracepoints."""
    if not host.may_load:
        return Finding("warn", _NOT_TRIED)
    with suppress(ProbeError):  # which the tracepoints above have said
        if host.loader == "core" and host.variant.fentry:
            return Finding("ok", "by the system calls' own functions (fentry): no other call pays for it")
    sections = host.contents.sections.values()
    wanted = {section.removeprefix("tracepoint/") for section in sections if section.startswith("tracepoint/")}
    try:
        found = host.tracepoint_ids(wanted)
    except OSError as error:
        # BCC finds no tracepoint at all without it.
        state: State = "fail" if host.loader == "bcc" else "warn"
        return Finding(state, f"no tracefs: {error.strerror}", f"give CAP_SYS_ADMIN, or {_NO_CALLS}")
    if len(found) < len(wanted):
        count = f"{len(found)} of {len(wanted)} syscall tracepoints"
        return Finding("warn", count, "the kernel lacks CONFIG_FTRACE_SYSCALLS or the system calls")
    return Finding("ok", "by syscall tracepoints: every task pays 10-30 ns a syscall while it runs (--no-calls)")


def _statistics(host: Host) -> Finding:
    if not host.may_load:
        return Finding("warn", _NOT_TRIED)
    try:
        host.enable_statistics()
    except OSError as error:
        helps = "give CAP_SYS_ADMIN, else the daemon cannot measure what its programs cost"
        return Finding("warn", f"refused: {error.strerror}", helps)
    return Finding("ok", "available: the daemon can measure what its programs cost")


def _trial(host: Host) -> Finding:
    if not host.may_load:
        return Finding("warn", _NOT_TRIED)
    trial = host.trial()
    rings = sum(size for name, size in trial.memory.items() if name in RING_MAPS)
    tables = sum(trial.memory.values()) - rings
    done = (
        f"{trial.programs} programs loaded, attached and detached; they take {bytes_text(rings)} of rings and "
        f"{bytes_text(tables)} of tables"
    )
    if trial.first_record is None:
        where = escape(host.scratch)
        helps = f"expected in another PID namespace, or with {where} on tmpfs or a network filesystem; else report it"
        return Finding("warn", f"{done}; no record came of a read in {where}", helps)
    done += f"; first record {seconds_text(trial.first_record)} after the start"
    if trial.path is not IoPath.DIRECT:
        return Finding("warn", f"{done}, but the O_DIRECT read came with another path", "see symbols above")
    if missing := [warning for warning in trial.warnings if warning.startswith("the app's view is missing")]:
        return Finding("warn", f"{done}; {missing[0]}", _NO_CALLS)
    return Finding("ok", done)


def _disks(host: Host) -> Finding:
    devices = Devices(str(host.sys_root), str(host.proc_root))
    disks = []
    for folder in sorted((host.sys_root / "block").glob("*")):
        with suppress(OSError, ValueError):
            if int((folder / "size").read_text()):
                major, minor = map(int, (folder / "dev").read_text().split(":"))
                layer = devices.layer(major << 20 | minor)
                disks.append(f"{escape(folder.name.replace('!', '/'))} ({layer}, {_queue(folder)})")
    if not disks:
        return Finding(
            "warn", "no block device with a medium", "there will be nothing to see but what is attached later"
        )
    return Finding("ok", "; ".join(disks))


def _bypasses(host: Host) -> Finding:
    """What takes data past the block layer, where no tool that watches it can see it (docs/frameworks.md)."""
    pci = host.sys_root / "bus" / "pci"
    taken = []
    for driver in USER_SPACE_DRIVERS:
        for device in sorted((pci / "drivers" / driver).glob("*:*")):
            with suppress(OSError):
                if (device / "class").read_text().startswith(NVME_CLASS):
                    taken.append(f"{escape(device.name)} ({driver})")
    found = [f"NVMe disks that a program drives by itself: {', '.join(taken)}"] if taken else []
    if (host.sys_root / "module" / "nvidia_fs").exists():
        found.append("nvidia-fs is loaded: GPUDirect Storage can move data from disk to GPU")
    if found:
        return Finding("warn", "; ".join(found), "what goes that way is not seen; gdscheck -p tells what GDS uses")
    return Finding("ok", "no NVMe disk of SPDK's, no nvidia-fs")


def _queue(folder: Path) -> str:
    """Scheduler and number of hardware queues; a device without requests of its own (md, dm) has neither."""
    queues = len(list((folder / "mq").glob("*")))
    if not queues:
        return "no queue of its own"
    words = (folder / "queue" / "scheduler").read_text().split()
    scheduler = next((word.strip("[]") for word in words if word.startswith("[")), "none")
    return f"scheduler {scheduler}, {queues} queue{'s'[: queues > 1]}"


def _fio(host: Host) -> Finding:
    path = shutil.which("fio")
    if path is None:
        return Finding(
            "warn", "not installed", "install the package fio to run llmio-probe demo; nothing else needs it"
        )
    said = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout.strip()
    return Finding("ok", f"{escape(path)}, {escape(said)}: llmio-probe demo will work")


CHECKS: dict[str, Callable[[Host], Finding]] = {
    "rights": _rights,
    "kernel": _kernel,
    "types (BTF)": _btf,
    "libbpf": _libbpf,
    "libatomic": _libatomic,
    "BPF object": _object,
    "PID namespace": _pid_namespace,
    "tracepoints": _tracepoints,
    "symbols": _symbols,
    "app's view": _calls,
    "statistics": _statistics,
    "trial": _trial,
    "disks": _disks,
    "bypasses": _bypasses,
    "fio": _fio,
}
