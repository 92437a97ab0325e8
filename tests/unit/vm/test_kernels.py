"""Which build of a kernel is taken."""

from __future__ import annotations

import pytest

from tests.vm.architectures import AMD64, ARM64, Architecture
from tests.vm.kernels import KERNELS, NEWEST, Kernel, image_packages, kernel, releases

PACKAGES = [
    "linux-image-6.1-cloud-amd64",  # names the newest, holds nothing
    "linux-image-6.1.0-9-cloud-amd64",
    "linux-image-6.1.0-56-cloud-amd64",
    "linux-image-6.1.0-57-cloud-amd64-unsigned",
    "linux-image-6.1.0-0.deb11.60-cloud-amd64",
    "linux-image-6.12.90+deb12-cloud-amd64",
    "linux-image-6.12.90+deb12.1-cloud-amd64",
    "linux-image-6.12.9+deb13-cloud-amd64",
    "linux-image-7.3.4+deb13-cloud-amd64",
    "linux-image-7.2.12+deb13-cloud-amd64",
    "linux-image-7.4.1+deb13-amd64",
    "linux-binary-7.3.4+deb13-cloud-amd64",
    "linux-modules-7.3.4+deb13-cloud-amd64",
    "linux-image-6.12.90+deb12-cloud-arm64",
    "linux-image-6.12.91+deb12-arm64-16k",
    "linux-image-6.12.92+deb12-arm64",
]


def test_the_pin_is_tried_first_and_then_the_newest_build_of_its_series() -> None:
    pinned = Kernel("6.1", "6.1.0-50", "")
    assert releases(pinned, PACKAGES) == ["6.1.0-50", "6.1.0-56", "6.1.0-9", "6.1.0-0.deb11.60"]


def test_a_pin_that_is_there_is_tried_once() -> None:
    assert releases(Kernel("6.1", "6.1.0-9", ""), PACKAGES) == ["6.1.0-9", "6.1.0-56", "6.1.0-0.deb11.60"]


def test_a_later_build_of_the_same_version_comes_first() -> None:
    assert releases(kernel("6.12"), PACKAGES)[1:] == ["6.12.90+deb12.1", "6.12.90+deb12", "6.12.9+deb13"]


def test_the_newest_is_that_of_all_series() -> None:
    assert releases(kernel(NEWEST), PACKAGES)[:3] == ["7.3.4+deb13", "7.2.12+deb13", "6.12.90+deb12.1"]


def test_another_series_has_no_pin() -> None:
    assert releases(kernel("7.2"), PACKAGES) == ["7.2.12+deb13"]


@pytest.mark.parametrize(
    ("name", "architecture", "build"),
    [("6.12-arm64", ARM64, "6.12.90+deb12"), ("6.12-arm64-16k", ARM64, "6.12.91+deb12"), ("7.3", AMD64, "7.3.4+deb13")],
)
def test_a_kernel_of_another_architecture_is_named_after_it(name: str, architecture: Architecture, build: str) -> None:
    assert kernel(name).architecture == architecture
    assert releases(kernel(name), PACKAGES)[-1] == build


@pytest.mark.parametrize("name", ["windows", "6.12-mips", "6.12-", "arm64", "newest-arm64"])
def test_a_name_that_is_no_kernel_is_told_with_those_that_are(name: str) -> None:
    with pytest.raises(ValueError, match=rf"there is no kernel {name}: use one of 5\.10, 6\.1"):
        kernel(name)


def test_a_kernel_is_one_package_or_several() -> None:
    assert image_packages("6.1.0-56", "cloud-amd64", PACKAGES) == ["linux-image-6.1.0-56-cloud-amd64"]
    assert image_packages("7.3.4+deb13", "cloud-amd64", PACKAGES) == [
        "linux-image-7.3.4+deb13-cloud-amd64",
        "linux-binary-7.3.4+deb13-cloud-amd64",
        "linux-modules-7.3.4+deb13-cloud-amd64",
    ]
    assert image_packages("5.4.0-1", "cloud-amd64", PACKAGES) == []


def test_each_kernel_says_why_it_is_there() -> None:
    assert all(known.why for known in KERNELS)
