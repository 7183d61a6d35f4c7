"""The planner for small fleets: the best plan in its space, proven by exhausting that space.

The space: every way to cut the given order of operator groups at usable legal cuts into stages, on
every subset of the devices in every order, one device per stage. A single device is the case of one
stage, so the answer is never predicted slower than the best of them. The search (`mesh.planning.search`)
gives the best price for every set of devices; the number of stages is the smallest that reaches the
best, and among plans of equal period the one of least latency is taken.

Larger questions are cut down first, and the certificate says so: above `MAX_DEVICES` to a selection
of devices, above `MAX_CUTS` to the cheapest cut in every small slice of the work.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from mesh.core.graph import Cut
from mesh.core.ids import NodeId
from mesh.core.plan import Objective, Plan
from mesh.planning.arcs import price_arcs
from mesh.planning.memory import segment_memory_bytes
from mesh.planning.predict import predict, window_for
from mesh.planning.problem import Infeasible, Problem, usable_cuts
from mesh.planning.rejected import list_alternatives
from mesh.planning.search import Way, search
from mesh.planning.searched import Searched

MAX_DEVICES = 8
"""Work doubles with each device; 8 devices and 400 cuts take about a second on one desktop core."""

MAX_FORCED_STAGES = 10
"""More forced stages than that would need gigabytes of tables."""

MAX_CUTS = 400
"""Work grows with the square of the cuts."""

TIE = 1e-9
"""Relative difference below which two plans count as equal, so that rounding never buys a device."""

IDLE_PENALTY = 100.0
"""Periods that a stage without any operation costs in a tie: more than any latency within the period."""


def plan(problem: Problem) -> Plan | Infeasible:
    """The best plan of `problem`, or why there is none.

    With forced stages the plan has exactly that many, or as many as there are legal cuts for, which
    the certificate then says.
    """
    reasons = _obvious_reasons(problem)
    if reasons:
        return Infeasible(reasons)
    cuts, note = _thin(problem)
    for devices in _selections(problem, cuts):
        searched = _search(problem, cuts, devices)
        counts = _stage_counts(problem, cuts, devices)
        count = _choose_count(searched, counts)
        if count is not None:
            return _make_plan(searched, count, note)
    return Infeasible(_memory_reasons(problem, cuts))


def _obvious_reasons(problem: Problem) -> tuple[str, ...]:
    """What rules out any plan before a search."""
    usable = problem.usable_devices
    if problem.objective is Objective.ENERGY:
        return ("objective energy needs the watts of every device, which are not known",)
    if not problem.graph.groups:
        return ("the model has no operators",)
    if not usable:
        return ("no devices to plan for" if not problem.devices else "every device is excluded",)
    if problem.stages is not None and problem.stages > len(usable):
        return (f"{problem.stages} stages need {problem.stages} devices, there are {len(usable)}",)
    if problem.stages is not None and problem.stages > MAX_FORCED_STAGES:
        return (f"{problem.stages} stages are above the {MAX_FORCED_STAGES} that can be forced",)
    for role, pinned in (("head", problem.head), ("tail", problem.tail)):
        if pinned is not None and pinned not in usable:
            return (f"{role}: device {problem.name_of(pinned)} is not among the usable devices",)
    return ()


def _thin(problem: Problem) -> tuple[tuple[Cut, ...], str]:
    """At most `MAX_CUTS` usable cuts and a note: in every slice of work and weights the one of fewest bytes."""
    graph = problem.graph
    cuts = usable_cuts(graph, problem.max_tensors)
    if len(cuts) <= MAX_CUTS:
        return cuts, ""
    flops, weights = max(1, graph.flops), max(1, graph.total_weight_bytes)
    slices: dict[int, Cut] = {}
    done = 0.0
    position = 0
    for cut in cuts[1:-1]:
        for group in graph.groups[position : cut.position]:
            done += group.flops / flops + sum(graph.weight_bytes[name] for name in group.weights) / weights
        position = cut.position
        key = int(done / 2 * (MAX_CUTS - 3))
        held = slices.get(key)
        if held is None or cut.bytes < held.bytes:
            slices[key] = cut
    kept = sorted(slices.values(), key=lambda cut: cut.position)[: MAX_CUTS - 2]
    return (cuts[0], *kept, cuts[-1]), f" (the cheapest of {len(cuts)} in every slice of the work)"


def _selections(problem: Problem, cuts: tuple[Cut, ...]) -> Iterator[tuple[NodeId, ...]]:
    """Devices to search over: all of a small fleet, else the fastest, and then those of most memory."""
    usable, costs = problem.usable_devices, problem.costs
    if len(usable) <= MAX_DEVICES:
        yield usable
        return
    by_speed = sorted(usable, key=lambda device: costs.device(device).whole_model_seconds)
    by_memory = sorted(usable, key=lambda device: -costs.device(device).memory_bytes)
    whole = segment_memory_bytes(problem.graph, 0, len(problem.graph.groups))
    singles = [device for device in by_speed if costs.device(device).memory_bytes >= whole][:1]
    pinned = [device for device in (problem.head, problem.tail) if device is not None]
    most = max(MAX_DEVICES, problem.stages or 0)
    for ranked in (by_speed, by_memory):
        chosen = set(list(dict.fromkeys([*pinned, *singles, *ranked]))[:most])
        yield tuple(device for device in usable if device in chosen)


def _stage_counts(problem: Problem, cuts: tuple[Cut, ...], devices: tuple[NodeId, ...]) -> range:
    """The numbers of stages that may be chosen."""
    possible = min(len(devices), len(cuts) - 1)
    if problem.stages is None:
        return range(1, possible + 1)
    forced = min(problem.stages, possible)
    return range(forced, forced + 1)


def _search(problem: Problem, cuts: tuple[Cut, ...], devices: tuple[NodeId, ...]) -> Searched:
    arcs = price_arcs(problem.graph, problem.costs, devices, cuts)
    most = _stage_counts(problem, cuts, devices).stop - 1
    head = devices.index(problem.head) if problem.head is not None else None
    periods = search(arcs.busy, arcs.occupied, np.maximum, most, head)
    prices = periods
    if problem.objective is Objective.LATENCY:
        prices = search(arcs.busy, arcs.transfer, np.add, most, head)
    return Searched(problem, cuts, arcs, periods, prices)


def _choose_count(searched: Searched, counts: range) -> int | None:
    """The smallest number of stages that reaches the best price (for MEMORY: any price); None if nothing fits."""
    prices = {count: searched.best(searched.prices, count)[0] for count in counts}
    least = min(prices.values())
    if least == math.inf:
        return None
    enough = math.inf if searched.problem.objective is Objective.MEMORY else least * (1 + TIE)
    return next(count for count, price in prices.items() if price <= enough and price < math.inf)


def _make_plan(searched: Searched, count: int, note: str) -> Plan:
    problem, graph, costs = searched.problem, searched.problem.graph, searched.problem.costs
    stages = searched.stages(_best_way(searched, count))
    predicted = predict(graph, stages, costs)
    counts = _stage_counts(problem, searched.cuts, searched.arcs.devices)
    shortest = min(searched.best(searched.periods, number)[0] for number in counts)
    return Plan(
        model_sha256=graph.model_sha256,
        objective=problem.objective,
        forced=problem.stages is not None,
        stages=stages,
        predicted=predicted,
        bound_throughput_per_s=max(predicted.throughput_per_s, 1.0 / shortest if shortest > 0 else 0.0),
        certificate=_certificate(searched, count, note),
        alternatives=list_alternatives(searched, stages, predicted),
        window=window_for(graph, stages, costs),
    )


def _best_way(searched: Searched, count: int) -> Way:
    """The plan of `count` stages: least price, then for periods no idle stage and the least latency."""
    price, used, last = searched.best(searched.prices, count)
    if searched.problem.objective is Objective.LATENCY:
        return searched.prices.way(used, last)
    arcs = searched.arcs
    own = np.where(arcs.busy <= price, arcs.busy + arcs.idle * (IDLE_PENALTY * price), np.inf)
    between = np.where(arcs.occupied <= price, arcs.transfer, np.inf)
    head = searched.problem.head
    table = search(own, between, np.add, count, arcs.devices.index(head) if head is not None else None)
    _, used, last = searched.best(table, count)
    return table.way(used, last)


def _certificate(searched: Searched, count: int, note: str) -> str:
    problem, devices = searched.problem, len(searched.arcs.devices)
    text = f"exact over {len(searched.cuts)} cuts{note} x {devices} devices, order of groups fixed"
    if devices < len(problem.usable_devices):
        text += f"; {devices} of {len(problem.usable_devices)} devices searched"
    if problem.stages is not None:
        text += f"; {problem.stages} stages forced"
        if count < problem.stages:
            text += f", {count} made: no more legal cuts"
    return text


def _memory_reasons(problem: Problem, cuts: tuple[Cut, ...]) -> tuple[str, ...]:
    """Why nothing fits: after a search, memory (with pins and a forced number of stages) is all that can forbid."""
    graph, costs = problem.graph, problem.costs
    memories = {device: costs.device(device).memory_bytes for device in problem.usable_devices}
    largest = max(memories, key=lambda device: memories[device])
    whole = segment_memory_bytes(graph, 0, len(graph.groups))
    positions = [cut.position for cut in cuts]
    need, start, end = max((segment_memory_bytes(graph, start, end), start, end) for start, end in pairwise(positions))
    reasons = []
    if whole > memories[largest]:
        largest_text = f"the largest device {problem.name_of(largest)} has {_megabytes(memories[largest])}"
        reasons.append(f"memory: the whole model needs {_megabytes(whole)}, {largest_text}")
    if need > memories[largest]:
        reasons.append(f"memory: groups {start} to {end - 1} cannot be separated and need {_megabytes(need)}")
    elif whole > memories[largest] or problem.stages is not None:
        shape = "any number of" if problem.stages is None else str(problem.stages)
        total = _megabytes(sum(memories.values()))
        reasons.append(f"no split into {shape} stages fits {len(memories)} devices with {total} in all")
    if problem.head is not None or problem.tail is not None:
        reasons.append("head or tail is pinned to a given device")
    return tuple(reasons)


def _megabytes(nbytes: int) -> str:
    return f"{nbytes / 1e6:.0f} MB"
