"""What all commands ask of the probe alike."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmio_probe.kernel.loading import ProbeOptions
from llmio_probe.options import WITHOUT, probe_options


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(WITHOUT, raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 16)


def test_the_table_fits_the_host_and_the_rest_is_as_asked(tmp_path: Path) -> None:
    assert probe_options(sys_root=tmp_path) == ProbeOptions(8192)
    asked = probe_options(calls=False, follow=True, loader="bcc", sys_root=tmp_path)
    assert asked == ProbeOptions(8192, calls=False, follow=True, loader="bcc")


@pytest.mark.parametrize(
    ("value", "without"), [("", set()), ("block_io_start", {"block_io_start"}), (" a  b\n", {"a", "b"})]
)
def test_developers_can_do_without_what_the_kernel_has(
    monkeypatch: pytest.MonkeyPatch, value: str, without: set[str]
) -> None:
    monkeypatch.setenv(WITHOUT, value)
    assert probe_options().without == without
