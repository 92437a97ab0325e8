"""Acquire and release for memory that the kernel writes at the same time: NumPy and ctypes have neither.

libatomic, which comes with GCC's run time, exports C11's operations as functions. Only those may go in here. x86 would
forgive plain loads and stores, arm64 does not.
"""

from __future__ import annotations

import ctypes

from llmio_probe.errors import ProbeError
from llmio_probe.kernel.libraries import load

# memory_order of C11, as GCC numbers it (__ATOMIC_ACQUIRE, __ATOMIC_RELEASE)
_ACQUIRE = 2
_RELEASE = 3
_SEQ_CST = 5


class Atomics:
    def __init__(self, library: str = "libatomic.so.1") -> None:
        try:
            # PyDLL: a few nanoseconds each, not worth letting go of the interpreter's lock.
            functions = load(library, ctypes.PyDLL)
        except OSError:
            raise ProbeError(
                f"{library} cannot be loaded: install the package libatomic1 (Debian, Ubuntu) or libatomic"
            ) from None
        self._load = functions["__atomic_load_8"]
        self._load.restype, self._load.argtypes = ctypes.c_uint64, [ctypes.c_void_p, ctypes.c_int]
        self._store = functions["__atomic_store_8"]
        self._store.restype, self._store.argtypes = None, [ctypes.c_void_p, ctypes.c_uint64, ctypes.c_int]
        self._fence = functions["atomic_thread_fence"]
        self._fence.restype, self._fence.argtypes = None, [ctypes.c_int]

    def load_acquire(self, address: int) -> int:
        """The 8 bytes at an aligned address; nothing later in this thread is read before them."""
        return int(self._load(address, _ACQUIRE))

    def store_release(self, address: int, value: int) -> None:
        """Write 8 bytes at an aligned address; everything earlier in this thread is done before."""
        self._store(address, value, _RELEASE)

    def fence(self) -> None:
        """What was stored before is there for all before anything later is loaded (x86 needs that, too)."""
        self._fence(_SEQ_CST)

    def fence_acquire(self) -> None:
        """What was loaded before stays before what comes after."""
        self._fence(_ACQUIRE)
