"""YAML files read as nodes, which know their line, so that a mistake in one is told by file, line and what is allowed.

Only what is the same for every file that users write may go in here; which keys one has is for its reader.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import IO, Any

import yaml

from llmio_probe.errors import ProbeError
from llmio_probe.text import escape

Reader = Callable[[str, yaml.Node], Any]
"""A key and its value's node to the value. Raises BadNodeError."""

# The parser of libyaml where PyYAML has it: 1.5 ms instead of 18 for the rules that every session reads.
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class BadNodeError(Exception):
    def __init__(self, node: yaml.Node, message: str) -> None:
        super().__init__(message)
        self.line = node.start_mark.line + 1


def compose(stream: IO[bytes] | str, name: str) -> yaml.Node | None:
    """The document's root; None for an empty one. name is for the error."""
    try:
        root: yaml.Node | None = yaml.compose(stream, Loader=_LOADER)
    except yaml.YAMLError as error:
        raise ProbeError(_syntax_message(name, error)) from error
    return None if root is None or root.tag == "tag:yaml.org,2002:null" else root


def read_mapping(root: yaml.Node, readers: Mapping[str, Reader]) -> dict[str, Any]:
    if not isinstance(root, yaml.MappingNode):
        raise BadNodeError(root, f"expected lines of the form key: value, not {shown(root)}")
    values: dict[str, Any] = {}
    for key_node, value_node in root.value:
        key = key_node.value if isinstance(key_node, yaml.ScalarNode) else shown(key_node)
        if key not in readers:
            allowed = ", ".join(readers)
            raise BadNodeError(key_node, f"there is no key {escape(key)}; allowed are {allowed}")
        if key in values:
            raise BadNodeError(key_node, f"{key} is here for the second time")
        values[key] = readers[key](key, value_node)
    return values


def one_of(*allowed: str) -> Callable[[str, yaml.Node], str]:
    def read(key: str, node: yaml.Node) -> str:
        value = scalar(node)
        if isinstance(value, str) and value in allowed:
            return value
        raise wrong(key, node, f"one of {', '.join(allowed)}")

    return read


def scalar(node: yaml.Node) -> Any:
    """The Python value of a scalar; None for anything else, which no key allows."""
    if not isinstance(node, yaml.ScalarNode):
        return None
    try:
        return yaml.constructor.SafeConstructor().construct_document(node)
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError):
        # A foreign tag; 2026-13-01, which YAML takes for a date; an explicit tag that does not fit, !!int "".
        return None


def wrong(key: str, node: yaml.Node, allowed: str) -> BadNodeError:
    return BadNodeError(node, f"{key} must be {allowed}, not {shown(node)}")


def shown(node: yaml.Node) -> str:
    if isinstance(node, yaml.ScalarNode):
        return escape(node.value if len(node.value) <= 60 else node.value[:60] + "…") or "empty"
    if isinstance(node, yaml.SequenceNode):
        return "a list" if node.value else "an empty list"
    return "a mapping"


def _syntax_message(name: str, error: yaml.YAMLError) -> str:
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        return f"{name}{line}: this is not YAML: {escape(error.problem or error.context or 'unknown problem')}"
    return f"{name}: this is not YAML: {escape(str(getattr(error, 'reason', error)))}"
