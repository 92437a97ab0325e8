"""Which LLM stack a process belongs to, and which rank of it: decided by rules in YAML (frameworks.yaml).

Only the rules' form and their matching may go in here; the rules themselves are data. A command line counts by what
runs, never by what it mentions: `grep deepspeed` must not be DeepSpeed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from llmio_probe.errors import ProbeError

if TYPE_CHECKING:  # `llmio-probe roles` needs these rules, and neither psutil nor NumPy
    from llmio_probe.identity.facts import ProcessFacts

_PYTHON = re.compile(r"(?:python|pypy)[\d.]*t?$")
_OURSELVES = re.compile(r"(?:python )?llmio-probe(?: |$)|python -m llmio_probe(?: |$)")
_FRAMEWORK = re.compile(r"[a-z0-9][a-z0-9._-]*$")
_RULE_KEYS = {"framework", "cmdline", "environ", "maps", "rank"}
_RANK_KEYS = {"environ", "title"}


@dataclass(frozen=True)
class Rule:
    framework: str
    cmdline: tuple[re.Pattern[str], ...] = ()
    environ: tuple[frozenset[str], ...] = ()  # one of them, with all its names
    maps: tuple[re.Pattern[str], ...] = ()
    rank_environ: tuple[str, ...] = ()
    rank_title: re.Pattern[str] | None = None


@dataclass(frozen=True)
class Identification:
    framework: str | None
    rank: str | None


def load_rules(text_or_path: str | Path) -> tuple[Rule, ...]:
    """Rules from YAML text, or from a file when given a Path."""
    where = "framework rules"
    text = text_or_path
    if isinstance(text_or_path, Path):
        where = f"framework rules {text_or_path}"
        try:
            text = text_or_path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ProbeError(f"cannot read {where}: {error}") from error
    try:
        data = yaml.safe_load(str(text))
    except yaml.YAMLError as error:
        raise ProbeError(f"{where}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(data, list):
        raise ProbeError(f"{where}: must be a list of rules")
    rules = tuple(_rule(entry, f"{where}: rule {number}") for number, entry in enumerate(data, 1))
    names = [rule.framework for rule in rules]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ProbeError(f"{where}: more than one rule for {', '.join(twice)}")
    return rules


def builtin_rules() -> tuple[Rule, ...]:
    return load_rules(Path(__file__).with_name("frameworks.yaml").read_text(encoding="utf-8"))


def identify(rules: Sequence[Rule], facts: ProcessFacts, maps: Callable[[], frozenset[str]]) -> Identification:
    """The first rule of which anything matches. maps() is asked at most once, and only where it could decide."""
    program = program_of(facts.cmdline)
    python = is_python(facts.cmdline)
    mapped: frozenset[str] | None = None
    for rule in rules:
        found = any(pattern.match(program) for pattern in rule.cmdline)
        if not found and python:
            # Only Python processes: a compiler started by a worker inherits all of its environment.
            found = any(names <= facts.environ.keys() for names in rule.environ)
            if not found and rule.maps:
                mapped = maps() if mapped is None else mapped
                found = any(pattern.match(name) for pattern in rule.maps for name in mapped)
        if found:
            return Identification(rule.framework, _rank(rule, facts))
    return Identification(None, None)


def is_ourselves(cmdline: Sequence[str]) -> bool:
    """The daemon, a session or another of our commands: what these do to disks is ours, and no Python's."""
    return _OURSELVES.match(program_of(cmdline)) is not None


def worker_name(framework: str, rank: str | None) -> str:
    """deepspeed-rank0, vllm-tp1, flexgen."""
    if rank is None:
        return framework
    return f"{framework}-rank{rank}" if rank.isdecimal() else f"{framework}-{rank}"


def is_python(cmdline: Sequence[str]) -> bool:
    return bool(cmdline) and _PYTHON.match(_base(cmdline[0])) is not None


def program_of(cmdline: Sequence[str]) -> str:
    """What runs, in the form of frameworks.yaml: "python -m vllm.entrypoints", "python train.py", "llama-server"."""
    if not cmdline:
        return ""
    if not is_python(cmdline):
        return " ".join([_base(cmdline[0]), *cmdline[1:]])
    position = 1
    while position < len(cmdline):
        argument, rest = cmdline[position], cmdline[position + 1 :]
        if not argument.startswith("-") or argument == "-":
            return " ".join(["python", _base(argument), *rest])
        # Flags may be joined (-uB, -Im module), and c, m, W and X take what follows, in this argument or the next.
        takes = re.match(r"-[A-Za-z]*?([cmWX])(.*)", argument, re.DOTALL)
        if takes and takes[1] == "c":
            return "python -c"  # the code itself is no evidence: it may mention anything
        if takes and takes[1] == "m":
            return " ".join(["python -m", *([takes[2]] if takes[2] else []), *rest])
        separate_value = takes is not None and not takes[2]
        position += 2 if separate_value or argument == "--check-hash-based-pycs" else 1
    return "python"


def _base(path: str) -> str:
    return path.rpartition("/")[2]


def _rank(rule: Rule, facts: ProcessFacts) -> str | None:
    if rule.rank_title is not None and facts.cmdline:
        return "-".join(match[1].lower() for match in rule.rank_title.finditer(facts.cmdline[0])) or None
    values = (facts.environ.get(name, "") for name in rule.rank_environ)
    return next((value for value in values if re.fullmatch(r"[0-9]{1,6}", value)), None)


def _rule(entry: Any, where: str) -> Rule:
    if not isinstance(entry, dict):
        raise ProbeError(f"{where}: must be a mapping with {', '.join(sorted(_RULE_KEYS))}")
    framework = entry.get("framework")
    if not isinstance(framework, str) or not _FRAMEWORK.match(framework) or framework in ("unknown", "other"):
        raise ProbeError(f"{where}: framework must be a name of a-z, 0-9, '.', '_', '-', not {framework!r}")
    where = f"{where} ({framework})"
    _only_keys(entry, _RULE_KEYS, where)
    rank = entry.get("rank", {})
    if not isinstance(rank, dict):
        raise ProbeError(f"{where}: rank must be a mapping with environ or title")
    _only_keys(rank, _RANK_KEYS, f"{where}: rank")
    if len(rank) > 1:
        raise ProbeError(f"{where}: rank comes from environ or from title, not both")
    title = None
    if "title" in rank:
        title = _regex(rank["title"], f"{where}: rank.title")
        if title.groups != 1:
            raise ProbeError(f"{where}: rank.title needs one group, the rank: {title.pattern!r}")
    return Rule(
        framework=framework,
        cmdline=_regexes(entry, "cmdline", where),
        environ=tuple(frozenset(names.split()) for names in _strings(entry, "environ", where)),
        maps=_regexes(entry, "maps", where),
        rank_environ=_strings(rank, "environ", f"{where}: rank"),
        rank_title=title,
    )


def _only_keys(entry: dict[Any, Any], allowed: set[str], where: str) -> None:
    if unknown := sorted(str(key) for key in entry if key not in allowed):
        raise ProbeError(f"{where}: unknown key {', '.join(unknown)}; known are {', '.join(sorted(allowed))}")


def _strings(entry: dict[str, Any], key: str, where: str) -> tuple[str, ...]:
    values = entry.get(key, [])
    if not isinstance(values, list) or not all(isinstance(value, str) and value.strip() for value in values):
        raise ProbeError(f"{where}: {key} must be a list of non-empty strings")
    return tuple(values)


def _regexes(entry: dict[str, Any], key: str, where: str) -> tuple[re.Pattern[str], ...]:
    return tuple(_regex(text, f"{where}: {key}") for text in _strings(entry, key, where))


def _regex(text: Any, where: str) -> re.Pattern[str]:
    if not isinstance(text, str):
        raise ProbeError(f"{where}: must be a regular expression in quotes: {text!r}")
    try:
        return re.compile(text)
    except re.error as error:
        raise ProbeError(f"{where}: bad regular expression {text!r}: {error}") from error
