"""What is shipped beside the program: the unit's sandbox, what make install puts there and uninstall takes away."""

from __future__ import annotations

import configparser
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from llmio_probe.rights import FOR_LIFE, LOADING, Capability, names
from llmio_probe.single import FOLDER

PROJECT = Path(__file__).parents[2]
UNIT = PROJECT / "deploy" / "llmio-probe.service"
DROP_INS = {
    "tls.conf": {"IPAddressAllow", "SupplementaryGroups", "LoadCredential", "ExecReload"},
    "bcc.conf": {
        "ProtectKernelModules", "MemoryDenyWriteExecute", "InaccessiblePaths", "AmbientCapabilities",
        "CapabilityBoundingSet", "SystemCallFilter", "TimeoutStartSec",
    },
}  # fmt: skip
"""What each changes."""
MOST_EXPOSED = 2.0
PATIENCE = 600


def run(*argv: str | Path, **environ: str) -> str:
    done = subprocess.run(
        [str(word) for word in argv], capture_output=True, text=True, timeout=PATIENCE, env={**os.environ, **environ}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def directives(unit: Path) -> dict[str, str]:
    """Of the section Service; of those that may come more than once, the last."""
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(unit)
    return dict(parser["Service"])


def rating(unit: Path) -> float:
    table = run("systemd-analyze", "security", "--offline=true", "--no-pager", unit, LC_ALL="C")
    found = re.search(r"Overall exposure level for llmio-probe\.service: ([0-9.]+)", table)
    assert found, table
    return float(found[1])


def test_the_sandbox_is_rated_as_strict_as_is_promised() -> None:
    assert rating(UNIT) <= MOST_EXPOSED


def test_the_lock_is_looked_for_where_systemd_makes_its_folder() -> None:
    service = directives(UNIT)
    assert Path("/run", service["RuntimeDirectory"]) == FOLDER
    assert service["RuntimeDirectoryPreserve"] == "yes"  # else a start that fails takes another's lock away


@pytest.mark.parametrize("name", DROP_INS)
def test_a_drop_in_fits_the_unit(tmp_path: Path, name: str) -> None:
    """All of it at once, its other ways included, and systemd finds no mistake in it."""
    unit, drop_in = tmp_path / UNIT.name, tmp_path / f"{UNIT.name}.d" / name
    unit.write_text(UNIT.read_text())
    drop_in.parent.mkdir()
    drop_in.write_text(re.sub(r"^# (?=\w+=)", "", (PROJECT / "deploy" / name).read_text(), flags=re.MULTILINE))
    assert set(directives(drop_in)) == DROP_INS[name]
    done = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, timeout=PATIENCE)
    assert [line for line in done.stderr.splitlines() if "llmio" in line and "is not executable" not in line] == []
    assert rating(unit) <= MOST_EXPOSED + {"tls.conf": 0.1, "bcc.conf": 0.5}[name]


def test_the_service_gets_the_capabilities_that_the_program_says_it_needs_and_no_other() -> None:
    service = directives(UNIT)
    wanted = {f"CAP_{capability.name}" for capability in LOADING | FOR_LIFE | {Capability.SYSLOG}}
    assert set(service["AmbientCapabilities"].split()) == wanted
    assert set(service["CapabilityBoundingSet"].split()) == wanted
    assert names(LOADING) == "CAP_BPF and CAP_PERFMON"


def test_system_calls_that_it_makes_are_not_filtered() -> None:
    """The filter is a list of sets; what is not in them shows only when it is called, which here may be never."""
    lines = re.findall(r"^SystemCallFilter=(.*)$", UNIT.read_text(), re.MULTILINE)
    allowed: set[str] = set()
    for line in lines:
        for word in line.removeprefix("~").split():
            allowed = allowed - calls(word) if line.startswith("~") else allowed | calls(word)
    assert {
        "bpf", "capset", "prctl", "process_vm_readv", "epoll_wait", "accept4", "mmap", "sendto",
    } <= allowed  # fmt: skip
    assert (
        not {"ptrace", "process_vm_writev", "mount", "setuid", "init_module", "perf_event_open", "open_by_handle_at"}
        & allowed
    )


def calls(word: str) -> set[str]:
    """The system calls of a set, its subsets included."""
    if not word.startswith("@"):
        return {word}
    listed = [line.strip() for line in run("systemd-analyze", "syscall-filter", word).splitlines()[1:]]
    return {call for item in listed if item and not item.startswith("#") for call in calls(item)}


# make install


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where it was put, by a packager who brings the dependencies himself."""
    folder = tmp_path_factory.mktemp("root")
    make("install", folder)
    return folder


def make(target: str, folder: Path) -> str:
    # What this pytest was started by must not lend its job slots.
    inherited = {"MAKEFLAGS": "", "MFLAGS": ""}
    return run(
        "make", "-C", PROJECT, target, f"DESTDIR={folder}", "PREFIX=/opt/llmio", "PIP_FLAGS=--no-deps", **inherited
    )


def files(folder: Path) -> set[str]:
    return {f"/{path.relative_to(folder)}" for path in folder.rglob("*") if not path.is_dir()}


def test_everything_is_in_place(root: Path) -> None:
    placed = files(root)
    assert {
        "/opt/llmio/bin/llmio-probe",
        "/opt/llmio/lib/llmio-probe/llmio_probe/daemon.py",
        "/opt/llmio/lib/systemd/system/llmio-probe.service",
        "/opt/llmio/share/doc/llmio-probe/daemon.md",
        "/opt/llmio/share/doc/llmio-probe/LICENSE",
        "/opt/llmio/share/llmio-probe/bcc.conf",
        "/opt/llmio/share/llmio-probe/tls.conf",
        "/opt/llmio/share/llmio-probe/web.yaml",
        "/etc/llmio-probe/llmio-probe.yaml",
    } <= placed
    elsewhere = {name for name in placed if not name.startswith(("/opt/llmio/", "/etc/llmio-probe/"))}
    assert elsewhere == set()
    objects = [
        name for name in placed if name.startswith("/opt/llmio/lib/llmio-probe/llmio_probe/kernel/objects/probe.")
    ]
    assert len(objects) == 1
    assert "/opt/llmio/lib/llmio-probe/llmio_probe/kernel/carried/libbpf.so.1" in placed


def test_the_program_starts_by_what_was_installed(root: Path) -> None:
    program = root / "opt/llmio/bin/llmio-probe"
    first, *_ = program.read_text().splitlines()
    assert os.access(program, os.X_OK)
    assert first.endswith(" -I")  # nobody's environment or home changes what it runs
    here = root / "here"  # DESTDIR is no root to run from: the same file, with the folder's name as it is here
    here.write_text(program.read_text().replace('"/opt/llmio', f'"{root}/opt/llmio'))
    said = run(first.removeprefix("#!").split()[0], "-I", here, "--version")
    here.unlink()
    assert re.fullmatch(r"llmio-probe \d\S*\n", said)


def test_the_installed_unit_names_what_was_installed(root: Path) -> None:
    unit = root / "opt/llmio/lib/systemd/system/llmio-probe.service"
    service = directives(unit)
    assert service["ExecStart"] == "/opt/llmio/bin/llmio-probe daemon --config /etc/llmio-probe/llmio-probe.yaml"
    assert "/usr/local" not in unit.read_text()
    # It has no mistakes; that its program is not where it will be is no mistake of the unit's.
    done = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, timeout=PATIENCE)
    complaints = [line for line in done.stderr.splitlines() if "llmio-probe.service" in line]
    assert [line for line in complaints if "is not executable" not in line] == []


def test_what_documents_refer_to_lies_beside_them(root: Path) -> None:
    documents = root / "opt/llmio/share/doc/llmio-probe"
    for page in documents.glob("*.md"):
        for link in re.findall(r"\]\(([\w./-]+)\)", page.read_text()):
            assert (documents / link).exists(), f"{page.name}: {link}"


def test_a_configuration_that_is_there_is_kept(root: Path) -> None:
    config = root / "etc/llmio-probe/llmio-probe.yaml"
    config.write_text("workers: 7\n")
    make("install", root)
    assert config.read_text() == "workers: 7\n"


def test_uninstall_leaves_nothing_of_ours_and_all_of_others(root: Path) -> None:
    theirs = root / "opt/llmio/lib/systemd/system/other.service"
    theirs.write_text("[Unit]\n")
    make("uninstall", root)
    assert files(root) == {"/opt/llmio/lib/systemd/system/other.service"}
    theirs.unlink()
    make("uninstall", root)  # again is no mistake
    assert files(root) == set()
    assert not (root / "etc/llmio-probe").exists()


# The same by a pip that is none, which is quick, and can fail


def install(folder: Path, version: str, *, pip_ends_with: int = 0) -> subprocess.CompletedProcess[str]:
    """deploy/install.sh alone. What it brings of Python is one module with that version."""
    pip = folder.parent / "pip"
    pip.write_text(
        '#!/bin/sh\nwhile [ "$1" != --target ]; do shift; done\nmkdir "$2/llmio_probe" "$2/bin"\n'
        f'echo \'version = "{version}"\' >"$2/llmio_probe/__init__.py"\nexit {pip_ends_with}\n'
    )
    pip.chmod(0o755)
    settings = {"DESTDIR": str(folder), "PREFIX": "/usr", "SYSCONFDIR": "/srv/conf", "PIP": str(pip)}
    return subprocess.run(
        [PROJECT / "deploy" / "install.sh", "install"], capture_output=True, text=True, timeout=PATIENCE,
        env={**os.environ, "INTERPRETER": sys.executable, **settings},
    )  # fmt: skip


def test_every_file_names_the_places_of_this_installation(tmp_path: Path) -> None:
    done = install(tmp_path / "root", "1")
    assert done.returncode == 0, done.stderr
    placed = files(tmp_path / "root")
    assert {"/usr/share/llmio-probe/grafana/provisioning/dashboards/llmio-probe.yaml",
            "/usr/share/llmio-probe/prometheus/llmio-probe.alerts.yml", "/srv/conf/llmio-probe/llmio-probe.yaml",
            "/usr/share/doc/llmio-probe/daemon.md"} <= placed  # fmt: skip
    for name in placed:
        said = (tmp_path / "root" / name.removeprefix("/")).read_bytes()
        assert b"/usr/local/" not in said, name
        assert b"/etc/llmio-probe" not in said, name
    [source] = re.findall(
        "path: (.*)",
        (tmp_path / "root/usr/share/llmio-probe/grafana/provisioning/dashboards/llmio-probe.yaml").read_text(),
    )
    assert f"{source}/host.json" in placed


def test_a_source_distribution_has_all_that_is_installed(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", str(tmp_path)]
    subprocess.run(build, check=True, capture_output=True, cwd=PROJECT, timeout=PATIENCE)
    [archive] = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as unpacked:
        there = {name.partition("/")[2] for name in unpacked.getnames()}
    script = (PROJECT / "deploy" / "install.sh").read_text()
    named = set(re.findall(r"\b(?:deploy|docs|grafana)/[\w./-]*\w|README\.md|LICENSE", script))
    files = {name for name in named if (PROJECT / name).is_file()} | {
        f"docs/{page.name}" for page in (PROJECT / "docs").glob("*.md")
    }
    assert files <= there, files - there


def test_an_upgrade_takes_the_place_of_what_was_there(tmp_path: Path) -> None:
    root = tmp_path / "root"
    install(root, "1")
    left_over = root / "usr/lib/llmio-probe/llmio_probe/gone.py"
    left_over.touch()
    before = files(root)
    assert install(root, "2").returncode == 0
    assert files(root) == before - {"/usr/lib/llmio-probe/llmio_probe/gone.py"}
    assert (root / "usr/lib/llmio-probe/llmio_probe/__init__.py").read_text() == 'version = "2"\n'
    [compiled] = root.rglob("__init__.*.pyc")
    assert b"/usr/lib/llmio-probe/llmio_probe/__init__.py" in compiled.read_bytes()  # as tracebacks will name it
    assert str(root).encode() not in compiled.read_bytes()


def test_an_upgrade_whose_pip_fails_leaves_the_host_with_what_it_had(tmp_path: Path) -> None:
    root = tmp_path / "root"
    install(root, "1")
    before = {name: (root / name.removeprefix("/")).read_bytes() for name in files(root)}
    assert install(root, "2", pip_ends_with=1).returncode == 1
    assert {name: (root / name.removeprefix("/")).read_bytes() for name in files(root)} == before
