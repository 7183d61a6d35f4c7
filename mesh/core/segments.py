"""What a segment of a graph takes in, gives out and passes on, from names alone.

A stage receives the tensors of the cut at its start and sends those of the cut at its end. Some of
what it receives it does not read but must pass on (a long skip connection), and some it both reads
and passes on. Planning, extraction and the runtime all need the same answer, so it is here, pure.
"""

from __future__ import annotations

from mesh.core.graph import Cut, Graph
from mesh.core.plan import Segment
from mesh.errors import UsageError


def segment_between(graph: Graph, start: int, end: int) -> Segment:
    """The segment of groups `[start, end)`, its tensor names in cut order and without a `sha256`.

    `consumes` are the tensors of the cut at `start` that a group inside reads, `produces` those of
    the cut at `end` that a group inside makes, `relays` the other tensors of the cut at `end`. A
    tensor may be both consumed and relayed.

    Raises `UsageError` where `start` or `end` is no legal cut, or nothing lies between them.
    """
    entry, leave = _cut(graph, start, "start"), _cut(graph, end, "end")
    if start >= end:
        raise UsageError(f"segment [{start}, {end}) holds no operator group", hint="start must lie before end")
    inside = graph.groups[start:end]
    read = {name for group in inside for name in group.reads}
    made = {name for group in inside for name in group.makes}
    return Segment(
        start=start,
        end=end,
        consumes=tuple(name for name in entry.tensors if name in read),
        produces=tuple(name for name in leave.tensors if name in made),
        relays=tuple(name for name in leave.tensors if name not in made),
        weight_bytes=graph.segment_weight_bytes(start, end),
        flops=graph.segment_flops(start, end),
    )


def _cut(graph: Graph, position: int, field: str) -> Cut:
    cut = graph.cut_at.get(position)
    if cut is None:
        raise UsageError(
            f"segment {field} {position} is not a legal cut of the model",
            hint=f"positions run from 0 to {len(graph.groups)}; {len(graph.cuts)} of them are legal cuts",
        )
    return cut
