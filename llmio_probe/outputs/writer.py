"""Where a session's summary goes: standard output or a private file, as text or as JSON. Opened first, written last."""

from __future__ import annotations

import os
import stat
import sys
from contextlib import suppress
from types import TracebackType
from typing import TextIO

from llmio_probe.errors import ProbeError
from llmio_probe.outputs import document, summary
from llmio_probe.text import escape


class Writer:
    """A context manager. The file is opened before the session begins, so that a wrong path costs no measurement; what
    it held is only replaced by a summary.
    """

    def __init__(self, path: str | None, *, as_json: bool) -> None:
        self._as_json = as_json
        self._path = path
        self._stream: TextIO = sys.stdout
        self._is_file = False

    def write(self, report: document.Document) -> None:
        try:
            if self._is_file:
                self._stream.truncate(0)
            if self._as_json:
                document.dump(report, self._stream)
            else:
                self._stream.write(summary.render(report))
            self._stream.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            where = escape(self._path) if self._path else "standard output"
            raise ProbeError(f"the summary cannot be written to {where}: {error.strerror}") from None

    def __enter__(self) -> Writer:
        if self._path is not None:
            try:
                # Command lines and paths of others are in it: for its owner only, also when it was there before.
                fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
                self._is_file = stat.S_ISREG(os.fstat(fd).st_mode)  # not /dev/null, which is everybody's
                if self._is_file:
                    os.fchmod(fd, 0o600)
            except OSError as error:
                raise ProbeError(f"{escape(self._path)} cannot be written: {error.strerror}") from None
            self._stream = os.fdopen(fd, "w", encoding="utf-8")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._path is not None:
            with suppress(OSError):  # it was flushed; what did not go then, write has told of
                self._stream.close()
