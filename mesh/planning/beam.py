"""The planner beyond what can be exhausted: a beam search led by the prices of a lower bound.

A partial plan's promise is its price so far and the relaxed price from there to the outputs; the most
promising are kept, one more stage at a time. For throughput the price is that of the devices used
(`mesh.planning.bound`): partial plans that spare scarce devices come first, and whatever reaches the
outputs sustains the period that was asked for. The period is then lowered until nothing is found. The
bound belongs to the answer, so the distance from the optimum is known, not hoped for.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mesh.core.plan import Objective
from mesh.planning.arcs import Seconds, least_period
from mesh.planning.bound import PeriodBound, allow, bound_period, find_prices, relax
from mesh.planning.energy import energy_of, energy_prices
from mesh.planning.search import Way
from mesh.planning.searched import Priced

WIDTH = 48
"""Partial plans kept per number of stages."""

WIDENING = 1.3
"""Factor from a period at which nothing was found to the next one, while no plan is known."""

PERIOD_STEPS = 8
"""Periods tried between the bound and the best plan found."""

CLOSE_ENOUGH = 1.0005
"""Ratio of two periods between which no further one is tried."""

ENERGY_PERIODS = 12
"""Periods for which idle power is priced in turn."""


@dataclass(frozen=True, slots=True)
class Guided:
    """A way and what is known about better ones, both in the objective (s, s, devices, J)."""

    way: Way
    price: float
    bound: float
    period_bound: float
    """Seconds; no plan has a shorter period. 0 where it was not asked for."""


def find_guided(priced: Priced) -> Guided | None:
    """A good way for the problem's objective; None where none was found, which does not prove that there is none."""
    objective = priced.problem.objective
    if objective is Objective.LATENCY:
        arcs = priced.arcs
        own, hop = priced.latency_prices(math.inf)
        own = np.where(np.isfinite(arcs.period), own, np.inf)
        return _least_sum(priced, own, hop)
    if objective is Objective.ENERGY:
        return _least_energy(priced)
    if objective is Objective.MEMORY:
        return _fewest_devices(priced)
    return _shortest_period(priced, priced.device_counts.stop - 1)


def _least_sum(priced: Priced, own: Seconds, hop: Seconds) -> Guided | None:
    relaxed = relax(own, hop, np.zeros(len(own)), priced)
    way = _beam(priced, own, hop, relaxed.to_go, priced.device_counts.stop - 1)
    if way is None:
        return None
    price = _sum(own, hop, way)
    return Guided(way, price, min(price, relaxed.price), 0.0)


def _fewest_devices(priced: Priced) -> Guided | None:
    allowed = allow(priced.arcs, math.inf)
    replicas = np.array([float(kind.replicas) for kind in priced.arcs.kinds])
    own = np.where(np.isfinite(priced.arcs.period), replicas[:, None, None], np.inf)
    fewest = _least_sum(priced, own, allowed.hop)
    if fewest is None:
        return None
    shortest = _shortest_period(priced, round(fewest.price))
    return Guided(shortest.way if shortest else fewest.way, fewest.price, fewest.bound, 0.0)


def _least_energy(priced: Priced) -> Guided | None:
    shortest = least_period(priced.arcs)
    if shortest == math.inf:
        return None
    singles = priced.arcs.period[:, 0, -1]
    longest = float(singles[np.isfinite(singles)].max(initial=shortest * 32))
    found: list[Guided] = []
    for period in np.geomspace(max(shortest, 1e-9), max(longest, shortest, 2e-9), ENERGY_PERIODS):
        candidate = _least_sum(priced, *energy_prices(priced, float(period), float(period)))
        if candidate is not None:
            found.append(candidate)
    if not found:
        return None
    way = min((candidate.way for candidate in found), key=lambda way: energy_of(priced, way))
    own, hop = energy_prices(priced, math.inf, shortest)
    bound = relax(own, hop, np.zeros(len(own)), priced).price
    joules = energy_of(priced, way)
    return Guided(way, joules, min(joules, bound), 0.0)


def _shortest_period(priced: Priced, most: int) -> Guided | None:
    way = _first_way(priced, most)
    single = _best_single(priced)
    if way is None or (single and priced.period_of(single) < priced.period_of(way)):
        way = single
    if way is None:
        return None
    period = priced.period_of(way)
    bound = bound_period(priced, period)
    failed = bound.seconds
    for _ in range(PERIOD_STEPS):
        if period <= failed * CLOSE_ENOUGH:
            break
        middle = math.sqrt(failed * period) if failed > 0 else period / 2
        better = _way_within(priced, middle, most, bound)
        if better is None:
            failed = middle
        else:
            way, period = better, priced.period_of(better)
    return Guided(way, period, min(period, bound.seconds), min(period, bound.seconds))


def _best_single(priced: Priced) -> Way | None:
    """The fastest kind of station for the whole model, where that is allowed."""
    last = len(priced.arcs.codec_of) - 1
    allowed = [
        (float(priced.arcs.period[index, 0, last]), index)
        for index, kind in enumerate(priced.arcs.kinds)
        if {priced.head, priced.tail} <= {None, kind.type} and kind.replicas in priced.device_counts
    ]
    period, index = min(allowed, default=(math.inf, 0))
    return ((index, 0, last),) if period < math.inf else None


def _first_way(priced: Priced, most: int) -> Way | None:
    """Some way: periods grow until one is found, or every arc is allowed and still none is."""
    finite = priced.arcs.period[np.isfinite(priced.arcs.period)]
    if least_period(priced.arcs) == math.inf:
        return None
    longest = max(float(finite.max()), float(priced.arcs.occupied[np.isfinite(priced.arcs.occupied)].max(initial=0.0)))
    period = max(least_period(priced.arcs), longest * 1e-9)
    while True:
        way = _way_within(priced, period, most, None)
        if way is not None or period > longest:
            return way
        period *= WIDENING


def _way_within(priced: Priced, period: float, most: int, bound: PeriodBound | None) -> Way | None:
    """A way that sustains `period`, at the prices of `bound`, else at prices of its own."""
    allowed = allow(priced.arcs, period)
    prices = find_prices(priced, allowed, None if bound is None else bound.prices.of_type)
    if prices.impossible:
        return None
    replicas = np.array([kind.replicas for kind in priced.arcs.kinds])
    cost = replicas * prices.of_type[priced.arcs.type_of]
    return _beam(priced, allowed.own + cost[:, None, None], allowed.hop, prices.relaxed.to_go, most)


@dataclass(frozen=True, eq=False)
class _States:
    """Partial plans (W of them)."""

    node: NDArray[np.int64]
    kind: NDArray[np.int64]
    used: NDArray[np.int64]
    """(W, T)"""
    price: NDArray[np.float64]
    ways: list[Way]


def _beam(priced: Priced, own: Seconds, hop: Seconds, to_go: Seconds, most: int) -> Way | None:
    """The cheapest way found over `own` (K, N, N) and `hop` (K, K, N) on at most `most` devices."""
    arcs = priced.arcs
    states = _begin(priced, own, to_go)
    best: tuple[float, Way | None] = (math.inf, None)
    exactly = priced.problem.stages is not None
    for stage in range(1, most + 1):
        done = states.node == own.shape[1] - 1
        for index in np.flatnonzero(done):
            ends_well = priced.tail is None or arcs.kinds[states.kind[index]].type == priced.tail
            if ends_well and (not exactly or stage == most) and states.price[index] < best[0]:
                best = (float(states.price[index]), states.ways[index])
        states = _keep(states, np.flatnonzero(~done & (states.price < best[0])))
        if not len(states.node) or stage == most:
            break
        states = _grow(priced, states, own, hop, to_go, most)
    return best[1]


def _begin(priced: Priced, own: Seconds, to_go: Seconds) -> _States:
    arcs = priced.arcs
    kinds, ends = np.nonzero(np.isfinite(own[:, 0] + to_go))
    if priced.head is not None:
        right = arcs.type_of[kinds] == priced.head
        kinds, ends = kinds[right], ends[right]
    promise = own[kinds, 0, ends] + to_go[kinds, ends]
    order = np.argsort(promise, kind="stable")[:WIDTH]
    kinds, ends = kinds[order], ends[order]
    used = np.zeros((len(kinds), len(arcs.types)), dtype=np.int64)
    used[np.arange(len(kinds)), arcs.type_of[kinds]] = [arcs.kinds[kind].replicas for kind in kinds]
    ways: list[Way] = [((int(kind), 0, int(end)),) for kind, end in zip(kinds, ends, strict=True)]
    return _States(ends, kinds, used, own[kinds, 0, ends], ways)


def _keep(states: _States, rows: NDArray[np.int64]) -> _States:
    ways = [states.ways[row] for row in rows]
    return _States(states.node[rows], states.kind[rows], states.used[rows], states.price[rows], ways)


def _grow(priced: Priced, states: _States, own: Seconds, hop: Seconds, to_go: Seconds, most: int) -> _States:
    """Every state with one more stage; of those that come to the same only the cheapest, and the best `WIDTH`."""
    arcs = priced.arcs
    counts = np.array(arcs.counts)
    replicas = np.array([kind.replicas for kind in arcs.kinds])
    room = (counts - states.used)[:, arcs.type_of] >= replicas
    room &= (states.used.sum(axis=1)[:, None] + replicas) <= most
    reached = states.price[:, None] + hop[states.kind, :, states.node]
    reached[~room] = np.inf
    prices = reached[:, :, None] + own[:, states.node].transpose(1, 0, 2)
    promise = (prices + to_go).ravel()
    few = min(len(promise), WIDTH * 8)
    candidates = np.argpartition(promise, few - 1)[:few]
    candidates = candidates[np.argsort(promise[candidates], kind="stable")]
    rows: list[int] = []
    chosen: list[tuple[int, int]] = []
    seen: set[tuple[int, int, bytes]] = set()
    used = []
    for candidate in candidates:
        if promise[candidate] == np.inf or len(rows) == WIDTH:
            break
        row, kind, end = (int(axis) for axis in np.unravel_index(candidate, prices.shape))
        grown = states.used[row].copy()
        grown[arcs.kinds[kind].type] += arcs.kinds[kind].replicas
        key = (end, kind, grown.tobytes())
        if key not in seen:
            seen.add(key)
            rows.append(row)
            chosen.append((kind, end))
            used.append(grown)
    kinds = np.array([kind for kind, _ in chosen], dtype=np.int64)
    ends = np.array([end for _, end in chosen], dtype=np.int64)
    ways: list[Way] = [
        (*states.ways[row], (kind, int(states.node[row]), end)) for row, (kind, end) in zip(rows, chosen, strict=True)
    ]
    stacked = np.array(used, dtype=np.int64).reshape(len(rows), len(arcs.types))
    return _States(ends, kinds, stacked, prices[rows, kinds, ends] if rows else np.zeros(0), ways)


def _sum(own: Seconds, hop: Seconds, way: Way) -> float:
    total = sum(float(own[step]) for step in way)
    return total + sum(float(hop[a[0], b[0], b[1]]) for a, b in itertools.pairwise(way))
