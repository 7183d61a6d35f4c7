"""Turns stages and costs into what a user will see: the one place where a prediction is made.

The model. Frames flow through the stages in order. A stage is busy with a frame for its computation
and for handling one message in and one out; computing and handling share the device, sending does
not wait. A link carries frames one after the other at its rate, and at most `FRAMES_PER_LINK` are
under way on it, so a far link limits the rate by its latency as well. The slowest stage or link
gives the period; throughput is its inverse. Latency is the sum along the path of a lone frame, from
the head's first byte in to the tail's last byte out; the way from and to the client is not in it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from itertools import pairwise

from mesh.core.costs import Costs
from mesh.core.graph import Graph
from mesh.core.ids import NodeId
from mesh.core.plan import Plan, Prediction, Segment, Stage

FRAMES_PER_LINK = 2
"""Frames under way on one link at once: one arriving while one is on its way."""

MIN_WINDOW = 2
"""With one frame in flight the stages take turns, slower than one device; two keep a lone stage busy."""

MAX_WINDOW = 64
"""Bounds the frames that a stream holds in memory. Not reached by up to 20 stages."""


MIN_PERIOD_SECONDS = 1e-9
"""Keeps the throughput of a pipeline that costs nothing at all finite."""


def busy_seconds(graph: Graph, stage: Stage, costs: Costs) -> float:
    """Seconds between two frames that `stage` can sustain, its replicas taking turns."""
    return _pass_seconds(graph, stage, costs) / len(stage.devices)


def link_seconds(latency: float, transfer: float) -> float:
    """Seconds between two frames on a link, given its latency and the whole time of one transfer."""
    return max(transfer - latency, transfer / FRAMES_PER_LINK)


def period_seconds(graph: Graph, stages: Sequence[Stage], costs: Costs) -> float:
    """Seconds between two answers in steady state."""
    period = max(MIN_PERIOD_SECONDS, *(busy_seconds(graph, stage, costs) for stage in stages))
    for before, after in pairwise(stages):
        nbytes = graph.cut_at[after.segment.start].bytes
        shares = len(before.devices) * len(after.devices)
        for source in before.devices:
            for target in after.devices:
                if source != target:
                    transfer = costs.transfer(source, target, nbytes).seconds
                    latency = costs.link(source, target).latency_seconds
                    period = max(period, link_seconds(latency, transfer) / shares)
    return period


def latency_seconds(graph: Graph, stages: Sequence[Stage], costs: Costs) -> float:
    """Seconds of a lone frame from entering the head to leaving the tail; the slowest way through replicas."""
    total = _pass_seconds(graph, stages[0], costs)
    for before, after in pairwise(stages):
        nbytes = graph.cut_at[after.segment.start].bytes
        slowest = max(
            costs.transfer(source, target, nbytes).seconds for source in before.devices for target in after.devices
        )
        total = (total + slowest) + _pass_seconds(graph, after, costs)
    return total


def predict(graph: Graph, stages: Sequence[Stage], costs: Costs) -> Prediction:
    """Throughput in frames per second and latency in seconds of `stages` as they stand."""
    return Prediction(
        throughput_per_s=1.0 / period_seconds(graph, stages, costs),
        latency_s=latency_seconds(graph, stages, costs),
    )


def window_for(graph: Graph, stages: Sequence[Stage], costs: Costs) -> int:
    """Frames in flight per stream that keep every stage busy: what fits in one latency, and one more.

    The one more covers the way from and to the client. More frames than that only wait.
    """
    in_flight = latency_seconds(graph, stages, costs) / period_seconds(graph, stages, costs)
    return min(MAX_WINDOW, max(MIN_WINDOW, math.ceil(in_flight * (1 - 1e-9)) + 1))


def with_costs(plan: Plan, graph: Graph, costs: Costs) -> Plan:
    """`plan` with computing times, prediction and window taken from `costs`; segments and devices stay.

    For plans that came from a file and for new measurements of a plan in force. The bound is raised
    where the new prediction exceeds it.
    """
    stages = tuple(make_stage(stage.segment, stage.devices, costs, stage.variant) for stage in plan.stages)
    predicted = predict(graph, stages, costs)
    return dataclasses.replace(
        plan,
        stages=stages,
        predicted=predicted,
        bound_throughput_per_s=max(plan.bound_throughput_per_s, predicted.throughput_per_s),
        window=window_for(graph, stages, costs),
    )


def make_stage(segment: Segment, devices: tuple[NodeId, ...], costs: Costs, variant: str = "float") -> Stage:
    """A stage with the computing time of the slowest of `devices`, measured only if it was on all of them."""
    figures = [costs.compute(device, segment.start, segment.end) for device in devices]
    return Stage(
        segment=segment,
        devices=devices,
        compute_seconds=max(figure.seconds for figure in figures),
        measured=all(figure.measured for figure in figures),
        variant=variant,
    )


def _pass_seconds(graph: Graph, stage: Stage, costs: Costs) -> float:
    """Seconds that one device of `stage` (its slowest) spends on one frame."""
    entry, leave = graph.cut_at[stage.segment.start].bytes, graph.cut_at[stage.segment.end].bytes
    handling = max(
        costs.handling(device, entry).seconds + costs.handling(device, leave).seconds for device in stage.devices
    )
    return stage.compute_seconds + handling
