"""The errors that a user sees as one sentence, each with its exit code. Nothing else may go in here."""

from __future__ import annotations


class ProbeError(Exception):
    """Something could not be done: the message says what happened, to what, and what helps. Exit code 1."""

    exit_code = 1


class UsageError(ProbeError):
    """The command line is wrong. Exit code 2."""

    exit_code = 2
