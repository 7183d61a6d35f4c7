"""Which operator group a kernel of the optimised model belongs to.

A runtime fuses operators and renames what it makes of them: after the last node, after the tensor that the kernel
makes ("clip_6_nchwc"), after a node and the fusion ("matmul_7/node/MatMulAddFusion"), or after nothing of the model's
("ReorderOutput", "Gelu_token_426"). A kernel is given to the group whose node or tensor its name begins with; one
without such a name to the group of its neighbours in running order. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mesh.core.graph import Graph
from mesh.core.report import KernelTime
from mesh.model.read import SourceModel

SEPARATORS = "/_:."
"""Between a name of the model's and what a runtime adds to it."""


def share_kernels(model: SourceModel, graph: Graph, kernels: Sequence[KernelTime]) -> list[float]:
    """Seconds of each group of `graph`; all 0 where no kernel can be told apart."""
    names = _group_names(model, graph)
    places = [_find(kernel.name, names) for kernel in kernels]
    seconds = [0.0] * len(graph.groups)
    following: list[int | None] = []
    latest: int | None = None
    for place in reversed(places):
        latest = place if place is not None else latest
        following.append(latest)
    following.reverse()
    before: int | None = None
    for kernel, place, after in zip(kernels, places, following, strict=True):
        before = place if place is not None else before
        sides = [side for side in (before, after) if side is not None] if place is None else [place]
        for side in sides:
            seconds[side] += kernel.seconds / len(sides)
    return seconds


def _group_names(model: SourceModel, graph: Graph) -> Mapping[str, int]:
    nodes = model.proto.graph.node
    names: dict[str, int] = {}
    for group in graph.groups:
        for index in group.nodes:
            for name in (nodes[index].name, *nodes[index].output):
                if name:
                    names[name] = group.index
    return names


def _find(name: str, names: Mapping[str, int]) -> int | None:
    """The group of the longest name that `name` begins with, up to a separator."""
    if name in names:
        return names[name]
    for end in range(len(name) - 1, 0, -1):
        if name[end] in SEPARATORS and name[:end] in names:
            return names[name[:end]]
    return None
