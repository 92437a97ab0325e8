"""Numbers are shown in the unit that people expect, and unknown is not zero."""

from __future__ import annotations

import pytest

from llmio_probe.outputs.units import bytes_text, rate_text, seconds_text, share_text


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "-"), (0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), ((1 << 20) - 1, "1.0 MiB"), (3 << 29, "1.5 GiB")],
)
def test_bytes(value: float | None, text: str) -> None:
    assert bytes_text(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "-"), (0.0, "0.0 us"), (2e-6, "2.0 us"), (0.00099999, "1.0 ms"), (0.0012, "1.2 ms"), (61.25, "61.2 s")],
)
def test_seconds(value: float | None, text: str) -> None:
    assert seconds_text(value) == text


def test_a_rate_needs_time_and_a_share_needs_a_whole() -> None:
    assert rate_text(1 << 20, 2.0) == "512.0 KiB/s"
    assert rate_text(1 << 20, 0.0) == rate_text(None, 2.0) == "-"
    assert share_text(1, 8) == "12.5 %"
    assert share_text(1.001, 1) == "100.0 %"
    assert share_text(1, 0) == share_text(None, 1) == "-"
