"""Checks a plan against its model, independent of how the plan was made.

Every plan that the planner makes passes; a plan from a file is shown what is wrong with it. Nothing
of the search is used here, so that an error in one is caught by the other.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from itertools import pairwise

from mesh.core.graph import Graph
from mesh.core.ids import NodeId
from mesh.core.memory import ESTIMATED, MemoryModel
from mesh.core.plan import FLOAT, RAW, Plan, Segment
from mesh.planning.memory import of_variant, segment_memory_bytes
from mesh.planning.problem import Problem
from mesh.planning.space import PLAIN, Space


def problems(
    plan: Plan,
    graph: Graph,
    devices: Collection[NodeId] | None = None,
    memory_bytes: Mapping[NodeId, int] | None = None,
    space: Space = PLAIN,
    memory: Mapping[NodeId, MemoryModel] | None = None,
) -> tuple[str, ...]:
    """What is wrong with `plan` for `graph`, in words; empty if nothing is.

    `devices` are those that exist (None: not checked), `memory_bytes` what they have (None: not checked),
    `memory` what segments take there, as far as it was measured (None: estimated from shapes and weights everywhere).
    """
    if plan.model_sha256 != graph.model_sha256:
        return (f"model_sha256: the plan is for {plan.model_sha256[:12]}, the model is {graph.model_sha256[:12]}",)
    if not plan.stages:
        return ("stages: the plan has none",)
    return (
        *_cover(plan, graph),
        *_segments(plan, graph),
        *_devices(plan, graph, devices, memory_bytes, space, memory or {}),
        *_figures(plan),
    )


def contradictions(plan: Plan, problem: Problem) -> tuple[str, ...]:
    """What in `plan` goes against the limits of `problem` beyond its graph and memory, in words."""
    return (*_limits(plan, problem), *_options(plan, problem.space))


def _limits(plan: Plan, problem: Problem) -> Iterator[str]:
    for device in plan.devices:
        if device in problem.excluded:
            yield f"{problem.name_of(device)} is excluded"
        if problem.trusted is not None and device not in problem.trusted:
            yield f"{problem.name_of(device)} is not trusted"
    for role, pinned, stage in (("head", problem.head, plan.stages[0]), ("tail", problem.tail, plan.stages[-1])):
        if pinned is not None and stage.devices != (pinned,):
            yield f"the {role} is pinned to {problem.name_of(pinned)}, the plan has it elsewhere"
    if problem.stages is not None and len(plan.stages) > problem.stages:
        yield f"{problem.stages} stages are forced, the plan has {len(plan.stages)}"


def _options(plan: Plan, space: Space) -> Iterator[str]:
    for index, stage in enumerate(plan.stages):
        segment = stage.segment
        if len(stage.devices) > space.max_replicas:
            yield f"stages[{index}] has {len(stage.devices)} replicas, {space.max_replicas} are allowed"
        if stage.variant != FLOAT:
            variant = space.variant_at.get(stage.variant)
            if variant is None or any(device not in variant.prefix_seconds for device in stage.devices):
                yield f"stages[{index}].variant is {stage.variant!r}, which not all of its devices run"
            elif variant.cuts is not None and not {segment.start, segment.end} <= variant.cuts:
                yield f"stages[{index}].variant {stage.variant!r} has no cut at {segment.start} or {segment.end}"
    yield from codec_problems(plan, space)


def codec_problems(plan: Plan, space: Space) -> tuple[str, ...]:
    """What is wrong with the codecs of `plan`, in words."""
    return tuple(_codecs(plan, space))


def _codecs(plan: Plan, space: Space) -> Iterator[str]:
    for index, stage in enumerate(plan.stages):
        if stage.codec != RAW:
            codec = space.codec_at.get(stage.codec)
            ends = plan.stages[index : index + 2]
            if len(ends) == 1:
                yield f"stages[{index}].codec is {stage.codec!r}, clients speak only {RAW!r}"
            elif codec is None or any(device not in codec.byte_seconds for end in ends for device in end.devices):
                yield f"stages[{index}].codec is {stage.codec!r}, which not all devices at its ends speak"
            elif not codec.may_cross(stage.segment.end):
                yield f"stages[{index}].codec is {stage.codec!r}, which may not be used at {stage.segment.end}"


def _cover(plan: Plan, graph: Graph) -> Iterator[str]:
    first, last = plan.stages[0].segment, plan.stages[-1].segment
    if first.start != 0:
        yield f"stages[0].start is {first.start}, the model begins at 0"
    if last.end != len(graph.groups):
        yield f"stages[{len(plan.stages) - 1}].end is {last.end}, the model ends at {len(graph.groups)}"
    for index, (before, after) in enumerate(pairwise(plan.stages), start=1):
        if before.segment.end != after.segment.start:
            yield f"stages[{index}].start is {after.segment.start}, the stage before it ends at {before.segment.end}"


def _segments(plan: Plan, graph: Graph) -> Iterator[str]:
    for index, stage in enumerate(plan.stages):
        segment = stage.segment
        illegal = [position for position in (segment.start, segment.end) if position not in graph.cut_at]
        for position in illegal:
            yield f"stages[{index}]: position {position} is not a legal cut of the model"
        if segment.end <= segment.start:
            yield f"stages[{index}] holds no operator group: [{segment.start}, {segment.end})"
        elif not illegal:
            yield from _names(index, segment, graph)


def _names(index: int, segment: Segment, graph: Graph) -> Iterator[str]:
    """Tensor names and sums of one segment with legal ends, worked out from the groups one by one."""
    made: set[str] = set()
    read: set[str] = set()
    for group in graph.groups[segment.start : segment.end]:
        read.update(group.reads)
        made.update(group.makes)
    entry, leave = graph.cut_at[segment.start].tensors, graph.cut_at[segment.end].tensors
    wanted = {
        "consumes": tuple(name for name in entry if name in read),
        "produces": tuple(name for name in leave if name in made),
        "relays": tuple(name for name in leave if name not in made),
    }
    for field, names in wanted.items():
        if getattr(segment, field) != names:
            yield f"stages[{index}].{field} is {list(getattr(segment, field))}, the model says {list(names)}"
    for name in segment.relays:
        if name not in entry:
            yield f"stages[{index}].relays: {name!r} does not enter the stage"
    for field, value in (
        ("weight_bytes", graph.segment_weight_bytes(segment.start, segment.end)),
        ("flops", graph.segment_flops(segment.start, segment.end)),
    ):
        if getattr(segment, field) != value:
            yield f"stages[{index}].{field} is {getattr(segment, field)}, the model says {value}"


def _devices(
    plan: Plan,
    graph: Graph,
    devices: Collection[NodeId] | None,
    memory_bytes: Mapping[NodeId, int] | None,
    space: Space,
    memory: Mapping[NodeId, MemoryModel],
) -> Iterator[str]:
    seen: set[NodeId] = set()
    for index, stage in enumerate(plan.stages):
        if not stage.devices:
            yield f"stages[{index}].devices is empty"
        segment = stage.segment
        known = segment.start in graph.cut_at and segment.end in graph.cut_at and segment.start < segment.end
        weighed = space.graph_of(graph, stage.variant)
        for device in stage.devices:
            if device in seen:
                yield f"stages[{index}].devices: {device} is used twice"
            seen.add(device)
            if devices is not None and device not in devices:
                yield f"stages[{index}].devices: {device} is not a known device"
            have = None if memory_bytes is None else memory_bytes.get(device)
            if have is None or not known:
                continue
            taken = of_variant(memory.get(device, ESTIMATED), stage.variant)
            need = segment_memory_bytes(weighed, segment.start, segment.end, taken)
            if need > have:
                yield f"stages[{index}].devices: {device} has {have} bytes of memory, the stage needs {need}"


def _figures(plan: Plan) -> Iterator[str]:
    figures = {
        "predicted.throughput_per_s": plan.predicted.throughput_per_s,
        "predicted.latency_s": plan.predicted.latency_s,
        "bound.throughput_per_s": plan.bound_throughput_per_s,
        **{f"stages[{index}].compute_seconds": stage.compute_seconds for index, stage in enumerate(plan.stages)},
    }
    for name, value in figures.items():
        if not math.isfinite(value) or value < 0:
            yield f"{name} is {value}; it must be a finite number of 0 or more"
    if plan.predicted.throughput_per_s > plan.bound_throughput_per_s:
        yield "predicted.throughput_per_s is above bound.throughput_per_s"
    if plan.window < 1:
        yield f"window is {plan.window}; it must be at least 1"
