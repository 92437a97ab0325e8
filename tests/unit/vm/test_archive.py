"""Where Debian's packages come from."""

from __future__ import annotations

import pytest

from tests.vm.archive import ArchiveError, mirrors
from tests.vm.recipes import header_packages


def test_the_mirrors_are_those_of_the_machine() -> None:
    targets = [
        "mirror+file:/debian/ bookworm",
        "m:/other/ nodistro",
        "m:/security/ bookworm-security",
        "m:/u/ bookworm-updates",
    ]
    assert mirrors(targets) == ("mirror+file:/debian/", "m:/security/")


@pytest.mark.parametrize("targets", [[], ["m:/ubuntu/ noble", "m:/ubuntu/ noble-security"], ["m:/debian/ trixie"]])
def test_without_them_it_says_what_helps(targets: list[str]) -> None:
    with pytest.raises(ArchiveError, match="Debian 12 or 13"):
        mirrors(targets)


def test_headers_come_without_their_compiler() -> None:
    dependencies = ["linux-headers-6.1.0-56-common", "linux-kbuild-6.1", "linux-compiler-gcc-12-x86", "gcc-12"]
    assert header_packages(dependencies) == ["linux-headers-6.1.0-56-common", "linux-kbuild-6.1"]
