"""Splits a model evenly without knowing any device: for `mesh split --stages K` offline.

Exact: of all splits at usable cuts into as many segments as asked (or as there are cuts for), one
whose largest segment has the least floating-point operations; among those the one that carries the
fewest bytes across its cuts, then the fewest tensors. `mesh.planning.exact` does the same in seconds
when devices are known.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mesh.core.graph import Graph
from mesh.errors import UsageError
from mesh.planning.problem import usable_cuts

BYTES_BEFORE_TENSORS = 1 << 20
"""Weight of a byte over a tensor in one number: above any count of tensors that cross a split."""


def balanced_positions(graph: Graph, stages: int, max_tensors: int | None = None) -> tuple[int, ...]:
    """Positions `(0, ..., n)` of the most even split into at most `stages` non-empty segments.

    Fewer segments only where fewer usable cuts exist. A model without any operations is split by its
    number of groups. Raises `UsageError` for fewer than one stage or a model without groups.
    """
    if stages < 1:
        raise UsageError(f"stages is {stages}; it must be at least 1")
    if not graph.groups:
        raise UsageError("the model has no operators to split")
    cuts = usable_cuts(graph, max_tensors)
    positions = [cut.position for cut in cuts]
    flops = np.array([graph.segment_flops(0, position) for position in positions], dtype=np.float64)
    if flops[-1] == 0:
        flops = np.array(positions, dtype=np.float64)
    count = min(stages, len(cuts) - 1)
    crossing = [float(cut.bytes * BYTES_BEFORE_TENSORS + len(cut.tensors)) for cut in cuts]
    crossing[0] = crossing[-1] = 0.0
    limit = _least_maximum(flops, count)
    return tuple(positions[index] for index in _cheapest_split(flops, np.array(crossing), count, limit))


def _least_maximum(work: NDArray[np.float64], count: int) -> float:
    """The least that the largest of `count` segments can have; `work[i]` is the work before cut `i`."""
    best = np.append(0.0, np.full(len(work) - 1, np.inf))
    for _ in range(count):
        grown = np.full(len(work), np.inf)
        for end in range(1, len(work)):
            grown[end] = np.maximum(best[:end], work[end] - work[:end]).min()
        best = grown
    return float(best[-1])


def _cheapest_split(
    work: NDArray[np.float64], crossing: NDArray[np.float64], count: int, limit: float
) -> tuple[int, ...]:
    """Cut indices of the split into `count` segments of at most `limit` whose inner cuts cost least."""
    best = np.append(0.0, np.full(len(work) - 1, np.inf))
    starts: list[list[int]] = []
    for _ in range(count):
        grown = np.full(len(work), np.inf)
        chosen = [0] * len(work)
        for end in range(1, len(work)):
            costs = np.where(work[end] - work[:end] <= limit, best[:end], np.inf)
            chosen[end] = int(costs.argmin())
            grown[end] = costs[chosen[end]] + crossing[end]
        best = grown
        starts.append(chosen)
    indices = [len(work) - 1]
    for chosen in reversed(starts):
        indices.append(chosen[indices[-1]])
    return tuple(reversed(indices))
