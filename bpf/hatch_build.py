"""The wheel's build hook: bpf/Makefile compiles the programs, this puts what a host needs beside Python into the wheel.

That is the object, its source for the BCC loader, and the libraries that load it, with their licences, since older
distributions have no libbpf.so.1: llmio_probe/kernel/libraries.py takes the system's first.

It runs for `pip install .`, `pip install -e .` and `python -m build`. How to compile is the Makefile's; what belongs
into a wheel of ours for which machine is said here, and nothing else.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

LIBRARIES = ("libbpf.so.1", "libelf.so.1", "libz.so.1", "libatomic.so.1")
CARRIED = "llmio_probe/kernel/carried"


class ProgramsHook(BuildHookInterface[Any]):
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        arch = os.environ.get("LLMIO_BPF_ARCH") or platform.machine()
        self._compile(arch)
        build_data["artifacts"] += [
            f"/llmio_probe/kernel/objects/probe.{arch}.bpf.o",
            "/llmio_probe/kernel/objects/source/*.[ch]",  # for the BCC loader, which compiles on the host
        ]
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-linux_{arch}"  # no CPython ABI in it, but one machine's object
        self._notices = Path(tempfile.mkdtemp(prefix="llmio-wheel-"))
        if version == "standard" and arch == platform.machine():  # not an editable install: this machine has them
            build_data["force_include"].update(self._libraries())

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        shutil.rmtree(self._notices)

    def _compile(self, arch: str) -> None:
        if shutil.which("make") is None:
            self.app.abort("llmio-probe compiles its BPF programs with make: install the package make")
        # A make above us must not lend us its job slots: pip has closed them.
        inherited = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MFLAGS")}
        command = ["make", "--no-print-directory", "-C", os.path.join(self.root, "bpf"), "all"]
        run = subprocess.run(
            command,
            env={**inherited, "LLMIO_BPF_ARCH": arch},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        if run.returncode != 0:
            self.app.abort(f"llmio-probe's BPF programs did not compile:\n{run.stdout}")

    def _libraries(self) -> dict[str, str]:
        """From where to where. All of them with their licences, or none: nothing is passed on without its licence."""
        found: dict[str, str] = {}
        for name in LIBRARIES:
            library = _library(name)
            notice = library and self._notice(name, library)
            if not library or not notice:
                what = "its licence" if library else "it"
                self.app.display_warning(f"this wheel brings no libraries: {name}: {what} was not found here")
                return {}
            found[str(library)] = f"{CARRIED}/{name}"
            found[str(notice)] = f"{CARRIED}/licences/{notice.name}"
        return found

    def _notice(self, name: str, library: Path) -> Path | None:
        """A file that says what the library is, where its source is, and under which terms; by Debian's packages."""
        if shutil.which("dpkg-query") is None:
            return None
        # A library's path in the package may be from before /lib became a link to /usr/lib.
        owners = [_output("dpkg-query", "--search", path) for path in (str(library), str(library).removeprefix("/usr"))]
        package = next((owner.partition(":")[0] for owner in owners if owner), None)
        terms = Path(f"/usr/share/doc/{package}/copyright")
        if package is None or not terms.is_file():
            return None
        version = _output("dpkg-query", "--show", "--showformat=${source:Package} ${source:Version}", package)
        notice = self._notices / f"{package}.txt"
        notice.write_text(
            f"{name}, of the Debian package {package}, unchanged. Its source is Debian's source package "
            f"{version}.\nYour own {name} is used in its place where the system has one.\n\n{terms.read_text()}"
        )
        return notice


def _library(name: str) -> Path | None:
    """Where the dynamic linker finds it."""
    listed = _output(shutil.which("ldconfig") or "/sbin/ldconfig", "-p")
    match = re.search(rf"^\s*{re.escape(name)} \(libc6,.*64.*\) => (\S+)$", listed, re.MULTILINE)
    return Path(os.path.realpath(match[1])) if match else None


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
