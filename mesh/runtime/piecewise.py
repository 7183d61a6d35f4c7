"""What a model takes on a device that cannot hold it: pieces, each timed and profiled alone, joined into one profile.

    cut where pieces fit ─► per piece: send ─► time ─► profile it against its halves ─► join (`mesh.core.profile`)

Called by whoever measures costs. What pieces took of memory is stored as they go; times are only told.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from mesh.core.costs import type_of
from mesh.core.fleet import Capabilities
from mesh.core.graph import Graph
from mesh.core.ids import Sha256
from mesh.core.profile import SegmentTimes, TimedPart, TimedPiece, join_pieces
from mesh.core.report import ModelProfile
from mesh.errors import MeshError, NodeLost
from mesh.model.kernels import share_kernels
from mesh.model.read import SourceModel
from mesh.planning.memory import memory_from
from mesh.runtime.coordinator import Progress
from mesh.runtime.fleet import Answered
from mesh.runtime.measure import MEMORY_FACTOR
from mesh.runtime.memory_costs import keep_profile_memory, memory_model
from mesh.runtime.profiling import part_positions
from mesh.runtime.sending import send_parts
from mesh.storage.cost_store import CostStore

PIECE_ROOM = 0.5
"""Of a device's memory: parts of a piece are loaded beside it, one at a time, and one may have nearly all weights."""

MAX_PIECES = 16
"""Each takes some seconds; a device that needs more of them does little for the model."""

PIECE_BUDGET_S = 1.0
"""For timing a piece, and again for its profile: a person waits."""

HALVES = 2
"""Parts of a piece: with other pieces they tell what a call and a cut cost."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Groups `[start, end)`; `has_room` where a part of them may be loaded beside."""

    start: int
    end: int
    has_room: bool


def choose_pieces(graph: Graph, store: CostStore, told: Capabilities) -> list[Piece]:
    """The model in pieces that the device can hold, as few as possible, with room for a part of each where that can be.

    Empty where it cannot, or where the model would be one piece or too many.
    """
    memory, room = memory_model(store, graph, told), told.memory_available_bytes
    legal = [cut.position for cut in graph.cuts]
    pieces: list[Piece] = []
    start = 0
    while start < len(graph.groups):
        ends = [position for position in legal if position > start]
        files = [MEMORY_FACTOR * graph.segment_weight_bytes(start, end) for end in ends]
        needs = list(map(max, memory_from(graph, start, ends, memory, frames=1), files))
        roomy = [end for end, need in zip(ends, needs, strict=True) if need <= PIECE_ROOM * room]
        fitting = roomy or [end for end, need in zip(ends, needs, strict=True) if need <= room]
        if not fitting or len(pieces) == MAX_PIECES:
            return []
        pieces.append(Piece(start, fitting[-1], has_room=bool(roomy)))
        start = fitting[-1]
    return pieces if len(pieces) > 1 else []


async def measure_pieces(
    node: Answered, model: SourceModel, graph: Graph, store: CostStore, progress: Progress
) -> SegmentTimes | None:
    """What segments of `model` take on `node`; None, with the reason told, where not all of its pieces run there.

    Raises `NodeLost`.
    """
    name = node.view.capabilities.name
    chosen = await asyncio.to_thread(choose_pieces, graph, store, node.view.capabilities)
    if not chosen:
        progress(f"{name} cannot be measured with pieces of the model, its speed is estimated")
        return None
    pieces = []
    try:
        for piece in chosen:
            pieces.append(await _measure_piece(node, model, graph, piece, store, progress))
    except NodeLost:
        raise
    except MeshError as error:
        progress(f"{name} cannot run the model in pieces, its speed is estimated: {error}")
        return None
    times = join_pieces(pieces)
    progress(f"{name} runs the model in {len(pieces)} pieces, together in {times.whole_seconds * 1e3:.2f} ms")
    return times


async def _measure_piece(
    node: Answered, model: SourceModel, graph: Graph, piece: Piece, store: CostStore, progress: Progress
) -> TimedPiece:
    ((sha256, start, end),) = await send_parts(node, model, graph, [piece.start, piece.end])
    seconds = (await node.client.measure_model(sha256, PIECE_BUDGET_S)).run_seconds
    profile, parts = await _profile_piece(node, model, graph, piece, sha256, store, progress)
    work = (await asyncio.to_thread(share_kernels, model, graph, profile.kernels))[start:end]
    if not sum(work):
        work = [float(group.flops) for group in graph.groups[start:end]]
    if not sum(work):
        work = [1.0] * len(work)
    timed = [TimedPart(*ends, ratio * seconds) for ends, ratio in zip(parts, profile.part_ratios, strict=False)]
    return TimedPiece(start, seconds, tuple(work), tuple(timed))


async def _profile_piece(
    node: Answered,
    model: SourceModel,
    graph: Graph,
    piece: Piece,
    sha256: Sha256,
    store: CostStore,
    progress: Progress,
) -> tuple[ModelProfile, list[tuple[int, int]]]:
    """How its time is spread, and the groups of the parts that were timed; empty, with the reason told, where it cannot
    be had."""
    told = node.view.capabilities
    positions = part_positions(graph, HALVES, piece.start, piece.end)
    is_halved = piece.has_room and len(positions) > HALVES
    try:
        halves = await send_parts(node, model, graph, positions) if is_halved else []
        profile = await node.client.profile_model(sha256, [half for half, _, _ in halves], PIECE_BUDGET_S)
    except NodeLost:
        raise
    except MeshError as error:
        where = f"within groups {piece.start} to {piece.end - 1}"
        progress(f"{told.name}: the time {where} is estimated from operations: {error}")
        return ModelProfile(), []
    keep_profile_memory(store, graph, type_of(told), profile, (sha256, piece.start, piece.end), halves)
    return profile, [(start, end) for _, start, end in halves]
