"""Nodes that change while a model is planned: they finish measuring themselves, or go away."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mesh.core.fleet import NodeState, Provider
from mesh.core.ids import DeploymentName
from mesh.core.plan import Fence, PlanOptions
from mesh.discovery.memory import MemoryDiscovery, MemoryNetwork
from mesh.errors import NodeLost
from mesh.hardware.probe import ProbeResult
from mesh.runtime import node as node_module
from mesh.runtime.coordinator import Coordinator
from mesh.runtime.deploying import activate, make_plan
from mesh.runtime.fleet import Fleet, open_fleet
from mesh.runtime.supervise import Supervisor
from mesh.storage.cost_store import CostStore
from tests.runtime.mesh_on_loopback import make_model, make_node, probe_at_once, running

MODEL = make_model()
MEASURE_LIMIT_S = 30.0


def ignore(line: str) -> None:
    """Progress does not matter here."""


@contextlib.asynccontextmanager
async def open_nodes(folder: Path, names: tuple[str, ...]) -> AsyncIterator[Fleet]:
    network = MemoryNetwork()
    async with contextlib.AsyncExitStack() as stack:
        for name in names:
            await stack.enter_async_context(running(make_node(network, folder, name)))
        tasks = await stack.enter_async_context(Supervisor())
        yield await stack.enter_async_context(open_fleet(MemoryDiscovery(network), tasks, settles=False))


async def test_a_node_that_still_measured_itself_is_a_stand_by(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = threading.Event()

    def probe(stop: threading.Event) -> ProbeResult:
        assert done.wait(MEASURE_LIMIT_S)
        return ProbeResult("1", (Provider("CPUExecutionProvider", True),), 1.0, 1.0)

    monkeypatch.setattr(node_module, "run_probe", probe)
    lines: list[str] = []

    def tell(line: str) -> None:
        lines.append(line)
        done.set()  # not before somebody waits for it

    try:
        async with open_nodes(tmp_path, ("first", "second")) as fleet:
            states = {node.view.capabilities.node_id: node.view.capabilities.state for node in await fleet.answered()}
            assert set(states.values()) == {NodeState.MEASURING}
            name = DeploymentName("chain")
            deployment = await Coordinator(fleet).deploy(MODEL, name, PlanOptions(stages=1), tell)
            assert any("is measuring itself" in line for line in lines)
            (device,) = deployment.plan.devices
            assert deployment.standbys == (tuple(states.keys() - {device}),)
    finally:
        done.set()


async def test_a_plan_for_a_node_that_went_away_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    probe_at_once(monkeypatch)
    async with open_nodes(tmp_path, ("first", "second")) as fleet:
        nodes = await fleet.answered()
        planned = await make_plan(nodes, MODEL, PlanOptions(stages=2), CostStore(), ignore)
        with pytest.raises(NodeLost, match="while the model was planned"):
            await activate(nodes[:1], planned, DeploymentName("chain"), Fence(1, 1), ignore)
        assert await Coordinator(fleet).status() == []
