"""The decisions that a plan is made of, priced: every segment on every kind of station, every cut on every link.

A node is a cut and the codec in which it travels (N of them, index 0 the model's inputs, the last its
outputs, ascending). A type is a group of equal devices (T), a kind a number of them that share the frames
of one stage (K). An arc is a segment between two nodes on a kind; infinity marks one that is not
allowed. Every entry is computed with the same operations in the same order as in `mesh.planning.predict`,
so a searched period and a predicted one are equal but for the last bits.

Of the variants of a segment an arc has the fastest that fits: it is the best for every objective, since
no price grows when a stage is less busy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from mesh.core.graph import Cut, Graph
from mesh.core.ids import NodeId
from mesh.core.memory import MemoryModel
from mesh.core.plan import FLOAT, RAW
from mesh.planning.device_types import DeviceTypes
from mesh.planning.memory import memory_from, most_memory_bytes, of_variant
from mesh.planning.predict import FRAMES_PER_LINK
from mesh.planning.problem import Problem
from mesh.planning.space import UNLIMITED, Variant, without_beaten

Seconds = NDArray[np.float64]

LONGEST_SECONDS = 1e300
"""Above every price of what is allowed, below that of what is not."""


@dataclass(frozen=True, slots=True)
class Kind:
    """So many devices of one type as one stage."""

    type: int
    replicas: int


@dataclass(frozen=True, eq=False)
class Arcs:
    """Prices in seconds. Axes are (kind or type, from-node, to-node) and (source, target, node)."""

    cuts: tuple[Cut, ...]
    types: DeviceTypes
    kinds: tuple[Kind, ...]
    cut_of: NDArray[np.int64]
    """(N,): index into `cuts`."""
    codec_of: tuple[str, ...]
    """(N,): in which a node's tensors travel."""
    variants: tuple[str, ...]
    variant: NDArray[np.int8]
    """(T, C, C): index into `variants` of the fastest one for a segment between two cuts."""
    busy: Seconds
    """(T, N, N): time per frame of a segment on one device; infinite where empty, backward or too large."""
    period: Seconds
    """(K, N, N): seconds between two frames that a stage sustains, its interfaces included."""
    occupied: Seconds
    """(K, K, N): seconds between two frames that the links between two stages sustain."""
    transfer: Seconds
    """(K, K, N): time of one transfer."""
    idle: NDArray[np.bool_]
    """(N, N): segments without a single floating-point operation."""

    @property
    def counts(self) -> tuple[int, ...]:
        return tuple(len(members) for members in self.types)

    @property
    def type_of(self) -> NDArray[np.int64]:
        """(K,): index into `types`."""
        return np.array([kind.type for kind in self.kinds])

    def type_index(self, device: NodeId | None) -> int | None:
        """The type of a pinned device."""
        return None if device is None else next(i for i, members in enumerate(self.types) if device in members)


def price_arcs(problem: Problem, cuts: Sequence[Cut], types: DeviceTypes) -> Arcs:
    """All arcs of the problem between `cuts` on `types`."""
    last = len(cuts) - 1
    codecs = (RAW, *(codec.name for codec in without_beaten(problem.space.codecs)))
    nodes = [(cut, codec) for cut in range(len(cuts)) for codec in (codecs if 0 < cut < last else (RAW,))]
    cut_of = np.array([cut for cut, _ in nodes])
    codec_of = tuple(codec for _, codec in nodes)
    most = 1 if problem.stages is not None else problem.space.max_replicas
    kinds = tuple(Kind(t, r) for t, members in enumerate(types) for r in range(1, min(most, len(members)) + 1))
    compute, variant = _compute_seconds(problem, cuts, types)
    busy = np.empty((len(types), len(nodes), len(nodes)))
    for index, members in enumerate(types):
        space, costs = problem.space, problem.costs
        entry, leave = (
            np.array([space.handling_seconds(costs, members[0], c, cuts[p], sent=sent) for p, c in nodes])
            for sent in (False, True)
        )
        busy[index] = compute[index][np.ix_(cut_of, cut_of)] + (entry[:, None] + leave[None, :])
    wire = np.array([problem.space.wire_bytes(codec, cuts[cut]) for cut, codec in nodes], dtype=np.float64)
    occupied, transfer = _price_links(problem, types, kinds, wire)
    flops = np.array([0, *accumulate(group.flops for group in problem.graph.groups)])[[c.position for c in cuts]]
    return Arcs(
        cuts=tuple(cuts),
        types=types,
        kinds=kinds,
        cut_of=cut_of,
        codec_of=codec_of,
        variants=(FLOAT, *(known.name for known in problem.space.variants)),
        variant=variant,
        busy=busy,
        period=_stage_periods(problem, types, kinds, busy, wire),
        occupied=occupied,
        transfer=transfer,
        idle=flops[cut_of][None, :] == flops[cut_of][:, None],
    )


def _compute_seconds(problem: Problem, cuts: Sequence[Cut], types: DeviceTypes) -> tuple[Seconds, NDArray[np.int8]]:
    """(T, C, C) of the fastest variant that a device runs and holds, and which one it is."""
    positions = np.array([cut.position for cut in cuts])
    forward = positions[:, None] < positions[None, :]
    graph, costs, space = problem.graph, problem.costs, problem.space
    best = np.full((len(types), len(cuts), len(cuts)), np.inf)
    chosen = np.zeros(best.shape, dtype=np.int8)
    options: list[Variant | None] = [None, *space.variants]
    for number, variant in enumerate(options):
        name = variant.name if variant else FLOAT
        weighed = space.graph_of(graph, name)
        needs: dict[MemoryModel, NDArray[np.int64]] = {}
        kept = np.array([variant is None or variant.cuts is None or int(p) in variant.cuts for p in positions])
        for index, (device, *_) in enumerate(types):
            known = costs.device(device)
            prefix = variant.prefix_seconds.get(device) if variant else known.prefix_seconds
            if prefix is None:
                continue
            allowed = forward & kept[:, None] & kept[None, :]
            memory = of_variant(known.memory, name)
            if most_memory_bytes(weighed, memory) > known.memory_bytes:
                if memory not in needs:
                    needs[memory] = _memory_needs(weighed, cuts, memory)
                allowed &= needs[memory] <= known.memory_bytes
            before = np.array(prefix)[positions]
            cut = np.where((positions > 0) & (positions < positions[-1]), known.cut_seconds, 0.0)
            more = known.run_seconds + (cut[:, None] + cut[None, :])
            seconds = np.where(allowed, (before[None, :] - before[:, None]) + more, np.inf)
            chosen[index][seconds < best[index]] = number
            best[index] = np.minimum(best[index], seconds)
    return best, chosen


def _stage_periods(
    problem: Problem, types: DeviceTypes, kinds: Sequence[Kind], busy: Seconds, wire: Seconds
) -> Seconds:
    """(K, N, N): of computing, receiving and sending the slowest, shared by the replicas; clients are not counted."""
    alone = busy
    if any(problem.space.nic(members[0]) != UNLIMITED for members in types):
        alone = busy.copy()
        for index, members in enumerate(types):
            nic = problem.space.nic(members[0])
            receive, send = wire / nic.down, wire / nic.up
            receive[0] = send[-1] = 0.0
            np.maximum(alone[index], np.maximum(receive[:, None], send[None, :]), out=alone[index])
    if len(kinds) == len(types):
        return alone
    return np.stack([alone[kind.type] / kind.replicas for kind in kinds])


def _price_links(problem: Problem, types: DeviceTypes, kinds: Sequence[Kind], wire: Seconds) -> tuple[Seconds, Seconds]:
    """(K, K, N) `occupied` and `transfer`; infinite between devices of which there are not enough."""
    occupied = np.full((len(kinds), len(kinds), len(wire)), np.inf)
    transfer = occupied.copy()
    for row, source in enumerate(kinds):
        for column, target in enumerate(kinds):
            senders, receivers = types[source.type], types[target.type]
            if source.type == target.type:
                if len(senders) < source.replicas + target.replicas:
                    continue
                receivers = senders[1:]
            rate = problem.space.link_bytes_per_second(problem.costs, senders[0], receivers[0])
            latency = problem.costs.link(senders[0], receivers[0]).latency_seconds
            whole = latency + wire / rate
            transfer[row, column] = whole
            shares = source.replicas * target.replicas
            occupied[row, column] = np.maximum(whole - latency, whole / FRAMES_PER_LINK) / shares
    return occupied, transfer


def _memory_needs(graph: Graph, cuts: Sequence[Cut], memory: MemoryModel) -> NDArray[np.int64]:
    """(C, C) bytes that a stage between two cuts needs."""
    positions = [cut.position for cut in cuts]
    needs = np.zeros((len(cuts), len(cuts)), dtype=np.int64)
    for index, start in enumerate(positions):
        needs[index, index + 1 :] = memory_from(graph, start, positions[index + 1 :], memory)
    return needs


def least_period(arcs: Arcs) -> float:
    """A plan's period is at least this: no way to the outputs avoids an arc of it, whatever the devices."""
    cheapest = arcs.period.min(axis=0)
    reached = np.full(len(arcs.codec_of), math.inf)
    reached[0] = 0.0
    for node in range(1, len(reached)):
        reached[node] = np.maximum(reached[:node], cheapest[:node, node]).min()
    return float(reached[-1])
