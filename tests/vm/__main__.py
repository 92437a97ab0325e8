"""Runs commands and tests in guests with other kernels. `python3 -m tests.vm --help` says how."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.vm.archive import ArchiveError
from tests.vm.collect import CollectionError
from tests.vm.emulator import DIED, STOOD_STILL, TIMED_OUT, Options, boot, to_stdout
from tests.vm.kernels import KERNELS, kernel
from tests.vm.store import Store, cache_folder
from tests.vm.suite import run_suite

AT_ONCE = 4
"""Guests, each with 3 GiB of memory. Most of what one does keeps one processor busy."""


def main(arguments: Sequence[str]) -> int:
    options = parser().parse_args(arguments)
    try:
        status: int = options.do(options)
    except (ArchiveError, ValueError) as error:
        print(f"vm: {error}", file=sys.stderr)
        return DIED
    except KeyboardInterrupt:
        return DIED
    return status


def parser() -> argparse.ArgumentParser:
    known = ", ".join(known.name for known in KERNELS)
    made = argparse.ArgumentParser(prog="python3 -m tests.vm", description=__doc__)
    commands = made.add_subparsers(required=True, metavar="COMMAND")

    run = commands.add_parser(
        "run", help="run a command in a guest",
        description=f"Exit status: the command's; {STOOD_STILL}: it did not boot in time; "
        f"{TIMED_OUT}: it took too long; {DIED}: no guest, or it died.",
        epilog="In the guest: the payload is the current folder, what is put into /out comes back, $NVME is the disk "
        "($NVME_ALL: all its namespaces).",
    )  # fmt: skip
    run.set_defaults(do=run_command)
    run.add_argument("kernel", metavar="KERNEL", help=f"{known}, or another series as 6.16")
    run.add_argument("--payload", type=Path, metavar="DIR", help="instead of the working tree's programs and tests")
    run.add_argument("--out", type=Path, metavar="DIR", help="where to put what the command leaves in /out")
    run.add_argument("--timeout", type=float, default=300, metavar="S", help="default: %(default)s")
    run.add_argument(
        "--nvme", action="append", metavar="SIZE|null",
        help="a namespace of the NVMe disk, or one that keeps nothing; repeat for several; default: 1G",
    )  # fmt: skip
    run.add_argument("--multipath", action="store_true", help="leave native NVMe multipath on")
    run.add_argument("--no-btf", dest="btf", action="store_false", help="hide the kernel's BTF")
    run.add_argument("--headers", action="store_true", help="with the kernel's headers, for BCC")
    run.add_argument("--systemd", action="store_true", help="with systemd as the first process")
    run.add_argument("--append", default="", metavar="WORDS", help="to the kernel's command line")
    run.add_argument("--cpus", type=int, default=2, metavar="N")
    run.add_argument("--memory", type=int, default=3072, metavar="MIB")
    run.add_argument("command", nargs="+", metavar="-- COMMAND", help="a single word is a line for the shell")

    test = commands.add_parser(
        "test", help="run the tests for guests on these kernels, all by default",
        description="The tests are those under tests/live and tests/vm/guest that are marked guest. "
        "Exit status: 0: all has passed; 1: not.",
    )  # fmt: skip
    test.set_defaults(do=test_kernels)
    test.add_argument("kernels", nargs="*", metavar="KERNEL", default=[known.name for known in KERNELS])
    test.add_argument(
        "--at-once", type=int, default=min(os.cpu_count() or 1, AT_ONCE), metavar="N",
        help=f"how many guests run at the same time; default: one a processor here, {AT_ONCE} at most",
    )  # fmt: skip
    test.add_argument("--junit", type=Path, metavar="FILE", help="where to write one report of all guests")
    test.add_argument("--write", type=Path, metavar="PAGE", help="put the table into this page, between its marks")

    btf = commands.add_parser("btf", help="print the path of a kernel's raw BTF")
    btf.set_defaults(do=print_btf)
    btf.add_argument("kernel", metavar="KERNEL")
    return made


def run_command(options: argparse.Namespace) -> int:
    store = Store(cache_folder())
    build = store.build(kernel(options.kernel))
    end = boot(
        store,
        build,
        Options(
            command=options.command, payload=options.payload, out=options.out, timeout=options.timeout,
            disks=options.nvme or ["1G"], multipath=options.multipath, btf=options.btf, headers=options.headers,
            systemd=options.systemd,
            append=options.append, cpus=options.cpus, memory=options.memory,
        ),
        to_stdout,
    )  # fmt: skip
    print(f"vm: Linux {build.release}: {outcome(end.status)} after {end.seconds:.1f} s", flush=True)
    return end.status


def outcome(status: int) -> str:
    told = {
        STOOD_STILL: "stopped, it stood still each time it was booted",
        TIMED_OUT: "stopped, its time was over (--timeout)",
        DIED: "died before its command ended",
    }
    return told.get(status, f"exit status {status}")


def test_kernels(options: argparse.Namespace) -> int:
    try:
        return run_suite(Store(cache_folder()), options.kernels, options.at_once, options.junit, options.write)
    except CollectionError as error:
        print(f"vm: {error}", file=sys.stderr)
        return 1


def print_btf(options: argparse.Namespace) -> int:
    store = Store(cache_folder())
    build = store.build(kernel(options.kernel))
    if not build.btf.exists():
        command = ["cp", "/sys/kernel/btf/vmlinux", "/out/vmlinux.btf"]
        end = boot(store, build, Options(command=command, out=build.folder), lambda _: None)
        if not build.btf.exists():
            print("\n".join(end.last), file=sys.stderr)
            print(f"vm: Linux {build.release} has no BTF to read, or did not boot", file=sys.stderr)
            return DIED
    print(build.btf)
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(DIED))  # what was made for a guest is removed then, too
    sys.exit(main(sys.argv[1:]))
