"""Reads and writes BPF maps by their fd as NumPy arrays. Only map access may go in here, not what they mean."""

from __future__ import annotations

import ctypes
import errno
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmio_probe.errors import ProbeError
from llmio_probe.kernel.libbpf import Libbpf

_ANY = 0  # BPF_ANY
_BATCH = 4096


class TableError(ProbeError):
    """The kernel refused. why: in its words."""

    def __init__(self, error: OSError) -> None:
        helps = ": before Linux 5.19 give CAP_BPF" if error.errno == errno.EPERM else ""
        super().__init__(f"the programs' tables cannot be used ({error.strerror}){helps}")
        self.why = error.strerror


@dataclass(frozen=True)
class Table:
    """One map. key and value: dtypes of one key and one value (of one CPU). All may raise TableError."""

    libbpf: Libbpf
    fd: int
    key: np.dtype[Any]
    value: np.dtype[Any]
    cpus: int = 1
    """Values a key, for per-CPU maps (libbpf_num_possible_cpus)."""

    def get(self, key: NDArray[Any] | int) -> NDArray[Any] | None:
        """The value of a key, shape (cpus,); None when it is not there."""
        raw_key = np.asarray(key, self.key)
        values = np.zeros(self.cpus, self._padded_value)
        try:
            self._call("bpf_map_lookup_elem", raw_key.ctypes.data, values.ctypes.data)
        except FileNotFoundError:
            return None
        return self._values(values)

    def put(self, key: NDArray[Any] | int, value: NDArray[Any] | int) -> None:
        raw_key, raw_value = np.asarray(key, self.key), np.asarray(value, self.value)
        self._call("bpf_map_update_elem", raw_key.ctypes.data, raw_value.ctypes.data, _ANY)

    def remove(self, key: NDArray[Any]) -> None:
        """Remove a key if it is there."""
        raw_key = np.asarray(key, self.key)
        with suppress(FileNotFoundError):
            self._call("bpf_map_delete_elem", raw_key.ctypes.data)

    def keys(self) -> NDArray[Any]:
        """All keys, shape (n,), as of items: from one key to the next, a walk begins anew when that one is deleted."""
        return self.items()[0]

    def items(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """All keys, shape (n,), and values, shape (n, cpus). Each comes once; what changes meanwhile may be missed."""
        keys, values = zip(*((keys.copy(), values.copy()) for keys, values in self.batches()), strict=True)
        return np.concatenate(keys), np.concatenate(values)

    def batches(self) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
        """As items, some at a time (Linux 5.6), of which nobody may keep what the next ones overwrite; one at least."""
        position = None
        batch_keys = np.zeros(_BATCH, self.key)
        batch_values = np.zeros((_BATCH, self.cpus), self._padded_value)
        # Room for a hash map's position, a 32-bit bucket, and for an array's, its key.
        token = np.zeros(max(self.key.itemsize, 8), np.uint8)
        while True:
            count = ctypes.c_uint32(_BATCH)
            try:
                self._call(
                    "bpf_map_lookup_batch", position, token.ctypes.data, batch_keys.ctypes.data,
                    batch_values.ctypes.data, ctypes.addressof(count), None,
                )  # fmt: skip
                last = False
            except FileNotFoundError:
                last = True
            yield batch_keys[: count.value], self._values(batch_values[: count.value])
            if last:
                return
            position = token.ctypes.data

    def _call(self, function: str, *arguments: object) -> None:
        """FileNotFoundError when there is no such key."""
        try:
            self.libbpf.number(function, self.fd, *arguments)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise TableError(error) from None

    @property
    def _padded_value(self) -> np.dtype[Any]:
        """Per-CPU values are padded to 8 bytes each."""
        if self.cpus == 1:
            return self.value
        size = -(-self.value.itemsize // 8) * 8
        return np.dtype({"names": ["value"], "formats": [self.value], "itemsize": size})

    def _values(self, values: NDArray[Any]) -> NDArray[Any]:
        return values if self.cpus == 1 else values["value"]
