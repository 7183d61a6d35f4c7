"""A plan with cuts that cannot be proven equal: the model runs whole instead, unless the cuts were asked for."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from mesh.core.ids import DeploymentName, NodeId
from mesh.core.plan import Fence, Objective, Plan, Prediction, Stage
from mesh.core.segments import segment_between
from mesh.discovery.memory import MemoryDiscovery, MemoryNetwork
from mesh.errors import ModelInvalid
from mesh.model.read import read_model_bytes
from mesh.model.summarise import summarise
from mesh.runtime.deploying import Planned, activate
from mesh.runtime.fleet import Answered, open_fleet
from mesh.runtime.supervise import Supervisor
from tests.runtime.mesh_on_loopback import make_node, probe_at_once, running


def make_particular_model() -> onnx.ModelProto:
    """Takes [2, 6] apart into the shape that it is given: nothing made up will do."""
    graph = helper.make_graph(
        [
            helper.make_node("Relu", ["x"], ["h"]),
            helper.make_node("Reshape", ["h", "shape"], ["r"]),
            helper.make_node("Exp", ["r"], ["y"]),
        ],
        "particular",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 6]),
            helper.make_tensor_value_info("shape", TensorProto.INT64, [2]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["a", "b"])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@contextlib.asynccontextmanager
async def two_nodes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[list[Answered]]:
    probe_at_once(monkeypatch)
    network = MemoryNetwork()
    async with contextlib.AsyncExitStack() as stack:
        for name in ("left", "right"):
            await stack.enter_async_context(running(make_node(network, folder, name)))
        tasks = await stack.enter_async_context(Supervisor())
        fleet = await stack.enter_async_context(open_fleet(MemoryDiscovery(network), tasks, settles=False))
        nodes = await fleet.answered()
        assert len(nodes) == 2
        yield nodes


def make_plans(nodes: Sequence[Answered]) -> tuple[Planned, Plan]:
    """Two stages with nothing to fall back to, and the plan on one device."""
    model = read_model_bytes(make_particular_model().SerializeToString())
    graph = summarise(model)
    ids = [node.view.capabilities.node_id for node in nodes]
    end = len(graph.groups)

    def plan(*stages: tuple[int, int, NodeId]) -> Plan:
        made = tuple(Stage(segment_between(graph, start, stop), (device,), 1e-3) for start, stop, device in stages)
        return Plan(model.sha256, Objective.THROUGHPUT, False, made, Prediction(1.0, 1.0), 1.0, "given", (), 2)

    return Planned(model, graph, plan((0, 1, ids[0]), (1, end, ids[1]))), plan((0, end, ids[1]))


async def test_a_model_that_cannot_be_proven_runs_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with two_nodes(tmp_path, monkeypatch) as nodes:
        planned, whole = make_plans(nodes)
        unproven = Planned(planned.model, planned.graph, planned.plan, whole)
        told: list[str] = []
        deployment = await activate(nodes, unproven, DeploymentName("particular"), Fence(1, 1), told.append)
        assert [stage.devices for stage in deployment.plan.stages] == [whole.stages[0].devices]
        assert any("whole on one device" in line and "made-up" in line for line in told), told


async def test_cuts_that_were_asked_for_are_refused_without_a_proof(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with two_nodes(tmp_path, monkeypatch) as nodes:
        planned, _ = make_plans(nodes)
        with pytest.raises(ModelInvalid, match="made-up inputs"):
            await activate(nodes, planned, DeploymentName("particular"), Fence(1, 1), lambda line: None)
        for node in nodes:
            assert await node.client.list_deployments() == ([], 0)


async def test_real_inputs_prove_what_made_up_ones_cannot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with two_nodes(tmp_path, monkeypatch) as nodes:
        planned, whole = make_plans(nodes)
        feeds = {"x": np.ones((2, 6), np.float32), "shape": np.array([3, 4], np.int64)}
        planned = Planned(planned.model, planned.graph, planned.plan, whole)
        fence = Fence(1, 1)
        deployment = await activate(nodes, planned, DeploymentName("particular"), fence, lambda line: None, feeds)
        assert len(deployment.plan.stages) == 2
