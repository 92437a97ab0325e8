"""Proves llmio_probe.allocator: freed memory goes back to the kernel, of other threads too."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

from llmio_probe import allocator

CHURN = """
import ctypes, re, threading
from pathlib import Path
from llmio_probe import allocator

def memory():
    return int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

def fill():
    pieces = [bytes(3000) for _ in range(20_000)]
    kept.append(pieces[-1])  # what lies on top keeps the rest of the heap

kept = []
allocator.share_arena()
before = memory()
threads = [threading.Thread(target=fill) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
allocator.give_back()
print(memory() - before, flush=True)
libc = ctypes.CDLL(None)
libc.malloc_info(0, ctypes.c_void_p.in_dll(libc, "stdout"))
libc.fflush(None)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="not glibc")
def test_threads_share_an_arena_and_what_is_free_goes_back_to_the_kernel() -> None:
    done = subprocess.run([sys.executable, "-c", CHURN], capture_output=True, text=True, check=True)
    kept, _, arenas = done.stdout.partition("\n")
    assert int(kept) < 4096  # of 60,000 KiB a thread
    assert arenas.count("<heap nr=") == 1


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    allocator.share_arena()
    allocator.give_back()
