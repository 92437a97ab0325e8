"""Patterns for paths, matched in time linear in the path whatever a user writes: automata, no backtracking.

Only the dialect may go in here, not what a match means. docs/roles.md has it for people:

*       any characters of one name        <digits>  one or more of 0-9
?       one character                     <hex>     one or more of 0-9, a-f, A-F
[a-z]   one of these, [!a-z] none         {a,b}     one of these
**      any number of whole directories; at the end: everything below

A pattern that does not begin with a slash may begin at any directory. The whole rest of the path has to match.
"""

from __future__ import annotations

from enum import Enum
from itertools import groupby
from typing import NamedTuple

LONGEST = 500
"""Characters of a pattern."""
MOST_ALTERNATIVES = 100
"""That its {} may stand for, all together."""

_WORDS = {"<digits>": frozenset("0123456789"), "<hex>": frozenset("0123456789abcdefABCDEF")}


class PatternError(ValueError):
    """What is wrong with a pattern, in words that follow its text."""


class _Times(Enum):
    ONCE = "once"
    SOME = "at least once"
    ANY = "any number"


class _Item(NamedTuple):
    """Characters: one of chars, or with negated any but those."""

    chars: frozenset[str]
    negated: bool = False
    times: _Times = _Times.ONCE


_SLASH = _Item(frozenset("/"))
_STAR = _Item(frozenset("/"), True, _Times.ANY)
_ONE = _Item(frozenset("/"), True)
_REST = _Item(frozenset(), True, _Times.SOME)
_ANYTHING = _Item(frozenset(), True, _Times.ANY)
# Two that stand for more than characters, told from others by identity. _DIRECTORIES is ** until an automaton is made.
_DIRECTORIES = _Item(frozenset(), True, _Times.ONCE)
_ENTRY = _Item(frozenset())


class PathPattern:
    """One pattern, whatever its {} stand for. Raises PatternError."""

    def __init__(self, text: str) -> None:
        self.text = text
        if len(text) > LONGEST:
            raise PatternError(f"is longer than {LONGEST} characters")
        self._automata = tuple(_Automaton(items) for items in _parse(text))
        self.needles = tuple(automaton.needle for automaton in self._automata)
        """A path that holds none of these texts is not matched: looking for them is quick."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PathPattern) and self.text == other.text

    def __hash__(self) -> int:
        return hash(self.text)

    def __repr__(self) -> str:
        return f"PathPattern({self.text!r})"

    def matches(self, path: str) -> bool:
        """path: absolute."""
        return any(automaton.needle in path and automaton.accepts(path) for automaton in self._automata)


class _Automaton:
    """Bit i of a state set: what came so far fits the items before i."""

    def __init__(self, items: list[_Item]) -> None:
        self._names = 0
        if items[:1] != [_SLASH] and _DIRECTORIES not in items:  # only so many names from the path's end matter
            self._names = 1 + items.count(_SLASH)
            items = [_SLASH, *items]
        items = _anchored(items)
        self._leave = self._stay = self._skip = self._entry = self._others = 0
        for i, item in enumerate(items):
            self._leave |= (item.times is not _Times.ANY) << i
            self._stay |= (item.times is not _Times.ONCE) << i
            self._skip |= (item.times is _Times.ANY) << i
            self._entry |= (item is _ENTRY) << i
            self._others |= item.negated << i
        # Which items a character fits: one that no item names fits those that exclude some.
        self._fitting = dict.fromkeys((c for item in items for c in item.chars), self._others)
        for i, item in enumerate(items):
            for c in item.chars:
                self._fitting[c] ^= 1 << i
        self._end = 1 << len(items)
        literals = [next(iter(item.chars)) if _is_literal(item) else None for item in items]
        runs = ["".join(c or "" for c in run) for is_literal, run in groupby(literals, bool) if is_literal]
        self.needle = max(runs, key=len, default="")
        """Without this within it no path is accepted."""

    def accepts(self, path: str) -> bool:
        if self._names:
            names = path.rsplit("/", self._names)
            if len(names) <= self._names:
                return False
            path = path[len(names[0]) :]
        fitting, others, leave, stay = self._fitting, self._others, self._leave, self._stay
        entries, skips = self._entry, self._skip
        states = 1
        for c in path:
            hit = states & fitting.get(c, others)
            if not hit:
                return False
            states = (hit & leave) << 1 | hit & stay
            # Without a character: over the whole of "**/", or into its middle; and past a star.
            if entries:
                entry = states & entries
                states |= entry << 3 | entry << 1
            if skips:
                states |= (states & skips) << 1
        return states & self._end != 0


def _is_literal(item: _Item) -> bool:
    return item.times is _Times.ONCE and len(item.chars) == 1 and not item.negated


def _anchored(items: list[_Item]) -> list[_Item]:
    """Items from a slash to the path's end, with every ** as what an automaton knows."""
    if items == [_SLASH]:
        raise PatternError("stands for an empty path")
    if items[0] is not _SLASH:
        items = [_SLASH, _DIRECTORIES, _SLASH, *items]
    made: list[_Item] = []
    for i, item in enumerate(items):
        before, last = items[i - 1], i + 1 == len(items)
        if item is _SLASH and (last or (i > 0 and before is _SLASH)):
            raise PatternError("has an empty name: a slash at its end, or two in a row")
        if item is _DIRECTORIES:
            if before is not _SLASH or not (last or items[i + 1] is _SLASH):
                raise PatternError("has ** beside something else than a slash: it stands for whole directories")
            if last:
                made.append(_REST)
            elif made[-3:] != [_ENTRY, _ANYTHING, _SLASH]:
                made += [_ENTRY, _ANYTHING]
            else:
                made.pop()  # "**/**/" is "**/"
        elif item is not _STAR or made[-1] is not _STAR:
            made.append(item)
    return made


def _parse(text: str) -> list[list[_Item]]:
    """What the text stands for, one list of items for each choice of its {}."""
    chosen: list[list[_Item]] = [[]]
    options: list[list[_Item]] | None = None  # inside of {}: its options so far
    position = 0
    while position < len(text):
        c = text[position]
        item, length = _item(text, position)
        if item is None:
            if options is not None:
                raise PatternError("has { within {}: that is not possible")
            options = [[]]
        elif c == "}" and options is not None:
            chosen = [left + right for left in chosen for right in options]
            if len(chosen) > MOST_ALTERNATIVES:
                raise PatternError(f"stands for more than {MOST_ALTERNATIVES} alternatives")
            options = None
        elif c == "," and options is not None:
            options.append([])
        else:
            for so_far in chosen if options is None else options[-1:]:
                so_far.append(item)
        position += length
    if options is not None:
        raise PatternError("has { without }")
    return chosen


def _item(text: str, at: int) -> tuple[_Item | None, int]:
    """The item that begins there, and its length in the text; None for {."""
    c = text[at]
    if c == "*":
        return (_DIRECTORIES, 2) if text.startswith("**", at) else (_STAR, 1)
    if c == "<":
        for word, chars in _WORDS.items():
            if text.startswith(word, at):
                return _Item(chars, times=_Times.SOME), len(word)
        raise PatternError(f"has a < that begins none of {', '.join(_WORDS)}: write [<] for the character")
    if c == "[":
        return _class(text, at)
    if c == "{":
        return None, 1
    if c == "\0":
        raise PatternError("has a NUL, which no path has")
    return _SLASH if c == "/" else _ONE if c == "?" else _Item(frozenset(c)), 1


def _class(text: str, at: int) -> tuple[_Item, int]:
    """[...]; a ] that comes first is one of the characters."""
    begin = at + 1 + text.startswith("!", at + 1)
    end = text.find("]", begin + 1)
    if end < 0:
        raise PatternError("has [ without ]")
    inside, chars, i = text[begin:end], set[str](), 0
    while i < len(inside):
        first, last = inside[i], inside[i]
        if inside[i + 1 : i + 2] == "-" and i + 2 < len(inside):
            last = inside[i + 2]
            if not (first.isascii() and last.isascii() and first <= last):
                raise PatternError(f"has the range {first}-{last}: both ends must be ASCII, the smaller one first")
            i += 2
        chars |= {chr(code) for code in range(ord(first), ord(last) + 1)}
        i += 1
    negated = begin > at + 1
    if "/" in chars:
        raise PatternError("has a slash in []: no name has one")
    return _Item(frozenset(chars | {"/"} if negated else chars), negated), end + 1 - at
