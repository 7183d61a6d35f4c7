"""Which deployment's item a node computes next: start-time fair queueing over measured seconds, pure.

Several deployments share the cores of a node. A slot is the right to one run; there are as many as the
cores allow. Each flow (a deployment) has a virtual time that its runs move on by the seconds which they
took; a free slot goes to the waiting flow that is furthest behind. So two flows that always want to run
get equal time, whatever one of their items costs, and one that was idle gets no credit for that.

What a run costs is known after it; until then the flow is charged with the mean of its last ones.
Source: Goyal, Vin, Cheng, "Start-time Fair Queueing", IEEE/ACM Transactions on Networking 5(5), 1997.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

ESTIMATE_WEIGHT = 0.25
"""Of the newest run in the mean: costs of one model vary little, and an estimate is corrected after the run."""


@dataclass(slots=True)
class Grant:
    """A slot lent to one run of `flow`."""

    flow: str
    start: float
    """Virtual seconds."""
    charged: float
    holds_slot: bool = True
    is_settled: bool = False


@dataclass(slots=True)
class Flow:
    finish: float = 0.0
    """Virtual time at which its runs so far end."""
    estimate: float = 0.0
    """Seconds that a run is expected to take; 0 before the first."""


class FairShare:
    """Mutable; owned by the engine pool, which calls it under its lock."""

    def __init__(self, slots: int) -> None:
        self._free_slots = slots
        self._virtual = 0.0
        self._flows: dict[str, Flow] = {}

    @property
    def free_slots(self) -> int:
        return self._free_slots

    def grant(self, waiting: Iterable[str]) -> Grant | None:
        """A slot for one of the flows that wait, the earlier one where two are equal; None without slot or flow."""
        if self._free_slots <= 0:
            return None
        start, name = math.inf, ""
        for flow in waiting:
            if (begins := max(self._virtual, self._flow(flow).finish)) < start:
                start, name = begins, flow
        if start == math.inf:
            return None
        self._virtual = start
        return self._lend(name, start)

    def take(self, flow: str) -> Grant:
        """For a run that has begun without being asked: nobody else gets a slot before one is free again."""
        return self._lend(flow, max(self._virtual, self._flow(flow).finish))

    def _lend(self, name: str, start: float) -> Grant:
        flow = self._flow(name)
        self._free_slots -= 1
        flow.finish = start + flow.estimate
        return Grant(name, start, flow.estimate)

    def free_slot(self, grant: Grant) -> None:
        """Give the slot back, before or at the end of its run; harmless when repeated."""
        if grant.holds_slot:
            grant.holds_slot = False
            self._free_slots += 1

    def settle(self, grant: Grant, seconds: float) -> None:
        """The run took `seconds` of compute time; gives its slot back as well."""
        self.free_slot(grant)
        if grant.is_settled:
            return
        grant.is_settled = True
        flow = self._flow(grant.flow)
        flow.finish += seconds - grant.charged
        weight = ESTIMATE_WEIGHT if flow.estimate else 1.0
        flow.estimate += weight * (seconds - flow.estimate)

    def forget(self, flow: str) -> None:
        """Nobody uses this flow any more."""
        self._flows.pop(flow, None)

    def _flow(self, name: str) -> Flow:
        return self._flows.setdefault(name, Flow())
