"""The dialect of path patterns: what each sign stands for, what is refused, and that no pattern and path take long."""

from __future__ import annotations

import itertools
import re
import time

import pytest

from llmio_probe.identity.path_patterns import LONGEST, MOST_ALTERNATIVES, PathPattern, PatternError


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        ("t", ["/t", "/a/t", "/a/b/t"], ["/tt", "/a/xt", "/t/a", "/at", "/"]),
        ("/t", ["/t"], ["/a/t", "/t/"]),
        ("a/t", ["/a/t", "/x/a/t"], ["/xa/t", "/a/x/t", "/t"]),
        ("/a/t", ["/a/t"], ["/x/a/t"]),
        ("*.w", ["/x.w", "/a/.w", "/a/x.w.w"], ["/a/x.w/b", "/a/xw", "/x.w/"]),
        ("a*b*c", ["/abc", "/axbybzc", "/abbc"], ["/ab/c", "/ac", "/abcd"]),
        ("*", ["/a", "/a/b"], []),
        ("/*", ["/a"], ["/a/b"]),
        ("a?c", ["/abc", "/a\udcffc"], ["/ac", "/a/c", "/abbc"]),
        ("t_<digits>", ["/t_0", "/t_0123456789"], ["/t_", "/t_1x", "/t_x1", "/t_-1", "/t_\u0661"]),
        ("<digits><digits>", ["/12", "/123"], ["/1", "/12a"]),
        ("*<digits>b", ["/1b", "/x1b", "/11b", "/1b2b"], ["/b", "/1bb"]),
        ("<hex>.bin", ["/0.bin", "/aF09.bin"], ["/.bin", "/g.bin"]),
        ("<hex>*<hex>", ["/aa", "/a-b", "/abc"], ["/a", "/-a"]),
        ("[abc]", ["/a", "/c"], ["/d", "/abc", "/"]),
        ("[a-c0-9_-]", ["/b", "/7", "/_", "/-"], ["/d", "/A"]),
        ("x[!a-c]y", ["/xdy", "/x!y", "/x\u00e9y"], ["/xay", "/x/y", "/xy"]),
        ("[]x]", ["/]", "/x"], ["/[]x]"]),
        ("[!]]", ["/x"], ["/]"]),
        ("[[]a[*][?][<][{]", ["/[a*?<{"], ["/[axx<{"]),
        ("}a,b>", ["/}a,b>"], ["/a"]),
        ("{a,bc}d", ["/ad", "/bcd", "/x/ad"], ["/d", "/abcd"]),
        ("x{,.tmp}", ["/x", "/x.tmp"], ["/x.tmp.tmp"]),
        ("{a,b}{c,d}", ["/ac", "/ad", "/bc", "/bd"], ["/ab", "/cd"]),
        ("{*,<digits>}.{a/b,c}", ["/x.a/b", "/1.c", "/y/.c"], ["/x.a", "/x/.a/c"]),
        ("{/a,b}/c", ["/a/c", "/x/b/c"], ["/x/a/c"]),
        ("{*,x}*y", ["/abcy", "/xy", "/y"], ["/x"]),
        ("/a/**", ["/a/b", "/a/b/c"], ["/a", "/a/", "/ab/c", "/x/a/b"]),
        ("a/**", ["/a/b", "/x/a/b/c"], ["/a", "/x/a"]),
        ("/a/**/b", ["/a/b", "/a/x/b", "/a/x/y/b", "/a/b/b"], ["/ab", "/a/xb", "/a/b/c", "/x/a/b", "/a"]),
        ("a/**/*.w", ["/a/.w", "/a/x.w", "/z/a/b/c/x.w"], ["/ax.w", "/a/x.w/y", "/b/x.w"]),
        ("/a/**/b/**/c", ["/a/b/c", "/a/x/b/y/z/c", "/a/b/b/c"], ["/a/c", "/a/b/xc"]),
        ("/a/**/**/b", ["/a/b", "/a/x/b", "/a/x/y/b"], ["/ab"]),
        ("**/x", ["/x", "/a/x", "/a/b/x"], ["/ax", "/x/a"]),
        ("**", ["/a", "/a/b"], ["/"]),
        ("/**/a/**", ["/a/b", "/x/y/a/b/c"], ["/a", "/b/xa/c"]),
        ("\u6a21*", ["/\u6a21\u578b"], ["/x"]),
        ("a\nb*", ["/a\nbc\n"], ["/a b"]),
    ],
)
def test_what_a_pattern_matches(pattern: str, yes: list[str], no: list[str]) -> None:
    compiled = PathPattern(pattern)
    assert [path for path in yes if not compiled.matches(path)] == []
    assert [path for path in no if compiled.matches(path)] == []


def as_regex(pattern: str) -> re.Pattern[str]:
    """For what the next test uses of the dialect."""
    signs = {"/**/": "/(?:.*/)?", "*": "[^/]*", "?": "[^/]", "<digits>": "[0-9]+"}
    text = pattern if pattern.startswith("/") else f"/**/{pattern}"
    return re.compile("".join(signs.get(part, part) for part in re.split(r"(/\*\*/|\*|\?|<digits>)", text)))


def test_patterns_agree_with_regular_expressions_on_all_short_paths() -> None:
    paths = [f"/{''.join(letters)}" for n in range(6) for letters in itertools.product("a1/", repeat=n)]
    for pattern in ("a*a", "*a", "a*", "a/*a", "*1*", "a?", "<digits>a*", "*<digits>", "/**/a", "a/**/1", "/a/**/a/*"):
        regex, compiled = as_regex(pattern), PathPattern(pattern)
        disagree = [path for path in paths if compiled.matches(path) != (regex.fullmatch(path) is not None)]
        assert disagree == [], pattern


@pytest.mark.parametrize(
    ("pattern", "complaint"),
    [
        ("", "stands for an empty path"),
        ("/", "stands for an empty path"),
        ("{a,}", "stands for an empty path"),
        ("a/", "a slash at its end"),
        ("a//b", "two in a row"),
        ("a/{b,}", "a slash at its end"),
        ("/a/**/", "a slash at its end"),
        ("a**", r"\*\* beside something else"),
        ("**a", r"\*\* beside something else"),
        ("a/x**/b", r"\*\* beside something else"),
        ("***", r"\*\* beside something else"),
        ("[a", r"\[ without \]"),
        ("[]", r"\[ without \]"),
        ("[a/b]", "a slash in"),
        ("[.-0]", "a slash in"),
        ("[z-a]", "the range z-a"),
        ("[a-\u00ff]", "the range"),
        ("{a,b", "{ without }"),
        ("{a,{b,c}}", "{ within {}"),
        ("t_<digit>", r"begins none of <digits>, <hex>: write \[<\]"),
        ("a\0b", "NUL"),
        ("{a,b}" * 7, f"more than {MOST_ALTERNATIVES} alternatives"),
        ("a" * (LONGEST + 1), f"longer than {LONGEST}"),
    ],
)
def test_what_is_refused_and_why(pattern: str, complaint: str) -> None:
    with pytest.raises(PatternError, match=complaint):
        PathPattern(pattern)


@pytest.mark.parametrize(
    "pattern",
    [
        "*a*a*a*a*b",
        "*a" * 100 + "*b",
        "**/a*/**/*a/**/b",
        "<hex>" * 50 + "x",
        "<digits>*<digits>*<digits>*x",
        "[!b]*" * 50 + "x",
        "{a*,*a,?*}{a*,*a,?*}{a*,*a,?*}b",
    ],
)
@pytest.mark.parametrize("part", ["a", "a/", "1", "ab"])
def test_no_pattern_takes_long_whatever_the_path(pattern: str, part: str) -> None:
    compiled = PathPattern(pattern)

    def seconds(length: int) -> float:
        path = "/" + part * (length // len(part)) + "a"
        best = float("inf")
        for _ in range(3):
            begin = time.process_time()
            compiled.matches(path)
            best = min(best, time.process_time() - begin)
        return best

    # Ten times the length may take ten times as long, not a hundred times: with room for a busy machine.
    assert seconds(20_000) < 30 * seconds(2_000) + 0.01


def test_a_needle_is_in_every_path_that_matches() -> None:
    assert PathPattern("*.{safetensors,gguf}").needles == (".safetensors", ".gguf")
    assert PathPattern("a/b*cd[e]").needles == ("/a/b",)
    assert PathPattern("*").needles == ("/",)


def test_patterns_of_the_same_text_are_equal() -> None:
    assert PathPattern("a") == PathPattern("a") != PathPattern("b")
    assert len({PathPattern("a"), PathPattern("a")}) == 1
    assert repr(PathPattern("a")) == "PathPattern('a')"
