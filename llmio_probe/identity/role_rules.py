"""Rules for roles: what a file is for, by its path, the worker's framework and how the file is used.

The rules' form, their reading and how one is chosen may go in here; the built-in rules are data (roles.yaml), and what
is known of a file's use comes from whoever asks.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import yaml

from llmio_probe.errors import ProbeError
from llmio_probe.identity import frameworks
from llmio_probe.identity.path_patterns import PathPattern, PatternError
from llmio_probe.text import escape
from llmio_probe.yaml_nodes import BadNodeError, Reader, compose, one_of, read_mapping, scalar, wrong

ROLES = ("weights", "kv_cache", "optimizer", "checkpoint", "other")

SURE = ("certain", "likely", "guess")
"""certain: nothing else has such a name or content. likely: others might. guess: only the name speaks for it."""

BEHAVIOURS = {
    "npy-flat": "its .npy header shows 1 or 2 dimensions, or 3: any number, 2, more than 256",
    "npy-heads": "its .npy header shows 3 dimensions, the last at most 256, or 4",
    "npy-other": "its .npy header shows another shape",
    "rewritten": "it was written again a minute or more after it was first read",
    "mapped": "more of it was written through a mapping than by system calls",
    "used": "it was read, or written by system calls, but for its first and its last page alone",
}


@dataclass(frozen=True)
class Rule:
    name: str
    role: str
    patterns: tuple[PathPattern, ...]
    frameworks: tuple[str, ...] = ()
    """Of the worker, one of them; none given is any."""
    behaviour: str | None = None
    sure: str = "certain"
    evidence: str = ""
    where: str = ""
    """File and line of a user's rule; a built-in one has none."""

    def is_for(self, framework: str | None) -> bool:
        return not self.frameworks or framework in self.frameworks

    def pattern_for(self, path: str) -> PathPattern | None:
        for pattern in self.patterns:
            if pattern.matches(path):
                return pattern
        return None


class Answer(NamedTuple):
    holds: bool
    final: bool
    """Whether it can no longer become another."""


class Verdict(NamedTuple):
    rule: Rule | None
    open: bool
    """Whether another role may still come out."""

    @property
    def role(self) -> str:
        return self.rule.role if self.rule is not None else "other"


def shape_behaviour(shape: Sequence[int]) -> str:
    if len(shape) == 4 or (len(shape) == 3 and shape[2] <= 256):
        return "npy-heads"
    return "npy-flat" if len(shape) in (1, 2) or (len(shape) == 3 and shape[1] == 2) else "npy-other"


class RuleSet:
    """Rules in their order, the first first, and which of them have a pattern for a path."""

    def __init__(self, rules: Iterable[Rule]) -> None:
        self._rules = tuple(rules)
        self._places: dict[str, list[int]] = {}  # by needle
        self._at: dict[tuple[int, ...], tuple[Rule, ...]] = {}
        """The rules at places, as returned so far: many paths have the same."""
        for place, rule in enumerate(self._rules):
            for needle in {needle for pattern in rule.patterns for needle in pattern.needles}:
                self._places.setdefault(needle, []).append(place)

    def for_path(self, path: str) -> tuple[Rule, ...]:
        """If only the end of the path is known, it does not begin with a slash."""
        path = path if path.startswith("/") else f"/{path}"
        places = {place for needle, places in self._places.items() if needle in path for place in places}
        fitting = tuple(place for place in sorted(places) if self._rules[place].pattern_for(path) is not None)
        if fitting not in self._at:
            self._at[fitting] = tuple(self._rules[place] for place in fitting)
        return self._at[fitting]


def decide(
    rules: Sequence[Rule], framework: str | None, behaves: Callable[[str], Answer], *, may_show: bool = False
) -> Verdict:
    """The first of these rules, all with a pattern for the path, that holds.

    may_show: the framework is unknown, but may become known.
    """
    possible: set[str] = set()
    for rule in rules:
        if not rule.is_for(framework):
            if may_show:
                possible.add(rule.role)
            continue
        answer = Answer(True, True) if rule.behaviour is None else behaves(rule.behaviour)
        if answer.holds:
            return Verdict(rule, not answer.final or bool(possible - {rule.role}))
        if not answer.final:
            possible.add(rule.role)
    return Verdict(None, bool(possible - {"other"}))


def builtin_role_rules() -> tuple[Rule, ...]:
    text = Path(__file__).with_name("roles.yaml").read_text(encoding="utf-8")
    root = compose(text, "roles.yaml")
    assert root is not None
    try:
        return _rules(root, None)
    except BadNodeError as error:
        raise ProbeError(f"roles.yaml:{error.line}: {error}") from error


def read_role_rules(root: yaml.Node) -> tuple[Rule, ...]:
    """A user's rules: a list in a YAML file. Raises BadNodeError."""
    return _rules(root, frozenset(rule.framework for rule in frameworks.builtin_rules()))


def _rules(root: yaml.Node, known: frozenset[str] | None) -> tuple[Rule, ...]:
    """known: the frameworks that may be named; None for rules of ours, whose lines are of no interest either."""
    if not isinstance(root, yaml.SequenceNode):
        raise wrong("roles", root, "a list of rules")
    rules: list[Rule] = []
    for node in root.value:
        values = read_mapping(node, _READERS)
        if missing := [key for key in ("name", "role", "path") if key not in values]:
            raise BadNodeError(node, f"a rule needs {' and '.join(missing)}")
        named = values.get("framework", ())
        if known is not None and (unknown := [name for name in named if name not in known]):
            allowed = ", ".join(sorted(known))
            raise BadNodeError(node, f"there is no framework {escape(unknown[0])}; known are {allowed}")
        mark = node.start_mark
        rule = Rule(
            values["name"],
            values["role"],
            values["path"],
            named,
            values.get("behaviour"),
            values.get("sure", "certain"),
            values.get("evidence", ""),
            "" if known is None else f"{escape(str(mark.name))}:{mark.line + 1}",
        )
        if any(other.name == rule.name for other in rules):
            raise BadNodeError(node, f"there are two rules {rule.name}")
        rules.append(rule)
    return tuple(rules)


def _name(key: str, node: yaml.Node) -> str:
    value = scalar(node)
    if isinstance(value, str) and re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,63}", value):
        return value
    raise wrong(key, node, "up to 64 of a-z, 0-9, '.', '_' and '-'")


def _text(key: str, node: yaml.Node) -> str:
    value = scalar(node)
    if isinstance(value, str) and value.strip():
        return value
    raise wrong(key, node, "a text")


def _texts(key: str, node: yaml.Node) -> tuple[str, ...]:
    items = node.value if isinstance(node, yaml.SequenceNode) else [node]
    if not items:
        raise wrong(key, node, "a text or a list of texts")
    return tuple(_text(key, item) for item in items)


def _patterns(key: str, node: yaml.Node) -> tuple[PathPattern, ...]:
    items = node.value if isinstance(node, yaml.SequenceNode) else [node]
    patterns = []
    for item, text in zip(items, _texts(key, node), strict=True):
        try:
            patterns.append(PathPattern(text))
        except PatternError as error:
            raise BadNodeError(item, f"the {key} {escape(text)} {escape(str(error))}") from error
    return tuple(patterns)


_READERS: dict[str, Reader] = {
    "name": _name,
    "role": one_of(*ROLES),
    "framework": _texts,
    "path": _patterns,
    "behaviour": one_of(*BEHAVIOURS),
    "sure": one_of(*SURE),
    "evidence": _text,
}
