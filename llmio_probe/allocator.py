"""What a daemon asks of glibc's malloc, so that it takes no more memory than what it keeps. Elsewhere nothing happens.

A thread that serves a scrape would get an arena of its own, and arrays that come and go in growing sizes leave holes in
the heap: over an hour with 25,000 workers that was half of what the daemon took (mallopt(3), malloc_trim(3)).
"""

from __future__ import annotations

import ctypes
from contextlib import suppress

_M_ARENA_MAX = -8  # malloc.h


def share_arena() -> None:
    """All threads allocate from one. To be called before there are others."""
    with suppress(AttributeError):
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)


def give_back() -> None:
    """Free memory goes back to the kernel, also from the middle of the heap. Takes a millisecond or so."""
    with suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(ctypes.c_size_t(0))
