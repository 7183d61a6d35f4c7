"""How long a variant takes here, one thread, in turns with the float model and all others: each round times every
model once. See `turns` for why, and for how they are compared.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from mesh.optimize.contract import Feeds
from mesh.optimize.running import open_session
from mesh.optimize.turns import BUDGET_S, LEAST_ROUNDS, MOST_ROUNDS, Timing, summarise_turns

TURN_MS = 2.0
"""Small models are repeated within a turn until it is this long, or the clock and cold caches would be timed."""

MOST_RUNS_PER_TURN = 50


def time_in_turns(models: Mapping[str, bytes], reference: str, samples: Sequence[Feeds]) -> dict[str, Timing]:
    """Time every model on the same runs. `reference` names the float model among them."""
    sessions = {name: open_session(data, optimised=True, threads=1) for name, data in models.items()}
    feeds = [dict(sample) for sample in samples[:LEAST_ROUNDS]]
    repeats = {}
    for name, session in sessions.items():
        _turn(session, feeds[0], 1)  # the first run allocates
        took = _turn(session, feeds[0], 1)
        repeats[name] = max(1, min(MOST_RUNS_PER_TURN, round(TURN_MS / max(took, 1e-4))))
    times: dict[str, list[float]] = {name: [] for name in models}
    began = time.perf_counter()
    for number in range(MOST_ROUNDS):
        if number >= LEAST_ROUNDS and time.perf_counter() - began > BUDGET_S:
            break
        order = list(sessions) if number % 2 else list(reversed(sessions))
        for name in order:
            times[name].append(_turn(sessions[name], feeds[number % len(feeds)], repeats[name]))
    return {name: summarise_turns(taken, times[reference]) for name, taken in times.items()}


def _turn(session: object, feeds: Feeds, runs: int) -> float:
    """Milliseconds per run."""
    run = session.run  # type: ignore[attr-defined]
    began = time.perf_counter()
    for _ in range(runs):
        run(None, feeds)
    return 1e3 * (time.perf_counter() - began) / runs
