"""Debian's packages, fetched and unpacked but never installed: through an apt with a state folder of its own.

Mirror and keys are those of the machine's own sources, so whatever apt reaches here, this reaches; signatures and
hashes are apt's to check. What the packages are for does not belong in here.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path

from tests.vm.architectures import Architecture

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
SUITES = ("bookworm", "bookworm-backports", "trixie", "trixie-backports")
SECURITY_SUITES = ("bookworm-security", "trixie-security", "bullseye-security")
STALE_AFTER = 24 * 3600.0
LINKS = ("bin", "sbin", "lib", "lib64")


class ArchiveError(Exception):
    """One sentence: what could not be had, and what helps."""


class Archive:
    def __init__(self, folder: Path, architecture: Architecture) -> None:
        self._folder = folder
        self._architecture = architecture.debian
        self._configuration = folder / "apt.conf"

    def kernel_packages(self) -> Sequence[str]:
        """The names of all kernel packages."""
        return self._names

    @cached_property
    def _names(self) -> Sequence[str]:
        self.refresh()
        return self._apt("apt-cache", "pkgnames", "linux-").split()

    def dependencies(self, package: str) -> Sequence[str]:
        self.refresh()
        lines = self._apt("apt-cache", "depends", package).splitlines()
        return [line.split()[-1] for line in lines if "Depends:" in line]

    def unpack(self, packages: Sequence[str], into: Path) -> None:
        """These packages alone."""
        self.refresh()
        with tempfile.TemporaryDirectory(prefix="packages-", dir=self._folder) as debs:
            self._apt("apt-get", "-qq", "download", *packages, cwd=debs)
            _unpack(sorted(Path(debs).glob("*.deb")), into)

    def unpack_closure(self, suite: str, packages: Sequence[str], into: Path) -> None:
        """These and all that they depend on, from that suite as far as it has it."""
        self.refresh()
        with tempfile.TemporaryDirectory(prefix="packages-", dir=self._folder) as debs:
            (Path(debs) / "partial").mkdir()
            self._apt(
                "apt-get", "-qq", "--yes", "--no-install-recommends", f"--target-release={suite}", "--download-only",
                f"--option=Dir::Cache::archives={debs}", "install", *packages,
            )  # fmt: skip
            _unpack(sorted(Path(debs).glob("*.deb")), into)

    def refresh(self) -> None:
        """Fetch the index, unless it was fetched within the last day."""
        stamp = self._folder / "refreshed"
        if stamp.exists() and time.time() - stamp.stat().st_mtime < STALE_AFTER:
            return
        self._configure()
        try:
            self._apt("apt-get", "-qq", "update")
        except ArchiveError as error:
            if not stamp.exists():
                raise
            print(f"vm: the index stays that of {time.ctime(stamp.stat().st_mtime)}: {error}", flush=True)
        stamp.touch()

    def _configure(self) -> None:
        self._folder.mkdir(exist_ok=True)
        plain, security = mirrors(_run(["apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE)"]).splitlines())
        options = f"[arch={self._architecture} signed-by={KEYRING}]"
        sources = [f"deb {options} {plain} {suite} main" for suite in SUITES]
        sources += [f"deb {options} {security} {suite} main" for suite in SECURITY_SUITES]
        (self._folder / "lists" / "partial").mkdir(parents=True, exist_ok=True)
        (self._folder / "cache").mkdir(exist_ok=True)
        (self._folder / "status").touch()
        (self._folder / "sources.list").write_text("\n".join(sources) + "\n")
        self._configuration.write_text(
            f'Dir::Etc::sourcelist "{self._folder}/sources.list";\n'
            'Dir::Etc::sourceparts "/dev/null";\n'
            'Dir::Etc::preferences "/dev/null";\n'
            'Dir::Etc::preferencesparts "/dev/null";\n'
            f'Dir::State "{self._folder}";\n'
            f'Dir::State::lists "{self._folder}/lists";\n'
            f'Dir::State::status "{self._folder}/status";\n'
            f'Dir::Cache "{self._folder}/cache";\n'
            f'APT::Architecture "{self._architecture}";\n'
            f'APT::Architectures {{ "{self._architecture}"; }};\n'
            'APT::Sandbox::User "root";\n'  # that is: who calls; _apt may not write here
            'APT::Update::Post-Invoke-Success "";\n'
            'Acquire::Languages "none";\n'
            'Acquire::Retries "3";\n'
        )

    def _apt(self, *argv: str, cwd: str | None = None) -> str:
        return _run(argv, cwd=cwd, env={**os.environ, "APT_CONFIG": str(self._configuration), "LC_ALL": "C.UTF-8"})


def mirrors(targets: Iterable[str]) -> tuple[str, str]:
    """Where the machine's own sources have Debian and its security updates: from lines "URI SUITE"."""
    plain = security = ""
    for line in targets:
        uri, _, suite = line.partition(" ")
        if suite.endswith("-security"):
            security = uri
        elif suite in ("bookworm", "trixie", "forky"):
            plain = uri
    if not plain or not security:
        raise ArchiveError(
            "this machine's apt sources name no Debian mirror with its security updates: "
            "the guests' kernels and programs are Debian's, so run this on Debian 12 or 13"
        )
    return plain, security


def _unpack(packages: Sequence[Path], into: Path) -> None:
    """As dpkg would, without scripts. The top folders are links into /usr, as on every Debian since 12."""
    for name in LINKS:
        (into / "usr" / name).mkdir(parents=True, exist_ok=True)
        if not (into / name).is_symlink():
            (into / name).symlink_to(f"usr/{name}")
    for package in packages:
        with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", package], stdout=subprocess.PIPE) as archive:
            unpacked = subprocess.run(
                ["tar", "--extract", "--keep-directory-symlink", "--directory", into], stdin=archive.stdout
            )
        if archive.returncode or unpacked.returncode:
            raise ArchiveError(f"{package.name} cannot be unpacked into {into}: is the disk full?")


def _run(argv: Sequence[str], cwd: str | None = None, env: Mapping[str, str] | None = None) -> str:
    try:
        done = subprocess.run(argv, capture_output=True, text=True, cwd=cwd, env=env)
    except FileNotFoundError:
        raise ArchiveError(
            f"there is no {argv[0]}: the guests' packages come through apt, so run this on Debian"
        ) from None
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.startswith("E:")] or done.stderr.splitlines()
        raise ArchiveError(f"{argv[0]} failed: {' '.join(said[:3])}")
    return done.stdout
