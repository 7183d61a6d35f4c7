"""How long a variant takes here, one thread, in turns with the float model and all others.

A machine's pace drifts by a third within seconds, so each round times every model once, and two models are compared by
the median of their ratios within rounds, never by times of different moments.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mesh.optimize.contract import Feeds
from mesh.optimize.running import open_session

ROUNDS = 31
"""Odd, so that the median is a round that happened; enough for a p95 that is not simply the largest."""

BUDGET_S = 6.0
"""For all models together, after which the rounds end early, but not before `LEAST_ROUNDS`."""

LEAST_ROUNDS = 7

TURN_S = 0.002
"""Small models are repeated within a turn until it is this long, or the clock and cold caches would be timed."""

MOST_RUNS_PER_TURN = 50

SECONDS = float


@dataclass(frozen=True, slots=True)
class Timing:
    p50_ms: float
    p95_ms: float
    speed_up: float
    """Median over the rounds of float's time over this one's."""
    rounds: int


def time_in_turns(models: Mapping[str, bytes], reference: str, samples: Sequence[Feeds]) -> dict[str, Timing]:
    """Time every model on the same runs. `reference` names the float model among them."""
    sessions = {name: open_session(data, optimised=True, threads=1) for name, data in models.items()}
    feeds = [dict(sample) for sample in samples[:LEAST_ROUNDS]]
    repeats = {}
    for name, session in sessions.items():
        _turn(session, feeds[0], 1)  # the first run allocates
        took = _turn(session, feeds[0], 1)
        repeats[name] = max(1, min(MOST_RUNS_PER_TURN, round(TURN_S / max(took, 1e-7))))
    times: dict[str, list[SECONDS]] = {name: [] for name in models}
    began = time.perf_counter()
    for number in range(ROUNDS):
        if number >= LEAST_ROUNDS and time.perf_counter() - began > BUDGET_S:
            break
        order = list(sessions) if number % 2 else list(reversed(sessions))
        for name in order:
            times[name].append(_turn(sessions[name], feeds[number % len(feeds)], repeats[name]))
    return {name: _summarise(taken, times[reference]) for name, taken in times.items()}


def _turn(session: object, feeds: Feeds, runs: int) -> SECONDS:
    run = session.run  # type: ignore[attr-defined]
    began = time.perf_counter()
    for _ in range(runs):
        run(None, feeds)
    return (time.perf_counter() - began) / runs


def _summarise(times: Sequence[SECONDS], reference: Sequence[SECONDS]) -> Timing:
    ordered = sorted(times)
    p95 = ordered[min(len(ordered) - 1, round(0.95 * (len(ordered) - 1)))]
    ratio = statistics.median(float_s / own_s for float_s, own_s in zip(reference, times, strict=True))
    return Timing(1e3 * statistics.median(ordered), 1e3 * p95, ratio, len(ordered))
