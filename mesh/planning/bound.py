"""Lower bounds that any fleet's plans obey, found without trying plans.

`relax` forgets how many devices there are: the cheapest way through the arcs may use one as often as it
likes. For latencies and energies that is already a bound. For a period T, devices get prices that add up
to 1 over the fleet; where even the cheapest way over the arcs that sustain T costs more than 1, it needs
more than the fleet, whatever the prices, and no plan has period T (the dual of the arc-flow problem).
Prices are found by multiplicative weights: what the cheapest way uses too much of becomes dearer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mesh.planning.arcs import LONGEST_SECONDS, Arcs, Seconds, least_period
from mesh.planning.search import Way
from mesh.planning.searched import Priced

PRICE_ROUNDS = 60
"""Corrections of the prices for one period; more tighten a bound by fractions of a percent."""

PROVEN = 1 + 1e-9
"""A price above this is above 1, rounding aside."""

PERIOD_STEPS = 9
"""Halvings, on a logarithmic scale, of what is unknown about the least period."""


@dataclass(frozen=True, eq=False)
class Relaxed:
    """Cheapest ways when devices may be used again."""

    price: float
    way: Way
    to_go: Seconds
    """(K, N): price from the end of a stage of a kind at a node to the outputs."""


def relax(own: Seconds, hop: Seconds, extra: NDArray[np.float64], priced: Priced) -> Relaxed:
    """Cheapest way over segments `own` (K, N, N), each at `extra` (K) more, and links `hop` (K, K, N)."""
    kinds, nodes = own.shape[:2]
    types = priced.arcs.type_of
    to_go = np.full((kinds, nodes), np.inf)
    to_go[types == priced.tail if priced.tail is not None else slice(None), -1] = 0.0
    begin = np.full((kinds, nodes), np.inf)
    for node in range(nodes - 2, -1, -1):
        begin[:, node] = extra + (own[:, node, node + 1 :] + to_go[:, node + 1 :]).min(axis=1)
        if node:
            to_go[:, node] = (hop[:, :, node] + begin[:, node]).min(axis=1)
    starts = begin[:, 0].copy()
    if priced.head is not None:
        starts[types != priced.head] = np.inf
    price = float(starts.min())
    return Relaxed(price, _follow(own, hop, starts, begin, to_go) if price < math.inf else (), to_go)


def _follow(own: Seconds, hop: Seconds, starts: Seconds, begin: Seconds, to_go: Seconds) -> Way:
    stages = []
    kind, node, last = int(starts.argmin()), 0, own.shape[1] - 1
    while True:
        end = node + 1 + int((own[kind, node, node + 1 :] + to_go[kind, node + 1 :]).argmin())
        stages.append((kind, node, end))
        if end == last:
            return tuple(stages)
        kind, node = int((hop[kind, :, end] + begin[:, end]).argmin()), end


@dataclass(frozen=True, eq=False)
class Allowed:
    """What sustains a period: 0 where it does, infinite where it does not."""

    own: Seconds
    hop: Seconds


def allow(arcs: Arcs, period: float) -> Allowed:
    """What sustains `period`; what is not allowed at all sustains no period, not even an infinite one."""
    longest = min(period, LONGEST_SECONDS)
    return Allowed(np.where(arcs.period <= longest, 0.0, np.inf), np.where(arcs.occupied <= longest, 0.0, np.inf))


@dataclass(frozen=True, eq=False)
class Prices:
    """Prices of devices per type, times their number adding up to 1, and the cheapest way at them."""

    of_type: NDArray[np.float64]
    relaxed: Relaxed

    @property
    def impossible(self) -> bool:
        """No plan sustains the period for which the prices were found."""
        return self.relaxed.price > PROVEN


def find_prices(priced: Priced, allowed: Allowed, start: NDArray[np.float64] | None = None) -> Prices:
    """The prices at which the cheapest way is dearest, as far as found, beginning at `start`."""
    arcs = priced.arcs
    counts = np.array(arcs.counts, dtype=np.float64)
    replicas = np.array([kind.replicas for kind in arcs.kinds])
    share = np.full(len(counts), 1 / len(counts)) if start is None else start * counts
    mean_use = np.zeros(len(counts))
    best = Prices(share / counts, Relaxed(-math.inf, (), allowed.own[:, 0]))
    for number in range(PRICE_ROUNDS):
        of_type = share / counts
        relaxed = relax(allowed.own, allowed.hop, replicas * of_type[arcs.type_of], priced)
        if relaxed.price > best.relaxed.price:
            best = Prices(of_type, relaxed)
        if best.impossible:
            break
        used = np.zeros(len(counts))
        for kind, _, _ in relaxed.way:
            used[arcs.kinds[kind].type] += arcs.kinds[kind].replicas
        use = used / counts
        mean_use += use
        if (mean_use <= number + 1).all():
            break  # a mix of ways stays within the fleet, so no prices prove anything
        share = share * np.exp(use / max(1.0, float(use.max())) * 2.0 / math.sqrt(number + 1))
        share = np.maximum(share / share.sum(), 1e-12)
        share /= share.sum()
    return best


@dataclass(frozen=True, eq=False)
class PeriodBound:
    seconds: float
    """No plan has a shorter period; infinite where no plan exists at all."""
    prices: Prices
    """Found at about that period: they tell which devices are worth sparing."""


def bound_period(priced: Priced, known_period: float) -> PeriodBound:
    """The best bound between the slowest necessary arc and `known_period`, that of a plan."""
    proven = least_period(priced.arcs)
    prices = find_prices(priced, allow(priced.arcs, min(proven, known_period)))
    if proven >= known_period:
        return PeriodBound(known_period, prices)
    open_period = known_period
    for _ in range(PERIOD_STEPS):
        middle = math.sqrt(proven * open_period) if proven > 0 else open_period / 2
        tried = find_prices(priced, allow(priced.arcs, middle), prices.of_type)
        prices = tried
        if tried.impossible:
            proven = middle
        else:
            open_period = middle
    return PeriodBound(proven, prices)
