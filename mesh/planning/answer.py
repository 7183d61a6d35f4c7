"""What all strategies share: refusals that need no search, thinning of cuts, and making a `Plan` of stages."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from mesh.core.graph import Cut
from mesh.core.plan import Alternative, Objective, Plan, Stage
from mesh.planning.memory import segment_memory_bytes
from mesh.planning.predict import energy_joules, predict, window_for
from mesh.planning.problem import Infeasible, Problem, usable_cuts

MAX_CUTS = 400
"""Work grows with the square of the cuts."""

MAX_ARCS = 3_000_000
"""Cuts squared times types of devices: 64 different devices are planned over 216 cuts, in about 10 s on a desktop."""


def obvious_reasons(problem: Problem) -> tuple[str, ...]:
    """What rules out any plan before a search."""
    usable = problem.usable_devices
    if not problem.graph.groups:
        return ("the model has no operators",)
    if not usable:
        return ("no devices to plan for" if not problem.devices else _why_none_is_usable(problem),)
    if problem.objective is Objective.ENERGY:
        unknown = [problem.name_of(device) for device in usable if device not in problem.space.watts]
        if unknown:
            told = f"not known of {', '.join(unknown)} (`mesh node --watts-busy --watts-idle` states them)"
            return (f"objective energy needs the watts of every device, which are {told}",)
    if problem.stages is not None and problem.stages > len(usable):
        return (f"{problem.stages} stages need {problem.stages} devices, there are {len(usable)}",)
    for role, pinned in (("head", problem.head), ("tail", problem.tail)):
        if pinned is not None and pinned not in usable:
            return (f"{role}: device {problem.name_of(pinned)} is not among the usable devices",)
    return ()


def _why_none_is_usable(problem: Problem) -> str:
    if problem.trusted is None:
        return "every device is excluded"
    return "no device is trusted" if not problem.excluded else "no device is both trusted and not excluded"


def thin_cuts(problem: Problem, types: int) -> tuple[tuple[Cut, ...], str]:
    """What is searched of the usable cuts for so many types of devices, and a note.

    Where there are too many, in every slice of work and weights the cut of fewest bytes.
    """
    graph = problem.graph
    cuts = usable_cuts(graph, problem.max_tensors)
    most = min(MAX_CUTS, math.isqrt(MAX_ARCS // types))
    if len(cuts) <= most:
        return cuts, ""
    flops, weights = max(1, graph.flops), max(1, graph.total_weight_bytes)
    slices: dict[int, Cut] = {}
    done = 0.0
    position = 0
    for cut in cuts[1:-1]:
        for group in graph.groups[position : cut.position]:
            done += group.flops / flops + sum(graph.weight_bytes[name] for name in group.weights) / weights
        position = cut.position
        key = int(done / 2 * (most - 3))
        held = slices.get(key)
        if held is None or cut.bytes < held.bytes:
            slices[key] = cut
    kept = sorted(slices.values(), key=lambda cut: cut.position)[: most - 2]
    return (cuts[0], *kept, cuts[-1]), f" (the cheapest of {len(cuts)} in every slice of the work)"


def make_plan(
    problem: Problem,
    stages: Sequence[Stage],
    certificate: str,
    bound_throughput_per_s: float = 0.0,
    alternatives: tuple[Alternative, ...] = (),
) -> Plan:
    """A plan of `stages` with its prediction; the bound is at least what is predicted."""
    graph, costs, space = problem.graph, problem.costs, problem.space
    predicted = predict(graph, stages, costs, space)
    if problem.objective is Objective.ENERGY:
        certificate += f"; {energy_joules(graph, stages, costs, space):.3g} J per frame"
    return Plan(
        model_sha256=graph.model_sha256,
        objective=problem.objective,
        forced=problem.stages is not None,
        stages=tuple(stages),
        predicted=predicted,
        bound_throughput_per_s=max(predicted.throughput_per_s, bound_throughput_per_s),
        certificate=certificate,
        alternatives=alternatives,
        window=window_for(graph, stages, costs, space),
        limits=problem.limits,
        variant=problem.variant,
    )


def why_nothing_fits(problem: Problem, cuts: Sequence[Cut]) -> Infeasible:
    """After a search, memory (with pins and a forced number of stages) is all that can forbid every plan."""
    graph, costs = problem.graph, problem.costs
    memories = {device: costs.device(device).memory_bytes for device in problem.usable_devices}
    largest = max(memories, key=lambda device: memories[device])
    memory = costs.device(largest).memory
    whole = segment_memory_bytes(graph, 0, len(graph.groups), memory)
    ends = list(pairwise(cut.position for cut in cuts))
    need, start, end = max((segment_memory_bytes(graph, start, end, memory), start, end) for start, end in ends)
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
    return Infeasible(tuple(reasons) or ("no split fits the memory of the devices in its way",))


def _megabytes(nbytes: int) -> str:
    return f"{nbytes / 1e6:.0f} MB"
