"""By how much answers differ, where they need not be equal: after tensors were rounded on their way. Pure.

The change of an output is the root mean square of its difference over that of what tells the answers apart: their
deviation from the mean over all runs. Answers that hardly depend on the input would hide any difference behind what
they have in common. Of one run alone it is over the root mean square of the answer; of an output without fractions,
the share of elements that differ.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mesh.arrays import Array
from mesh.model.compare import RELATIVE_TOLERANCE


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
    wanted, found = [each for each, _ in pairs], [each for _, each in pairs]
    if any(a.shape != b.shape for a, b in pairs):
        return math.inf
    if wanted[0].dtype.kind != "f":
        different = sum(int(np.count_nonzero(a != b)) for a, b in pairs)
        return different / max(1, sum(a.size for a in wanted))
    whole = [each.astype(np.float64) for each in wanted]
    parts = [each.astype(np.float64) for each in found]
    if not all(np.array_equal(np.isfinite(a), np.isfinite(b)) for a, b in zip(whole, parts, strict=True)):
        return math.inf
    same_shape = len({each.shape for each in whole}) == 1
    with np.errstate(invalid="ignore"):  # infinities at the same places, which count as equal
        noise = _rms([a - b for a, b in zip(whole, parts, strict=True)])
        signal = _rms(list(np.stack(whole) - np.mean(whole, axis=0))) if len(whole) > 1 and same_shape else _rms(whole)
    if noise <= RELATIVE_TOLERANCE * _rms(whole):
        return 0.0
    return noise / signal if signal else math.inf


def _rms(arrays: Sequence[Array]) -> float:
    """Of the finite elements."""
    finite = [each[np.isfinite(each)] for each in arrays]
    count = sum(each.size for each in finite)
    return math.sqrt(sum(float(np.sum(each * each)) for each in finite) / count) if count else 0.0
