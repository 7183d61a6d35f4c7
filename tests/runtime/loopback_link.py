"""The data path without gRPC: links in memory, and a chain of stages that are connected by them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

from mesh.core.ids import NodeId
from mesh.core.messages import OpenEdge, OpenResults
from mesh.core.plan import Deployment
from mesh.core.tensor import TensorSpec
from mesh.engines.fake import FakeModel
from mesh.errors import DeploymentNotFound, MeshError, NodeLost
from mesh.runtime.edge_receiver import EdgeReceiver, ResultsSender, ServerLink
from mesh.runtime.edge_sender import EdgeSender
from mesh.runtime.frame_stream import FrameStream, StreamOptions
from mesh.runtime.own_node import OwnLink, make_pair
from mesh.runtime.stage import Stage
from mesh.runtime.supervise import Supervisor
from mesh.wire.channel import NodeClient
from tests.runtime.fake_models import GatedEngine, lease_alone, make_deployment


@dataclass
class MemoryNode:
    """Serves stages over loopback links; stands for a `NodeClient` to those that dial it."""

    tasks: Supervisor
    stages: list[Stage] = field(default_factory=list)
    calls: set[asyncio.Task[None]] = field(default_factory=set)

    def open_edge(self) -> OwnLink:
        return self._serve(lambda link: EdgeReceiver(link, "somebody", self.find_stage).serve())

    def open_results(self, boundary: Sequence[TensorSpec]) -> OwnLink:
        return self._serve(lambda link: ResultsSender(link, "somebody", self.find_stage).serve())

    def find_stage(self, opening: OpenEdge | OpenResults) -> Stage:
        for stage in self.stages:
            if (stage.deployment.name, stage.deployment.fence) == (opening.deployment, opening.fence):
                return stage
        raise DeploymentNotFound(f"deployment {opening.deployment!r} is not on this node")

    def _serve(self, handle: Callable[[ServerLink], Coroutine[Any, Any, None]]) -> OwnLink:
        ours, theirs = make_pair()

        async def call() -> None:
            error: MeshError | None = NodeLost("the node is gone")
            try:
                await handle(theirs)
                error = None
            except MeshError as failure:
                error = failure
            finally:
                theirs.end(error)

        task = self.tasks.spawn(call(), "serve a call")
        self.calls.add(task)
        task.add_done_callback(self.calls.discard)
        return ours


@dataclass
class MemoryChain:
    tasks: Supervisor
    deployment: Deployment
    nodes: dict[str, MemoryNode]
    stages: list[Stage]
    engines: list[GatedEngine]

    @property
    def calls(self) -> int:
        return sum(len(node.calls) for node in self.nodes.values())

    def client(self, address: str) -> NodeClient:
        return cast(NodeClient, self.nodes[address])

    @contextlib.asynccontextmanager
    async def stream(self, options: StreamOptions | None = None) -> AsyncIterator[FrameStream]:
        stream = FrameStream(self.deployment, options or StreamOptions(), self.client, self.tasks)
        try:
            await stream.open()
            yield stream
        finally:
            await stream.close()


@contextlib.asynccontextmanager
async def open_memory_chain(
    models: Sequence[FakeModel],
    *,
    boundaries: Sequence[Sequence[str]] | None = None,
    window: int = 4,
    answer_shape: tuple[int | str, ...] = ("n",),
) -> AsyncIterator[MemoryChain]:
    """A deployment of `models`, one in-memory node each, active."""
    addresses = {NodeId(f"{index:032x}"): f"memory:{index}" for index in range(len(models))}
    deployment = make_deployment(models, addresses, boundaries=boundaries, window=window, answer_shape=answer_shape)
    async with contextlib.AsyncExitStack() as leases, Supervisor() as tasks:
        nodes = {address: MemoryNode(tasks) for address in addresses.values()}
        engines = [GatedEngine() for _ in models]
        stages = []
        for index, (model, address) in enumerate(zip(models, nodes, strict=True)):
            after = None
            if index + 1 < len(models):
                after = EdgeSender(
                    nodes[f"memory:{index + 1}"].open_edge,
                    OpenEdge(deployment.name, deployment.fence, index + 1),
                    f"node {index + 1}",
                    tasks.spawn,
                )
            engine = await leases.enter_async_context(lease_alone(engines[index], model))
            stage = Stage(deployment, index, engine, after)
            nodes[address].stages.append(stage)
            tasks.spawn(stage.run(), f"stage {index}")
            stage.activate()
            stages.append(stage)
        try:
            yield MemoryChain(tasks, deployment, nodes, stages, engines)
        finally:
            await asyncio.gather(*map(partial(Stage.close), stages))
