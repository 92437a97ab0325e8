"""Rows by key, against a dictionary."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from llmio_probe.identity.index import Index, grown

Key = tuple[int, ...]


def columns(keys: list[Key], words: int) -> list[NDArray[np.uint64]]:
    return list(np.array(keys, np.uint64).reshape(-1, words).T.copy())


@pytest.mark.parametrize("words", [1, 2])
@pytest.mark.parametrize("shift", [0, 20, 44])
def test_each_key_has_its_row_whatever_comes_and_goes(words: int, shift: int) -> None:
    random = np.random.default_rng(shift)
    index = Index(words)
    rows: list[Key] = [()]
    for _ in range(60):
        drawn = {tuple(key) for key in (random.integers(0, 300, (40, words)) << shift).tolist()}
        rows += sorted(drawn - set(rows))
        index.add(*columns(rows[len(index) :], words))
        if random.random() < 0.2:
            stays = random.random(len(rows)) < 0.6
            stays[0] = True
            index.keep(stays)
            rows = [key for key, stay in zip(rows, stays, strict=True) if stay]
        asked = [tuple(key) for key in (random.integers(0, 400, (500, words)) << shift).tolist()]
        expected = [rows.index(key) if key in rows else 0 for key in asked]
        assert index.find(*columns(asked, words)).tolist() == expected
        assert len(index) == len(rows)


def test_a_key_of_zeros_is_a_key_like_any_other() -> None:
    index = Index(2)
    nothing = np.zeros(1, np.uint64)
    assert index.find(nothing, nothing).tolist() == [0]
    index.add(nothing, nothing)
    assert index.find(nothing, nothing).tolist() == [1]


def test_where_there_is_nothing_nothing_is_found() -> None:
    index, nothing = Index(1), np.zeros(0, np.uint64)
    index.add(nothing)
    assert (len(index), index.find(nothing).tolist()) == (1, [])


def test_a_column_grows_by_more_than_asked_for_and_keeps_what_it_has() -> None:
    column = grown(np.array([3, 4]), 3)
    assert column[:3].tolist() == [3, 4, 0]
    assert grown(column, 4) is column
