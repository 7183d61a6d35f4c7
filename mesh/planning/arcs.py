"""The decisions that a plan is made of, priced: every segment on every device, every cut on every link.

Arrays over the usable cuts (C of them, index 0 the model's inputs) and devices (D). An arc is a
segment between two cuts on a device; infinity marks one that is not allowed. Every entry is computed
with the same operations in the same order as in `mesh.planning.predict`, so a searched period and a
predicted one are equal to the last bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mesh.core.costs import Costs
from mesh.core.graph import Cut, Graph
from mesh.core.ids import NodeId
from mesh.planning.memory import FRAMES_HELD, RUNTIME_BYTES, WEIGHT_COPIES, memory_from
from mesh.planning.predict import FRAMES_PER_LINK

Seconds = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Arcs:
    """Prices in seconds. Axes are named (device, from-cut, to-cut) and (source, target, cut)."""

    positions: tuple[int, ...]
    devices: tuple[NodeId, ...]
    busy: Seconds
    """(D, C, C): time per frame of a segment on a device; infinite where empty, backward or too large."""
    occupied: Seconds
    """(D, D, C): seconds between two frames that a link sustains; infinite from a device to itself."""
    transfer: Seconds
    """(D, D, C): time of one transfer; infinite from a device to itself."""
    idle: NDArray[np.bool_]
    """(C, C): segments without a single floating-point operation."""


def price_arcs(graph: Graph, costs: Costs, devices: Sequence[NodeId], cuts: Sequence[Cut]) -> Arcs:
    """All arcs of `graph` between `cuts` on `devices`."""
    positions = np.array([cut.position for cut in cuts])
    nbytes = np.array([cut.bytes for cut in cuts], dtype=np.float64)
    forward = positions[:, None] < positions[None, :]
    needs = _memory_needs(graph, cuts, min(costs.device(device).memory_bytes for device in devices))
    busy = np.full((len(devices), len(cuts), len(cuts)), np.inf)
    for index, device in enumerate(devices):
        known = costs.device(device)
        prefix = np.array(known.prefix_seconds)[positions]
        handling = known.handling.message_seconds + known.handling.byte_seconds * nbytes
        allowed = forward if needs is None else forward & (needs <= known.memory_bytes)
        seconds = (prefix[None, :] - prefix[:, None]) + (handling[:, None] + handling[None, :])
        busy[index][allowed] = seconds[allowed]
    transfer = np.full((len(devices), len(devices), len(cuts)), np.inf)
    occupied = transfer.copy()
    for row, source in enumerate(devices):
        for column, target in enumerate(devices):
            if source != target:
                link = costs.link(source, target)
                whole = link.latency_seconds + nbytes / link.bytes_per_second
                transfer[row, column] = whole
                occupied[row, column] = np.maximum(whole - link.latency_seconds, whole / FRAMES_PER_LINK)
    flops = np.array([graph.segment_flops(0, cut.position) for cut in cuts])
    return Arcs(
        positions=tuple(cut.position for cut in cuts),
        devices=tuple(devices),
        busy=busy,
        occupied=occupied,
        transfer=transfer,
        idle=flops[None, :] == flops[:, None],
    )


def _memory_needs(graph: Graph, cuts: Sequence[Cut], least_bytes: int) -> NDArray[np.int64] | None:
    """(C, C) bytes that a stage between two cuts needs; None where even the least device holds anything."""
    widest_cut = max(cut.bytes for cut in graph.cuts)
    widest_group = max(group.activation_bytes for group in graph.groups)
    ceiling = RUNTIME_BYTES + WEIGHT_COPIES * graph.total_weight_bytes
    if ceiling + widest_group + (1 + 2 * FRAMES_HELD) * widest_cut <= least_bytes:
        return None
    positions = [cut.position for cut in cuts]
    needs = np.zeros((len(cuts), len(cuts)), dtype=np.int64)
    for index, start in enumerate(positions):
        needs[index, index + 1 :] = memory_from(graph, start, positions[index + 1 :])
    return needs
