"""How much memory a stage needs on its device, and whether it has it.

An estimate with named margins: too small a one ends in the kernel killing the process, too large a
one turns boards away that would do. The same figures serve the planner and the validator.
"""

from __future__ import annotations

from collections.abc import Sequence

from mesh.core.graph import Graph

WEIGHT_COPIES = 2
"""Memory of a loaded segment over its weights: ONNX Runtime keeps a matrix once as stored and once
packed for its kernels (2.0 measured with matrix products, up to 3.3 with 3x3 convolutions, whose
weights are the smaller part of most models)."""

RUNTIME_BYTES = 64 << 20
"""The process itself with gRPC, NumPy and ONNX Runtime loaded (about 60 MB resident)."""

FRAMES_HELD = 4
"""Frames that a stage holds at once: arriving, waiting, in work, leaving."""


def segment_memory_bytes(graph: Graph, start: int, end: int) -> int:
    """Bytes that a stage with groups `[start, end)` needs, runtime and frames included."""
    return memory_from(graph, start, (end,))[0]


def memory_from(graph: Graph, start: int, ends: Sequence[int]) -> list[int]:
    """Bytes of the stages `[start, end)` for ascending `ends`, in one walk over the groups.

    Live activations are bounded by the widest legal cut inside plus the most that one group makes;
    a weight that several groups read counts once.
    """
    seen: set[str] = set()
    weights = widest_cut = widest_group = 0
    position = start
    entry = graph.cut_at[start].bytes
    needs = []
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
        leave = graph.cut_at[end].bytes
        activations = max(widest_cut, leave) + widest_group
        needs.append(RUNTIME_BYTES + WEIGHT_COPIES * weights + activations + FRAMES_HELD * (entry + leave))
    return needs
