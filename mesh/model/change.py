"""By how much answers differ, where they need not be equal: after tensors were rounded on their way. Pure.

The change of an output is the root mean square of its difference over that of the whole model's answer, over all
runs; of an output without fractions, the share of elements that differ.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mesh.arrays import Array


@dataclass(frozen=True, slots=True)
class Change:
    output: str
    relative: float
    """Infinite where shapes differ, or what is no number is at other places."""


def largest_change(runs: Sequence[tuple[Mapping[str, Array], Mapping[str, Array]]]) -> Change:
    """Of the output that changes most. `runs` are answers by name: as they should be, and as they are."""
    names = runs[0][0]
    changes = [Change(name, _change([(wanted[name], found[name]) for wanted, found in runs])) for name in names]
    return max(changes, key=lambda change: change.relative)


def _change(pairs: Sequence[tuple[Array, Array]]) -> float:
    signal = noise = 0.0
    for whole, parts in pairs:
        if whole.shape != parts.shape:
            return math.inf
        if whole.dtype.kind != "f":
            signal += whole.size
            noise += float(np.count_nonzero(whole != parts))
            continue
        wanted, found = whole.astype(np.float64), parts.astype(np.float64)
        finite = np.isfinite(wanted)
        if not np.array_equal(finite, np.isfinite(found)):
            return math.inf
        signal += float(np.sum(wanted[finite] ** 2))
        noise += float(np.sum((wanted[finite] - found[finite]) ** 2))
    if not noise:
        return 0.0
    ratio = noise / signal if signal else math.inf
    return ratio if pairs[0][0].dtype.kind != "f" else math.sqrt(ratio)
