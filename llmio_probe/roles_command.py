"""llmio-probe roles PATH…: which rule names a file, and why. From the rules alone: no file is opened or needed.

Only what is printed may go in here; the rules and how one is chosen are in identity/role_rules.py.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import TextIO

from llmio_probe.config import DaemonConfig, load
from llmio_probe.errors import UsageError
from llmio_probe.identity import frameworks
from llmio_probe.identity.role_rules import BEHAVIOURS, Rule, RuleSet, builtin_role_rules
from llmio_probe.text import escape


def run(paths: Sequence[str], framework: str | None, config_path: str | None, out: TextIO) -> int:
    config = DaemonConfig() if config_path is None else load(config_path)
    rules = RuleSet((*config.roles, *builtin_role_rules()))
    known = sorted({rule.framework for rule in frameworks.builtin_rules()})
    if framework is not None and framework not in known:
        raise UsageError(f"there is no framework {escape(framework)}; known are {', '.join(known)}")
    for path in paths:
        for line in _explained(path, rules, known, framework):
            print(line, file=out)
    return 0


def _explained(path: str, rules: RuleSet, known: Sequence[str], framework: str | None) -> Iterator[str]:
    # The kernel names a file, not the links that lead to it.
    absolute, real = os.path.abspath(path), os.path.realpath(path)
    yield escape(absolute) if absolute == real else f"{escape(absolute)} -> {escape(real)}"
    matching = rules.for_path(real)
    chosen = _holding(matching, framework)
    yield from _shown(chosen, real, "  ")
    if framework is not None:
        return
    others: dict[tuple[Rule, ...], list[str]] = {}
    for name in known:
        theirs = _holding(matching, name)
        if _outcome(theirs) != _outcome(chosen):
            others.setdefault(theirs, []).append(name)
    for theirs, names in others.items():
        yield f"  if the worker's framework is {' or '.join(names)}:"
        yield from _shown(theirs, real, "    ")


def _holding(matching: Sequence[Rule], framework: str | None) -> tuple[Rule, ...]:
    """The rules that may hold, in their order: up to the first one that needs no behaviour."""
    chosen: list[Rule] = []
    for rule in matching:
        if rule.is_for(framework):
            chosen.append(rule)
            if rule.behaviour is None:
                break
    return tuple(chosen)


def _outcome(rules: Sequence[Rule]) -> list[tuple[str, str | None]]:
    return [(rule.role, rule.behaviour) for rule in rules]


def _shown(rules: Sequence[Rule], path: str, indent: str) -> Iterator[str]:
    for rule in rules:
        condition = "" if rule.behaviour is None else f", if {BEHAVIOURS[rule.behaviour]}"
        yield f"{indent}{rule.role}, {rule.sure}{condition}"
        pattern = rule.pattern_for(path)
        assert pattern is not None
        where = f" in {rule.where}" if rule.where else ""
        yield f"{indent}  rule {rule.name}{where}; path {escape(pattern.text)}; framework {_any_of(rule.frameworks)}"
        if rule.evidence:
            yield f"{indent}  evidence: {escape(rule.evidence)}"
    if not rules:
        yield f"{indent}other: no rule is for it"
    elif rules[-1].behaviour is not None:
        yield f"{indent}other, if none of this holds"


def _any_of(names: Sequence[str]) -> str:
    return " or ".join(names) or "any"
