"""Models that no device holds: where they are cut to be measured, and plans that are then made of measurements."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from mesh.core.costs import type_of
from mesh.core.graph import Graph
from mesh.core.ids import Sha256
from mesh.core.plan import PlanOptions
from mesh.discovery.memory import MemoryDiscovery, MemoryNetwork
from mesh.model.read import read_model_bytes
from mesh.model.summarise import summarise
from mesh.planning import memory as needs
from mesh.planning.memory import memory_from
from mesh.runtime import node as node_module
from mesh.runtime.coordinator import Coordinator
from mesh.runtime.fleet import Fleet, open_fleet
from mesh.runtime.measure import MEMORY_FACTOR
from mesh.runtime.memory_costs import keep_memory
from mesh.runtime.piecewise import MAX_PIECES, PIECE_ROOM, Piece, choose_pieces
from mesh.runtime.supervise import Supervisor
from mesh.storage.cost_store import CostStore
from scripts.make_models import make_mobilenetv2
from tests.planning.instances import chain_graph
from tests.runtime.mesh_on_loopback import make_node, probe_at_once, running
from tests.runtime.test_memory_costs import TOLD

WEIGHTS = 1 << 20
GRAPH = chain_graph([10**6] * 20, weights=[WEIGHTS] * 20)


def cut_for(graph: Graph, memory_bytes: int) -> list[Piece]:
    return choose_pieces(graph, CostStore(), replace(TOLD, memory_available_bytes=memory_bytes))


def need(graph: Graph, start: int, end: int) -> int:
    """With the one frame that is computed."""
    return memory_from(graph, start, [end], frames=1)[0]


def test_pieces_fit_with_a_part_of_them_beside_and_are_as_few_as_can_be() -> None:
    room = 2 * need(GRAPH, 0, 6)
    pieces = cut_for(GRAPH, room)
    assert [(piece.start, piece.end) for piece in pieces] == [(0, 6), (6, 12), (12, 18), (18, 20)]
    for piece in pieces:
        assert piece.has_room and need(GRAPH, piece.start, piece.end) <= PIECE_ROOM * room
        assert MEMORY_FACTOR * 2 * GRAPH.segment_weight_bytes(piece.start, piece.end) <= room


def test_what_does_not_leave_room_takes_the_whole_device_and_no_more() -> None:
    few = chain_graph([10**6] * 4, weights=[WEIGHTS] * 4)
    one = need(few, 0, 1)
    assert cut_for(few, one) == [Piece(group, group + 1, has_room=False) for group in range(4)]
    assert cut_for(few, one - 1) == []


def test_a_wide_tensor_is_kept_inside_a_piece() -> None:
    wide = chain_graph([10**6] * 4, sizes=[1000, 10**8, 1000, 1000, 1000], weights=[WEIGHTS] * 4)
    room = need(wide, 0, 2)
    assert need(wide, 0, 1) > room
    assert cut_for(wide, room) == [Piece(0, 2, has_room=False), Piece(2, 4, has_room=True)]


def test_neither_one_piece_nor_too_many_are_measured() -> None:
    assert cut_for(GRAPH, 1 << 40) == []
    assert len(GRAPH.groups) > MAX_PIECES and cut_for(GRAPH, need(GRAPH, 0, 1)) == []


def test_what_was_measured_of_memory_makes_other_pieces() -> None:
    store = CostStore()
    room = 2 * need(GRAPH, 0, 6)
    growth = need(GRAPH, 0, 20) - needs.RUNTIME_BYTES
    keep_memory(store, GRAPH, type_of(TOLD), [(Sha256("a" * 64), 0, 20, 2 * growth)])
    assert len(choose_pieces(GRAPH, store, replace(TOLD, memory_available_bytes=room))) > len(cut_for(GRAPH, room))


MODEL = make_mobilenetv2(96).SerializeToString()


@contextlib.asynccontextmanager
async def open_small_nodes(folder: Path, patch: pytest.MonkeyPatch, memory_bytes: int) -> AsyncIterator[Fleet]:
    """Three nodes that believe to have so much memory; processes and runtimes are taken to need none."""
    probe_at_once(patch)
    patch.setattr(needs, "RUNTIME_BYTES", 0)
    facts = node_module.static_facts
    patch.setattr(node_module, "static_facts", lambda data: replace(facts(data), memory_available_bytes=memory_bytes))
    network = MemoryNetwork()
    async with (
        running(make_node(network, folder, "first")),
        running(make_node(network, folder, "second")),
        running(make_node(network, folder, "third")),
        Supervisor() as tasks,
        open_fleet(MemoryDiscovery(network), tasks, settles=False) as fleet,
    ):
        yield fleet


async def test_a_model_that_no_board_holds_is_planned_from_measured_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = summarise(read_model_bytes(MODEL))
    lines: list[str] = []
    async with open_small_nodes(tmp_path, monkeypatch, int(1.9 * len(MODEL))) as fleet:
        found = await Coordinator(fleet, tmp_path / "costs").plan(MODEL, PlanOptions(), lines.append)
        told = (await fleet.answered())[0].view.capabilities
    assert sum("cannot hold the model whole" in line for line in lines) == 1
    assert sum("pieces, together in" in line for line in lines) == 1 and not any("estimated" in line for line in lines)
    assert len(found.stages) > 1 and all(stage.measured and stage.compute_seconds > 0 for stage in found.stages)
    store = CostStore(tmp_path / "costs")
    cost = store.model(graph.model_sha256, type_of(told))
    assert cost is not None and cost.is_profiled and len(cost.group_seconds) == len(graph.groups)
    pieces = store.memory_of(graph.model_sha256, type_of(told))
    assert len(pieces) >= 4 and all(0 <= each.start < each.end <= len(graph.groups) for each in pieces)
    assert all(each.end - each.start < len(graph.groups) for each in pieces)
