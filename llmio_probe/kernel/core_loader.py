"""The CO-RE loader: one object for all kernels, through libbpf, which fits it to the kernel's types.

Only loading may go in here; which programs fit is in variants.py, what to do with them in probe.py.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path

from llmio_probe.errors import ProbeError
from llmio_probe.kernel.btf import VMLINUX_BTF, Btf, kernel_types
from llmio_probe.kernel.functions import can_attach
from llmio_probe.kernel.libbpf import Libbpf
from llmio_probe.kernel.loading import (
    OTHER_MAPS,
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
from llmio_probe.kernel.module_types import do_without_module_types
from llmio_probe.kernel.symbols import addresses_of
from llmio_probe.kernel.variants import Variant, choose
from llmio_probe.rights import Capability, effective

SYMBOLS_MAP = ".rodata.symbols"
NO_MODULE_TYPES = (
    "without CAP_SYS_ADMIN at the start, types in modules cannot be read: where btrfs, LVM or md is one, paths and "
    "files there are unknown"
)


def load(libbpf: Libbpf, options: ProbeOptions, path: Path | None = None) -> Loaded:
    """Load what fits the kernel. ProbeError when it offers no types, or refuses."""
    if not VMLINUX_BTF.exists():
        raise ProbeError(
            f"this kernel offers no type information ({VMLINUX_BTF} is missing): it needs CONFIG_DEBUG_INFO_BTF=y"
        )
    with ExitStack() as stack:
        opened = ProbeObject(libbpf, path or object_path())
        stack.callback(opened.close)
        variant = variant_for(libbpf, opened.sections, options.without)
        wanted = {
            name: program for name, program in variant.programs.items() if options.wants(name, opened.sections[program])
        }
        for program in opened.programs.keys() - wanted.values():
            libbpf.number("bpf_program__set_autoload", opened.programs[program], False)
        cpus = online_cpus()
        for name in OTHER_MAPS if variant.plain else PLAIN_MAPS:
            libbpf.number("bpf_map__set_autocreate", opened.maps.pop(name), False)
        for name, entries in map_sizes(options, variant.plain, variant.starts_with_bio, cpus).items():
            if name in opened.maps:
                libbpf.number("bpf_map__set_max_entries", opened.maps[name], entries)
        addresses = addresses_of(opened.symbols)
        _set_symbols(opened, addresses)
        whole = Capability.SYS_ADMIN in effective()
        if not whole:
            do_without_module_types()
        try:
            rings = [] if variant.plain else make_rings(libbpf, cpus, stack)
            if rings:
                outer = opened.maps["requests_rings"]
                libbpf.number("bpf_map__set_max_entries", outer, len(rings))
                libbpf.number("bpf_map__set_inner_map_fd", outer, rings[0].fd)
            libbpf.number("bpf_object__load", opened.address)
            if rings:
                fill_rings(libbpf, libbpf.number("bpf_map__fd", outer), rings)
        except OSError as error:
            raise _load_error(libbpf, error) from None
        return Loaded(
            loader="core",
            variant=variant.text,
            programs={
                name: LoadedProgram(
                    libbpf.number("bpf_program__fd", opened.programs[program]), opened.sections[program]
                )
                for name, program in wanted.items()
            },
            maps={
                name: LoadedMap(libbpf.number("bpf_map__fd", item), int(libbpf.bpf_map__max_entries(item)))
                for name, item in opened.maps.items()
            },
            rings=rings,
            starts_with_bio=variant.starts_with_bio,
            symbols_hidden=not any(addresses.values()),
            warnings=[*_warnings(variant, options), *([] if whole else [NO_MODULE_TYPES])],
            closing=stack.pop_all(),
        )


def variant_for(libbpf: Libbpf, sections: Mapping[str, str], without: frozenset[str]) -> Variant:
    """Which of the object's programs fit the running kernel. ProbeError when none do."""
    with kernel_types(libbpf) as types:
        known = _Without(types, without)
        return choose(known, sections, _has_fentry(libbpf, known, sections.values()))


class _Without:
    """The kernel's types, less what is to be done without."""

    def __init__(self, types: Btf, without: frozenset[str]) -> None:
        self._types = types
        self._without = without

    def has_function(self, name: str) -> bool:
        return name not in self._without and self._types.has_function(name)

    def has_typedef(self, name: str) -> bool:
        return name not in self._without and self._types.has_typedef(name)

    def function_id(self, name: str) -> int | None:
        return None if name in self._without else self._types.function_id(name)

    def tracepoint(self, name: str) -> list[str] | None:
        return None if name in self._without else self._types.tracepoint(name)


def _has_fentry(libbpf: Libbpf, types: _Without, sections: Iterable[str]) -> bool:
    """Can programs attach to all the functions the object has some for? The kernel's answer for one is for all."""
    functions = sorted({section.partition("/")[2] for section in sections if section.startswith("fentry/")})
    ids = [number for name in functions if (number := types.function_id(name)) is not None]
    return bool(ids) and len(ids) == len(functions) and can_attach(libbpf, ids[0])


def _set_symbols(opened: ProbeObject, addresses: dict[str, int]) -> None:
    """The object's constants, before they are frozen."""
    size = ctypes.c_size_t()
    values = opened.libbpf.pointer("bpf_map__initial_value", opened.maps[SYMBOLS_MAP], ctypes.byref(size))
    for name, offset in opened.symbols.items():
        ctypes.memmove(values + offset, struct.pack("=Q", addresses.get(name, 0)), 8)


def _warnings(variant: Variant, options: ProbeOptions) -> list[str]:
    if options.calls and variant.missing:
        return [f"the app's view lacks io_uring's requests: this kernel has no {' or '.join(variant.missing)} for them"]
    return []


def _load_error(libbpf: Libbpf, error: OSError) -> ProbeError:
    if isinstance(error, PermissionError):
        return ProbeError("the kernel does not let this user load BPF programs: run as root")
    said = next((line for line in libbpf.messages if "failed to" in line or "not found" in line), None)
    return ProbeError(
        f"the BPF programs cannot be loaded ({said or error.strerror}): "
        "run llmio-probe doctor to see what this host lacks"
    )
