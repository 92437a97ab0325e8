"""Known I/O for the live tests, done by system calls of its own; prints its pid and what the kernel says it read.

  workload.py GATE FILE mmap COUNT     fault COUNT pages in, every second one, without read-ahead
  workload.py GATE FILE pread COUNT    read COUNT blocks of 4 KiB, O_DIRECT, every second one
  workload.py GATE FILE child COUNT    the same from a child that is forked after the gate

GATE "gate" waits for a line on standard input first, "-" does not. Only what the tests need may go in here.
"""

import json
import mmap
import os
import sys

BLOCK = 4096


def fault(path: str, count: int) -> None:
    fd = os.open(path, os.O_RDONLY)
    size = os.lseek(fd, 0, os.SEEK_END)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    with mmap.mmap(fd, size, prot=mmap.PROT_READ) as pages:
        pages.madvise(mmap.MADV_RANDOM)
        for i in range(count):
            pages[2 * i * BLOCK]


def read_directly(path: str, count: int) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    buffer = mmap.mmap(-1, BLOCK)
    for i in range(count):
        assert os.preadv(fd, [buffer], 2 * i * BLOCK) == BLOCK


def read_bytes() -> int:
    """What this process caused to be read from storage, by the kernel's own account."""
    with open("/proc/self/io") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("read_bytes:"))


def main() -> None:
    gate, path, kind, count = sys.argv[1:]
    if gate == "gate":
        print(os.getpid(), flush=True)
        sys.stdin.readline()
    if kind == "child" and os.fork():
        _, status = os.wait()
        sys.exit(os.waitstatus_to_exitcode(status))
    before = read_bytes()
    (fault if kind == "mmap" else read_directly)(path, int(count))
    print(json.dumps({"pid": os.getpid(), "read_bytes": read_bytes() - before}), flush=True)


main()
