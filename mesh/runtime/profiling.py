"""How the time of a model is spread over its operator groups on a device: kernels, and parts against the whole.

The device profiles itself (`mesh.engines.profile_process`); here is chosen which parts it times, and from its answer
is made what any segment takes: kernels give the proportions, parts the price of a cut (`mesh.core.profile`). Only the
proportions are taken from a profile: how fast a device is, a run of the whole model says.

Used by whoever plans, in a thread; nothing is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from mesh.core.graph import Graph
from mesh.core.profile import SegmentTimes, TimedPart, fit_segments, share
from mesh.core.report import ModelProfile
from mesh.model.kernels import share_kernels
from mesh.model.read import SourceModel

PROFILE_BUDGET_S = 2.5
"""A person waits for a plan: half a second for each part, and for the kernels."""

PARTS = 4
"""Together they are as large as the model, and they have six ends that are cut."""


def part_positions(graph: Graph, parts: int = PARTS, start: int = 0, end: int | None = None) -> list[int]:
    """Ends of parts of groups `[start, end)`, of all by default, with about equal work, where the model has the cuts;
    ascending from `start` to `end`."""
    before = [0]
    for group in graph.groups:
        before.append(before[-1] + group.flops)
    end = len(graph.groups) if end is None else end
    legal = [cut.position for cut in graph.cuts if start < cut.position < end]
    work = before[end] - before[start]
    wanted = [before[start] + work * part / parts for part in range(1, parts)]
    inner = {min(legal, key=lambda position: abs(before[position] - each)) for each in wanted} if legal else set()
    return [start, *sorted(inner), end]


def spread_profile(
    model: SourceModel, graph: Graph, seconds: float, profile: ModelProfile, positions: Sequence[int]
) -> SegmentTimes:
    """`seconds` of the whole model, spread as `profile` says; `positions` are the ends of its parts.

    What the profile does not tell is estimated: proportions from operations, cuts as free.
    """
    groups = share(graph, seconds, share_kernels(model, graph, profile.kernels))
    ends = list(pairwise(positions))
    parts = [
        TimedPart(start, end, ratio * seconds)
        for (start, end), ratio in zip(ends, profile.part_ratios, strict=False)
        if ratio > 0
    ]
    return fit_segments(groups, parts)
