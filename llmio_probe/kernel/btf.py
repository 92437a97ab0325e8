"""Types, of an object or of the kernel, through libbpf: does an object lay out its records as Python reads them, and
which tracepoints and functions does the kernel have?

Only questions may go in here. Formats: Documentation/bpf/btf.rst (struct btf_type, btf_member, btf_enum, btf_param).
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from enum import IntEnum
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from llmio_probe.errors import ProbeError
from llmio_probe.kernel.libbpf import Libbpf
from llmio_probe.kernel.records import ENUMS, LAYOUTS

VMLINUX_BTF = Path("/sys/kernel/btf/vmlinux")

KIND_PTR, KIND_STRUCT, KIND_ENUM, KIND_TYPEDEF, KIND_FUNC, KIND_FUNC_PROTO = 2, 4, 6, 8, 12, 13
_MODIFIERS = frozenset({9, 10, 11, 18})  # volatile, const, restrict, type_tag
_HEADER = struct.Struct("=III")  # name_off, info, size or type
_MEMBER = struct.Struct("=III")  # name_off, type, offset in bits
_ENUMERATOR = struct.Struct("=Ii")  # name_off, value
_PARAMETER = struct.Struct("=II")  # name_off, type

Fields = dict[str, tuple[int, int]]
"""Field name to (offset, size) in bytes."""


class Btf:
    """The types of one object or of the kernel."""

    def __init__(self, libbpf: Libbpf, btf: int) -> None:
        self._libbpf = libbpf
        self._btf = btf

    def has(self, name: str, kind: int) -> bool:
        return int(self._libbpf.btf__find_by_name_kind(self._btf, name.encode(), kind)) > 0

    def fields(self, name: str) -> tuple[Fields, int] | None:
        """The fields of a struct and its size; None when there is no such struct."""
        found = self._members(name, KIND_STRUCT, _MEMBER)
        if found is None:
            return None
        members, size = found
        return {
            self._name(name_off): (bits // 8, int(self._libbpf.btf__resolve_size(self._btf, type_id)))
            for name_off, type_id, bits in members
        }, size

    def enumerators(self, name: str) -> dict[str, int] | None:
        """The members of an enum; None when there is no such enum."""
        found = self._members(name, KIND_ENUM, _ENUMERATOR)
        return None if found is None else {self._name(name_off): value for name_off, value in found[0]}

    def has_function(self, name: str) -> bool:
        """A function or kfunc of the kernel."""
        return self.function_id(name) is not None

    def has_typedef(self, name: str) -> bool:
        return self.has(name, KIND_TYPEDEF)

    def function_id(self, name: str) -> int | None:
        found = int(self._libbpf.btf__find_by_name_kind(self._btf, name.encode(), KIND_FUNC))
        return found if found > 0 else None

    def tracepoint(self, name: str) -> list[str] | None:
        """The names of a tracepoint's arguments' types, of pointers what they lead to; None when there is none."""
        type_id = int(self._libbpf.btf__find_by_name_kind(self._btf, f"btf_trace_{name}".encode(), KIND_TYPEDEF))
        if type_id <= 0:
            return None
        _, _, pointer = self._header(type_id)
        _, _, prototype = self._header(pointer)
        address, info, _ = self._header(prototype)
        body = ctypes.string_at(address + _HEADER.size, (info & 0xFFFF) * _PARAMETER.size)
        return [self._type_name(type_id) for _, type_id in list(_PARAMETER.iter_unpack(body))[1:]]  # the first is data

    def _header(self, type_id: int) -> tuple[int, int, int]:
        """Address, info, and size or type."""
        address = self._libbpf.pointer("btf__type_by_id", self._btf, type_id)
        _, info, size_or_type = _HEADER.unpack(ctypes.string_at(address, _HEADER.size))
        return address, info, size_or_type

    def _type_name(self, type_id: int) -> str:
        while type_id:
            address, info, following = self._header(type_id)
            kind = info >> 24 & 0x1F
            if kind != KIND_PTR and kind not in _MODIFIERS:
                return self._name(_HEADER.unpack(ctypes.string_at(address, _HEADER.size))[0])
            type_id = following
        return "void"

    def _members(self, name: str, kind: int, layout: struct.Struct) -> tuple[list[tuple[int, ...]], int] | None:
        type_id = int(self._libbpf.btf__find_by_name_kind(self._btf, name.encode(), kind))
        if type_id <= 0:
            return None
        address = self._libbpf.pointer("btf__type_by_id", self._btf, type_id)
        _, info, size = _HEADER.unpack(ctypes.string_at(address, _HEADER.size))
        body = ctypes.string_at(address + _HEADER.size, (info & 0xFFFF) * layout.size)
        return list(layout.iter_unpack(body)), size

    def _name(self, offset: int) -> str:
        return bytes(self._libbpf.btf__name_by_offset(self._btf, offset)).decode()


@contextmanager
def kernel_types(libbpf: Libbpf) -> Iterator[Btf]:
    """The running kernel's. ProbeError when it offers none."""
    try:
        types = libbpf.pointer("btf__load_vmlinux_btf")
    except OSError as error:
        raise ProbeError(
            f"this kernel offers no type information ({error.strerror}): it needs CONFIG_DEBUG_INFO_BTF=y"
        ) from None
    try:
        yield Btf(libbpf, types)
    finally:
        libbpf.btf__free(types)


class Types(Protocol):
    """What the check asks of a Btf; tests hand it types made by hand."""

    def fields(self, name: str) -> tuple[Fields, int] | None: ...

    def enumerators(self, name: str) -> dict[str, int] | None: ...


def check_layouts(
    btf: Types,
    layouts: Mapping[str, np.dtype[Any]] = LAYOUTS,
    enums: Mapping[str, tuple[str, type[IntEnum] | Any]] = ENUMS,
) -> None:
    """ProbeError naming the first struct or enum in which C and Python differ."""
    for name, dtype in layouts.items():
        found = btf.fields(name)
        expected = {field: (offset, sub.itemsize) for field, (sub, offset, *_) in (dtype.fields or {}).items()}
        if found is None or found != (expected, dtype.itemsize):
            raise ProbeError(
                f"the BPF object lays out struct {name} differently from this version: rebuild it (make setup)"
            )
    for name, (prefix, members) in enums.items():
        expected_ids = {prefix + member.name: int(member) for member in members}
        if btf.enumerators(name) != expected_ids:
            raise ProbeError(
                f"the BPF object numbers enum {name} differently from this version: rebuild it (make setup)"
            )
