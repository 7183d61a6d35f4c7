"""What a loaded segment of a model takes of a device's memory, in the terms in which it is measured. Pure values.

`MemoryModel` is part of a device's costs, as its seconds are; `mesh.planning.memory` makes needs of it, and fits it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from mesh.errors import UsageError


@dataclass(frozen=True, slots=True, order=True)
class MeasuredGrowth:
    """By so much the process of an engine grew with groups `[start, end)` of the model, loaded and run."""

    start: int
    end: int
    peak_bytes: int


@dataclass(frozen=True, slots=True)
class MemoryModel:
    """How growth on a device follows from what shapes and weights say: `factor` times that, and `constant_bytes`.

    Unmeasured, the estimate itself. Raises `UsageError` for figures that make no sense.
    """

    factor: float = 1.0
    constant_bytes: int = 0
    known: tuple[MeasuredGrowth, ...] = ()
    """Segments that were measured: these need what they took."""

    def __post_init__(self) -> None:
        if not math.isfinite(self.factor) or self.factor < 0:
            raise UsageError(f"memory.factor is {self.factor}; it must be a finite number of 0 or more")
        if self.constant_bytes < 0 or any(each.peak_bytes <= 0 for each in self.known):
            raise UsageError("memory: a segment cannot take less than nothing")

    def unmeasured(self) -> MemoryModel:
        """For the same groups with other weights: what was measured is only the scale there."""
        return replace(self, known=())

    def knows(self, start: int, end: int) -> bool:
        return any((each.start, each.end) == (start, end) for each in self.known)


ESTIMATED = MemoryModel()
