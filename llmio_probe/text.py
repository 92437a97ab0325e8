"""Names from outside (command lines, paths, comms) made safe to show on a terminal, in logs and in labels."""

from __future__ import annotations


def escape(name: str) -> str:
    r"""Every control, surrogate or otherwise unprintable character as a backslash escape: "\x1b[2J" becomes r"\x1b[2J".

    Undecodable bytes of a file name come as lone surrogates (PEP 383) and are shown as the byte: "\udcff" as r"\xff".
    """
    if name.isprintable():
        return name
    return "".join(c if c.isprintable() else _escape_character(c) for c in name)


def _escape_character(c: str) -> str:
    code = ord(c)
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    if code <= 0xFF:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"
