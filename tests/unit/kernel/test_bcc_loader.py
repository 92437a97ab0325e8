"""The second loader without BCC, headers or root: where BCC is looked for, what it gets, what is said without it."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from llmio_probe.errors import ProbeError
from llmio_probe.kernel import bcc_compiler, bcc_loader
from llmio_probe.kernel.bcc_compiler import Refused, bcc_folder, imported, loaded
from llmio_probe.kernel.bcc_loader import compiler_flags, require_headers

RELEASE = "6.1.0-56-cloud-amd64"
HEADERS = (
    f"BCC needs the headers of this kernel: install the package linux-headers-{RELEASE} (Debian, Ubuntu) "
    f"or kernel-devel-{RELEASE} (Fedora, RHEL)"
)
FLAGS = ["-DLLMIO_BCC", "-I/source"]
PROGRAMS = {"block_rq_issue": True, "enter_io_submit": False}
BCC = """
import os
from .libbcc import lib
class BPF:
    RAW_TRACEPOINT, TRACEPOINT = 17, 5
    def __init__(self, text, cflags):
        print("a compiler has much to say")
        self.made = text, cflags
    def load_func(self, name, kind):
        class Function:
            fd = os.memfd_create(f"{name.decode()} {kind}", os.MFD_CLOEXEC)
        return Function
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A host without BCC and headers."""
    return tmp_path


def put(root: Path, path: str, text: str = "") -> Path:
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


def put_bcc(root: Path, place: str, text: str = BCC) -> Path:
    put(root, f"{place}/bcc/libbcc.py", "lib = None\n")
    return put(root, f"{place}/bcc/__init__.py", text).parent


@pytest.fixture(autouse=True)
def without_the_hosts_own(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What is imported here as bcc is gone afterwards."""
    monkeypatch.delenv("BCC_KERNEL_SOURCE", raising=False)
    before = set(sys.modules)
    yield
    for name in [name for name in set(sys.modules) - before if name.partition(".")[0] == "bcc"]:
        del sys.modules[name]


# Finding BCC


@pytest.mark.parametrize(
    "place",
    [
        "usr/lib/python3/dist-packages",
        "usr/lib/python3.12/site-packages",
        "usr/lib64/python3.9/site-packages",
        "usr/local/lib/python3.11/dist-packages",
    ],
)
def test_bcc_is_found_where_the_distributions_put_it(root: Path, place: str) -> None:
    assert bcc_folder(put_bcc(root, place) and root) == root / place / "bcc"


def test_the_package_to_install_is_named_when_there_is_none(root: Path) -> None:
    with pytest.raises(Refused) as told:
        bcc_folder(root)
    assert str(told.value) == (
        "BCC is not installed: install the package python3-bpfcc (Debian, Ubuntu) or python3-bcc (Fedora, RHEL)"
    )


def test_another_project_of_that_name_is_passed_over(root: Path) -> None:
    put(root, "usr/lib/python3/dist-packages/bcc/__init__.py")
    with pytest.raises(Refused, match="not installed"):
        bcc_folder(root)
    ours = put_bcc(root, "usr/lib/python3.12/site-packages")
    assert bcc_folder(root) == ours


def test_nothing_beside_bcc_can_be_imported_from_its_folder(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = put_bcc(root, "usr/lib/python3/dist-packages")
    put(root, "usr/lib/python3/dist-packages/another_package_of_the_host.py")
    before = list(sys.path)
    assert imported(folder).BPF.TRACEPOINT == 5
    assert sys.path == before
    with pytest.raises(ImportError):
        __import__("another_package_of_the_host")


@pytest.mark.parametrize("text", ["raise OSError('libbcc.so.0: cannot open')", "import nothing_of_that_name", "("])
def test_what_is_broken_says_so(root: Path, text: str) -> None:
    folder = put_bcc(root, "usr/lib/python3/dist-packages", text)
    with pytest.raises(Refused, match=rf"BCC in {folder} cannot be used \(.+\): reinstall the package it came with"):
        imported(folder)


# The kernel's headers


@pytest.mark.parametrize("path", [f"lib/modules/{RELEASE}/build/include/linux/fs.h", "sys/kernel/kheaders.tar.xz"])
def test_headers_are_where_bcc_looks_for_them(root: Path, path: str) -> None:
    put(root, path)
    require_headers(RELEASE, root)


def test_who_says_where_headers_are_is_believed(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BCC_KERNEL_SOURCE", "/usr/src/mine")
    require_headers(RELEASE, root)


@pytest.mark.parametrize("left", [None, f"lib/modules/{RELEASE}/modules.dep", "lib/modules/6.0/build/include/a.h"])
def test_without_headers_their_package_is_named(root: Path, left: str | None) -> None:
    if left:
        put(root, left)
    with pytest.raises(ProbeError, match=re.escape(HEADERS)):
        require_headers(RELEASE, root)


def test_a_link_to_headers_that_were_removed_is_none(root: Path) -> None:
    folder = root / "lib/modules" / RELEASE
    folder.mkdir(parents=True)
    (folder / "build").symlink_to("/usr/src/gone")
    with pytest.raises(ProbeError, match=re.escape(HEADERS)):
        require_headers(RELEASE, root)


# What the compiler gets


def test_flags_say_where_maps_and_functions_are_and_what_is_wanted() -> None:
    flags = compiler_flags(
        Path("/source folder"),
        {"requests": 7, ".data.control": 8},
        {"aio_complete_rw": 0xFFFFFFFF81000000, "loop_workfn": 0},
        {"block_getrq": True, "block_io_start": False},
    )
    assert {"-DLLMIO_BCC", "-I/source folder"} < set(flags)
    assert [flag for flag in flags if flag.startswith("-DLLMIO_") and "=" in flag] == [
        "-DLLMIO_FD_requests=7",
        "-DLLMIO_FD_control=8",
        "-DLLMIO_ADDRESS_aio_complete_rw=0xffffffff81000000UL",
        "-DLLMIO_ADDRESS_loop_workfn=0x0UL",
        "-DLLMIO_LOADS_block_getrq=1",
        "-DLLMIO_LOADS_block_io_start=0",
    ]


class Bcc:
    """A module that was asked for what it is given, and refuses one program."""

    def __init__(self, refuses: str = "", number: int = 0) -> None:
        self.refuses = refuses
        self.number = number
        self.asked: list[Any] = []
        self.BPF = self._module()

    def _module(self) -> type:
        bcc = self

        class BPF:
            RAW_TRACEPOINT, TRACEPOINT = 17, 5

            def __init__(self, text: bytes, cflags: list[str]) -> None:
                bcc.asked.append((text, cflags))
                if bcc.refuses == "text":
                    raise Exception("Failed to compile BPF module <text>")

            def load_func(self, name: bytes, kind: int) -> Any:
                ctypes.set_errno(bcc.number)
                bcc.asked.append((name, kind))
                if name.decode() == bcc.refuses:
                    raise Exception(f"Failed to load BPF program {name!r}: no")
                return type("Function", (), {"fd": len(bcc.asked)})

        return BPF


def test_one_text_is_compiled_and_each_program_loaded_as_what_it_is() -> None:
    bcc = Bcc()
    assert loaded(bcc, {"flags": FLAGS, "programs": PROGRAMS}) == {"block_rq_issue": 2, "enter_io_submit": 3}
    assert bcc.asked == [(b'#include "probe.bpf.c"\n', FLAGS), (b"block_rq_issue", 17), (b"enter_io_submit", 5)]


@pytest.mark.parametrize(
    ("refuses", "number", "told"),
    [
        ("text", 0, "the BPF programs cannot be compiled against this kernel's headers"),
        ("block_rq_issue", errno.EPERM, "the kernel does not let this user load BPF programs: run as root"),
        (
            "enter_io_submit",
            errno.EINVAL,
            "the BPF program enter_io_submit, compiled by BCC, cannot be loaded "
            "(Failed to load BPF program b'enter_io_submit': no)",
        ),
    ],
)
def test_what_bcc_refuses_is_told_in_a_sentence(refuses: str, number: int, told: str) -> None:
    with pytest.raises(Refused) as refused:
        loaded(Bcc(refuses, number), {"flags": FLAGS, "programs": PROGRAMS})
    assert str(refused.value) == told


# The child


@pytest.fixture
def compile_in(root: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, int]]:
    """What the loader does with a child that finds its BCC, if any, in that root."""
    script = Path(bcc_compiler.__file__).read_text().replace('Path("/")', f'Path("{root}")')
    monkeypatch.setattr(bcc_compiler, "__file__", str(put(root, "child.py", script)))

    def compile_(maps: list[int]) -> dict[str, int]:
        hooks = {
            "block_rq_issue": "raw_tp/block_rq_issue",
            "enter_io_submit": "tracepoint/syscalls/sys_enter_io_submit",
        }
        return bcc_loader._compile(FLAGS, hooks, maps)

    return compile_


def test_descriptors_of_the_programs_outlive_the_child_that_made_them(
    root: Path, compile_in: Callable[..., dict[str, int]], capfd: pytest.CaptureFixture[str]
) -> None:
    put_bcc(root, "usr/lib/python3/dist-packages")
    programs = compile_in([])
    names = {name: os.readlink(f"/proc/self/fd/{fd}") for name, fd in programs.items()}
    for fd in programs.values():
        os.close(fd)
    assert names == {
        "block_rq_issue": "/memfd:block_rq_issue 17 (deleted)",
        "enter_io_submit": "/memfd:enter_io_submit 5 (deleted)",
    }
    assert capfd.readouterr() == ("", "")
    assert "bcc" not in sys.modules


def test_maps_have_the_same_numbers_in_the_child(root: Path, compile_in: Callable[..., dict[str, int]]) -> None:
    ours, theirs = socket.socketpair()
    text = BCC.replace("self.made", f"os.write({theirs.fileno()}, b'here'); self.made")
    put_bcc(root, "usr/lib/python3/dist-packages", text)
    with ours, theirs:
        for fd in compile_in([theirs.fileno()]).values():
            os.close(fd)
        assert ours.recv(4) == b"here"


def test_the_compilers_first_error_is_told(root: Path, compile_in: Callable[..., dict[str, int]]) -> None:
    says = (
        "os.write(2, b'In file\\na.h:1: error: no such member\\nb.h:2: error: and more\\n2 errors\\n'); raise Exception"
    )
    put_bcc(root, "usr/lib/python3/dist-packages", BCC.replace("self.made", f"{says}; self.made"))
    with pytest.raises(ProbeError) as told:
        compile_in([])
    assert str(told.value) == (
        "the BPF programs cannot be compiled against this kernel's headers: a.h:1: error: no such member"
    )


def test_a_compiler_that_crashes_is_told(root: Path, compile_in: Callable[..., dict[str, int]]) -> None:
    put_bcc(root, "usr/lib/python3/dist-packages", BCC.replace("self.made", "os.abort(); self.made"))
    with pytest.raises(ProbeError, match="BCC has ended with status -6 and no program"):
        compile_in([])


def test_without_bcc_its_package_is_named(compile_in: Callable[..., dict[str, int]]) -> None:
    with pytest.raises(ProbeError, match="BCC is not installed: install the package python3-bpfcc"):
        compile_in([])


def test_the_child_imports_nothing_of_ours() -> None:
    """Else it would need our packages, which lie beside PyPI's bcc."""
    script = "import runpy, sys; runpy.run_path(sys.argv[1]); print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", script, bcc_compiler.__file__], capture_output=True, text=True, check=True
    )
    assert not {name for name in done.stdout.split() if name.partition(".")[0] in ("llmio_probe", "numpy", "bcc")}


def test_the_source_lies_beside_the_object() -> None:
    """All of it: what it includes, too."""
    folder = bcc_loader.source_folder()
    ours = Path(__file__).parents[3] / "bpf"
    assert {file.name: file.read_text() for file in folder.iterdir()} == {
        file.name: file.read_text() for file in ours.iterdir() if file.suffix in (".c", ".h")
    }


def test_each_tracepoint_has_a_place_for_its_arguments() -> None:
    """A program that is new to the source would not compile under BCC, which not every test run does."""
    folder = Path(__file__).parents[3] / "bpf"
    programs = {
        name for file in folder.glob("*.h") for name in re.findall(r"^PROGRAM\((\w+),", file.read_text(), re.MULTILINE)
    }
    assert programs == set(re.findall(r"^#define AT_(\w+) ", (folder / "bcc.h").read_text(), re.MULTILINE))
