"""The command line: what each option means, which room does it, and the exit code. No work of its own."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from io import TextIOWrapper
from typing import Any, NoReturn, TextIO

from llmio_probe import __version__
from llmio_probe.errors import ProbeError, UsageError
from llmio_probe.text import escape

DESCRIPTION = """\
Shows which process, framework worker and engine causes the block I/O of a host, and where its time goes.

  llmio-probe --pid PID [--pid PID ...]   watch some processes and their children until the last has ended
  llmio-probe --all                       watch the whole host
  llmio-probe [options] -- COMMAND ...    start COMMAND, watch it and its children, sum up when it ends
  llmio-probe daemon --config FILE        serve /metrics for Prometheus: what systemd runs
  llmio-probe doctor                      what this host offers, what will not work and what to do about it
  llmio-probe demo                        an offload-shaped workload with the probe on it
  llmio-probe roles PATH ...              which rule names a file weights, KV cache and so on, and why
"""

EPILOG = """\
Exit status: 0 done; 1 it could not be done, one sentence says why; 2 wrong usage. With COMMAND: its own status,
128+N on a signal, 126 or 127 when it cannot be started, 125 for a failure of llmio-probe.
"""


Run = Callable[[argparse.Namespace, "list[str] | None"], int]
"""Parsed options and COMMAND to an exit status."""


def main(argv: Sequence[str] | None = None) -> int:
    _open_closed_streams()
    if isinstance(sys.stdout, TextIOWrapper):  # names of workers may hold what the locale's encoding lacks
        sys.stdout.reconfigure(errors="backslashreplace")
    words = list(sys.argv[1:] if argv is None else argv)
    options, command = words, None
    if "--" in words:
        cut = words.index("--")
        options, command = words[:cut], words[cut + 1 :]
    try:
        try:
            arguments = _parse(options)
            status: int = arguments.run(arguments, command)
            sys.stdout.flush()
            return status
        except ProbeError as error:
            print(f"llmio-probe: {error}", file=sys.stderr)
            try:
                sys.stdout.flush()
            except OSError:  # a full disk: the error has said it, the interpreter's own flush must not fail again
                _silence(sys.stdout)
            # COMMAND's own status must not be mistaken for ours.
            return 125 if command is not None and error.exit_code == 1 else error.exit_code
        except BrokenPipeError:
            raise
        except OSError as error:  # a full disk under standard output, or a limit of the host that no room knows
            _silence(sys.stdout)
            print(f"llmio-probe: {escape(error.filename or 'it')} failed: {error.strerror}", file=sys.stderr)
            return 1 if command is None else 125
    except BrokenPipeError:
        # Whoever read us has gone: nothing more to say, nor for the interpreter's own flush at exit.
        _silence(sys.stdout)
        return 0
    except KeyboardInterrupt:
        return 130


def _open_closed_streams() -> None:
    """Who closed them wants no words; Python has None for them, and the next file opened would take their place."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 - for life


def _silence(stream: TextIO) -> None:
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


class _Parser(argparse.ArgumentParser):
    def __init__(self, prog: str, usage: str, run: Run, description: str, epilog: str | None = None) -> None:
        layout = argparse.RawDescriptionHelpFormatter
        super().__init__(prog, usage, description, epilog, formatter_class=layout, allow_abbrev=False)
        self.set_defaults(run=run)

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(2, f"{self.prog}: {escape(message)}\n")

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        sys.stdout.flush()  # --help into a closed pipe: here, where main can still make it a quiet end
        super().exit(status, message)


def _parse(words: Sequence[str]) -> argparse.Namespace:
    """A subcommand is the first word and has options of its own; what does not begin with one is a session."""
    subcommands = {
        "daemon": _daemon_parser, "doctor": _doctor_parser, "demo": _demo_parser, "roles": _roles_parser,
    }  # fmt: skip
    if words and words[0] in subcommands:
        return subcommands[words[0]]().parse_args(words[1:])
    return _session_parser().parse_args(words)


def _session_parser() -> _Parser:
    usage = (
        "llmio-probe [options] (--pid PID | --all | -- COMMAND ...)"
        " or llmio-probe (daemon | doctor | demo | roles) [options]"
    )
    parser = _Parser("llmio-probe", usage, _session, DESCRIPTION, EPILOG)
    add = parser.add_argument
    add("--version", action="version", version=f"llmio-probe {__version__}")
    add(
        "--pid",
        type=_pid,
        action="append",
        default=[],
        metavar="PID",
        help="watch this process and its children; repeat for several",
    )
    add("--all", action="store_true", help="watch the whole host")
    add("--duration", type=_seconds, metavar="S", help="stop watching after S seconds")
    add(
        "--interval",
        type=_seconds,
        metavar="S",
        help="a live line every S seconds (default 1; with COMMAND only when given)",
    )
    add("--json", action="store_true", help="one JSON document when the session ends, instead of text")
    add("--output", metavar="FILE", help="write the summary to FILE, readable by its owner only")
    add(
        "--device",
        action="append",
        default=[],
        metavar="DEV",
        help="only this disk, such as nvme0n1; repeat for several",
    )
    add("--user", metavar="NAME", help="run COMMAND as this user")
    _add_loader(parser)
    add(
        "--no-calls",
        action="store_true",
        help="leave the app's view out: where the kernel has no fentry, each system call of the host pays 10 to 30 ns",
    )
    return parser


def _add_loader(parser: _Parser) -> None:
    parser.add_argument(
        "--loader",
        choices=("auto", "core", "bcc"),
        default="auto",
        help="how the programs get into the kernel: core, fitted to the kernel's types, or bcc, compiled against its "
        "headers (default auto: core where the kernel offers its types)",
    )


def _daemon_parser() -> _Parser:
    usage = "llmio-probe daemon [--check] --config FILE"
    parser = _Parser("llmio-probe daemon", usage, _daemon, "Serves /metrics for Prometheus.")
    parser.add_argument("--check", action="store_true", help="only say whether FILE is right; needs no root")
    parser.add_argument("--config", required=True, metavar="FILE", help="YAML; deploy/llmio-probe.yaml is an example")
    return parser


def _doctor_parser() -> _Parser:
    what = "Says what this host offers, what will not work and what to do about it."
    parser = _Parser("llmio-probe doctor", "llmio-probe doctor [options]", _doctor, what)
    _add_loader(parser)
    return parser


def _demo_parser() -> _Parser:
    what = "Runs an offload-shaped workload on scratch files with the probe on it; needs no GPU and no framework."
    parser = _Parser("llmio-probe demo", "llmio-probe demo [options]", _demo, what)
    add = parser.add_argument
    add("--directory", metavar="DIR", default="/var/tmp", help="where the scratch files go (default /var/tmp)")
    add(
        "--size",
        type=_mebibytes,
        default=512,
        metavar="MIB",
        help="size of the weights (default 512); the KV cache is an eighth of it",
    )
    add("--duration", type=_seconds, default=10.0, metavar="S", help="how long it runs (default 10)")
    add("--json", action="store_true", help="the summary as JSON")
    return parser


def _roles_parser() -> _Parser:
    what = "Says which rule names a file weights, kv_cache, optimizer or checkpoint, and why. The file need not exist."
    parser = _Parser("llmio-probe roles", "llmio-probe roles [options] PATH ...", _roles, what)
    add = parser.add_argument
    add("paths", nargs="+", metavar="PATH", help="a file's name")
    add("--framework", metavar="NAME", help="the worker's framework (default: what holds for any, and for which more)")
    add("--config", metavar="FILE", help="the daemon's configuration, whose rules come first")
    return parser


def _pid(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 0 < int(text) < 1 << 22:
        raise argparse.ArgumentTypeError(f"{escape(text)!r} is not a process id")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1
    if not 0.1 <= seconds < 1e9:
        raise argparse.ArgumentTypeError(f"{escape(text)!r} is not a number of seconds of at least 0.1")
    return seconds


def _mebibytes(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 16 <= int(text) <= 1 << 24:
        raise argparse.ArgumentTypeError(f"{escape(text)!r} is not a number of MiB of at least 16")
    return int(text)


def _no_command(command: list[str] | None, name: str) -> None:
    if command is not None:
        raise UsageError(f"{name} takes no COMMAND")


# Imports are made where they are used: --help and --version need none of them.


def _session(arguments: argparse.Namespace, command: list[str] | None) -> int:
    from llmio_probe.command import inherited_fds
    from llmio_probe.outputs.writer import Writer
    from llmio_probe.session import Live, Session, SessionOptions

    if (bool(arguments.pid) + arguments.all + (command is not None)) != 1:
        raise UsageError("say what to watch: one of --pid PID, --all or -- COMMAND (llmio-probe --help shows more)")
    if command is not None and not command:
        raise UsageError("there is no command after --")
    if arguments.user and command is None:
        raise UsageError("--user is for the COMMAND that is started")
    keep_fds = inherited_fds()
    with Writer(arguments.output, as_json=arguments.json) as writer:
        live = None
        if arguments.interval is not None or (command is None and not arguments.json):
            # With COMMAND standard output is the command's, with --json it is the document's.
            mixed = command is not None or (arguments.json and arguments.output is None)
            alone = command is None and not mixed and arguments.output is None
            live = Live(sys.stderr if mixed else sys.stdout, arguments.interval or 1.0, alone)
        # A document on our standard output must not be mixed with what COMMAND writes there.
        stdout = sys.stderr.fileno() if arguments.json and arguments.output is None else None
        options = SessionOptions(
            tuple(arguments.pid),
            tuple(command or ()),
            arguments.user,
            arguments.duration,
            tuple(arguments.device),
            not arguments.no_calls,
            arguments.loader,
        )

        def finish(report: dict[str, Any]) -> None:
            try:
                writer.write(report)
            except BrokenPipeError:  # COMMAND's status still has to be handed on
                _silence(sys.stdout)

        outcome = Session(options, live, stdout, keep_fds).run(finish)
    return outcome.status or 0


def _daemon(arguments: argparse.Namespace, command: list[str] | None) -> int:
    # Rights are a thread's. NumPy's library would start one for each CPU, which keeps those that the daemon gives up.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from llmio_probe.daemon import check, run

    _no_command(command, "daemon")
    return check(arguments.config) if arguments.check else run(arguments.config)


def _doctor(arguments: argparse.Namespace, command: list[str] | None) -> int:
    from llmio_probe.doctor import Host, run

    _no_command(command, "doctor")
    return run(sys.stdout, Host(arguments.loader))


def _demo(arguments: argparse.Namespace, command: list[str] | None) -> int:
    from llmio_probe.demo import run

    _no_command(command, "demo")
    return run(arguments.directory, arguments.size << 20, arguments.duration, as_json=arguments.json)


def _roles(arguments: argparse.Namespace, command: list[str] | None) -> int:
    from llmio_probe.roles_command import run

    _no_command(command, "roles")
    return run(arguments.paths, arguments.framework, arguments.config, sys.stdout)


if __name__ == "__main__":
    sys.exit(main())
