"""Memory between those who measure it, the store and the planner's costs."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from mesh.core.costs import DeviceType, type_of
from mesh.core.fleet import Capabilities, Link, NodeState, Provider
from mesh.core.ids import NodeId, Sha256
from mesh.core.memory import ESTIMATED
from mesh.core.plan import Objective, Plan, Prediction, Stage
from mesh.core.report import StageReport
from mesh.core.segments import segment_between
from mesh.runtime.costing import costs_from_store
from mesh.runtime.memory_costs import keep_memory, keep_stage_memory, memory_age, memory_model
from mesh.storage.cost_figures import MemoryCost
from mesh.storage.cost_store import CostStore
from tests.planning.instances import chain_graph

GRAPH = chain_graph([10**6] * 8)
BOARD = NodeId("1" * 32)
TOLD = Capabilities(
    BOARD, "board", "arm", 4.0, 1 << 30, 1 << 30, 1 << 30, (Provider("CPUExecutionProvider", True),), "1", 8.0, 1.0,
    NodeState.READY, "1", "board", "4x1",
)  # fmt: skip
LIKE = replace(TOLD, node_id=NodeId("2" * 32), name="twin")
OTHER = replace(TOLD, node_id=NodeId("3" * 32), hardware="another")
WHERE = type_of(TOLD)
WHOLE, PART = Sha256("a" * 64), Sha256("b" * 64)


def test_measured_memory_holds_for_every_device_of_the_type_and_for_no_other() -> None:
    store = CostStore()
    keep_memory(store, GRAPH, WHERE, [(WHOLE, 0, 8, 90_000_000), (PART, 2, 5, 0)])
    devices = {told.node_id: told for told in (TOLD, LIKE, OTHER)}
    links = {(a, b): Link(1e-4, 1e8) for a in devices for b in devices if a != b}
    costs = costs_from_store(store, GRAPH, devices, links)
    models = [costs.device(node).memory for node in devices]
    assert models[0] == models[1] == memory_model(store, GRAPH, TOLD) and models[2] == ESTIMATED
    assert models[0].knows(0, 8) and not models[0].knows(2, 5), "0 is not a measurement"


def test_the_age_is_that_of_the_oldest_figure() -> None:
    store = CostStore()
    assert memory_age(store, GRAPH, TOLD) is None
    now = time.time()
    for sha256, start, at in ((WHOLE, 0, now), (PART, 4, now - 600)):
        store.put_memory(sha256, WHERE, MemoryCost(GRAPH.model_sha256, start, 8, 1000, at))
    assert memory_age(store, GRAPH, TOLD) == pytest.approx(600, abs=60)


def told_by(stage: Stage, report: StageReport, types: dict[NodeId, DeviceType]) -> tuple[bool, list[int]]:
    store = CostStore()
    plan = Plan(GRAPH.model_sha256, Objective.THROUGHPUT, False, (stage,), Prediction(1.0, 1.0), 1.0, "", (), 1)
    is_new = keep_stage_memory(store, GRAPH, plan, [report], types)
    return is_new, [cost.peak_bytes for cost in store.memory_of(GRAPH.model_sha256, WHERE)]


def test_what_running_stages_tell_is_kept_where_it_is_of_the_model_and_makes_sense() -> None:
    segment = replace(segment_between(GRAPH, 0, 8), sha256=PART)
    stage = Stage(segment, (BOARD,), 0.1, True)
    report = StageReport(0, 1, 0.1, 1.0, 0, 0, BOARD, peak_bytes=500)
    types = {BOARD: WHERE}
    assert told_by(stage, report, types) == (True, [500])
    assert told_by(replace(stage, variant="int8"), report, types) == (False, [])
    assert told_by(replace(stage, segment=replace(segment, sha256=None)), report, types) == (False, [])
    for wrong in (
        {"peak_bytes": 0},
        {"peak_bytes": 1 << 60},
        {"stage": 1},
        {"device": None},
        {"device": OTHER.node_id},
    ):
        assert told_by(stage, replace(report, **wrong), types) == (False, []), wrong  # type: ignore[arg-type]
