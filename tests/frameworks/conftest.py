"""The frameworks' environment, and a file system of its own for each module, on a disk that nobody else uses."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.frameworks.environment import Environment, environment
from tests.live.conftest import daemon, nothing_stays_attached, open_folder
from tests.live.system import Volume, volume_of

__all__ = ["daemon", "nothing_stays_attached", "open_folder"]


@pytest.fixture(scope="session")
def frameworks() -> Environment:
    made = environment()
    if not made.ready:
        pytest.skip("the frameworks are not installed: make test-frameworks")
    return made


@pytest.fixture(scope="module")
def volume() -> Iterator[Volume]:
    with volume_of("ext4", 2 << 30) as made:
        made.settle()
        yield made
