"""What guests are made of, made once and kept: qemu and other tools, the root image, kernels.

Everything lies in one cache folder, in folders named after what went into them, and can be removed at any time.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.vm import recipes
from tests.vm.architectures import AMD64, Architecture
from tests.vm.archive import Archive, ArchiveError
from tests.vm.kernels import Kernel, releases
from tests.vm.tree import Tree


@dataclass(frozen=True)
class Build:
    """A kernel that is there. release: as `uname -r` says it."""

    release: str
    architecture: Architecture
    folder: Path

    @property
    def image(self) -> Path:
        return self.folder / "vmlinuz"

    @property
    def modules(self) -> Path:
        """The folder with modules.dep."""
        return self.folder / "lib" / "modules" / self.release

    @property
    def modules_disk(self) -> Path:
        return self.folder / "modules.ext4"

    @property
    def btf(self) -> Path:
        """Made by whoever asks for it."""
        return self.folder / "vmlinux.btf"


def cache_folder() -> Path:
    named = os.environ.get("LLMIO_VM_CACHE")
    return Path(named) if named else Path.home() / ".cache" / "llmio-probe" / "vm"


class Store:
    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder.resolve()
        self._archives: dict[str, Archive] = {}
        self._holds_lock = False

    def tools(self, architecture: Architecture) -> Tree:
        """What runs here: qemu for those guests, and what makes images."""
        name = architecture.debian
        folder = self._once(
            f"tools-{name}", f"qemu for {name} and other tools",
            lambda made: recipes.make_tools(self._archive(AMD64), architecture, made),
        )  # fmt: skip
        return Tree(folder)

    def root(self, architecture: Architecture) -> Path:
        """The folder with root.ext4 and busybox."""
        name = architecture.debian
        return self._once(
            f"root-{name}", f"the root image of {name} guests",
            lambda made: recipes.make_root(self._archive(architecture), self.tools(architecture), architecture, made),
        )  # fmt: skip

    def build(self, kernel: Kernel) -> Build:
        """The best build of a kernel that is here or can be had."""
        tried = []
        for release in self._candidates(kernel):
            try:
                return self._built(kernel, release)
            except ArchiveError as error:
                tried.append(f"{release}: {error}")
                print(f"vm: Linux {release} cannot be had, trying the next: {error}", flush=True)
        raise ArchiveError(f"no build of Linux {kernel.name} can be had: {'; '.join(tried) or 'Debian has none'}")

    def headers_disk(self, build: Build) -> Path:
        name, machine = build.release, build.architecture
        folder = self._once(
            f"headers-{name}", f"the headers of Linux {name}",
            lambda made: recipes.make_headers(self._archive(machine), self.tools(machine), name, made),
        )  # fmt: skip
        return folder / "headers.ext4"

    def _built(self, kernel: Kernel, release: str) -> Build:
        name, machine = f"{release}-{kernel.flavour}", kernel.architecture
        folder = self._once(
            f"linux-{name}", f"Linux {name}",
            lambda made: recipes.make_kernel(
                self._archive(machine), self.tools(machine), release, kernel.flavour, made
            ),
        )  # fmt: skip
        return Build(name, machine, folder)

    def _archive(self, architecture: Architecture) -> Archive:
        """Each has its own index."""
        name = architecture.debian
        return self._archives.setdefault(name, Archive(self._folder / f"apt-{name}", architecture))

    def _candidates(self, kernel: Kernel) -> Iterator[str]:
        """The pin first: while it is here, no index has to be fetched."""
        pinned = releases(kernel, [])
        yield from pinned
        with self._locked():
            names = self._archive(kernel.architecture).kernel_packages()
        yield from (release for release in releases(kernel, names) if release not in pinned)

    def _once(self, name: str, what: str, make: Callable[[Path], None]) -> Path:
        """A folder in the cache that is there whole or not at all."""
        folder = self._folder / f"{name}-{recipes.edition()}"
        if folder.exists():
            return folder
        with self._locked():
            if not folder.exists():
                print(f"vm: fetching {what} into {folder}", flush=True)
                made = Path(tempfile.mkdtemp(prefix="making-", dir=self._folder))
                try:
                    make(made)
                    made.rename(folder)
                finally:
                    shutil.rmtree(made, ignore_errors=True)
        return folder

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Two runners share a cache. What is made within may need something else that is made."""
        if self._holds_lock:
            yield
            return
        with open(self._folder / "lock", "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            self._holds_lock = True
            try:
                yield
            finally:
                self._holds_lock = False
