"""Real nodes on loopback ports with the gated fake engine, and deployments put on them over gRPC."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from mesh.control.deployments import Key, key_of
from mesh.core.ids import NodeId
from mesh.core.plan import Deployment, Fence
from mesh.discovery.memory import MemoryDiscovery, MemoryNetwork
from mesh.engines.contract import Engine
from mesh.runtime import node as node_module
from mesh.runtime.deployment_driver import DeploymentDriver
from mesh.runtime.engine_mode import EngineMode
from mesh.runtime.frame_stream import FrameStream, StreamOptions
from mesh.runtime.node import Node, NodeSettings
from mesh.runtime.own_node import OwnNode
from mesh.runtime.stage import Stage
from mesh.runtime.supervise import Supervisor
from mesh.storage.deployments import Damage
from mesh.wire.channel import NodeClient
from tests.runtime.fake_models import FIRST, GatedEngine, Loadable, digest_of, make_deployment, until
from tests.runtime.mesh_on_loopback import probe_at_once


@dataclass
class FakeNode:
    """A running daemon and what tests look at inside of it."""

    node_id: NodeId
    address: str
    engine: GatedEngine
    driver: DeploymentDriver
    client: NodeClient
    stop: asyncio.Event
    task: asyncio.Task[None]
    damages: tuple[Damage, ...]
    own_node: OwnNode
    """What a companion in its process is given."""

    def stage(self, deployment: Deployment) -> Stage:
        stages = self.driver.stages(key_of(deployment))
        assert stages, f"{deployment.name} is not loaded on {self.address}"
        return stages[0]

    async def states(self) -> dict[Key, str]:
        reports, _ = await self.client.list_deployments()
        return {key_of(report.deployment): report.state for report in reports}

    async def end(self) -> None:
        self.stop.set()
        await asyncio.wait({self.task})


@dataclass
class FakeMesh:
    folder: Path
    tasks: Supervisor
    patch: pytest.MonkeyPatch
    nodes: list[FakeNode] = field(default_factory=list)
    loads_on_start: bool = True
    """False: engines of nodes that are started from now on wait before loading."""

    def client(self, address: str) -> NodeClient:
        return next(node.client for node in self.nodes if node.address == address)

    async def start(self, name: str, other: Engine | None = None) -> FakeNode:
        """Start a daemon, on `other` in place of the gated engine; a name that ran before goes on with its folder."""
        engine = GatedEngine()
        if not self.loads_on_start:
            engine.loading.close()
        drivers: list[DeploymentDriver] = []

        def make_driver(*arguments: Any) -> DeploymentDriver:
            drivers.append(DeploymentDriver(*arguments))
            return drivers[-1]

        self.patch.setattr(node_module, "make_node_engine", lambda name, mode, available: other or engine)
        self.patch.setattr(node_module, "DeploymentDriver", make_driver)
        stop, ready = asyncio.Event(), asyncio.get_running_loop().create_future()
        node = Node(
            NodeSettings(
                self.folder / name, "127.0.0.1:0", name, engine="fake", threads=1, engine_mode=EngineMode.THREAD
            ),
            MemoryDiscovery(MemoryNetwork()),
        )
        beside: list[OwnNode] = []

        @contextlib.asynccontextmanager
        async def companion(own_node: OwnNode, address: str) -> AsyncIterator[None]:
            beside.append(own_node)
            yield

        task = self.tasks.spawn(node.run(stop, ready.set_result, companion), f"node {name}")
        await asyncio.wait({task, ready}, timeout=10, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
        told = ready.result()
        client = NodeClient(told.address)
        found = FakeNode(
            told.identity.node_id, told.address, engine, drivers[0], client, stop, task, told.damages, beside[0]
        )
        self.nodes.append(found)
        return found

    async def put(self, deployment: Deployment, models: Sequence[Loadable]) -> None:
        """Content, prepare and activate, from the tail to the head."""
        for model, stage in reversed(list(zip(models, deployment.plan.stages, strict=True))):
            for device in stage.devices:
                client = self.client(deployment.addresses[device])
                await client.put_content(digest_of(model), model.to_bytes())
                await client.prepare(deployment)
        for stage in reversed(deployment.plan.stages):
            for device in stage.devices:
                await self.client(deployment.addresses[device]).activate(key_of(deployment))

    async def deploy(
        self,
        models: Sequence[Loadable],
        nodes: Sequence[FakeNode],
        *,
        name: str = "chain",
        fence: Fence = FIRST,
        window: int = 4,
        answer_shape: tuple[int | str, ...] = ("n",),
    ) -> Deployment:
        addresses = {node.node_id: node.address for node in nodes}
        deployment = make_deployment(
            models, addresses, name=name, fence=fence, window=window, answer_shape=answer_shape
        )
        await self.put(deployment, models)
        return deployment

    @contextlib.asynccontextmanager
    async def stream(
        self, deployment: Deployment, options: StreamOptions | None = None, own_node: OwnNode | None = None
    ) -> AsyncIterator[FrameStream]:
        stream = FrameStream(deployment, options or StreamOptions(), self.client, self.tasks, own_node=own_node)
        try:
            await stream.open()
            yield stream
        finally:
            await stream.close()

    async def is_clean(self, deployment: Deployment) -> None:
        """Wait until no stream and no consumer is left on any node of `deployment`."""
        for node in self.nodes:
            for stage in node.driver.stages(key_of(deployment)):
                if not node.task.done():
                    await until(lambda: not stage._streams and not stage._sinks, "an empty stage")  # noqa: B023


@contextlib.asynccontextmanager
async def open_mesh(folder: Path, patch: pytest.MonkeyPatch, count: int = 0) -> AsyncIterator[FakeMesh]:
    """`count` nodes named n0, n1, ...; all are stopped in an orderly way at the end."""
    probe_at_once(patch)
    async with Supervisor() as tasks:
        mesh = FakeMesh(folder, tasks, patch)
        try:
            for index in range(count):
                await mesh.start(f"n{index}")
            yield mesh
        finally:
            for node in mesh.nodes:
                await node.client.close()
            for node in mesh.nodes:
                node.engine.gate.open()
                node.engine.loading.open()
                await node.end()
