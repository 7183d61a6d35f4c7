"""A node's deployments when whoever asked goes away half-way."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mesh.control.generations import Key
from mesh.core.plan import PlanOptions
from mesh.discovery.memory import MemoryDiscovery, MemoryNetwork
from mesh.errors import NodeLost
from mesh.runtime.coordinator import Coordinator
from mesh.runtime.fleet import open_fleet
from mesh.runtime.supervise import Supervisor
from mesh.storage.deployments import DeploymentStore
from mesh.wire.channel import NodeClient
from tests.runtime.mesh_on_loopback import make_model, make_node, probe_at_once, running


def ignore(line: str) -> None:
    """For calls whose progress does not matter here."""


async def test_a_change_is_carried_out_although_nobody_waits_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    probe_at_once(monkeypatch)
    network = MemoryNetwork()
    storing, release = threading.Event(), threading.Event()
    store = DeploymentStore.raise_fence

    def slow_store(self: DeploymentStore, *arguments: Any) -> None:
        storing.set()
        assert release.wait(20)
        store(self, *arguments)

    async with (
        running(make_node(network, tmp_path, "first")) as node,
        Supervisor() as tasks,
        open_fleet(MemoryDiscovery(network), tasks, settles=False) as fleet,
    ):
        coordinator = Coordinator(fleet)
        deployment = await coordinator.deploy(make_model(), "chain", PlanOptions(), ignore)
        await coordinator.undeploy("chain")
        monkeypatch.setattr(DeploymentStore, "raise_fence", slow_store)
        client = fleet.client(node.address)
        fence = replace(deployment.fence, generation=deployment.fence.generation + 1)
        newer = replace(deployment, fence=fence)
        async with asyncio.TaskGroup() as group:
            preparing = group.create_task(client.prepare(newer))
            assert await asyncio.to_thread(storing.wait, 20)
            preparing.cancel()
        await client.get_capabilities()  # behind the cancellation on the same connection
        release.set()
        async with asyncio.timeout(20):
            while [report.state for report in (await client.list_deployments())[0]] != ["ready"]:
                continue  # asking takes its time
        await coordinator.undeploy("chain")
        assert (await client.list_deployments())[0] == []


async def test_after_a_deployment_that_was_taken_back_the_next_one_is_not_older(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    probe_at_once(monkeypatch)
    network = MemoryNetwork()

    async def fail(self: NodeClient, key: Key) -> None:
        raise NodeLost("it is gone")

    async with (
        running(make_node(network, tmp_path, "first")),
        Supervisor() as tasks,
        open_fleet(MemoryDiscovery(network), tasks, settles=False) as fleet,
    ):
        coordinator = Coordinator(fleet)
        first = await coordinator.deploy(make_model(), "chain", PlanOptions(), ignore)
        with monkeypatch.context() as patch:
            patch.setattr(NodeClient, "activate", fail)
            with pytest.raises(NodeLost):
                await coordinator.deploy(make_model(), "chain", PlanOptions(), ignore)
        assert await coordinator.resolve("chain") == first
        second = await coordinator.deploy(make_model(), "chain", PlanOptions(), ignore)
        assert second.fence > first.fence
        assert await coordinator.resolve("chain") == second
