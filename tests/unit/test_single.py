"""Proves llmio_probe.single: the second one is told who the first is, and nothing is left of one that has ended."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from llmio_probe.errors import ProbeError
from llmio_probe.single import only_daemon


def test_the_second_is_told_who_the_first_is(tmp_path: Path) -> None:
    with (
        only_daemon(tmp_path),
        pytest.raises(
            ProbeError, match=rf"^a daemon runs on this host already \(process {os.getpid()}: .*pytest.*\): stop it "
        ),
    ):
        only_daemon(tmp_path)
    only_daemon(tmp_path).close()


def test_a_file_that_cannot_be_locked_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(ProbeError, match=rf"^{tmp_path}/daemon cannot be locked \(No locks available\), so that "):
        only_daemon(tmp_path)


def test_a_killed_one_is_not_in_the_way(tmp_path: Path) -> None:
    code = (
        "import time; from pathlib import Path; from llmio_probe.single import only_daemon; "
        f"l = only_daemon(Path({str(tmp_path)!r})); print(1, flush=True); time.sleep(99)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as first:
        assert first.stdout
        first.stdout.readline()
        with pytest.raises(ProbeError, match=re.escape(f"(process {first.pid}: {sys.executable} -c import time; ")):
            only_daemon(tmp_path)
        first.kill()
    only_daemon(tmp_path).close()


def test_nobody_else_can_hold_it(tmp_path: Path) -> None:
    """A file that others may open, they may lock."""
    with only_daemon(tmp_path / "new"):
        assert (tmp_path / "new" / "daemon").stat().st_mode & 0o077 == 0


def test_a_folder_that_cannot_be_made_is_told_with_what_helps(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ProbeError, match=r"cannot be opened in .*file.* \(.*\): run as root, or under systemd with"):
        only_daemon(tmp_path / "file" / "folder")


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    """The folder may belong to a service's account, and root would write to what it chose."""
    theirs = tmp_path / "theirs"
    theirs.write_text("important\n")
    (tmp_path / "daemon").symlink_to(theirs)
    with pytest.raises(ProbeError, match=r"cannot be opened in "):
        only_daemon(tmp_path)
    assert theirs.read_text() == "important\n"


def test_a_lock_that_says_nonsense_of_its_holder_names_nobody(tmp_path: Path) -> None:
    with only_daemon(tmp_path):
        (tmp_path / "daemon").write_text("../1\n")
        with pytest.raises(ProbeError, match=r"^a daemon runs on this host already: stop it first"):
            only_daemon(tmp_path)
