"""Numbers as people read them: IEC bytes, rates, durations, shares; and text cut to a width. For summary and live.

None is "unknown" and shown as "-", never as 0.
"""

from __future__ import annotations

UNKNOWN = "-"
_BYTE_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
MIB = 1 << 20


def bytes_text(value: float | None) -> str:
    """1310720 as "1.2 MiB"."""
    if value is None:
        return UNKNOWN
    for unit in _BYTE_UNITS[:-1]:
        # 1023.95 would be shown as 1024.0
        if value < 1023.95:
            return f"{value:.0f} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} {_BYTE_UNITS[-1]}"


def rate_text(value: float | None, seconds: float) -> str:
    """Bytes over seconds as "1.2 MiB/s"; unknown when no time has passed."""
    return f"{bytes_text(value / seconds)}/s" if value is not None and seconds > 0 else UNKNOWN


def seconds_text(value: float | None) -> str:
    """0.000131072 as "131.1 us"; ASCII, since a log or a serial console may be all there is."""
    if value is None:
        return UNKNOWN
    if value < 0.99995e-3:
        return f"{value * 1e6:.1f} us"
    return f"{value * 1e3:.1f} ms" if value < 0.99995 else f"{value:.1f} s"


def share_text(part: float | None, whole: float) -> str:
    """2 of 8 as "25.0 %"; what is more than the whole by rounding is the whole."""
    return f"{100 * min(part / whole, 1):.1f} %" if part is not None and whole > 0 else UNKNOWN


def fit(text: str, width: int) -> str:
    """The beginning of what is too long."""
    return text if len(text) <= width else text[: max(width - 2, 1)] + ".."


def fit_end(text: str, width: int) -> str:
    """The end of a path says more than its beginning."""
    return text if len(text) <= width else ".." + text[2 - width :]
