"""Objects whose records lie differently from what Python reads are refused; what a kernel's types say is understood."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Iterator, Mapping
from enum import IntEnum, IntFlag
from typing import Any

import numpy as np
import pytest

from llmio_probe.errors import ProbeError
from llmio_probe.kernel.btf import VMLINUX_BTF, Btf, Fields, check_layouts, kernel_types
from llmio_probe.kernel.libbpf import Libbpf
from llmio_probe.kernel.records import ENUMS, LAYOUTS, BucketEdge


class HandTypes:
    """An object's types as its BTF would show them, which a test then spoils."""

    def __init__(self, layouts: Mapping[str, np.dtype[Any]], enums: Mapping[str, tuple[str, Any]]) -> None:
        self.structs: dict[str, tuple[Fields, int]] = {
            name: ({f: (dtype.fields[f][1], dtype.fields[f][0].itemsize) for f in dtype.fields or {}}, dtype.itemsize)
            for name, dtype in layouts.items()
            if dtype.fields
        }
        self.enums = {
            name: {prefix + member.name: int(member) for member in members} for name, (prefix, members) in enums.items()
        }

    def fields(self, name: str) -> tuple[Fields, int] | None:
        return self.structs.get(name)

    def enumerators(self, name: str) -> dict[str, int] | None:
        return self.enums.get(name)


@pytest.fixture
def types() -> HandTypes:
    return HandTypes(LAYOUTS, ENUMS)


def test_equal_layouts_pass(types: HandTypes) -> None:
    check_layouts(types)


@pytest.mark.parametrize("struct", LAYOUTS)
def test_a_moved_field_is_refused(types: HandTypes, struct: str) -> None:
    fields, _ = types.structs[struct]
    offset, size = fields[list(fields)[-1]]
    fields[list(fields)[-1]] = (offset + 8, size)
    with pytest.raises(ProbeError, match=rf"struct {struct} .*rebuild it"):
        check_layouts(types)


def test_a_field_of_another_size_name_or_number_is_refused(types: HandTypes) -> None:
    fields, size = types.structs["request_record"]
    for spoiled in (
        ({**fields, "op": (fields["op"][0], 2)}, size),
        ({name.replace("op", "opcode"): where for name, where in fields.items()}, size),
        ({**fields, "more": (80, 8)}, size),
        (fields, size + 8),
    ):
        types.structs["request_record"] = spoiled
        with pytest.raises(ProbeError, match="struct request_record"):
            check_layouts(types)


def test_a_struct_that_the_object_lacks_is_refused(types: HandTypes) -> None:
    del types.structs["call_totals"]
    with pytest.raises(ProbeError, match="struct call_totals"):
        check_layouts(types)


@pytest.mark.parametrize("enum", ENUMS)
def test_an_enum_that_lacks_a_member_is_refused(types: HandTypes, enum: str) -> None:
    types.enums[enum].popitem()
    with pytest.raises(ProbeError, match=rf"enum {enum} .*rebuild it"):
        check_layouts(types)


def test_an_enum_with_more_members_other_numbers_or_none_is_refused(types: HandTypes) -> None:
    members = types.enums["op"]
    for spoiled in ({**members, "OP_MORE": 6}, {**members, "OP_READ": 1, "OP_WRITE": 0}, {}):
        types.enums["op"] = spoiled
        with pytest.raises(ProbeError, match="enum op"):
            check_layouts(types)
    del types.enums["op"]
    with pytest.raises(ProbeError, match="enum op"):
        check_layouts(types)


def test_all_ids_fit_into_the_field_that_holds_them() -> None:
    """u1 fields, and 3 bits of a key in the series."""
    for name, (_, members) in ENUMS.items():
        if members is BucketEdge:  # numbers of buckets, which no record holds
            continue
        largest = sum(members) if issubclass(members, IntFlag) else max(members)
        assert largest < (256 if issubclass(members, IntFlag) else 8), name
        assert issubclass(members, IntEnum | IntFlag)


@pytest.mark.parametrize("name", LAYOUTS)
def test_records_have_no_holes_and_are_aligned(name: str) -> None:
    dtype, end = LAYOUTS[name], 0
    for field in dtype.names or ():
        sub, offset = dtype[field], dtype.fields[field][1] if dtype.fields else 0
        assert offset == end
        assert offset % sub.alignment == 0
        end = offset + sub.itemsize
    assert end == dtype.itemsize
    assert dtype.itemsize % 8 == 0


# What a kernel's types say


class Blob:
    """BTF by hand (Documentation/bpf/btf.rst). Each type's id is what add returned."""

    INT, PTR, STRUCT, FWD, TYPEDEF, CONST, FUNC, PROTO = 1, 2, 4, 7, 8, 10, 12, 13

    def __init__(self) -> None:
        self.strings = b"\0"
        self.types: list[bytes] = []

    def add(self, kind: int, name: str, size_or_type: int, count: int = 0, body: bytes = b"") -> int:
        place = len(self.strings) if name else 0
        self.strings += name.encode() + b"\0" if name else b""
        self.types.append(struct.pack("=III", place, kind << 24 | count, size_or_type) + body)
        return len(self.types)

    def integer(self, name: str, size: int) -> int:
        return self.add(self.INT, name, size, body=struct.pack("=I", size * 8))

    def prototype(self, *arguments: int) -> int:
        return self.add(self.PROTO, "", 0, len(arguments), b"".join(struct.pack("=II", 0, a) for a in arguments))

    def tracepoint(self, name: str, *arguments: int) -> None:
        """typedef void (*btf_trace_NAME)(void *, arguments)"""
        prototype = self.prototype(self.add(self.PTR, "", 0), *arguments)
        self.add(self.TYPEDEF, f"btf_trace_{name}", self.add(self.PTR, "", prototype))

    def __bytes__(self) -> bytes:
        types = b"".join(self.types)
        lengths = 0, len(types), len(types), len(self.strings)
        return struct.pack("=HBBIIIII", 0xEB9F, 1, 0, 24, *lengths) + types + self.strings


@pytest.fixture(scope="module")
def kernel() -> Iterator[Btf]:
    """A kernel with three tracepoints and two functions."""
    blob = Blob()
    number = blob.integer("unsigned int", 4)
    status = blob.add(Blob.TYPEDEF, "blk_status_t", number)
    request = blob.add(Blob.PTR, "", blob.add(Blob.STRUCT, "request", 0))
    bio = blob.add(Blob.PTR, "", blob.add(Blob.CONST, "", blob.add(Blob.FWD, "bio", 0)))
    nothing = blob.add(Blob.PTR, "", 0)
    blob.tracepoint("block_rq_complete", request, status, number)
    blob.tracepoint("block_getrq", nothing, bio)
    blob.tracepoint("bare")
    prototype = blob.prototype()
    blob.add(Blob.FUNC, "bpf_rdonly_cast", prototype)
    blob.add(Blob.FUNC, "block_io_start", prototype)
    libbpf, content = Libbpf(), bytes(blob)
    new: Any = libbpf.btf__new  # the probe itself does not need it
    new.argtypes, new.restype = [ctypes.c_char_p, ctypes.c_uint32], ctypes.c_void_p
    address = libbpf.pointer("btf__new", content, len(content))
    yield Btf(libbpf, address)
    libbpf.btf__free(address)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("block_rq_complete", ["request", "blk_status_t", "unsigned int"]),
        ("block_getrq", ["void", "bio"]),
        ("bare", []),
        ("block_io_start", None),  # a function, and no tracepoint
        ("nothing", None),
    ],
)
def test_a_tracepoints_arguments_are_named_by_what_they_lead_to(
    kernel: Btf, name: str, arguments: list[str] | None
) -> None:
    assert kernel.tracepoint(name) == arguments


def test_functions_are_found_by_name(kernel: Btf) -> None:
    assert kernel.has_function("bpf_rdonly_cast")
    assert not kernel.has_function("bpf_rdonly")
    assert not kernel.has_function("request")


@pytest.mark.skipif(not VMLINUX_BTF.exists(), reason="this kernel offers no types")
def test_the_running_kernels_tracepoints_are_understood() -> None:
    with kernel_types(Libbpf()) as types:
        assert types.tracepoint("block_rq_complete") in (
            ["request", "int", "unsigned int"],  # before 5.16
            ["request", "blk_status_t", "unsigned int"],
        )
        assert types.tracepoint("no_such_tracepoint") is None
