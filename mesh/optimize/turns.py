"""Times of runs that were made in turns with float's, here or on a device. Pure.

A machine's pace drifts by a third within seconds, so two models are compared by the median of their ratios within
rounds, never by times of different moments.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

MOST_ROUNDS = 31
"""Odd, so that the median is a round that happened; enough for a p95 that is not simply the largest."""

LEAST_ROUNDS = 7

BUDGET_S = 6.0
"""After which the rounds end early, but not before `LEAST_ROUNDS`."""


@dataclass(frozen=True, slots=True)
class Timing:
    p50_ms: float
    p95_ms: float
    speed_up: float
    """Median over the rounds of float's time over this one's."""
    rounds: int


def summarise_turns(own_ms: Sequence[float], float_ms: Sequence[float]) -> Timing:
    """One time of each per round; at least one round."""
    ordered = sorted(own_ms)
    p95_ms = ordered[round(0.95 * (len(ordered) - 1))]
    ratio = statistics.median(theirs / own for own, theirs in zip(own_ms, float_ms, strict=True))
    return Timing(statistics.median(ordered), p95_ms, ratio, len(ordered))
