"""A plan carried out frame by frame in virtual time: does it sustain what was predicted?

Deterministic and pure. Frames enter as long as the stream's window has room. Each device takes the frames of its
stage in order, one at a time. A link carries one frame's bytes at a time and has at most `FRAMES_PER_LINK` frames
under way; an interface carries one frame's bytes at a time for all links of its device. Equal replicas take turns,
and the turns shift, so that in the long run every pair of replicas of two stages exchanges equally many frames; of
different ones, the one that finishes first takes the frame.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from mesh.core.costs import Costs
from mesh.core.graph import Graph
from mesh.core.ids import NodeId
from mesh.core.plan import Stage
from mesh.planning.predict import FRAMES_PER_LINK, pass_seconds
from mesh.planning.space import PLAIN, Space

FRAMES = 600
"""Enough that filling the pipeline is forgotten and every pattern of turns comes by several times."""


def simulate_period(
    graph: Graph, stages: Sequence[Stage], costs: Costs, window: int, space: Space = PLAIN, frames: int = FRAMES
) -> float:
    """Seconds between two answers over the second half of `frames`, with `window` frames in flight."""
    run = _Run(graph, stages, costs, space)
    left: list[float] = []
    for frame in range(frames):
        entered = left[frame - window] if frame >= window else 0.0
        finished = run.carry(frame, entered)
        left.append(max(finished, left[-1]) if left else finished)
    half = frames // 2
    return (left[-1] - left[half - 1]) / (frames - half)


class _Run:
    """When each device, link and interface is free again."""

    def __init__(self, graph: Graph, stages: Sequence[Stage], costs: Costs, space: Space) -> None:
        self.graph, self.stages, self.costs, self.space = graph, stages, costs, space
        self.free_at: dict[tuple[str, NodeId], float] = {}
        self.link_free_at: dict[tuple[NodeId, NodeId], float] = {}
        self.under_way: dict[tuple[NodeId, NodeId], list[float]] = {}
        self.passes = [
            dict(zip(stage.devices, pass_seconds(graph, stages, index, costs, space), strict=True))
            for index, stage in enumerate(stages)
        ]

    def carry(self, frame: int, now: float) -> float:
        """Take `frame` from entry at `now` through all stages; returns when the last has computed it."""
        before = None
        for index in range(len(self.stages)):
            device = self._choose(frame, index, now)
            if before is not None:
                now = self._send(before, device, index, now)
            now = max(now, self.free_at.get(("compute", device), 0.0)) + self.passes[index][device]
            self.free_at["compute", device] = now
            before = device
        return now

    def _choose(self, frame: int, index: int, now: float) -> NodeId:
        """Which replica of stage `index` takes `frame`."""
        devices, passes = self.stages[index].devices, self.passes[index]
        if len(set(passes.values())) > 1:
            return min(devices, key=lambda d: max(now, self.free_at.get(("compute", d), 0.0)) + passes[d])
        shift = 0
        round_length = len(devices)
        for stage in self.stages[:index]:
            round_length = math.lcm(round_length, len(stage.devices))
            shift += frame // round_length
        return devices[(frame + shift) % len(devices)]

    def _send(self, source: NodeId, target: NodeId, index: int, now: float) -> float:
        """From the end of computing on `source` to arrival at `target`, which runs stage `index`."""
        codec = self.stages[index - 1].codec
        nbytes = self.space.wire_bytes(codec, self.graph.cut_at[self.stages[index].segment.start])
        moving = nbytes / self.space.link_bytes_per_second(self.costs, source, target)
        flights = self.under_way.setdefault((source, target), [])
        start = max(now, self.link_free_at.get((source, target), 0.0))
        if len(flights) >= FRAMES_PER_LINK:
            start = max(start, flights[-FRAMES_PER_LINK])
        for interface, rate in (
            (("up", source), self.space.nic(source).up),
            (("down", target), self.space.nic(target).down),
        ):
            start = max(start, self.free_at.get(interface, 0.0))
            self.free_at[interface] = start + nbytes / rate
        self.link_free_at[source, target] = start + moving
        arrived = start + moving + self.costs.link(source, target).latency_seconds
        flights.append(arrived)
        return arrived
