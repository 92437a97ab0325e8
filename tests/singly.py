"""Counts each record for itself: what counting by combination has to come to, for batches not worth a search."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from llmio_probe.aggregate.combinations import Combined
from llmio_probe.aggregate.series import Series
from llmio_probe.kernel.records import Records


def singly(records: Records) -> Combined:
    """Each is a combination of its own."""
    each = np.arange(len(records))
    return Combined(records, records, np.ones(len(records), np.int64), None, each, each)


def add_requests(
    series: Series, records: Records, owners: NDArray[np.int32], roles: NDArray[np.int64] | None = None,
    files: NDArray[np.int32] | None = None,
) -> None:  # fmt: skip
    """As Series.add_combined, but with owners, roles and files of each record. Shape (n,) each."""
    series.add_combined(singly(records), owners, roles, files)
