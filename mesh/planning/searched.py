"""A problem after its search: what the choice of a plan and its explanation are both read from."""

from __future__ import annotations

import math
from dataclasses import dataclass

from mesh.core.graph import Cut
from mesh.core.plan import Stage
from mesh.core.segments import segment_between
from mesh.planning.arcs import Arcs
from mesh.planning.predict import make_stage
from mesh.planning.problem import Problem
from mesh.planning.search import Table, Way


@dataclass(frozen=True, eq=False)
class Searched:
    """Prices of every set of devices, for one selection of devices and cuts."""

    problem: Problem
    cuts: tuple[Cut, ...]
    arcs: Arcs
    periods: Table
    prices: Table
    """In the objective: latencies for LATENCY, else periods."""

    def best(self, table: Table, count: int, without: int | None = None) -> tuple[float, int, int]:
        """Least price over plans of `count` stages, with its device set and last device; infinite if none."""
        found = (math.inf, 0, 0)
        tail = self.problem.tail
        for used in range(1, 1 << len(self.arcs.devices)):
            if used.bit_count() != count or (without is not None and used >> without & 1):
                continue
            for last, device in enumerate(self.arcs.devices):
                if used >> last & 1 and (tail is None or device == tail):
                    found = min(found, (table.price(used, last), used, last))
        return found

    def stages(self, way: Way) -> tuple[Stage, ...]:
        positions, graph = self.arcs.positions, self.problem.graph
        return tuple(
            make_stage(
                segment_between(graph, positions[start], positions[end]),
                (self.arcs.devices[device],),
                self.problem.costs,
            )
            for device, start, end in way
        )
