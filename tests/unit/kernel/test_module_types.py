"""Proves llmio_probe.kernel.module_types: one question to the kernel gets another answer, all others the same."""

from __future__ import annotations

import subprocess
import sys

ASK = """
import ctypes, errno, os, platform
from llmio_probe.kernel.module_types import _BPF, do_without_module_types
libc = ctypes.CDLL(None, use_errno=True)
def ask(command):
    ctypes.set_errno(0)
    attributes = ctypes.create_string_buffer(120)
    result = libc.syscall(_BPF[platform.machine()], command, attributes, ctypes.c_uint(0))
    return 0 if result >= 0 else ctypes.get_errno()
before = [ask(number) for number in (22, 24, 1 << 20)]
do_without_module_types()
print(errno.errorcode[ask(23)], [ask(number) for number in (22, 24, 1 << 20)] == before, os.getpid() > 0)
"""


def test_only_the_next_type_there_is_not() -> None:
    done = subprocess.run([sys.executable, "-c", ASK], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "ENOENT True True\n", "")
