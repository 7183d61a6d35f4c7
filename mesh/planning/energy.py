"""The plan of least energy per frame, proven: idle power makes a frame dearer the longer the period is.

At a given period the energy of a plan is a sum over its stages, which one search minimises. Over an
interval of periods, idle power priced at its shortest and stages allowed up to its longest give a lower
bound. Intervals are halved, the most promising first, until no bound lies below the best plan found.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass

import numpy as np

from mesh.planning.arcs import LONGEST_SECONDS, Seconds, least_period
from mesh.planning.search import Way, search
from mesh.planning.searched import TIE, Priced

MAX_SEARCHES = 400
"""Bounds the time; what is left unproven then is in the certificate."""


@dataclass(frozen=True, slots=True)
class Cheapest:
    way: Way
    joules: float
    bound_joules: float
    """No plan takes less per frame."""


def energy_prices(priced: Priced, longest: float, idle_period: float) -> tuple[Seconds, Seconds]:
    """Prices whose sum is joules per frame, of what sustains `longest`, idle power priced for `idle_period`."""
    arcs, watts = priced.arcs, priced.problem.space.watts
    longest = min(longest, LONGEST_SECONDS)  # what is not allowed has an infinite period
    own = np.full(arcs.period.shape, np.inf)
    for index, kind in enumerate(arcs.kinds):
        power = watts[arcs.types[kind.type][0]]
        allowed = arcs.period[index] <= longest
        active = (power.busy - power.idle) * arcs.busy[kind.type][allowed]
        own[index][allowed] = active + kind.replicas * power.idle * idle_period
    return own, np.where(arcs.occupied <= longest, 0.0, np.inf)


def energy_of(priced: Priced, way: Way) -> float:
    """Joules per frame of `way` at its own period."""
    own, _ = energy_prices(priced, math.inf, priced.period_of(way))
    return float(sum(own[step] for step in way))


def find_cheapest(priced: Priced) -> Cheapest | None:
    """The plan of least energy among those with the allowed numbers of devices; None if none fits."""
    arcs = priced.arcs
    values = np.concatenate([arcs.period.ravel(), arcs.occupied.ravel()])
    levels = np.unique(values[np.isfinite(values) & (values >= least_period(arcs))])
    best: tuple[float, Way] = (math.inf, ())
    open_intervals: list[tuple[float, int, int]] = [(0.0, 0, len(levels) - 1)] if len(levels) else []
    searches = 0
    while open_intervals and searches < MAX_SEARCHES:
        if open_intervals[0][0] >= best[0] * (1 - TIE):
            break
        _, first, last = heapq.heappop(open_intervals)
        found = _search(priced, float(levels[last]), float(levels[first]))
        searches += 1
        if found is None:
            continue
        bound, way = found
        best = min(best, (energy_of(priced, way), way), key=lambda pair: pair[0])
        if first < last and bound < best[0] * (1 - TIE):
            middle = (first + last) // 2
            heapq.heappush(open_intervals, (bound, first, middle))
            heapq.heappush(open_intervals, (bound, middle + 1, last))
    if not best[1]:
        return None
    left = min((bound for bound, _, _ in open_intervals), default=math.inf)
    return Cheapest(best[1], best[0], min(best[0], left))


def _search(priced: Priced, longest: float, idle_period: float) -> tuple[float, Way] | None:
    """Least price over an interval of periods and the way that has it, on the fewest devices."""
    table = search(priced.ask(*energy_prices(priced, longest, idle_period), np.add))
    found = [table.best(count, priced.tail) for count in priced.device_counts]
    least = min(price for price, _, _ in found)
    if least == math.inf:
        return None
    price, state, kind = next(entry for entry in found if entry[0] <= least * (1 + TIE))
    return price, table.way(state, kind)
