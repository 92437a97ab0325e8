"""Tests that share a session: attaching takes longer than what most of them do.

A scene is a test in three parts, as a generator: what it needs before the session; what happens within it; and, with
what was seen, what must be true. All scenes of a module on one filesystem are played one after the other within one
session, each in a folder of its own; each is a test of its own. Only that may go in here.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.live.harness import Observed, Watched, start_probe, stir, transferred, undisturbed
from tests.live.system import volume_of

Scene = Generator[None, Observed, None]
Part = tuple[Callable[..., Scene], dict[str, Any]]
"""A scene's script, and its variant."""


def scene(*kinds: str, **variants: Sequence[Any]) -> Callable[[Callable[..., Scene]], Callable[..., None]]:
    """A test on filesystems of these kinds, with each combination of the variants as further arguments."""

    def decorate(script: Callable[..., Scene]) -> Callable[..., None]:
        def test(played: Played, part: Part, request: pytest.FixtureRequest) -> None:
            played.check(request.node)

        test.__name__, test.__doc__ = script.__name__, script.__doc__
        parts = [
            pytest.param((script, dict(zip(variants, values, strict=True))), id="-".join(map(str, values)) or "scene")
            for values in itertools.product(*variants.values())
        ]
        by_part = pytest.mark.parametrize("part", parts)(test)
        return pytest.mark.parametrize("played", kinds, indirect=True, scope="module")(by_part)

    return decorate


class Played:
    """Scenes, played on a fresh filesystem until nothing has disturbed it. It stays mounted until ``close``."""

    def __init__(self, kind: str, parts: Mapping[pytest.Item, Part], output: Path) -> None:
        self._kind = kind
        self._parts = parts
        self._output = output
        self._stack = ExitStack()
        self._scenes: dict[pytest.Item, Scene] = {}
        self._failed: dict[pytest.Item, Exception] = {}
        try:
            self.seen = undisturbed(self._play)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Scenes first: who acts in one may hold the filesystem in a mount namespace of its own."""
        for scene_ in self._scenes.values():
            scene_.close()
        self._scenes.clear()
        self._stack.close()

    def check(self, item: pytest.Item) -> None:
        if item in self._failed:
            raise self._failed[item]
        with pytest.raises(StopIteration):
            self._scenes[item].send(self.seen)

    def _play(self) -> Observed | None:
        self.close()
        self._failed.clear()
        volume = self._stack.enter_context(volume_of(self._kind))
        for number, (item, (script, variant)) in enumerate(self._parts.items()):
            place = replace(volume, folder=volume.folder / str(number))
            place.folder.mkdir()
            self._scenes[item] = script(place, **variant)
        self._go_on()
        volume.settle()
        before = transferred(volume.disk.device)
        with start_probe(self._output, "--all", "--device", volume.disk.device) as session:
            idle = transferred(volume.disk.device) == before
            self._go_on()
            volume.settle()
            stir(volume.disk)
            after = transferred(volume.disk.device)
            watched = Watched(session.interrupt())
            if not idle or transferred(volume.disk.device) != after:
                return None
        return Observed(watched, {op: after[op] - before[op] for op in before})

    def _go_on(self) -> None:
        """What goes wrong in a scene is its own test's failure."""
        for item, scene_ in self._scenes.items():
            if item not in self._failed:
                try:
                    next(scene_)
                except Exception as error:
                    self._failed[item] = error
