"""Proves llmio_probe.command with real child processes; needs no root, but does more with it."""

from __future__ import annotations

import os
import pwd
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from llmio_probe.command import Command, CommandError, inherited_fds


def finish(command: Command) -> int:
    """The exit status, waited for through the pidfd as the CLI does."""
    assert command.pidfd is not None
    assert select.select([command.pidfd], [], [], 10)[0], "the command did not end within 10 s"
    status = command.poll()
    assert status is not None
    return status


def run(*argv: str, user: str | None = None, stdout: int | None = None) -> int:
    with Command.prepare(argv, user=user, stdout=stdout) as command:
        command.release()
        return finish(command)


def start_failure(*argv: str, user: str | None = None) -> CommandError:
    with Command.prepare(argv, user=user) as command:
        with pytest.raises(CommandError) as caught:
            command.release()
        assert command.poll() == 125  # reaped
    return caught.value


@contextmanager
def standard_input(path: Path) -> Iterator[None]:
    saved = os.dup(0)
    replacement = os.open(path, os.O_RDONLY)
    os.dup2(replacement, 0)
    os.close(replacement)
    try:
        yield
    finally:
        os.dup2(saved, 0)
        os.close(saved)


def output_of(tmp_path: Path, *argv: str, user: str | None = None, keep_fds: tuple[int, ...] = ()) -> str:
    out = tmp_path / "out"
    with (
        out.open("w") as stream,
        Command.prepare(argv, user=user, stdout=stream.fileno(), keep_fds=keep_fds) as command,
    ):
        command.release()
        assert finish(command) == 0
    return out.read_text()


@pytest.mark.parametrize("status", [0, 1, 77, 255])
def test_exit_status_is_the_commands_own(status: int) -> None:
    assert run("sh", "-c", f"exit {status}") == status


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGPIPE, signal.SIGRTMIN])
def test_death_by_a_signal_is_128_plus_its_number(number: int) -> None:
    assert run("bash", "-c", f"kill -{int(number)} $$") == 128 + number


def test_a_missing_program_is_127_and_one_sentence() -> None:
    error = start_failure("no-such-program-\x1b[2J")
    assert error.exit_code == 127
    assert str(error) == r"cannot start no-such-program-\x1b[2J: there is no such program"


def test_a_missing_path_is_127(tmp_path: Path) -> None:
    assert start_failure(str(tmp_path / "absent")).exit_code == 127


def test_a_missing_interpreter_is_named_as_such(tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("#!/no/such/interpreter\n")
    script.chmod(0o755)
    error = start_failure(str(script))
    assert error.exit_code == 127
    assert "interpreter" in str(error)


def test_a_file_without_the_execute_bit_is_126(tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("#!/bin/sh\n")
    error = start_failure(str(script))
    assert error.exit_code == 126
    assert str(error).endswith("permission denied")


def test_a_directory_is_126(tmp_path: Path) -> None:
    assert start_failure(str(tmp_path)).exit_code == 126


def test_a_file_that_is_no_program_is_126(tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("exit 0\n")
    script.chmod(0o755)
    error = start_failure(str(script))
    assert error.exit_code == 126
    assert "not a program" in str(error)


@pytest.mark.parametrize("argv", [(), ("",)])
def test_no_command_at_all_is_127(argv: tuple[str, ...]) -> None:
    with pytest.raises(CommandError) as caught:
        Command.prepare(argv)
    assert caught.value.exit_code == 127


def test_nothing_runs_before_the_release(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    with Command.prepare(["touch", str(mark)]) as command:
        time.sleep(0.1)
        assert not mark.exists()
        assert command.poll() is None
        command.release()
        assert finish(command) == 0
    assert mark.exists()


def test_the_pid_known_before_the_release_is_the_commands(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with out.open("w") as stream, Command.prepare(["sh", "-c", "echo $$"], stdout=stream.fileno()) as command:
        command.release()
        assert finish(command) == 0
        assert out.read_text() == f"{command.pid}\n"


def test_release_returns_only_after_the_exec() -> None:
    with Command.prepare(["sleep", "10"]) as command:
        command.release()
        assert Path(f"/proc/{command.pid}/comm").read_text() == "sleep\n"
        command.terminate()
        assert finish(command) == 128 + signal.SIGTERM


def test_a_command_never_released_never_runs_and_leaves_no_zombie(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    with Command.prepare(["touch", str(mark)]) as command:
        pass
    assert not mark.exists()
    assert not Path(f"/proc/{command.pid}").exists()
    command.close()  # once more does no harm


def test_a_command_whose_probe_dies_never_runs(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    code = (
        "import os, signal, sys; from llmio_probe.command import Command;"
        f"command = Command.prepare(['touch', {str(mark)!r}]);"
        "print(command.pid, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    probe = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, timeout=10)
    pid = int(probe.stdout)  # read to its end: the child, which holds the other end of that pipe, is gone too
    assert probe.returncode == -signal.SIGKILL
    assert pid > 0
    assert not mark.exists()


def test_closing_leaves_a_released_command_running() -> None:
    with Command.prepare(["sleep", "10"]) as command:
        command.release()
    assert command.poll() is None
    command.terminate()
    assert os.waitstatus_to_exitcode(os.waitpid(command.pid, 0)[1]) == -signal.SIGTERM


def test_a_signal_at_the_gate_is_the_status() -> None:
    with Command.prepare(["true"]) as command:
        command.terminate()
        finish(command)
        command.release()
        assert command.poll() == 128 + signal.SIGTERM


def test_a_signal_at_the_gate_runs_no_handler_of_ours() -> None:
    called: list[int] = []
    previous = signal.signal(signal.SIGUSR1, lambda number, _: called.append(number))
    try:
        with Command.prepare(["true"]) as command:
            os.kill(command.pid, signal.SIGUSR1)
            assert finish(command) == 128 + signal.SIGUSR1
    finally:
        signal.signal(signal.SIGUSR1, previous)
    assert called == []


def test_terminating_an_ended_command_does_nothing() -> None:
    with Command.prepare(["true"]) as command:
        command.release()
        assert finish(command) == 0
        command.terminate()
        assert command.poll() == 0


def test_standard_input_passes_through(tmp_path: Path) -> None:
    words = tmp_path / "words"
    words.write_text("from outside\n")
    with standard_input(words):
        assert output_of(tmp_path, "cat") == "from outside\n"


def test_standard_output_goes_where_it_is_sent(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run("echo", "to us", stdout=2) == 0
    assert capfd.readouterr() == ("", "to us\n")
    assert run("echo", "as it was") == 0
    assert capfd.readouterr() == ("as it was\n", "")


def test_nothing_else_of_ours_is_open_in_the_command(tmp_path: Path) -> None:
    leaky = os.open(os.devnull, os.O_RDONLY)
    os.set_inheritable(leaky, True)
    try:
        listed = output_of(tmp_path, "ls", "/proc/self/fd").split()
    finally:
        os.close(leaky)
    assert listed == ["0", "1", "2", "3"]  # 3 is what ls reads the directory with


def test_descriptors_that_our_parent_passes_on_can_be_kept(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.set_inheritable(reader, True)
    os.write(writer, b"<(from a shell)")
    os.close(writer)
    try:
        assert reader in inherited_fds()
        assert output_of(tmp_path, "cat", f"/dev/fd/{reader}", keep_fds=(reader,)) == "<(from a shell)"
    finally:
        os.close(reader)


def test_descriptors_of_our_own_are_not_taken_for_inherited() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert not {ours.fileno(), theirs.fileno()} & inherited_fds()


def test_signals_are_back_to_their_defaults(tmp_path: Path) -> None:
    previous = signal.signal(signal.SIGUSR1, lambda *_: None)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
    try:
        status = output_of(tmp_path, "grep", "-E", "^Sig(Blk|Ign)", "/proc/self/status")
        assert signal.SIGUSR2 in signal.pthread_sigmask(signal.SIG_BLOCK, ())
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGUSR1, previous)
    sets = {name: int(bits, 16) for name, bits in (line.split(":") for line in status.splitlines())}
    assert sets["SigBlk"] == 0
    assert not sets["SigIgn"] & (1 << (signal.SIGPIPE - 1) | 1 << (signal.SIGXFSZ - 1))


def test_a_hangup_that_nohup_ignores_stays_ignored(tmp_path: Path) -> None:
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert output_of(tmp_path, "sh", "-c", "kill -HUP $$; echo alive") == "alive\n"
    finally:
        signal.signal(signal.SIGHUP, previous)


def test_the_status_survives_a_parent_that_ignores_sigchld() -> None:
    previous = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        assert run("sh", "-c", "exit 3") == 3
    finally:
        signal.signal(signal.SIGCHLD, previous)


def test_the_command_stays_in_our_process_group() -> None:
    with Command.prepare(["sleep", "10"]) as command:
        command.release()
        assert os.getpgid(command.pid) == os.getpgrp()
        command.terminate()
        finish(command)


def test_a_failing_command_leaks_no_descriptor() -> None:
    before = set(os.listdir("/proc/self/fd"))
    start_failure("no-such-program")
    assert set(os.listdir("/proc/self/fd")) == before


def test_without_pidfd_polling_still_works(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(pid: int) -> int:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(os, "pidfd_open", refuse)
    with Command.prepare(["sh", "-c", "exit 5"]) as command:
        assert command.pidfd is None
        command.release()
        deadline = time.monotonic() + 10
        while command.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        assert command.poll() == 5


def test_an_unknown_user_is_a_failure_of_ours() -> None:
    with pytest.raises(CommandError) as caught:
        Command.prepare(["true"], user="no-such-user")
    assert caught.value.exit_code == 125
    assert str(caught.value) == "there is no user no-such-user on this host"


def test_a_fork_that_fails_is_a_failure_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> int:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", refuse)
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(CommandError) as caught:
        Command.prepare(["true"])
    assert caught.value.exit_code == 125
    assert set(os.listdir("/proc/self/fd")) == before
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can run a command as another user")
def test_user_changes_ids_groups_and_the_environment_that_names_it(tmp_path: Path) -> None:
    entry = pwd.getpwnam("nobody")
    said = output_of(tmp_path, "sh", "-c", 'id -u; id -g; id -G; echo "$HOME $USER $LOGNAME"', user="nobody")
    groups = " ".join(map(str, os.getgrouplist("nobody", entry.pw_gid)))
    assert said == f"{entry.pw_uid}\n{entry.pw_gid}\n{groups}\n{entry.pw_dir} nobody nobody\n"


def test_another_user_without_root_is_a_failure_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(groups: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "setgroups", refuse)
    error = start_failure("true", user=pwd.getpwuid(os.geteuid()).pw_name)
    assert error.exit_code == 125
    assert str(error).endswith("--user needs root")
