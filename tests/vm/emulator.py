"""One guest from its boot to its end: qemu's command line, the console, the time limit, and how it ended.

Software emulation (TCG) with two CPUs: slow, but the same everywhere. The infrastructure's disks are virtio, so that
NVMe is only what a test does I/O to.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from tests.live.wheels import build_wheel
from tests.vm import initrd
from tests.vm.architectures import Architecture
from tests.vm.modules import FOR_ROOT, load_order, plain_bytes
from tests.vm.objects import build_object
from tests.vm.payload import pack, size_of, unpack_result
from tests.vm.store import Build, Store
from tests.vm.tree import LIBRARIES, Tree

HERE = Path(__file__).parent
STOOD_STILL = 123
TIMED_OUT = 124
DIED = 125
IS_UP = "vm: Linux "
"""What session.sh says then."""
UP_SECONDS = 90
"""Until then: it takes 7 to 12 s. An emulated timer can get lost while a kernel boots (seen of 5.10 and 6.1, in one of
some hundred boots on a busy machine, "Possible timer handling issue"): a processor then idles for ever, before anything
of ours has run in the guest."""
BOOTS_AT_MOST = 3
"""So often is a guest that stands still before it is up booted."""
SCRIPTS = ("session.sh", "systemd.sh", "finish.sh")
NULL = "null"
NULL_SIZE = 4 << 30
RESULT_SIZE = 1 << 30
LAST_LINES = 40

Write = Callable[[str], None]


@dataclass(frozen=True)
class Options:
    """disks: the namespaces of the NVMe disk, a size each, or "null" for one that keeps nothing."""

    command: Sequence[str]
    payload: Path | None = None
    out: Path | None = None
    timeout: float = 300
    disks: Sequence[str] = ("1G",)
    multipath: bool = False
    btf: bool = True
    headers: bool = False
    systemd: bool = False
    """With a service manager as the first process, and our wheel beside the working tree."""
    append: str = ""
    cpus: int = 2
    memory: int = 3072


@dataclass(frozen=True)
class End:
    """status: the command's, or STOOD_STILL, TIMED_OUT, or DIED. last: how the console ended."""

    status: int
    seconds: float
    last: Sequence[str] = field(default_factory=list)


class Limits(NamedTuple):
    """Seconds since the emulator's start: until all is done, and until the guest is up."""

    end: float
    up: float


class Emulators:
    """Those that run now, so that all can be stopped from outside: who waits for one in a thread is not interrupted."""

    def __init__(self) -> None:
        self._running: set[subprocess.Popen[str]] = set()
        self._lock = threading.Lock()
        self._stopped = False

    def stop(self) -> None:
        """And let no other begin."""
        with self._lock:
            self._stopped = True
            for process in self._running:
                process.kill()

    @contextmanager
    def running(self, process: subprocess.Popen[str]) -> Iterator[None]:
        with self._lock:
            self._running.add(process)
            if self._stopped:
                process.kill()
        try:
            yield
        finally:
            with self._lock:
                self._running.discard(process)


def boot(store: Store, build: Build, options: Options, write: Write, emulators: Emulators | None = None) -> End:
    """Run the command in a guest; what its console shows is written as it comes."""
    prepare(store, build, options)
    tools, root = store.tools(build.architecture), store.root(build.architecture)
    headers = store.headers_disk(build) if options.headers else None
    with tempfile.TemporaryDirectory(prefix="llmio-vm-") as name:
        folder = Path(name)
        (folder / "initrd").write_bytes(first_files(build, root / "busybox", options))
        wheel = [build_wheel(folder / "dist")] if options.systemd else []
        pack(options.payload, folder / "payload", wheel)
        for index, size in enumerate(options.disks):
            if size != NULL:
                _sparse(folder / f"nvme{index}", size_of(size))
        _sparse(folder / "result", RESULT_SIZE)
        disks = {
            "root": root / "root.ext4",
            "modules": build.modules_disk,
            "payload": folder / "payload",
            "result": folder / "result",
        }
        if headers:
            disks["headers"] = headers
        argv = qemu(tools, build, options, disks, folder)
        environment = {"QEMU_MODULE_DIR": str(tools.folder / LIBRARIES / "qemu"), "TMPDIR": name}
        limits = Limits(options.timeout, UP_SECONDS * build.architecture.patience)
        for _ in range(BOOTS_AT_MOST):
            end = watch(argv, environment, limits, write, emulators or Emulators())
            if end.status != STOOD_STILL:
                break
            write(f"vm: stopped after {end.seconds:.0f} s, as it was not up: its kernel stands still\n")
        status = unpack_result(folder / "result", options.out)
        return replace(end, status=end.status if status is None else status)


def prepare(store: Store, build: Build, options: Options) -> None:
    """Fetch and build what the guest needs: before several boot at once, which would all do it."""
    store.tools(build.architecture)
    store.root(build.architecture)
    if options.headers:
        store.headers_disk(build)
    if options.payload is None:
        build_object(build.architecture)


def qemu(tools: Tree, build: Build, options: Options, disks: dict[str, Path], folder: Path) -> list[str]:
    machine, share = build.architecture, tools.folder / "usr" / "share"
    argv = tools.argv(
        machine.qemu, "-L", share / "qemu", "-L", share / "seabios",
        *machine.machine, "-accel", "tcg,thread=multi",
        "-smp", str(options.cpus), "-m", str(options.memory),
        "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", "stdio",
        "-kernel", build.image, "-initrd", folder / "initrd", "-append", kernel_arguments(machine, options),
    )  # fmt: skip
    for name, path in disks.items():
        kept = "off" if name == "result" else "on"
        argv += [
            "-drive", f"file={path},id={name},if=none,format=raw,cache=unsafe,snapshot={kept}",
            "-device", f"virtio-blk-pci,drive={name},serial={name}",
        ]  # fmt: skip
    argv += ["-device", "nvme,id=nvme,serial=scratch"]
    for index, size in enumerate(options.disks):
        backend = f"driver=null-co,size={NULL_SIZE},read-zeroes=on"
        if size != NULL:
            backend = f"driver=raw,discard=unmap,file.driver=file,file.filename={folder}/nvme{index}"
        argv += [
            "-blockdev", f"node-name=scratch{index},{backend}",
            "-device", f"nvme-ns,bus=nvme,drive=scratch{index},nsid={index + 1}",
        ]  # fmt: skip
    return argv


def kernel_arguments(architecture: Architecture, options: Options) -> str:
    words = [f"console={architecture.console}", "panic=-1", "quiet", "loglevel=4", "mitigations=off"]
    if not options.multipath:
        words.append("nvme_core.multipath=N")
    return " ".join([*words, *options.append.split()])


def first_files(build: Build, busybox: Path, options: Options) -> bytes:
    """The initrd: the modules for the root image, and what the guest shall do."""
    order = load_order(FOR_ROOT, (build.modules / "modules.dep").read_text().splitlines())
    names = [Path(path).name.removesuffix(".xz") for path in order]
    settings = {"NAMESPACES": len(options.disks), "HIDE_BTF": int(not options.btf), "SYSTEMD": int(options.systemd)}
    files = {
        "modules/order": "".join(f"{name}\n" for name in names),
        "guest/settings": "".join(f"{name}={value}\n" for name, value in settings.items()),
        **{f"guest/{name}": (HERE / name).read_text() for name in SCRIPTS},
        "guest/command": shell_line(options.command) + "\n",
    }
    return initrd.archive(
        [
            *(initrd.Entry(folder, initrd.FOLDER) for folder in ("bin", "dev", "guest", "modules")),
            initrd.CONSOLE,
            initrd.Entry("init", initrd.PROGRAM, (HERE / "init.sh").read_bytes()),
            initrd.Entry("bin/busybox", initrd.PROGRAM, busybox.read_bytes()),
            *(initrd.Entry(name, initrd.FILE, text.encode()) for name, text in files.items()),
            *(
                initrd.Entry(f"modules/{name}", initrd.FILE, plain_bytes(build.modules / path))
                for name, path in zip(names, order, strict=True)
            ),
        ]
    )


def shell_line(command: Sequence[str]) -> str:
    """A single word is a line for the shell, several are a program with its arguments."""
    return command[0] if len(command) == 1 else shlex.join(command)


def watch(argv: Sequence[str], environment: dict[str, str], limits: Limits, write: Write, emulators: Emulators) -> End:
    """Run an emulator until it ends or its time is over. It ends with us, however we do."""
    begin = time.monotonic()
    up = threading.Event()
    status = DIED
    last: deque[str] = deque(maxlen=LAST_LINES)
    with subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", *argv], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, errors="replace", env={**os.environ, **environment},
        start_new_session=True,  # a terminal's Ctrl-C is ours alone, and each has its own share of the processors
    ) as process, emulators.running(process):  # fmt: skip

        def kill(why: int) -> None:
            nonlocal status
            if why == TIMED_OUT or not up.is_set():
                status = why
                process.kill()

        timers = (
            threading.Timer(limits.end, kill, [TIMED_OUT]),
            threading.Timer(limits.up, kill, [STOOD_STILL]),
        )
        for timer in timers:
            timer.start()
        try:
            assert process.stdout
            for line in process.stdout:
                if IS_UP in line:  # a kernel's own message may be in front
                    up.set()
                last.append(line.rstrip("\n"))
                write(line)
        finally:
            for timer in timers:
                timer.cancel()
            process.kill()
    seconds = time.monotonic() - begin
    return End(status, seconds, list(last))


def to_stdout(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _sparse(path: Path, size: int) -> None:
    with open(path, "wb") as file:
        file.truncate(size)
