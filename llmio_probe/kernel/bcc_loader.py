"""The BCC loader: the same C source compiled on this host against the kernel's headers, for kernels that have no BTF.

Maps are made here, from the definitions in the object, so that types and sizes are written once and layouts are checked
as ever; BCC only compiles and loads programs (bcc_compiler.py, bpf/bcc.h). Only loading may go in here; which programs
fit is in variants.py, what to do with them in probe.py.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import socket
import struct
import subprocess
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from llmio_probe.errors import ProbeError
from llmio_probe.kernel import bcc_compiler
from llmio_probe.kernel.libbpf import Libbpf
from llmio_probe.kernel.loading import (
    PLAIN_MAPS,
    Loaded,
    LoadedMap,
    LoadedProgram,
    ProbeObject,
    ProbeOptions,
    fill_rings,
    make_rings,
    map_sizes,
    object_path,
    online_cpus,
)
from llmio_probe.kernel.symbols import addresses_of
from llmio_probe.kernel.tracepoints import tracepoint_ids
from llmio_probe.kernel.variants import ARGUMENT, choose

CONTROL_MAP = ".data.control"
SYMBOLS_MAP = ".rodata.symbols"
_MMAPABLE = 1 << 10  # BPF_F_MMAPABLE
_CREATE_OPTIONS = struct.Struct("=QIIIIIIQII")  # struct bpf_map_create_opts, bpf/bpf.h
_HOOKS = ("raw_tp/", "tracepoint/")
_MAX_FDS = 253  # SCM_MAX_FD


def load(libbpf: Libbpf, options: ProbeOptions) -> Loaded:
    """Compile and load what fits the kernel. ProbeError when BCC or the kernel's headers are missing, or it refuses."""
    release = platform.release()
    require_headers(release)
    with ExitStack() as stack:
        opened = ProbeObject(libbpf, object_path())
        stack.callback(opened.close)
        variant = choose(_Tracepoints(opened.sections.values(), options.without), opened.sections)
        hooks = {
            name: opened.sections[program]
            for name, program in variant.programs.items()
            if options.wants(name, opened.sections[program])
        }
        addresses = addresses_of(opened.symbols)
        cpus = online_cpus()
        sizes = map_sizes(options, variant.plain, variant.starts_with_bio, cpus)
        maps, rings = _create_maps(libbpf, opened, sizes, cpus, stack)
        flags = compiler_flags(
            source_folder(),
            {name: loaded.fd for name, loaded in maps.items()},
            {name: addresses.get(name, 0) for name in opened.symbols},
            {name: name in hooks for name in _bases(opened.sections)},
        )
        programs = _compile(flags, hooks, [loaded.fd for loaded in maps.values()])
        for fd in programs.values():
            stack.callback(os.close, fd)
        return Loaded(
            loader="bcc",
            variant=f"compiled against the headers of {release}, {variant.text}",
            programs={name: LoadedProgram(fd, hooks[name]) for name, fd in programs.items()},
            maps=maps,
            rings=rings,
            starts_with_bio=variant.starts_with_bio,
            symbols_hidden=not any(addresses.values()),
            warnings=_warnings(variant.missing, options),
            closing=stack.pop_all(),
        )


def require_headers(release: str, root: Path = Path("/")) -> None:
    """ProbeError that names the package when there are none for BCC to find."""
    if (
        "BCC_KERNEL_SOURCE" in os.environ  # BCC's own way to say where they are
        or (root / "lib/modules" / release / "build/include").is_dir()
        or (root / "sys/kernel/kheaders.tar.xz").exists()
    ):
        return
    raise ProbeError(
        f"BCC needs the headers of this kernel: install the package linux-headers-{release} (Debian, Ubuntu) "
        f"or kernel-devel-{release} (Fedora, RHEL)"
    )


def source_folder() -> Path:
    """The C source, beside the object that was built from it. ProbeError when it is missing."""
    folder = object_path().parent / "source"
    if not (folder / "probe.bpf.c").is_file():
        raise ProbeError(f"the source of the BPF programs is missing in {folder}: run make setup, or install a wheel")
    return folder


def compiler_flags(
    source: Path, maps: Mapping[str, int], addresses: Mapping[str, int], programs: Mapping[str, bool]
) -> list[str]:
    """What bpf/bcc.h asks of us: descriptors of maps, addresses of functions, and which programs are wanted."""
    return [
        "-DLLMIO_BCC",
        f"-I{source}",
        "-w",  # the kernel's headers are full of what clang warns of
        "-g0",  # saves a second
        "-fms-extensions",  # as the kernel since 6.19, for unnamed members of a named type
        *(f"-DLLMIO_FD_{_macro_name(name)}={fd}" for name, fd in maps.items()),
        *(f"-DLLMIO_ADDRESS_{name}={address:#x}UL" for name, address in addresses.items()),
        *(f"-DLLMIO_LOADS_{name}={int(wanted)}" for name, wanted in programs.items()),
    ]


class _Tracepoints:
    """In place of the kernel's types: tracefs says which tracepoints there are, bpf/bcc.h where their arguments lie."""

    def __init__(self, sections: Iterable[str], without: Collection[str]) -> None:
        """ProbeError when there is no tracefs for us."""
        names = {section.partition("/")[2] for section in sections if section.startswith("raw_tp/")} - set(without)
        try:
            found = tracepoint_ids({f"{_category(name)}/{name}" for name in names})
        except OSError as error:
            raise ProbeError(f"the kernel gives no list of its tracepoints ({error.strerror}): run as root") from None
        self._names = {event.partition("/")[2] for event in found}

    def has_function(self, name: str) -> bool:
        return False  # plain loads need types

    def has_typedef(self, name: str) -> bool:
        return False

    def tracepoint(self, name: str) -> list[str] | None:
        return [ARGUMENT.get(name, "void")] if name in self._names else None


def _category(tracepoint: str) -> str:
    """The folder of a tracepoint in tracefs."""
    return "io_uring" if tracepoint.startswith("io_uring_") else tracepoint.partition("_")[0]


def _bases(sections: Mapping[str, str]) -> list[str]:
    """The names of the programs that this loader knows, without their variants'."""
    return sorted({name.partition("__")[0] for name, section in sections.items() if section.startswith(_HOOKS)})


def _macro_name(name: str) -> str:
    return name.rpartition(".")[2]


def _warnings(missing: Sequence[str], options: ProbeOptions) -> list[str]:
    if options.calls and missing:
        return [f"the app's view lacks io_uring's requests: this kernel has no {' or '.join(missing)} for them"]
    return []


# --- maps


def _create_maps(
    libbpf: Libbpf, opened: ProbeObject, sizes: Mapping[str, int], cpus: int, stack: ExitStack
) -> tuple[dict[str, LoadedMap], list[LoadedMap]]:
    """The maps, and the rings in one of them."""
    maps = {}
    try:
        rings = make_rings(libbpf, cpus, stack)
    except OSError as error:
        raise ProbeError(f"the BPF rings cannot be made ({error.strerror}): run as root") from None
    for name, item in opened.maps.items():
        if name == SYMBOLS_MAP or name in PLAIN_MAPS:  # addresses are constants of the programs
            continue
        inner = rings if name == "requests_rings" else None
        entries = len(inner) if inner else sizes.get(name) or int(libbpf.bpf_map__max_entries(item))
        try:
            fd = _create(
                libbpf, item, _macro_name(name), entries, _MMAPABLE if name == CONTROL_MAP else 0,
                inner[0].fd if inner else 0,
            )  # fmt: skip
            stack.callback(os.close, fd)
            if inner:
                fill_rings(libbpf, fd, inner)
        except OSError as error:
            raise ProbeError(f"the BPF map {name} cannot be made ({error.strerror}): run as root") from None
        maps[name] = LoadedMap(fd, entries)
    size = ctypes.c_size_t()
    values = libbpf.pointer("bpf_map__initial_value", opened.maps[CONTROL_MAP], ctypes.byref(size))
    libbpf.number("bpf_map_update_elem", maps[CONTROL_MAP].fd, ctypes.byref(ctypes.c_uint32(0)), values, 0)
    return maps, rings


def _create(libbpf: Libbpf, item: int, name: str, entries: int, flags: int, inner: int) -> int:
    """As libbpf would from the object's definition, but for its size. inner: a map like those that it will hold."""
    flags |= int(libbpf.bpf_map__map_flags(item))
    opts = _CREATE_OPTIONS.pack(_CREATE_OPTIONS.size, 0, 0, 0, 0, inner, flags, 0, 0, 0)
    return libbpf.number(
        "bpf_map_create", libbpf.bpf_map__type(item), name.encode(), libbpf.bpf_map__key_size(item),
        libbpf.bpf_map__value_size(item), entries, opts,
    )  # fmt: skip


# --- programs


def _compile(flags: Sequence[str], hooks: Mapping[str, str], maps: Sequence[int]) -> dict[str, int]:
    """Descriptors of the programs, by name."""
    job: dict[str, Any] = {
        "flags": list(flags),
        "programs": {name: hook.startswith("raw_tp/") for name, hook in hooks.items()},
    }
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            # A session of its own: Ctrl-C is for us to handle. Nothing but the standard library is on its sys.path.
            done = subprocess.run(
                [sys.executable, "-I", "-S", bcc_compiler.__file__, str(theirs.fileno())],
                input=json.dumps(job).encode(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                pass_fds=[theirs.fileno(), *maps], start_new_session=True,
            )  # fmt: skip
        message, fds, _, _ = socket.recv_fds(ours, 1 << 16, _MAX_FDS)
    said = done.stdout.decode(errors="replace")
    if not message:
        raise ProbeError(f"BCC has ended with status {done.returncode} and no program{_in_brief(said)}")
    answer = json.loads(message)
    if "refused" in answer:
        raise ProbeError(answer["refused"] + _in_brief(said))
    return dict(zip(answer["programs"], fds, strict=True))


def _in_brief(said: str) -> str:
    """The first error of the compiler, or what the verifier said last."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    errors = [line for line in lines if "error:" in line]
    last = [line for line in lines if not line.startswith(("processed ", "HINT"))][-1:]
    found = (errors[:1] or last)[:1]
    return f": {found[0]}" if found else ""
