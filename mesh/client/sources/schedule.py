"""When frames are due at a given rate: a pure schedule; the runtime owns the clock and the sleeping.

Due times are computed from the start, never from the previous frame, so that being late once does not shift the rest.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from mesh.errors import UsageError


@dataclass(frozen=True, slots=True)
class RateSchedule:
    """`rate_hz` frames per second, evenly. Raises `UsageError` unless the rate is finite and above 0."""

    rate_hz: float

    def __post_init__(self) -> None:
        if not math.isfinite(self.rate_hz) or self.rate_hz <= 0 or not math.isfinite(1 / self.rate_hz):
            raise UsageError(
                f"a rate of {self.rate_hz} frames per second makes no sense",
                hint="give a number above 0, or leave --rate away to send as fast as the mesh takes frames",
            )

    @property
    def period_s(self) -> float:
        return 1 / self.rate_hz

    def due(self, n: int, started_at: float) -> float:
        """When frame `n` (from 0) is due, on the clock that `started_at` was read from, in seconds."""
        return started_at + n / self.rate_hz
