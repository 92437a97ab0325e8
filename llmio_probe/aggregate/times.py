"""How long the requests of a batch took, by stage: counted and added up for groups of them.

Only this arithmetic may go in here: what a group is, and where its totals are kept, is for series.py.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from llmio_probe.aggregate.buckets import OCTAVES, octave
from llmio_probe.aggregate.rows import STAGES
from llmio_probe.aggregate.table import add_at_places

Ints = NDArray[np.int64]


class Times:
    """Of one batch, in nanoseconds, by group and stage, in the order of STAGES: counts and sums.

    counts: by octave, shape (stages, groups, OCTAVES). sums: shape (stages, groups).
    """

    def __init__(self, groups: int) -> None:
        self.counts = np.zeros((len(STAGES), groups, OCTAVES), np.int64)
        self.sums = np.zeros((len(STAGES), groups), np.int64)

    def add(self, times: Ints, group: Ints, heads: Ints | None) -> tuple[Ints, Ints]:
        """times: when requests were made, issued and done, shape (3, n), 0 is unknown. group: of each, shape (n,).

        heads: where runs of one group begin; None: there are many. Returns the latencies that are known, and the group
        and stage of each, as an index into the flat sums, shape (m,).
        """
        ns = np.empty_like(times)
        np.subtract(times[1:], times[:-1], out=ns[:2])
        np.subtract(times[2], times[0], out=ns[2])
        places = group + np.arange(len(STAGES))[:, None] * self.sums.shape[1]
        if times.min(initial=1) <= 0:
            known = times > 0
            known = np.stack([known[0] & known[1], known[1] & known[2], known[0] & known[2]])
            ns, places, heads = ns[known], places[known], None
        elif heads is not None:
            heads = (heads + np.arange(len(STAGES))[:, None] * len(group)).ravel()
        ns, places = ns.ravel(), places.ravel()
        if ns.min(initial=0) < 0:  # the clocks of two CPUs may differ
            np.maximum(ns, 0, out=ns)
        columns = octave(ns)
        columns += places * OCTAVES
        add_at_places(self.counts.reshape(-1), columns, None)
        if heads is None:
            add_at_places(self.sums.reshape(-1), places, ns)
        else:  # one by one, additions to the same sum wait for each other
            np.add.at(self.sums.reshape(-1), places[heads], np.add.reduceat(ns, heads))
        return ns, places
