"""How what guests are made of is made: the tools, the root image, a kernel, its headers. Keeping it is for store.py.

Each recipe fills an empty folder. A change in this file makes everything anew.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.vm.architectures import Architecture
from tests.vm.archive import Archive, ArchiveError
from tests.vm.kernels import image_packages
from tests.vm.tree import Tree

PYTHON = "3.11"
TOOLS_SUITE = "bookworm-backports"  # qemu 7.2 loses a race on code that patches itself, as tracing does; 10 does not
TOOLS = ("e2fsprogs", "kmod", f"python{PYTHON}", "seabios")
ROOT_SUITE = "bookworm"
ROOT = (
    "base-files", "base-passwd", "bash", "bsdutils", "coreutils", "dash", "debianutils", "diffutils", "findutils",
    "gawk", "grep", "gzip", "hostname", "iproute2", "kmod", "mount", "ncurses-base", "procps", "sed", "tar",
    "util-linux",
    "python3", "python3-distutils", "libbpf1", "libatomic1", "fio",  # what llmio-probe needs, and its demo
    "systemd",  # what starts the daemon, in the boot of that name
    "openssl",  # makes it keys
    "python3-bpfcc",  # the second loader, with the compiler that it carries
    "bpftool", "btrfs-progs", "cryptsetup-bin", "dmsetup", "e2fsprogs", "mdadm", "nvme-cli", "strace", "xfsprogs",
)  # fmt: skip
BUSYBOX = "busybox-static"
ROOT_SPARE = 1 << 30
"""For what tests write below /var/tmp."""
MADE_BY_SCRIPTS = ("media", "mnt", "opt", "srv")
LINKS = {"etc/mtab": "/proc/self/mounts", "usr/bin/awk": "gawk", "usr/bin/sh": "dash"}
NOT_NEEDED = ("usr/share/doc", "usr/share/locale", "usr/share/man")
WHEELS = ("jsonschema", "numpy", "prometheus-client", "psutil", "pytest", "pyyaml")
WHEELS_FOR = (
    "--only-binary=:all:", "--implementation=cp", f"--python-version={PYTHON}", "--abi=cp311", "--abi=abi3",
    "--abi=none",
)  # fmt: skip
REQUIREMENTS = Path(__file__).parents[1] / "requirements.txt"


def edition() -> str:
    """Changes with what these recipes make."""
    return hashlib.sha256(Path(__file__).read_bytes() + REQUIREMENTS.read_bytes()).hexdigest()[:10]


def make_tools(archive: Archive, architecture: Architecture, made: Path) -> None:
    archive.unpack_closure(TOOLS_SUITE, [*TOOLS, architecture.qemu_package], made)


def make_root(archive: Archive, tools: Tree, architecture: Architecture, made: Path) -> None:
    """busybox, for the initrd, and root.ext4: programs, and Python with what the tests need, compiled by the tools'."""
    archive.unpack([BUSYBOX], made / "static")
    (made / "static" / "usr" / "bin" / "busybox").rename(made / "busybox")
    shutil.rmtree(made / "static")
    root = made / "root"
    archive.unpack_closure(ROOT_SUITE, ROOT, root)
    for name in ("passwd", "group"):
        shutil.copy(root / "usr" / "share" / "base-passwd" / f"{name}.master", root / "etc" / name)
    for name, to in LINKS.items():
        (root / name).unlink(missing_ok=True)
        (root / name).symlink_to(to)
    for name in MADE_BY_SCRIPTS:
        (root / name).mkdir(exist_ok=True)
    for name in NOT_NEEDED:
        shutil.rmtree(root / name)
    libraries = root / "usr" / "lib"
    wheels = root / "usr" / "local" / "lib" / f"python{PYTHON}" / "dist-packages"
    _install_wheels(architecture, wheels)
    for folder in (wheels, libraries / f"python{PYTHON}", libraries / "python3"):
        tools.run(
            f"usr/bin/python{PYTHON}", "-m", "compileall", "-q", "-s", root, "-p", "/", folder,
            PYTHONHOME=str(tools.folder / "usr"),
        )  # fmt: skip
    _make_disk(tools, root, made / "root.ext4", ROOT_SPARE)
    shutil.rmtree(root)


def make_kernel(archive: Archive, tools: Tree, release: str, flavour: str, made: Path) -> None:
    """vmlinuz, lib/modules and the same as modules.ext4."""
    packages = image_packages(release, flavour, archive.kernel_packages())
    if not packages:
        raise ArchiveError("Debian's index does not name it")
    archive.unpack(packages, made)
    name = f"{release}-{flavour}"
    modules = made / "lib" / "modules" / name
    [image] = [path for path in (made / "boot" / f"vmlinuz-{name}", modules / "vmlinuz") if path.exists()]
    image.rename(made / "vmlinuz")
    tools.run("usr/sbin/depmod", "--basedir", made, name)
    for link, headers in {"build": name, "source": f"{release}-common"}.items():
        (modules / link).unlink(missing_ok=True)
        (modules / link).symlink_to(f"/usr/src/linux-headers-{headers}")
    _make_disk(tools, modules.parent, made / "modules.ext4")


def make_headers(archive: Archive, tools: Tree, name: str, made: Path) -> None:
    """headers.ext4: what the links build and source of a kernel's modules point to. Their compiler is left out."""
    package = f"linux-headers-{name}"
    archive.unpack([package, *header_packages(archive.dependencies(package))], made / "headers")
    _make_disk(tools, made / "headers", made / "headers.ext4")


def header_packages(dependencies: Sequence[str]) -> Sequence[str]:
    return [
        name
        for name in dependencies
        if name.startswith("linux-kbuild-") or (name.startswith("linux-headers-") and name.endswith("-common"))
    ]


def _install_wheels(architecture: Architecture, into: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", "-qq", "--disable-pip-version-check", "--no-compile",
         f"--target={into}", f"--constraint={REQUIREMENTS}", *WHEELS_FOR,
         *(f"--platform={platform}" for platform in architecture.platforms), *WHEELS],
        capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        raise ArchiveError(
            f"pip cannot fetch the guests' Python packages (run this by make setup-dev's .venv/bin/python): "
            f"{done.stderr.strip()[-500:]}"
        )


def _make_disk(tools: Tree, folder: Path, disk: Path, spare: int = 0) -> None:
    """An ext4 image with what lies in a folder, that much larger. 5.10 does not know orphan files."""
    files = [path.lstat() for path in folder.rglob("*")]
    content = sum(status.st_size + 4096 for status in files) * 11 // 10
    with open(disk, "wb") as file:
        file.truncate(content + spare + (80 << 20))
    tools.run(
        "usr/sbin/mkfs.ext4", "-q", "-F", "-O", "^orphan_file", "-E", "nodiscard,root_owner=0:0", "-d", folder, disk,
        MKE2FS_CONFIG="/dev/null",
    )  # fmt: skip
