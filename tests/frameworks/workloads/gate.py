"""How a workload and its test take turns, so that the probe sees the workload's own I/O and not that of its imports.

Runs within the frameworks' environment, so nothing of this project may be imported here.
"""

from __future__ import annotations

import json
import os

_FOLDER = os.environ.get("LLMIO_GATE")
"""Holds two pipes with names, since a launcher between the test and the workload hands no descriptors on."""


def gate(**told: object) -> None:
    """Tell the test where we are, and wait until it says to go on. Started by hand, a workload does not wait."""
    if _FOLDER is None:
        return
    with open(f"{_FOLDER}/told", "w") as pipe:
        json.dump({"pid": os.getpid(), **told}, pipe)
        pipe.write("\n")
    with open(f"{_FOLDER}/go") as pipe:
        if not pipe.readline():
            os._exit(1)  # the test has ended
