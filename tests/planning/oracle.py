"""An independent planner: tries every plan of a small problem, one frame's cost at a time.

Written from the definition of the model, in plain Python, using nothing of the planner but the
named constants. Slow on purpose.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from mesh.core.graph import Graph
from mesh.core.ids import NodeId
from mesh.core.memory import ESTIMATED, MemoryModel
from mesh.planning.memory import FRAMES_HELD, RUNTIME_BYTES, WEIGHT_COPIES
from mesh.planning.predict import FRAMES_PER_LINK
from mesh.planning.problem import Problem

Choice = tuple[tuple[NodeId, int, int], ...]
"""Stages as (device, start, end)."""


@dataclass(frozen=True)
class Judged:
    stages: Choice
    period: float
    latency: float
    idle: int
    """Stages without any operation."""


def every_plan(problem: Problem) -> list[Judged]:
    """All plans that the problem allows, before a number of stages is asked for."""
    graph = problem.graph
    bytes_at = {cut.position: cut.bytes for cut in graph.cuts}
    last = len(graph.groups)
    positions = [
        cut.position
        for cut in graph.cuts
        if cut.position in (0, last) or problem.max_tensors is None or len(cut.tensors) <= problem.max_tensors
    ]
    devices = [device for device in problem.devices if device not in problem.excluded]
    found = []
    for stages in _extend((), positions, devices):
        if problem.head not in (None, stages[0][0]) or problem.tail not in (None, stages[-1][0]):
            continue
        if all(memory(graph, start, end) <= problem.costs.devices[d].memory_bytes for d, start, end in stages):
            found.append(_judge(problem, stages, bytes_at))
    return found


def _extend(stages: Choice, positions: list[int], devices: list[NodeId]) -> Iterator[Choice]:
    at = stages[-1][2] if stages else 0
    if at == positions[-1]:
        yield stages
        return
    for device in devices:
        rest = [other for other in devices if other != device]
        for end in positions:
            if end > at:
                yield from _extend((*stages, (device, at, end)), positions, rest)


def _judge(problem: Problem, stages: Choice, bytes_at: dict[int, int]) -> Judged:
    costs = problem.costs
    period = latency = 0.0
    idle = 0
    for index, (device, start, end) in enumerate(stages):
        known = costs.devices[device]
        busy = known.prefix_seconds[end] - known.prefix_seconds[start]
        handling = known.handling
        sent = handling.byte_seconds if handling.sent_byte_seconds is None else handling.sent_byte_seconds
        busy += 2 * handling.message_seconds + bytes_at[start] * handling.byte_seconds + bytes_at[end] * sent
        idle += all(group.flops == 0 for group in problem.graph.groups[start:end])
        period = max(period, busy)
        latency += busy
        if index:
            link = costs.links[stages[index - 1][0], device]
            moving = bytes_at[start] / link.bytes_per_second
            period = max(period, moving, (link.latency_seconds + moving) / FRAMES_PER_LINK)
            latency += link.latency_seconds + moving
    return Judged(stages, period, latency, idle)


def memory(graph: Graph, start: int, end: int, model: MemoryModel = ESTIMATED, weight_bytes_less: int = 0) -> int:
    """`weight_bytes_less`: by so much are the weights of the variant smaller; such a one was not measured."""
    groups = graph.groups[start:end]
    weights = sum(graph.weight_bytes[name] for name in set().union(*(group.weights for group in groups)))
    weights -= weight_bytes_less
    inside = [cut.bytes for cut in graph.cuts if start <= cut.position <= end]
    live = max(inside) + max(group.activation_bytes for group in groups)
    ends = sum(cut.bytes for cut in graph.cuts if cut.position in (start, end))
    growth = math.ceil(model.factor * (WEIGHT_COPIES * weights + live)) + model.constant_bytes
    return RUNTIME_BYTES + growth + FRAMES_HELD * ends


def least_maximum_flops(graph: Graph, positions: list[int], stages: int) -> float:
    """The least largest segment over all splits into exactly `stages` segments; infinite if there is none."""

    def best(at: int, left: int) -> float:
        if left == 1:
            return float(sum(group.flops for group in graph.groups[at:]))
        return min(
            (
                max(float(sum(group.flops for group in graph.groups[at:end])), best(end, left - 1))
                for end in positions
                if at < end < positions[-1]
            ),
            default=math.inf,
        )

    return best(0, stages)
