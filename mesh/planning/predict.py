"""Turns stages and costs into what a user will see: the one place where a prediction is made.

The model. Frames flow through the stages in order. A stage is busy with a frame for its computation
and for handling one message in and one out; computing and handling share the device, sending does
not wait. A link carries frames one after the other at its rate, and at most `FRAMES_PER_LINK` are
under way on it, so a far link limits the rate by its latency as well. Replicas of a stage add up
their rates. The slowest stage or link gives the period; throughput is its inverse. Latency is the
sum along the path of a lone frame, from the head's first byte in to the tail's last byte out; the
way from and to the client is not in it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from itertools import pairwise

from mesh.core.costs import Costs
from mesh.core.graph import Graph
from mesh.core.ids import NodeId
from mesh.core.plan import FLOAT, RAW, Plan, Prediction, Segment, Stage
from mesh.planning.space import PLAIN, Space

FRAMES_PER_LINK = 2
"""Frames under way on one link at once: one arriving while one is on its way."""

MIN_WINDOW = 2
"""With one frame in flight the stages take turns, slower than one device; two keep a lone stage busy."""

MAX_WINDOW = 64
"""Bounds the frames that a stream holds in memory. Not reached by up to 20 stages."""


MIN_PERIOD_SECONDS = 1e-9
"""Keeps the throughput of a pipeline that costs nothing at all finite."""


def busy_seconds(graph: Graph, stages: Sequence[Stage], index: int, costs: Costs, space: Space = PLAIN) -> float:
    """Seconds between two frames that stage `index` can sustain, each of its replicas as often as it is free."""
    passes = pass_seconds(graph, stages, index, costs, space)
    if min(passes) == max(passes) or min(passes) == 0:
        return min(passes) / len(passes)
    return 1.0 / sum(1.0 / seconds for seconds in passes)


def link_seconds(latency: float, transfer: float) -> float:
    """Seconds between two frames on a link, given its latency and the whole time of one transfer."""
    return max(transfer - latency, transfer / FRAMES_PER_LINK)


def period_seconds(graph: Graph, stages: Sequence[Stage], costs: Costs, space: Space = PLAIN) -> float:
    """Seconds between two answers in steady state."""
    period = max(MIN_PERIOD_SECONDS, *(busy_seconds(graph, stages, i, costs, space) for i in range(len(stages))))
    for before, after in pairwise(stages):
        nbytes = space.wire_bytes(before.codec, graph.cut_at[after.segment.start])
        shares = len(before.devices) * len(after.devices)
        for source in before.devices:
            period = max(period, nbytes / space.nic(source).up / len(before.devices))
            for target in after.devices:
                if source != target:
                    transfer = _transfer_seconds(costs, space, source, target, nbytes)
                    latency = costs.link(source, target).latency_seconds
                    period = max(period, link_seconds(latency, transfer) / shares)
        for target in after.devices:
            period = max(period, nbytes / space.nic(target).down / len(after.devices))
    return period


def latency_seconds(graph: Graph, stages: Sequence[Stage], costs: Costs, space: Space = PLAIN) -> float:
    """Seconds of a lone frame from entering the head to leaving the tail; the slowest way through replicas."""
    total = max(pass_seconds(graph, stages, 0, costs, space))
    for index, (before, after) in enumerate(pairwise(stages), start=1):
        nbytes = space.wire_bytes(before.codec, graph.cut_at[after.segment.start])
        slowest = max(
            _transfer_seconds(costs, space, source, target, nbytes)
            for source in before.devices
            for target in after.devices
        )
        total = (total + slowest) + max(pass_seconds(graph, stages, index, costs, space))
    return total


def energy_joules(graph: Graph, stages: Sequence[Stage], costs: Costs, space: Space) -> float:
    """Joules per frame at full rate: every device of the plan is on, busy for its share of the frames.

    Raises `KeyError` for a device whose power is not in `space`.
    """
    period = period_seconds(graph, stages, costs, space)
    total = 0.0
    for index, stage in enumerate(stages):
        busy = busy_seconds(graph, stages, index, costs, space)  # per frame of the stream, for each of its replicas
        for device in stage.devices:
            watts = space.watts[device]
            total += (watts.busy - watts.idle) * busy + watts.idle * period
    return total


def predict(graph: Graph, stages: Sequence[Stage], costs: Costs, space: Space = PLAIN) -> Prediction:
    """Throughput in frames per second and latency in seconds of `stages` as they stand."""
    return Prediction(
        throughput_per_s=1.0 / period_seconds(graph, stages, costs, space),
        latency_s=latency_seconds(graph, stages, costs, space),
    )


def window_for(graph: Graph, stages: Sequence[Stage], costs: Costs, space: Space = PLAIN) -> int:
    """Frames in flight per stream that keep every stage busy: what fits in one latency, and one more.

    The one more covers the way from and to the client. More frames than that only wait.
    """
    in_flight = latency_seconds(graph, stages, costs, space) / period_seconds(graph, stages, costs, space)
    return min(MAX_WINDOW, max(MIN_WINDOW, math.ceil(in_flight * (1 - 1e-9)) + 1))


def with_costs(plan: Plan, graph: Graph, costs: Costs, space: Space = PLAIN) -> Plan:
    """`plan` with computing times, prediction and window taken from `costs`; segments and devices stay.

    For plans that came from a file and for new measurements of a plan in force. The bound is raised
    where the new prediction exceeds it; an explanation, which is about the old figures, is dropped.
    """
    stages = tuple(
        make_stage(stage.segment, stage.devices, costs, stage.variant, stage.codec, space) for stage in plan.stages
    )
    predicted = predict(graph, stages, costs, space)
    return dataclasses.replace(
        plan,
        stages=stages,
        predicted=predicted,
        bound_throughput_per_s=max(plan.bound_throughput_per_s, predicted.throughput_per_s),
        window=window_for(graph, stages, costs, space),
        explanation=None,
    )


def make_stage(
    segment: Segment,
    devices: tuple[NodeId, ...],
    costs: Costs,
    variant: str = FLOAT,
    codec: str = RAW,
    space: Space = PLAIN,
) -> Stage:
    """A stage with the computing time of the slowest of `devices`, measured only if it was on all of them."""
    known = _known_variant(variant, space)
    seconds = [space.compute_seconds(costs, device, known, segment.start, segment.end) for device in devices]
    measured = [costs.compute(device, segment.start, segment.end).measured for device in devices]
    return Stage(
        segment=segment,
        devices=devices,
        compute_seconds=max(seconds),
        measured=all(measured) and known == FLOAT,
        variant=variant,
        codec=codec,
    )


def pass_seconds(graph: Graph, stages: Sequence[Stage], index: int, costs: Costs, space: Space) -> tuple[float, ...]:
    """Seconds that each device of stage `index` spends on a frame that it gets; the client's ends are raw."""
    stage = stages[index]
    start, end = stage.segment.start, stage.segment.end
    entry, leave = graph.cut_at[start], graph.cut_at[end]
    received = stages[index - 1].codec if index else RAW
    sent = stage.codec if index + 1 < len(stages) else RAW
    variant = _known_variant(stage.variant, space)
    return tuple(
        space.compute_seconds(costs, device, variant, start, end)
        + (
            space.handling_seconds(costs, device, received, entry, sent=False)
            + space.handling_seconds(costs, device, sent, leave, sent=True)
        )
        for device in stage.devices
    )


def _known_variant(variant: str, space: Space) -> str:
    """A variant that `space` does not know, as one named in a file, is taken to be as fast as the model."""
    return variant if variant in space.variant_at else FLOAT


def _transfer_seconds(costs: Costs, space: Space, source: NodeId, target: NodeId, nbytes: int) -> float:
    if source == target:
        return 0.0
    rate = space.link_bytes_per_second(costs, source, target)
    return costs.link(source, target).latency_seconds + nbytes / rate
