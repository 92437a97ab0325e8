"""A cache folder as a runner leaves it, with an emulator that only says it is one: no root, no qemu, no network."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.vm.kernels import kernel
from tests.vm.recipes import edition
from tests.vm.tree import LIBRARIES

EMULATOR = r"""#!/bin/sh
# Called as the loader of qemu's own libraries. Does what $GUEST says with the result's disk.
echo "emulator: ${3##*/}"
for word in "$@"; do
    case $word in file=*/result,*) disk=${word#file=} disk=${disk%%,*} ;; esac
    [ "$last" = -append ] && echo "booting: $word"
    last=$word
done
folder=$(mktemp -d) && mkdir "$folder/out"
eval "$GUEST"
rm -r "$folder"
"""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """With Linux 6.1 and one for arm64 in it."""
    folder = tmp_path / "cache"
    for known in (kernel("6.1"), kernel("6.12-arm64")):
        lay_out(folder, known.architecture.debian, f"{known.release}-{known.flavour}")
    monkeypatch.setenv("LLMIO_VM_CACHE", str(folder))
    return folder


def lay_out(folder: Path, architecture: str, name: str) -> None:
    tools, root, linux = (
        folder / f"{what}-{edition()}" for what in (f"tools-{architecture}", f"root-{architecture}", f"linux-{name}")
    )
    modules = linux / "lib" / "modules" / name
    for made in (tools / LIBRARIES, root, modules / "kernel" / "fs"):
        made.mkdir(parents=True)
    loader = tools / LIBRARIES / "ld-linux-x86-64.so.2"
    loader.write_text(EMULATOR)
    loader.chmod(0o755)
    (root / "busybox").write_bytes(b"busybox")
    (modules / "modules.dep").write_text("kernel/fs/ext4.ko:\n")
    (modules / "kernel" / "fs" / "ext4.ko").write_bytes(b"module")


@pytest.fixture
def payload(tmp_path: Path) -> Path:
    folder = tmp_path / "payload"
    folder.mkdir()
    (folder / "file").write_text("content")
    return folder
