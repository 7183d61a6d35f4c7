"""Another plan for what already runs: nearly as good as the best, with as few bytes moved as possible.

Pure. What runs was planned under other figures, or lost a device and goes on with what was loaded. `improve` asks the
planner for the best plan of today's problem and then, among all plans whose period is within a slack of it, finds the
one that moves the fewest weights onto devices that do not hold them. At a given period what moves is a sum over the
stages, so the planner's own search finds the least (`mesh.planning.search`); devices count as equal only where they
hold the same. For objectives other than throughput, whose price is a sum already, only the running plan's devices and
the best plan are weighed.

`period_in_force` prices what really runs: after a repair one device may have several stages, which share it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace

import numpy as np

from mesh.core.graph import Graph
from mesh.core.ids import NodeId
from mesh.core.plan import Objective, Plan, Stage
from mesh.planning.answer import make_plan, thin_cuts
from mesh.planning.arcs import Seconds, price_arcs
from mesh.planning.coding import spare_codecs
from mesh.planning.device_types import DeviceTypes, group_devices
from mesh.planning.exact import MAX_LIMITED_STEPS, MAX_TABLE_ENTRIES
from mesh.planning.exact import plan as solve
from mesh.planning.predict import make_stage, pass_seconds, period_seconds, predict
from mesh.planning.problem import Infeasible, Problem
from mesh.planning.search import Question, search
from mesh.planning.searched import TIE, Priced

Holdings = Mapping[NodeId, AbstractSet[str]]
"""Names of the weights that a device holds, in memory or on its disk; a device that is absent holds none."""

SLACK = 0.10
"""How much slower than the best an improved plan may be to move less: a tenth is within what one measurement of a
device varies, and saves more than half of the bytes after a loss."""

TIE_BYTES = 1e-3
"""What a whole period of latency counts in moved bytes: only between plans that move equally much."""


@dataclass(frozen=True, slots=True)
class Improved:
    """A plan to move to."""

    plan: Plan
    moved_bytes: int
    """Weights that devices of `plan` do not hold yet."""
    optimum: Plan
    """The best plan without regard to what moves."""


def improve(problem: Problem, current: Sequence[Stage], holdings: Holdings, slack: float = SLACK) -> Improved | None:
    """The plan within `slack` of the best that moves the fewest bytes; None where no plan exists.

    `current` is what runs, on any devices; where it is itself within the slack and on usable devices, it is the answer.
    """
    optimum = solve(problem)
    if isinstance(optimum, Plan):
        optimum = spare_codecs(optimum, problem)
    if isinstance(optimum, Infeasible):
        return None
    moved = moved_bytes(problem.graph, optimum.stages, holdings)
    best = Improved(optimum, moved, optimum)
    kept = _kept(problem, current, optimum, slack)
    if kept is not None:
        best = Improved(kept, moved_bytes(problem.graph, kept.stages, holdings), optimum)
    if best.moved_bytes and problem.objective is Objective.THROUGHPUT:
        stages = _least_moved(problem, optimum, holdings, slack)
        if stages is not None and moved_bytes(problem.graph, stages, holdings) < best.moved_bytes:
            bound = optimum.bound_throughput_per_s
            text = f"fewest bytes moved within {slack:.0%} of the best; {optimum.certificate}"
            found = make_plan(problem, stages, text, bound)
            best = Improved(found, moved_bytes(problem.graph, stages, holdings), optimum)
    return best


def moved_bytes(graph: Graph, stages: Sequence[Stage], holdings: Holdings) -> int:
    """Bytes of weights that the devices of `stages` would have to be sent."""
    total = 0
    for stage in stages:
        needed = {name for group in graph.groups[stage.segment.start : stage.segment.end] for name in group.weights}
        for device in stage.devices:
            total += sum(graph.weight_bytes[name] for name in needed - holdings.get(device, frozenset()))
    return total


def period_in_force(problem: Problem, stages: Sequence[Stage]) -> float:
    """Seconds between two answers of `stages` as they run; infinite where a device of theirs is not usable.

    Unlike in a plan, one device may have several stages: it then spends time on each.
    """
    usable = set(problem.usable_devices)
    if any(device not in usable for stage in stages for device in stage.devices):
        return math.inf
    graph, costs, space = problem.graph, problem.costs, problem.space
    spent: dict[NodeId, float] = {}
    for index, stage in enumerate(stages):
        passes = pass_seconds(graph, stages, index, costs, space)
        rates = sum(1.0 / seconds for seconds in passes if seconds > 0)
        for device, seconds in zip(stage.devices, passes, strict=True):
            share = 1.0 / (seconds * rates) if seconds > 0 else 0.0
            spent[device] = spent.get(device, 0.0) + seconds * share
    return max(period_seconds(graph, stages, costs, space), *spent.values())


def price(problem: Problem, stages: Sequence[Stage]) -> float:
    """What the problem's objective minimises, in seconds, of stages as they run; memory and energy count as period."""
    period = period_in_force(problem, stages)
    if problem.objective is Objective.LATENCY and period < math.inf:
        return predict(problem.graph, stages, problem.costs, problem.space).latency_s
    return period


def _kept(problem: Problem, current: Sequence[Stage], optimum: Plan, slack: float) -> Plan | None:
    """What runs, as a plan of this problem, where it is good enough and no device has two stages."""
    devices = [device for stage in current for device in stage.devices]
    if not devices or len(set(devices)) < len(devices) or not set(devices) <= set(problem.usable_devices):
        return None
    if problem.head not in (None, devices[0]) or problem.tail not in (None, devices[-1]):
        return None
    if any(not _is_cut(problem.graph, stage) for stage in current):
        return None
    costs, space = problem.costs, problem.space
    stages = tuple(make_stage(s.segment, s.devices, costs, s.variant, s.codec, space) for s in current)
    if price(problem, stages) > price(problem, optimum.stages) * (1 + slack):
        return None
    return replace(
        make_plan(problem, stages, f"as it runs, within {slack:.0%} of the best; {optimum.certificate}"),
        bound_throughput_per_s=max(
            optimum.bound_throughput_per_s, predict(problem.graph, stages, costs, space).throughput_per_s
        ),
    )


def _is_cut(graph: Graph, stage: Stage) -> bool:
    return stage.segment.start in graph.cut_at and stage.segment.end in graph.cut_at


def _least_moved(problem: Problem, optimum: Plan, holdings: Holdings, slack: float) -> tuple[Stage, ...] | None:
    """The stages within the slack that move least; None where the search for them is not affordable."""
    limit = price(problem, optimum.stages) * (1 + slack) * (1 + TIE)
    types = _split_by_holdings(group_devices(problem), holdings)
    cuts, _ = thin_cuts(problem, len(types))
    priced = Priced(problem, price_arcs(problem, cuts, types))
    own, between = priced.latency_prices(limit)
    own = own * (TIE_BYTES / limit) + _moved_prices(priced, holdings)
    between = np.where(np.isfinite(between), between * (TIE_BYTES / limit), np.inf)
    question = priced.ask(own, between, np.add)
    if question.table_entries > MAX_TABLE_ENTRIES or question.steps > MAX_LIMITED_STEPS:
        return None
    return _read_best(priced, question)


def _read_best(priced: Priced, question: Question) -> tuple[Stage, ...] | None:
    table = search(question)
    least, state, kind = min((table.best(count, priced.tail) for count in priced.device_counts), key=lambda b: b[0])
    return None if least == math.inf else priced.stages(table.way(state, kind))


def _split_by_holdings(types: DeviceTypes, holdings: Holdings) -> DeviceTypes:
    split: list[tuple[NodeId, ...]] = []
    for members in types:
        by_holding: dict[frozenset[str], list[NodeId]] = {}
        for device in members:
            by_holding.setdefault(frozenset(holdings.get(device, frozenset())), []).append(device)
        split.extend(tuple(devices) for devices in by_holding.values())
    return tuple(split)


def _moved_prices(priced: Priced, holdings: Holdings) -> Seconds:
    """(K, N, N): bytes that a segment on a kind moves, a weight that several of its groups read counted once."""
    arcs, graph = priced.arcs, priced.problem.graph
    positions = [arcs.cuts[index].position for index in arcs.cut_of]
    per_type = np.zeros((len(arcs.types), len(positions), len(positions)))
    for index, (device, *_) in enumerate(arcs.types):
        held = holdings.get(device, frozenset())
        for row, start in enumerate(positions):
            seen = set(held)
            total, reached = 0, start
            for column in range(row + 1, len(positions)):
                for group in graph.groups[reached : positions[column]]:
                    total += sum(graph.weight_bytes[name] for name in set(group.weights) - seen)
                    seen.update(group.weights)
                reached = positions[column]
                per_type[index, row, column] = total
    return np.stack([per_type[kind.type] * kind.replicas for kind in arcs.kinds])
