"""A plan document with replicated stages put in force on real nodes: cut, proven, loaded everywhere, and computing."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from mesh.core.ids import DeploymentName
from mesh.core.plan import Objective, Plan, PlanOptions, Prediction, Stage
from mesh.core.segments import segment_between
from mesh.core.tensor import DType, Tensor
from mesh.discovery.memory import MemoryDiscovery, MemoryNetwork
from mesh.model.read import read_model_bytes
from mesh.model.summarise import summarise
from mesh.planning.document import plan_from_json, plan_to_json
from mesh.runtime.coordinator import Coordinator
from mesh.runtime.fleet import open_fleet
from mesh.runtime.frame_stream import FrameStream, StreamOptions
from mesh.runtime.supervise import Supervisor
from tests.runtime.mesh_on_loopback import WIDTH, make_model, make_node, probe_at_once, running

NODES = 3
FRAMES = 40


@pytest.mark.parametrize("layout", [((0, 1, 2),), ((0,), (1, 2)), ((0, 1), (2,))], ids=["copies", "tail", "head"])
async def test_a_plan_with_replicas_is_carried_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: tuple[tuple[int, ...], ...]
) -> None:
    probe_at_once(monkeypatch)
    network, data = MemoryNetwork(), make_model()
    graph = summarise(read_model_bytes(data))
    async with contextlib.AsyncExitStack() as stack:
        for index in range(NODES):
            await stack.enter_async_context(running(make_node(network, tmp_path, f"n{index}")))
        tasks = await stack.enter_async_context(Supervisor())
        fleet = await stack.enter_async_context(open_fleet(MemoryDiscovery(network), tasks, settles=False))
        nodes = await fleet.answered()
        clients = {node.view.address: node.client for node in nodes}
        ids = sorted(node.view.capabilities.node_id for node in nodes)
        ends = [0, 2, len(graph.groups)] if len(layout) == 2 else [0, len(graph.groups)]
        stages = tuple(
            Stage(segment_between(graph, ends[at], ends[at + 1]), tuple(ids[index] for index in on), 1e-3)
            for at, on in enumerate(layout)
        )
        given = Plan(graph.model_sha256, Objective.THROUGHPUT, True, stages, Prediction(1.0, 1.0), 1.0, "given", (), 2)
        plan = plan_from_json(plan_to_json(given), graph)
        coordinator = Coordinator(fleet)
        deployment = await coordinator.deploy(
            data, DeploymentName("chain"), PlanOptions(forced=plan), lambda line: None
        )
        assert [stage.devices for stage in deployment.plan.stages] == [stage.devices for stage in stages]

        stream = FrameStream(deployment, StreamOptions(window=FRAMES), clients.__getitem__, tasks)
        stack.push_async_callback(stream.close)
        await stream.open()
        inputs = [np.full((1, WIDTH), number, np.float32) for number in range(FRAMES)]
        for value in inputs:
            await stream.send([Tensor.from_bytes(DType.FLOAT32, (1, WIDTH), value.tobytes())])
        stream.finish()
        answers = [answer async for answer in stream.answers()]
        oracle = ReferenceEvaluator(onnx.load_from_string(data))
        for value, answer in zip(inputs, answers, strict=True):
            expected = np.asarray(next(iter(oracle.run(None, {"x": value}))), np.float32)
            found = np.frombuffer(answer.tensors[0].data, np.float32)
            assert np.allclose(found, expected, rtol=1e-5, atol=1e-5)
        (report,) = await coordinator.status("chain")
        assert [(stage.stage, stage.device) for stage in report.stages] == [
            (at, device) for at, stage in enumerate(deployment.plan.stages) for device in stage.devices
        ]
        assert sum(stage.frames for stage in report.stages) == len(layout) * FRAMES
        assert all(stage.frames for stage in report.stages), "each replica had some of them"
