"""The command line as a user meets it: usage errors, exit codes, one sentence instead of a traceback. Needs no root."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

import pytest

from llmio_probe import __version__
from llmio_probe.cli import main
from llmio_probe.doctor import Host
from llmio_probe.errors import ProbeError
from llmio_probe.session import Live, Outcome, SessionOptions

ROOM = Path(__file__).parents[2]
NOBODY = 65534


class HandSession:
    """Stands in for llmio_probe.session.Session: notes what it was asked, writes a summary, measures nothing."""

    made: list[HandSession]
    outcome: int | BaseException | None

    def __init__(
        self, options: SessionOptions, live: Live | None, stdout: int | None, keep_fds: frozenset[int]
    ) -> None:
        self.options = options
        self.live = live
        self.stdout = stdout
        self.made.append(self)

    def run(self, finish: Callable[[Any], None]) -> Outcome:
        if isinstance(self.outcome, BaseException):
            raise self.outcome
        return Outcome({}, self.outcome)


@pytest.fixture
def session(monkeypatch: pytest.MonkeyPatch) -> type[HandSession]:
    HandSession.made, HandSession.outcome = [], None
    monkeypatch.setattr("llmio_probe.session.Session", HandSession)
    return HandSession


def status_of(*arguments: str) -> int:
    """main either returns its status or, from within argparse, leaves with it."""
    try:
        return main(arguments)
    except SystemExit as leaving:
        return int(leaving.code or 0)


def python(*arguments: str, stdout: Any = subprocess.PIPE) -> subprocess.CompletedProcess[str]:
    """Python with the package."""
    environment = {**os.environ, "PYTHONPATH": str(ROOM), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, *arguments]
    return subprocess.run(
        command, env=environment, cwd="/", text=True, timeout=60, stdout=stdout, stderr=subprocess.PIPE
    )


# Wrong usage


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--pid", "0"], "--pid"),
        (["--pid", "self"], "--pid"),
        (["--pid", "4194304"], "--pid"),
        (["--pid", "\u0665"], "--pid"),
        (["--all", "--duration", "0"], "--duration"),
        (["--all", "--duration", "nan"], "--duration"),
        (["--all", "--duration", "inf"], "--duration"),
        (["--all", "--interval", "soon"], "--interval"),
        (["--all", "--loader", "bcc2"], "--loader"),
        (["doctor", "--loader", "bcc2"], "--loader"),
        (["--all", "--durat", "5"], "--durat"),
        (["--all", "--user", "nobody"], "--user"),
        (["--all", "--pid", "1"], "--all"),
        (["--all", "--", "true"], "--all"),
        (["--pid", "1", "--", "true"], "--pid"),
        (["daemon"], "--config"),
        (["daemon", "--config", "x", "--", "true"], "daemon"),
        (["demo", "--size", "1"], "--size"),
        (["roles"], "PATH"),
        (["roles", "--framework", "vlm", "x"], "there is no framework vlm; known are accelerate, "),
        (["roles", "x", "--", "true"], "roles"),
        (["--all", "-d", "5"], "-d"),
        (["--all", "--output=x", "--device", "sda", "--jsn"], "--jsn"),
        (["watch"], "watch"),
        (["--pid", "5", "daemon", "--config", "x"], "daemon"),
        (["--"], "no command after --"),
        ([], "--all"),
        (["--duration", "5"], "--pid PID, --all or -- COMMAND"),
    ],
)
def test_wrong_usage_is_2_and_the_last_line_names_what_is_wrong(
    session: type[HandSession], capsys: pytest.CaptureFixture[str], arguments: list[str], named: str
) -> None:
    assert status_of(*arguments) == 2
    out, err = capsys.readouterr()
    assert (out, session.made) == ("", [])
    *usage, last = err.splitlines()
    assert last.startswith("llmio-probe")
    assert named in last
    assert all(line.startswith(("usage: ", " ")) for line in usage)


def test_what_was_typed_is_escaped_in_the_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of("--all", "--duration", "\x1b[2J") == 2
    assert "\x1b" not in capsys.readouterr().err


# What becomes of the options


def test_the_options_of_a_session(session: type[HandSession]) -> None:
    options = "--pid 7 --pid 8 --duration 2.5 --device sda --device sdb --no-calls --loader bcc"
    assert status_of(*options.split()) == 0
    (made,) = session.made
    assert made.options == SessionOptions((7, 8), (), None, 2.5, ("sda", "sdb"), calls=False, loader="bcc")


def test_doctor_examines_for_the_loader_that_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def note(stream: TextIO, host: Host) -> int:
        asked.append(host.asked)
        return 0

    monkeypatch.setattr("llmio_probe.doctor.run", note)
    assert status_of("doctor") == status_of("doctor", "--loader", "bcc") == 0
    assert asked == ["auto", "bcc"]


def test_what_is_for_developers_is_not_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--help"], ["daemon", "--help"], ["doctor", "--help"], ["demo", "--help"]):
        assert status_of(*words) == 0
    assert "LLMIO_" not in capsys.readouterr().out


@pytest.mark.parametrize("name", ["daemon", "doctor", "demo", "roles", "--all", "--help", "--"])
def test_a_command_may_be_named_like_one_of_ours(session: type[HandSession], name: str) -> None:
    assert status_of("--duration", "1", "--", name, "--json", "--", "x") == 0
    (made,) = session.made
    assert made.options.command == (name, "--json", "--", "x")


def test_live_lines_go_where_they_mix_with_nothing(session: type[HandSession], tmp_path: Path) -> None:
    command = ["--", "true"]
    file = ["--output", str(tmp_path / "out")]
    expected: list[tuple[list[str], Any]] = [
        (["--all"], sys.stdout),
        (["--all", "--json"], None),
        (["--all", "--json", "--interval", "2"], sys.stderr),
        (["--all", "--json", "--interval", "2", *file], sys.stdout),
        (command, None),
        (["--interval", "2", *command], sys.stderr),
    ]
    for arguments, _ in expected:
        assert status_of(*arguments) == 0
    streams = [made.live.stream if made.live else None for made in session.made]
    assert streams == [stream for _, stream in expected]


def test_a_document_on_our_standard_output_sends_that_of_the_command_to_our_error_output(
    session: type[HandSession], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for arguments in ([], ["--json"], ["--json", "--output", str(tmp_path / "out")]):
        assert status_of(*arguments, "--", "true") == 0
    assert [made.stdout for made in session.made] == [None, sys.stderr.fileno(), None]


# Exit codes


@pytest.mark.parametrize(
    ("arguments", "outcome", "status"),
    [
        (["--all"], None, 0),
        (["--all"], ProbeError("it is not to be"), 1),
        (["--", "true"], 0, 0),
        (["--", "true"], None, 0),
        (["--", "true"], 77, 77),
        (["--", "true"], ProbeError("it is not to be"), 125),
        (["--all"], KeyboardInterrupt(), 130),
    ],
)
def test_the_exit_status(session: type[HandSession], arguments: list[str], outcome: Any, status: int) -> None:
    session.outcome = outcome
    assert status_of(*arguments) == status


def test_the_commands_own_failure_keeps_its_status(session: type[HandSession]) -> None:
    session.outcome = ProbeError("there is no such program")
    session.outcome.exit_code = 127
    assert status_of("--", "nothing") == 127


def test_an_error_is_one_line(session: type[HandSession], capsys: pytest.CaptureFixture[str]) -> None:
    session.outcome = ProbeError("this cannot be done: do that")
    assert status_of("--all") == 1
    assert capsys.readouterr() == ("", "llmio-probe: this cannot be done: do that\n")


def test_a_wrong_output_path_is_an_error_before_the_session(
    session: type[HandSession], capsys: pytest.CaptureFixture[str]
) -> None:
    assert status_of("--all", "--output", "/no/such/directory") == 1
    assert session.made == []
    assert capsys.readouterr().err.startswith("llmio-probe: /no/such/directory cannot be written")


# In a process of its own


@pytest.mark.parametrize(
    ("option", "printed"), [("--help", "usage: llmio-probe "), ("--version", f"llmio-probe {__version__}\n")]
)
def test_help_and_version_load_none_of_what_a_session_needs(option: str, printed: str) -> None:
    done = python("-X", "importtime", "-m", "llmio_probe", option)
    assert done.returncode == 0
    assert done.stdout.startswith(printed)
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "llmio_probe.cli" in loaded
    assert not {name for name in loaded if name.partition(".")[0] in ("numpy", "psutil", "yaml", "prometheus_client")}


# nobody may not be able to read this checkout or its Python: what is needed is read before we become nobody.
AS_NOBODY = f"""
import os, sys
from llmio_probe import cli, command, session
from llmio_probe.outputs import writer
cli._parse(["--all"])  # the library loads a part of itself only now
rules, role_rules = session.builtin_rules(), session.builtin_role_rules()
session.builtin_rules, session.builtin_role_rules = lambda: rules, lambda: role_rules
if os.geteuid() == 0:
    os.setgroups([])
    os.setresgid({NOBODY}, {NOBODY}, {NOBODY})
    os.setresuid({NOBODY}, {NOBODY}, {NOBODY})
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.parametrize(("arguments", "status"), [(["--all"], 1), (["--pid", "1"], 1), (["--", "true"], 125)])
def test_without_root_one_sentence_says_so(arguments: list[str], status: int) -> None:
    done = python("-c", AS_NOBODY, *arguments)
    assert (done.returncode, done.stdout) == (status, "")
    assert done.stderr == "llmio-probe: loading BPF programs needs CAP_BPF and CAP_PERFMON: run it with sudo\n"


def test_a_configuration_is_checked_without_root(tmp_path: Path) -> None:
    path = tmp_path / "daemon.yaml"
    path.write_text("workers: 3\n")
    done = python("-m", "llmio_probe", "daemon", "--check", "--config", str(path))
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{path}: right\n", "")
    path.write_text("workers: 3\nwrokers: 4\n")
    done = python("-m", "llmio_probe", "daemon", "--check", "--config", str(path))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"llmio-probe: {path}:2: there is no key wrokers; allowed are listen, ")


def test_the_web_configuration_is_checked_with_it(tmp_path: Path) -> None:
    path, web = tmp_path / "daemon.yaml", tmp_path / "web.yaml"
    path.write_text(f"web_config: {web}\n")
    web.write_text("tls_server_config: {cert_file: x}\n")
    done = python("-m", "llmio_probe", "daemon", "--check", "--config", str(path))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"llmio-probe: {web}:1: tls_server_config needs key_file\n"


def test_a_name_that_the_locale_cannot_show_is_escaped() -> None:
    code = (
        "import sys; sys.stdout.reconfigure(encoding='ascii'); from llmio_probe import cli;"
        "cli._doctor = lambda *a: print('\u6a21') or 0; sys.exit(cli.main(['doctor']))"
    )
    done = python("-c", code)
    assert (done.returncode, done.stdout, done.stderr) == (0, "\\u6a21\n", "")


PRINTING = """
import sys
from llmio_probe import cli
cli._doctor = lambda arguments, command: print("x" * int(sys.argv[1])) or 0
sys.exit(cli.main(["doctor"]))
"""


@pytest.mark.parametrize(
    "arguments", [["-m", "llmio_probe", "--help"], ["-c", PRINTING, "1"], ["-c", PRINTING, "1000000"]]
)
def test_a_closed_pipe_ends_quietly(arguments: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = python(*arguments, stdout=writing)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_full_disk_is_one_line_and_not_another_from_the_interpreters_end() -> None:
    code = (
        "import sys; from llmio_probe import cli; from llmio_probe.outputs import writer, document;"
        "document.dump = lambda report, stream: stream.write('{}');"
        "cli._doctor = lambda *a: writer.Writer(None, as_json=True).write({}) or 0; sys.exit(cli.main(['doctor']))"
    )
    with open("/dev/full", "w") as full:
        done = python("-c", code, stdout=full)
    message = "llmio-probe: the summary cannot be written to standard output: No space left on device\n"
    assert (done.returncode, done.stderr) == (1, message)


@pytest.mark.parametrize(
    ("arguments", "status"), [(["roles", "/x"], 1), (["--json", "--", "true"], 125)], ids=["ours", "with a command"]
)
def test_a_disk_that_is_full_under_standard_output_is_one_line(arguments: list[str], status: int) -> None:
    code = (
        "import sys; from llmio_probe import cli; cli._session = lambda *a: print('x' * 9999) or 0;"
        "sys.exit(cli.main(sys.argv[1:]))"
    )
    with open("/dev/full", "w") as full:
        done = python("-c", code, *arguments, stdout=full)
    assert (done.returncode, done.stderr) == (status, "llmio-probe: it failed: No space left on device\n")


def test_standard_streams_that_are_closed_are_nobodys() -> None:
    done = subprocess.run(
        ["sh", "-c", f"{sys.executable} -m llmio_probe roles /x <&- >&- 2>&-"], timeout=60, check=False
    )
    assert done.returncode == 0


# roles


def test_roles_shows_the_rule_for_each_path_and_why(capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of("roles", "/m/a.safetensors", "/var/log/syslog", "/out/ckpt/a.safetensors") == 0
    assert capsys.readouterr().out == (
        "/m/a.safetensors\n"
        "  weights, likely\n"
        "    rule safetensors; path *.safetensors; framework any\n"
        "    evidence: accelerate 1.15.0 utils/constants.py:31-32; vllm 0.33.0 model_loader/weight_utils.py:824\n"
        "/var/log/syslog\n"
        "  other: no rule is for it\n"
        "/out/ckpt/a.safetensors\n"
        "  checkpoint, guess\n"
        "    rule checkpoint-folder; path {checkpoint,checkpoints,ckpt,ckpts}/**/*.{pt,pth,bin,safetensors}; "
        "framework any\n"
        "    evidence: a habit of people, no source\n"
        "  if the worker's framework is flexgen or lmcache or sglang or vllm:\n"
        "    weights, certain\n"
        "      rule served-safetensors; path *.safetensors; framework vllm or sglang or flexgen or lmcache\n"
        "      evidence: vllm 0.33.0 model_loader/weight_utils.py:824,1040,1131\n"
    )


def test_roles_shows_what_decides_where_names_cannot(capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of("roles", "/nvme/t_12") == 0
    any_framework = capsys.readouterr().out.splitlines()
    assert any_framework[1:3] == ["  other: no rule is for it", "  if the worker's framework is flexgen:"]
    assert status_of("roles", "--framework", "flexgen", "/nvme/t_12") == 0
    flexgen = capsys.readouterr().out.splitlines()
    assert any_framework[3:] == [f"  {line}" for line in flexgen[1:]]
    assert flexgen[1].startswith("  weights, certain, if its .npy header shows 1 or 2 dimensions")
    assert flexgen[2] == "    rule flexgen-weights-by-shape; path t_<digits>; framework flexgen"
    assert "  kv_cache, likely, if it was written again a minute or more after it was first read" in flexgen
    assert flexgen[-1] == "  other, if none of this holds"


def test_roles_knows_the_rules_of_a_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "probe.yaml"
    config.write_text("roles:\n- name: mine\n  role: kv_cache\n  path: '/nvme/kv/**'\n")
    assert status_of("roles", "--config", str(config), "/nvme/kv/a") == 0
    expected = f"/nvme/kv/a\n  kv_cache, certain\n    rule mine in {config}:2; path /nvme/kv/**; framework any\n"
    assert capsys.readouterr() == (expected, "")
    config.write_text("roles:\n- name: mine\n  role: kv\n  path: '/nvme/kv/**'\n")
    assert status_of("roles", "--config", str(config), "/nvme/kv/a") == 1
    assert capsys.readouterr() == (
        "",
        f"llmio-probe: {config}:3: role must be one of weights, kv_cache, optimizer, checkpoint, other, not kv\n",
    )


def test_roles_looks_at_the_name_that_the_kernel_knows_and_escapes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a\x1b[2J.gguf").touch()
    (tmp_path / "link").symlink_to("a\x1b[2J.gguf")
    assert status_of("roles", "link", "none\udcff.gguf") == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == f"{tmp_path}/link -> {tmp_path}/a\\x1b[2J.gguf"
    assert f"{tmp_path}/none\\xff.gguf" in out
    assert out.count("  weights, certain") == 2
