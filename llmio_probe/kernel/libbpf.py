"""libbpf.so.1 through ctypes: the few functions that the loader needs, declared once, each error turned into OSError.

Nothing may go in here but the binding: what is loaded and why is for loader.py. Signatures are those of libbpf 1.0 and
later (bpf/libbpf.h, bpf/bpf.h, bpf/btf.h).
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator
from ctypes import c_char_p, c_int, c_int32, c_uint32, c_void_p
from typing import Any

from llmio_probe.errors import ProbeError
from llmio_probe.kernel.libraries import load

_PRINT = ctypes.CFUNCTYPE(c_int, c_int, c_char_p, c_void_p)

_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "libbpf_set_print": (c_void_p, [c_void_p]),
    "libbpf_num_possible_cpus": (c_int, []),
    "bpf_object__open_file": (c_void_p, [c_char_p, c_void_p]),
    "bpf_object__load": (c_int, [c_void_p]),
    "bpf_object__close": (None, [c_void_p]),
    "bpf_object__btf": (c_void_p, [c_void_p]),
    "bpf_object__next_map": (c_void_p, [c_void_p, c_void_p]),
    "bpf_object__next_program": (c_void_p, [c_void_p, c_void_p]),
    "bpf_map__name": (c_char_p, [c_void_p]),
    "bpf_map__fd": (c_int, [c_void_p]),
    "bpf_map__type": (c_int, [c_void_p]),
    "bpf_map__key_size": (c_uint32, [c_void_p]),
    "bpf_map__value_size": (c_uint32, [c_void_p]),
    "bpf_map__map_flags": (c_uint32, [c_void_p]),
    "bpf_map__max_entries": (c_uint32, [c_void_p]),
    "bpf_map__set_autocreate": (c_int, [c_void_p, ctypes.c_bool]),
    "bpf_map__set_max_entries": (c_int, [c_void_p, c_uint32]),
    "bpf_map__set_inner_map_fd": (c_int, [c_void_p, c_int]),
    "bpf_map__initial_value": (c_void_p, [c_void_p, c_void_p]),
    "bpf_program__name": (c_char_p, [c_void_p]),
    "bpf_program__section_name": (c_char_p, [c_void_p]),
    "bpf_program__fd": (c_int, [c_void_p]),
    "bpf_program__set_autoload": (c_int, [c_void_p, ctypes.c_bool]),
    "bpf_prog_load": (c_int, [c_int, c_char_p, c_char_p, c_char_p, ctypes.c_size_t, c_void_p]),
    "bpf_raw_tracepoint_open": (c_int, [c_char_p, c_int]),
    "bpf_map_create": (c_int, [c_int, c_char_p, c_uint32, c_uint32, c_uint32, c_void_p]),
    "bpf_map_lookup_elem": (c_int, [c_int, c_void_p, c_void_p]),
    "bpf_map_update_elem": (c_int, [c_int, c_void_p, c_void_p, ctypes.c_uint64]),
    "bpf_map_delete_elem": (c_int, [c_int, c_void_p]),
    "bpf_map_lookup_batch": (c_int, [c_int, c_void_p, c_void_p, c_void_p, c_void_p, c_void_p, c_void_p]),
    "bpf_obj_get_info_by_fd": (c_int, [c_int, c_void_p, c_void_p]),
    "bpf_enable_stats": (c_int, [c_int]),
    "btf__find_by_name_kind": (c_int32, [c_void_p, c_char_p, c_uint32]),
    "btf__type_by_id": (c_void_p, [c_void_p, c_uint32]),
    "btf__name_by_offset": (c_char_p, [c_void_p, c_uint32]),
    "btf__resolve_size": (ctypes.c_int64, [c_void_p, c_uint32]),
    "btf__load_vmlinux_btf": (c_void_p, []),
    "btf__free": (None, [c_void_p]),
}

LIBRARY = "libbpf.so.1"


class Libbpf:
    """One loaded library. Calls raise OSError with the kernel's errno; what libbpf prints goes to ``messages``."""

    def __init__(self, library: str = LIBRARY) -> None:
        try:
            self._library = load(library, ctypes.CDLL)
        except OSError:
            raise ProbeError(
                f"{library} cannot be loaded: install the package libbpf1 (Debian, Ubuntu) or libbpf (Fedora, RHEL)"
            ) from None
        for name, (result, arguments) in _SIGNATURES.items():
            try:
                function = getattr(self._library, name)
            except AttributeError:
                raise ProbeError(f"{library} is older than 1.0, it lacks {name}: install a newer libbpf") from None
            function.restype, function.argtypes = result, arguments
        self.messages: list[str] = []
        # libbpf's own format strings need a va_list, so vsnprintf of the C library fills them in.
        vsnprintf = ctypes.CDLL(None).vsnprintf
        vsnprintf.argtypes = [c_char_p, ctypes.c_size_t, c_char_p, c_void_p]

        def keep(level: int, form: bytes, arguments: int) -> int:
            if level <= 1:  # LIBBPF_WARN, LIBBPF_INFO
                line = ctypes.create_string_buffer(1024)
                vsnprintf(line, len(line), form, arguments)
                self.messages.append(line.value.decode(errors="replace").rstrip())
            return 0

        self._print = _PRINT(keep)  # kept alive: libbpf holds only the address
        self._library.libbpf_set_print(ctypes.cast(self._print, c_void_p))

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return getattr(self._library, name)  # type: ignore[no-any-return]

    def pointer(self, name: str, *arguments: Any) -> int:
        """Call a function that returns a pointer; OSError when it is NULL."""
        ctypes.set_errno(0)
        result = self._declared(name)(*arguments)
        if not result:
            self._fail(name, ctypes.get_errno())
        return int(result)

    def number(self, name: str, *arguments: Any) -> int:
        """Call a function that returns a number; OSError when it is negative (libbpf 1.0: -errno)."""
        result = int(self._declared(name)(*arguments))
        if result < 0:
            self._fail(name, -result if result != -1 else ctypes.get_errno() or 1)
        return result

    def each(self, name: str, owner: int) -> Iterator[int]:
        """The items of ``bpf_object__next_map`` and the like."""
        item = None
        while item := self._declared(name)(owner, item):
            yield int(item)

    def _declared(self, name: str) -> Callable[..., Any]:
        """Without a signature, ctypes would cut pointers to 32 bits."""
        function = getattr(self._library, name)
        if function.argtypes is None:
            raise TypeError(f"{name} has no signature here")
        return function  # type: ignore[no-any-return]

    def _fail(self, name: str, errno: int) -> None:
        raise OSError(errno, os.strerror(errno), name)
