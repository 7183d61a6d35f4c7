"""The coordinator daemon before two real nodes: deploy, status, undeploy, and everything that goes wrong."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from mesh.core.fleet import NodeState
from mesh.core.plan import Fence, PlanOptions
from mesh.discovery.memory import MemoryDiscovery, MemoryNetwork
from mesh.errors import (
    DeploymentNotFound,
    FolderInUse,
    ListenError,
    MeshError,
    ModelUnreadable,
    NodeLost,
    NoNodes,
)
from mesh.runtime.fleet import open_fleet
from mesh.runtime.supervise import Supervisor
from mesh.wire.channel import NodeClient
from mesh.wire.coordinator_client import CoordinatorClient
from tests.runtime.mesh_on_loopback import Running, make_coordinator, make_model, make_node, probe_at_once, running

MODEL = make_model()
TWO_STAGES = PlanOptions(stages=2)


def ignore(line: str) -> None:
    """For calls whose progress does not matter here."""


@dataclass(frozen=True, slots=True)
class Hall:
    """A coordinator, its two nodes, and a client of it."""

    network: MemoryNetwork
    nodes: tuple[Running, Running]
    coordinator: Running
    client: CoordinatorClient

    async def held(self) -> list[int]:
        """How many generations each node holds."""
        counts = []
        for node in self.nodes:
            client = NodeClient(node.address)
            try:
                counts.append(len((await client.list_deployments())[0]))
            finally:
                await client.close()
        return counts


@contextlib.asynccontextmanager
async def open_hall(folder: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Hall]:
    probe_at_once(monkeypatch)
    network = MemoryNetwork()
    async with contextlib.AsyncExitStack() as stack:
        first = await stack.enter_async_context(running(make_node(network, folder, "first")))
        second = await stack.enter_async_context(running(make_node(network, folder, "second")))
        coordinator = await stack.enter_async_context(running(make_coordinator(network, folder)))
        client = CoordinatorClient(coordinator.address)
        stack.push_async_callback(client.close)
        yield Hall(network, (first, second), coordinator, client)


async def test_deploy_status_undeploy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = list[str]()
    async with open_hall(tmp_path, monkeypatch) as hall:
        views = await hall.client.list_nodes()
        assert [view.capabilities.name for view in views] == ["first", "second"]
        assert not any(view.is_lost for view in views)

        plan = await hall.client.plan(MODEL, TWO_STAGES, lines.append)
        assert len(plan.stages) == 2
        assert await hall.held() == [0, 0]  # a plan changes nothing

        deployment = await hall.client.deploy(MODEL, "chain", TWO_STAGES, lines.append)
        assert sorted(deployment.addresses.values()) == sorted(node.address for node in hall.nodes)
        assert await hall.held() == [1, 1]
        (report,) = await hall.client.status("chain")
        assert (report.state, report.reason, report.deployment) == ("active", "", deployment)
        assert [stage.stage for stage in report.stages] == [0, 1]
        assert await hall.client.resolve("chain") == deployment

        again = await hall.client.deploy(MODEL, "chain", PlanOptions(stages=1), ignore)
        assert again.fence == Fence(deployment.fence.term + 1, deployment.fence.generation + 1)
        assert await hall.held() == [1, 0] or await hall.held() == [0, 1]  # the old generation is gone

        await hall.client.undeploy("chain")
        assert await hall.held() == [0, 0]
        assert await hall.client.status() == []
    assert any("first runs the whole model" in line for line in lines)
    assert any("proving" in line for line in lines)


async def test_errors_come_through_as_themselves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_hall(tmp_path, monkeypatch) as hall:
        with pytest.raises(DeploymentNotFound, match="no deployment 'chain'"):
            await hall.client.status("chain")
        with pytest.raises(DeploymentNotFound, match="no deployment 'chain'"):
            await hall.client.undeploy("chain")
        with pytest.raises(DeploymentNotFound, match="no deployment 'chain'"):
            await hall.client.resolve("chain")
        with pytest.raises(ModelUnreadable):
            await hall.client.deploy(b"this is no model at all", "chain", PlanOptions(), ignore)
        with pytest.raises(MeshError, match="stages"):
            await hall.client.deploy(MODEL, "chain", PlanOptions(stages=3), ignore)
        assert await hall.held() == [0, 0]


async def test_without_nodes_it_says_so(tmp_path: Path) -> None:
    async with running(make_coordinator(MemoryNetwork(), tmp_path)) as coordinator:
        client = CoordinatorClient(coordinator.address)
        try:
            assert await client.list_nodes() == []
            with pytest.raises(NoNodes, match="no node answers"):
                await client.deploy(MODEL, "chain", PlanOptions(), ignore)
        finally:
            await client.close()


async def test_a_caller_that_gives_up_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_hall(tmp_path, monkeypatch) as hall:
        with slow_loading(monkeypatch) as loading:
            async with asyncio.TaskGroup() as group:
                deploying = group.create_task(hall.client.deploy(MODEL, "chain", TWO_STAGES, ignore))
                await asyncio.wait_for(loading.wait(), 20)
                assert await hall.held() == [1, 1]
                deploying.cancel()
            async with asyncio.timeout(20):
                while await hall.held() != [0, 0]:
                    continue  # asking takes its time
        # The next one is not held up by what the first left, and stands above it.
        deployment = await hall.client.deploy(MODEL, "chain", TWO_STAGES, ignore)
        assert (await hall.client.status("chain"))[0].state == "active"
        assert deployment.fence > Fence(1, 1)


async def test_stopping_takes_back_what_is_half_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_hall(tmp_path, monkeypatch) as hall:
        with slow_loading(monkeypatch) as loading:
            async with asyncio.TaskGroup() as group:
                deploying = group.create_task(_error_of_deploy(hall.client))
                await asyncio.wait_for(loading.wait(), 20)
                await hall.coordinator.stop()
                error = await deploying
        assert isinstance(error, NodeLost)
        assert "shut down" in error.message
        assert await hall.held() == [0, 0]


async def test_a_node_that_fails_makes_all_take_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_hall(tmp_path, monkeypatch) as hall:
        deployment = await hall.client.deploy(MODEL, "chain", PlanOptions(stages=1), ignore)

        async def refuse(self: NodeClient, key: object) -> None:
            raise NodeLost("it fell off the shelf")

        with monkeypatch.context() as patched:
            patched.setattr(NodeClient, "activate", refuse)
            with pytest.raises(NodeLost, match="fell off the shelf"):
                await hall.client.deploy(MODEL, "chain", TWO_STAGES, ignore)
        (report,) = await hall.client.status()
        assert report.deployment == deployment  # the old generation goes on
        assert report.state == "active"
        assert sorted(await hall.held()) == [0, 1]


async def test_a_lost_node_is_listed_as_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_hall(tmp_path, monkeypatch) as hall:
        deployment = await hall.client.deploy(MODEL, "chain", TWO_STAGES, ignore)
        gone = hall.network.roster._peers[hall.nodes[1].ready.identity.node_id, "node"]
        await hall.nodes[1].stop()
        hall.network.roster.put(gone)  # its announcement outlives it, as after a pulled plug
        views = {view.capabilities.name: view for view in await hall.client.list_nodes()}
        assert views["second"].is_lost
        assert views["second"].capabilities.state is NodeState.LOST
        assert not views["first"].is_lost
        (report,) = await hall.client.status("chain")
        assert report.state == "failed"
        assert "does not answer" in report.reason
        assert report.deployment == deployment


async def test_it_remembers_nothing_that_the_nodes_do_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_hall(tmp_path, monkeypatch) as hall:
        deployment = await hall.client.deploy(MODEL, "chain", TWO_STAGES, ignore)
        await hall.coordinator.stop()
        async with running(make_coordinator(hall.network, tmp_path)) as restarted:
            assert restarted.ready.identity == hall.coordinator.ready.identity
            client = CoordinatorClient(restarted.address)
            try:
                assert await client.resolve("chain") == deployment
            finally:
                await client.close()


async def test_one_daemon_per_folder_and_port(tmp_path: Path) -> None:
    network = MemoryNetwork()
    async with running(make_coordinator(network, tmp_path / "a")) as first:
        with pytest.raises(FolderInUse):
            await make_coordinator(network, tmp_path / "a").run(asyncio.Event(), ignore)  # type: ignore[arg-type]
        with pytest.raises(ListenError, match=first.address):
            second = make_coordinator(network, tmp_path / "b", listen=first.address)
            await second.run(asyncio.Event(), ignore)  # type: ignore[arg-type]


async def test_a_node_and_a_coordinator_share_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    probe_at_once(monkeypatch)
    network = MemoryNetwork()
    async with (
        running(make_node(network, tmp_path, "shared")) as node,
        running(make_coordinator(network, tmp_path / "shared")) as coordinator,
    ):
        assert node.ready.identity.node_id != coordinator.ready.identity.node_id


async def test_it_announces_itself_while_it_runs(tmp_path: Path) -> None:
    network = MemoryNetwork()
    async with Supervisor() as tasks, open_fleet(MemoryDiscovery(network), tasks, settles=False) as fleet:
        async with running(make_coordinator(network, tmp_path)) as coordinator:
            await fleet.settle()
            (peer,) = fleet.coordinators()
            assert (peer.name, peer.addresses) == ("hall", (coordinator.address,))
            assert await fleet.nodes() == []
        await fleet.settle()
        assert fleet.coordinators() == []


async def _error_of_deploy(client: CoordinatorClient) -> MeshError | None:
    try:
        await client.deploy(MODEL, "chain", TWO_STAGES, ignore)
    except MeshError as error:
        return error
    return None


@contextlib.contextmanager
def slow_loading(monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """Let every node accept its stage and then wait; yields an event that says that all have accepted."""
    loading = asyncio.Event()
    waiting = 0
    prepare = NodeClient.prepare

    async def prepare_and_wait(self: NodeClient, deployment: object) -> float:
        nonlocal waiting
        await prepare(self, deployment)  # type: ignore[arg-type]
        waiting += 1
        if waiting == 2:
            loading.set()
        await asyncio.Event().wait()
        return 0.0

    with monkeypatch.context() as patched:
        patched.setattr(NodeClient, "prepare", prepare_and_wait)
        yield loading
