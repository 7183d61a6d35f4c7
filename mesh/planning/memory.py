"""How much memory a stage needs on its device, and whether it has it.

Need = the process itself + growth by the segment + frames. Growth was measured, or is estimated from shapes and
weights, in the proportion in which measured segments of the same model differ from their estimates on such a device.
Too small a need ends in the kernel killing the process, too large a one turns boards away that would do. The same
figures serve the planner and the validator.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from mesh.core.costs import Costs
from mesh.core.graph import Graph
from mesh.core.ids import NodeId
from mesh.core.memory import ESTIMATED, MeasuredGrowth, MemoryModel
from mesh.core.plan import FLOAT
from mesh.planning.space import PLAIN, Space

WEIGHT_COPIES = 2
"""Memory of a loaded segment over its weights: ONNX Runtime keeps a matrix once as stored and once
packed for its kernels (2.0 measured with matrix products, up to 3.3 with 3x3 convolutions, whose
weights are the smaller part of most models)."""

RUNTIME_BYTES = 64 << 20
"""The process itself with gRPC, NumPy and ONNX Runtime loaded (about 60 MB resident)."""

FRAMES_HELD = 4
"""Frames that a stage holds at once: arriving, waiting, in work, leaving."""


def segment_memory_bytes(graph: Graph, start: int, end: int, memory: MemoryModel = ESTIMATED) -> int:
    """Bytes that a stage with groups `[start, end)` needs, runtime and frames included."""
    return memory_from(graph, start, (end,), memory)[0]


def stage_memory_bytes(
    graph: Graph, start: int, end: int, device: NodeId, costs: Costs, space: Space = PLAIN, variant: str = FLOAT
) -> int:
    """The same for a stage of the model in a variant, on a device."""
    return segment_memory_bytes(
        space.graph_of(graph, variant), start, end, of_variant(costs.device(device).memory, variant)
    )


def of_variant(memory: MemoryModel, variant: str) -> MemoryModel:
    """Only the model as it is has been measured."""
    return memory if variant == FLOAT else memory.unmeasured()


def memory_from(
    graph: Graph, start: int, ends: Sequence[int], memory: MemoryModel = ESTIMATED, frames: int = FRAMES_HELD
) -> list[int]:
    """Bytes of the stages `[start, end)` for ascending `ends` with so many frames each, in one walk over the groups."""
    entry = graph.cut_at[start].bytes
    known = {each.end: each.peak_bytes for each in memory.known if each.start == start}
    needs = []
    for end, estimate in zip(ends, _estimate_growth(graph, start, ends), strict=True):
        growth = known.get(end, math.ceil(memory.factor * estimate) + memory.constant_bytes)
        needs.append(RUNTIME_BYTES + growth + frames * (entry + graph.cut_at[end].bytes))
    return needs


def most_memory_bytes(graph: Graph, memory: MemoryModel) -> int:
    """No stage needs more."""
    widest_cut = max(cut.bytes for cut in graph.cuts)
    widest_group = max(group.activation_bytes for group in graph.groups)
    growth = memory.factor * (WEIGHT_COPIES * graph.total_weight_bytes + widest_cut + widest_group)
    growth = max(math.ceil(growth) + memory.constant_bytes, *(each.peak_bytes for each in memory.known), 0)
    return RUNTIME_BYTES + growth + 2 * FRAMES_HELD * widest_cut


def fit_memory(graph: Graph, measured: Iterable[MeasuredGrowth]) -> MemoryModel:
    """What `measured` segments of `graph` tell of the others; of one that was measured twice the later counts.

    The factor is the slope of the line that fits them best, if that is a sensible one, else that of the largest alone,
    whose constant parts matter least; the constant is as large as any measured segment needs beyond that, so that none
    is expected to take less than it took. Entries that are no segment of `graph` are passed over.
    """
    known = {
        (each.start, each.end): each.peak_bytes
        for each in measured
        if each.start < each.end and each.start in graph.cut_at and each.end in graph.cut_at and each.peak_bytes > 0
    }
    if not known:
        return ESTIMATED
    estimates = {ends: _estimate_growth(graph, ends[0], ends[1:])[0] for ends in known}
    factor = _fit_factor([(estimates[ends], known[ends]) for ends in known])
    constant = max(0, *(known[ends] - math.floor(factor * estimates[ends]) for ends in known))
    return MemoryModel(factor, constant, tuple(sorted(MeasuredGrowth(*ends, peak) for ends, peak in known.items())))


def _fit_factor(points: Sequence[tuple[int, int]]) -> float:
    """Of (estimate, measured) pairs, at least one."""
    middle = sum(estimate for estimate, _ in points) / len(points)
    mean = sum(measured for _, measured in points) / len(points)
    spread = math.fsum((estimate - middle) ** 2 for estimate, _ in points)
    if spread > 0:
        slope = math.fsum((estimate - middle) * (measured - mean) for estimate, measured in points) / spread
        if slope > 0 and mean >= slope * middle:  # neither of these can be less than nothing
            return slope
    estimate, measured = max(points)
    return measured / estimate if estimate else 1.0


def _estimate_growth(graph: Graph, start: int, ends: Sequence[int]) -> list[int]:
    """From shapes and weights, for ascending `ends`.

    Live activations are bounded by the widest legal cut inside plus the most that one group makes;
    a weight that several groups read counts once.
    """
    seen: set[str] = set()
    weights = widest_cut = widest_group = 0
    position = start
    growth = []
    for end in ends:
        for group in graph.groups[position:end]:
            for name in group.weights:
                if name not in seen:
                    seen.add(name)
                    weights += graph.weight_bytes[name]
            widest_group = max(widest_group, group.activation_bytes)
            cut = graph.cut_at.get(group.index)
            widest_cut = max(widest_cut, cut.bytes if cut else 0)
        position = end
        growth.append(WEIGHT_COPIES * weights + max(widest_cut, graph.cut_at[end].bytes) + widest_group)
    return growth
