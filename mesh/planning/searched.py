"""A priced problem and what a search found in it: what the choice of a plan and its explanation are read from."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mesh.core.ids import NodeId
from mesh.core.plan import Objective, Stage
from mesh.core.segments import segment_between
from mesh.planning.arcs import Arcs, Seconds
from mesh.planning.predict import make_stage
from mesh.planning.problem import Problem
from mesh.planning.search import Combine, Question, Table, Way, search

TIE = 1e-9
"""Relative difference below which two plans count as equal, so that rounding never buys a device."""

IDLE_PENALTY = 100.0
"""Periods that a stage without any operation costs in a tie: more than any latency within the period."""


@dataclass(frozen=True, eq=False)
class Priced:
    """A problem and its arcs."""

    problem: Problem
    arcs: Arcs

    @property
    def head(self) -> int | None:
        return self.arcs.type_index(self.problem.head)

    @property
    def tail(self) -> int | None:
        return self.arcs.type_index(self.problem.tail)

    @property
    def device_counts(self) -> range:
        """The numbers of devices that a plan may have."""
        devices = sum(self.arcs.counts)
        stages = len(self.arcs.cuts) - 1
        if self.problem.stages is not None:
            forced = min(self.problem.stages, stages, devices)
            return range(forced, forced + 1)
        replicas = max(kind.replicas for kind in self.arcs.kinds)
        return range(1, min(devices, stages * replicas) + 1)

    def ask(self, own: Seconds, between: Seconds, combine: Combine) -> Question:
        arcs = self.arcs
        return Question(arcs.counts, arcs.kinds, own, between, combine, self.device_counts.stop - 1, self.head)

    def latency_prices(self, period: float, penalty: float = 0.0) -> tuple[Seconds, Seconds]:
        """Prices whose sum is a latency, of what sustains `period`; `penalty` seconds for every idle stage."""
        arcs = self.arcs
        own = np.where(arcs.period <= period, (arcs.busy + arcs.idle * penalty)[arcs.type_of], np.inf)
        return own, np.where(arcs.occupied <= period, arcs.transfer, np.inf)

    def period_of(self, way: Way) -> float:
        """The largest price along `way`."""
        prices = [float(self.arcs.period[stage]) for stage in way]
        for (source, _, node), (target, _, _) in itertools.pairwise(way):
            prices.append(float(self.arcs.occupied[source, target, node]))
        return max(prices)

    def stages(self, way: Way) -> tuple[Stage, ...]:
        """The stages of `way` on devices by name: of equal ones the first that are free."""
        free = [list(members) for members in self.arcs.types]
        return tuple(self._stage(step, free) for step in way)

    def _stage(self, step: tuple[int, int, int], free: Sequence[list[NodeId]]) -> Stage:
        arcs, problem = self.arcs, self.problem
        kind, start, end = arcs.kinds[step[0]], arcs.cut_of[step[1]], arcs.cut_of[step[2]]
        devices = tuple(free[kind.type][: kind.replicas])
        del free[kind.type][: kind.replicas]
        return make_stage(
            segment_between(problem.graph, arcs.cuts[start].position, arcs.cuts[end].position),
            devices,
            problem.costs,
            arcs.variants[arcs.variant[kind.type, start, end]],
            arcs.codec_of[step[2]],
            problem.space,
        )


@dataclass(frozen=True, eq=False)
class Searched:
    """Tables of one priced problem."""

    priced: Priced
    periods: Table
    prices: Table
    """In the objective: latencies for LATENCY, else periods."""

    def best(
        self, table: Table, count: int, without: int | None = None, at_least: tuple[int, int] | None = None
    ) -> tuple[float, int, int]:
        return table.best(count, self.priced.tail, without, at_least)

    def best_way(self, count: int) -> Way:
        """The plan on `count` devices: least price, then for periods no idle stage and the least latency."""
        price, state, kind = self.best(self.prices, count)
        if self.priced.problem.objective is Objective.LATENCY:
            return self.prices.way(state, kind)
        own, between = self.priced.latency_prices(price, IDLE_PENALTY * price)
        question = self.priced.ask(own, between, np.add)
        table = search(limit_devices(question, count))
        _, state, kind = self.best(table, count)
        return table.way(state, kind)


def limit_devices(question: Question, most: int) -> Question:
    return Question(
        question.counts, question.kinds, question.own, question.between, question.combine, most, question.head
    )


def search_all(priced: Priced, limit: float) -> Searched:
    """Tables for the problem's objective; plans of a price above `limit` may be missing from them."""
    arcs = priced.arcs
    periods = search(period_question(priced, limit if priced.problem.objective is not Objective.LATENCY else np.inf))
    if priced.problem.objective is not Objective.LATENCY:
        return Searched(priced, periods, periods)
    own, between = arcs.busy[arcs.type_of], arcs.transfer
    own = np.where(np.isfinite(arcs.period) & (own <= limit), own, np.inf)
    return Searched(priced, periods, search(priced.ask(own, between, np.add)))


def period_question(priced: Priced, limit: float) -> Question:
    arcs = priced.arcs
    own = arcs.period if limit == np.inf else np.where(arcs.period <= limit, arcs.period, np.inf)
    between = arcs.occupied if limit == np.inf else np.where(arcs.occupied <= limit, arcs.occupied, np.inf)
    return priced.ask(own, between, np.maximum)
