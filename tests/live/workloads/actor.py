"""A process that does known I/O, one step a line: ``["write", "/x/file", 0, 4096]`` on standard input, done, answer.

An answer is one line of JSON: what the step returned; the first one is its pid. At the end of its input it ends. With
several of these a test choreographs who does what after whom. Each step is a function below, with the system calls in
plain sight; only what a test needs may go in here. It runs as a program and imports nothing of the project.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import platform
import signal
import struct
import sys
import tempfile
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

PAGE = mmap.PAGESIZE
LIBC = ctypes.CDLL(None, use_errno=True)
MAP_HUGETLB = 0x40000
SYNC_FILE_RANGE_ALL = 1 | 2 | 4  # wait before, write, wait after
IO_SETUP, IO_DESTROY, IO_GETEVENTS, IO_SUBMIT = (
    (206, 207, 208, 209) if platform.machine() == "x86_64" else (0, 1, 4, 2)  # asm-generic/unistd.h
)
CLONE3 = 435
PR_SET_NAME = 15
MADV_POPULATE_READ, MADV_POPULATE_WRITE = 22, 23

kept: dict[str, mmap.mmap] = {}
"""Mappings and memory that outlive their step, by file or name."""


def check(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


# The page cache


def write(path: str, offset: int, size: int) -> int:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT)
    done = os.pwrite(fd, b"w" * size, offset)
    os.close(fd)
    return done


def write_slowly(path: str, size: int) -> int:
    """In small pieces, each of which may have to wait for memory; flushed at the end."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT)
    piece = b"s" * (64 << 10)
    done = sum(os.pwrite(fd, piece, at) for at in range(0, size, len(piece)))
    os.fsync(fd)
    os.close(fd)
    return done


def read(path: str, offset: int, size: int, step: int = 0) -> int:
    """One block of that size, or with a step one at each multiple of it up to the end, without read-ahead."""
    fd = os.open(path, os.O_RDONLY)
    if step:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
    end = os.lseek(fd, 0, os.SEEK_END) if step else offset + 1
    done = sum(len(os.pread(fd, size, at)) for at in range(offset, end, step or 1))
    os.close(fd)
    return done


def prefetch(path: str, offset: int, size: int, count: int, step: int) -> None:
    """Ask for blocks to be read into the page cache, and wait for none of them."""
    fd = os.open(path, os.O_RDONLY)
    for i in range(count):
        os.posix_fadvise(fd, offset + i * step, size, os.POSIX_FADV_WILLNEED)
    os.close(fd)


def fsync(path: str) -> None:
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)


def sync_file_range(path: str) -> None:
    fd = os.open(path, os.O_RDWR)
    check(LIBC.sync_file_range(fd, ctypes.c_int64(0), ctypes.c_int64(0), SYNC_FILE_RANGE_ALL))
    os.close(fd)


def sync() -> None:
    os.sync()


# Mappings


def map_file(path: str, op: str, how: str = "touch", threads: int = 1) -> int:
    """Read or dirty the whole file through a shared mapping, which is kept. how: touch, populate or madvise."""
    fd = os.open(path, os.O_RDWR)
    size = os.lseek(fd, 0, os.SEEK_END)
    pages = kept[path] = mmap.mmap(fd, size, mmap.MAP_SHARED | (mmap.MAP_POPULATE if how == "populate" else 0))
    os.close(fd)
    if how == "madvise":
        pages.madvise(MADV_POPULATE_WRITE if op == "write" else MADV_POPULATE_READ)
    elif how == "touch" or op == "write":  # populating a shared mapping reads, and dirties nothing
        _touch(pages, op, threads)
    return size


def _touch(pages: mmap.mmap, op: str, threads: int) -> None:
    """Through libc: a fault within its call keeps no other thread from running."""
    page, address = ctypes.create_string_buffer(PAGE), _address(pages)
    share = -(-len(pages) // PAGE // threads) * PAGE

    def touch(begin: int) -> None:
        for at in range(address + begin, address + min(begin + share, len(pages)), PAGE):
            target, source = (at, ctypes.addressof(page)) if op == "write" else (ctypes.addressof(page), at)
            LIBC.memcpy(ctypes.c_void_p(target), ctypes.c_void_p(source), ctypes.c_size_t(PAGE))

    running = [threading.Thread(target=touch, args=(begin,)) for begin in range(0, len(pages), share)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()


def _address(pages: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(pages))


def msync(path: str) -> None:
    kept[path].flush()


def unmap(path: str) -> None:
    kept.pop(path).close()


def occupy(name: str, size: int) -> int:
    """Fill that much anonymous memory with what no page shares."""
    memory = kept[name] = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for at in range(0, size, PAGE):
        memory[at : at + 8] = struct.pack("Q", at + 1)
    return size


def revisit(name: str) -> int:
    """Read it again, and that each page is what it was."""
    memory = kept[name]
    return sum(struct.unpack_from("Q", memory, at)[0] == at + 1 for at in range(0, len(memory), PAGE))


# Direct I/O


def direct(
    path: str, op: str, offset: int, size: int, count: int = 1, buffer: str = "anonymous", step: int = 0, flags: int = 0
) -> int:
    """Count blocks of that size, each step bytes (or its size) after the one before. flags: RWF_DSYNC and its like."""
    fd = os.open(path, (os.O_RDONLY if op == "read" else os.O_WRONLY) | os.O_DIRECT)
    with ExitStack() as stack:
        memory = _buffer(stack, buffer, size)
        call = os.preadv if op == "read" else os.pwritev
        done = sum(call(fd, [memory], offset + i * (step or size), flags) for i in range(count))
    os.close(fd)
    return done


def _buffer(stack: ExitStack, kind: str, size: int) -> memoryview:
    if kind == "anonymous":
        pages = mmap.mmap(-1, size)
    elif kind == "hugetlb":
        pages = mmap.mmap(-1, 2 << 20, mmap.MAP_SHARED | mmap.MAP_ANONYMOUS | MAP_HUGETLB)
    else:
        if kind == "memfd":
            fd = os.memfd_create("buffer")
        else:
            fd, name = tempfile.mkstemp(dir="/dev/shm")
            os.unlink(name)
        os.truncate(fd, size)
        pages = mmap.mmap(fd, size, mmap.MAP_SHARED)
        os.close(fd)
    stack.callback(pages.close)
    view = memoryview(pages)[:size]
    stack.callback(view.release)
    view[:] = b"d" * size
    return view


class _Control(ctypes.Structure):
    """struct iocb of linux/aio_abi.h, little endian."""

    _fields_ = (
        ("data", ctypes.c_uint64),
        ("key", ctypes.c_uint32),
        ("rw_flags", ctypes.c_uint32),
        ("opcode", ctypes.c_uint16),
        ("priority", ctypes.c_int16),
        ("fd", ctypes.c_uint32),
        ("buffer", ctypes.c_uint64),
        ("bytes", ctypes.c_uint64),
        ("offset", ctypes.c_int64),
        ("reserved", ctypes.c_uint64),
        ("flags", ctypes.c_uint32),
        ("eventfd", ctypes.c_uint32),
    )


def submit(path: str, op: str, size: int, count: int, first: int = 0, step: int = 0, remove: bool = False) -> int:
    """One io_submit of count blocks, each step bytes (or its size) after the one before, all from the same memory.

    As DeepSpeed swaps: O_DIRECT, the file is closed and maybe unlinked at once, only then somebody waits.
    """
    fd = os.open(path, (os.O_RDONLY if op == "read" else os.O_WRONLY | os.O_CREAT) | os.O_DIRECT, 0o600)
    memory = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE)
    common = {"opcode": 0 if op == "read" else 1, "fd": fd, "buffer": _address(memory), "bytes": size}
    controls = [_Control(**common, offset=first + i * (step or size)) for i in range(count)]
    pointers = (ctypes.POINTER(_Control) * count)(*(ctypes.pointer(control) for control in controls))
    context = ctypes.c_ulong(0)
    check(LIBC.syscall(IO_SETUP, count, ctypes.byref(context)))
    assert check(LIBC.syscall(IO_SUBMIT, context, ctypes.c_long(count), pointers)) == count
    os.close(fd)
    if remove:
        os.unlink(path)
    events = (ctypes.c_int64 * 4 * count)()
    assert check(LIBC.syscall(IO_GETEVENTS, context, ctypes.c_long(count), ctypes.c_long(count), events, None)) == count
    check(LIBC.syscall(IO_DESTROY, context))
    return sum(check(event[2]) for event in events)


# Who one is


def call_oneself(name: str) -> None:
    """What setproctitle does: the thread's name, and the command line written over where it lies."""
    check(LIBC.prctl(PR_SET_NAME, name.encode()[:15], 0, 0, 0))
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    begin, end = int(fields[45]), int(fields[46])  # arg_start, arg_end
    ctypes.memset(begin, 0, end - begin)
    ctypes.memmove(begin, name.encode(), min(len(name), end - begin - 1))


def have_children(path: str, count: int, size: int) -> list[int]:
    """As many processes, one after the other, each of which reads one block of its own and ends."""
    pids = []
    for i in range(count):
        pid = os.fork()
        if not pid:
            _child(path, i * size, size)
        pids.append(pid)
        os.waitpid(pid, 0)
    return pids


def have_child_with_pid(path: str, pid: int, offset: int, size: int) -> int:
    """clone3 with a chosen pid: reads one block and ends."""
    chosen = ctypes.c_int32(pid)
    arguments = struct.pack("11Q", 0, 0, 0, 0, signal.SIGCHLD, 0, 0, 0, ctypes.addressof(chosen), 1, 0)
    child = check(LIBC.syscall(CLONE3, arguments, ctypes.c_size_t(len(arguments))))
    if not child:
        _child(path, offset, size)
    _, status = os.waitpid(child, 0)
    assert status == 0, status
    return child


def _child(path: str, offset: int, size: int) -> None:
    status = 1
    try:
        status = int(direct(path, "read", offset, size) != size)
    finally:
        os._exit(status)


STEPS: dict[str, Callable[..., object]] = {
    step.__name__: step
    for step in (
        write, write_slowly, read, prefetch, fsync, sync_file_range, sync, map_file, msync, unmap, occupy, revisit,
        direct, submit, call_oneself, have_children, have_child_with_pid,
    )
}  # fmt: skip


def main() -> None:
    print(os.getpid(), flush=True)  # all that it needs has been read from the disk
    for line in sys.stdin:
        name, *arguments = json.loads(line)
        try:
            answer = {"done": STEPS[name](*arguments)}
        except OSError as error:
            answer = {"errno": error.errno}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
