"""The data path without gRPC: links in memory, and a chain of stages that are connected by them."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

from mesh.core.coding import RAW
from mesh.core.frame import Frame
from mesh.core.ids import NodeId
from mesh.core.messages import Message, OpenEdge, OpenResults
from mesh.core.plan import Deployment, Fence
from mesh.core.tensor import TensorSpec
from mesh.engines.fake import FakeModel
from mesh.errors import DeploymentNotFound, MeshError, NodeLost
from mesh.runtime.edge_receiver import EdgeReceiver, ResultsSender, ServerLink
from mesh.runtime.edge_sender import EdgeSender
from mesh.runtime.frame_stream import FrameStream, StreamOptions
from mesh.runtime.stage import Stage
from mesh.runtime.supervise import Supervisor
from mesh.wire.channel import NodeClient
from tests.runtime.fake_models import GatedEngine, lease_alone, make_deployment

CAPACITY = 16
"""Messages under way in one direction; a transport has some room, and it ends."""


class _Way:
    """One direction of a link."""

    def __init__(self) -> None:
        self._messages: deque[Message] = deque()
        self._changed = asyncio.Event()
        self._is_ended = False
        self._error: MeshError | None = None

    async def put(self, message: Message) -> None:
        while len(self._messages) >= CAPACITY and not self._is_ended:
            self._changed.clear()
            await self._changed.wait()
        if self._is_ended:
            raise self._error or NodeLost("the peer closed the connection")
        self._messages.append(message)
        self._changed.set()

    async def get(self) -> Message | None:
        while not self._messages and not self._is_ended:
            self._changed.clear()
            await self._changed.wait()
        if self._messages:
            self._changed.set()
            return self._messages.popleft()
        if self._error is not None:
            raise self._error
        return None

    def end(self, error: MeshError | None) -> None:
        if not self._is_ended:
            self._is_ended, self._error = True, error
            self._changed.set()


class LoopbackLink:
    """One end: `send` waits where the other end does not read, `cancel` ends both directions."""

    def __init__(self, outward: _Way, inward: _Way, on_cancel: Callable[[], object]) -> None:
        self._outward = outward
        self._inward = inward
        self._on_cancel = on_cancel

    async def send(self, message: Message) -> None:
        await self._outward.put(message)

    async def send_frames(self, frames: Sequence[Frame]) -> None:
        for frame in frames:
            await self.send(frame)

    async def receive(self) -> Message | None:
        return await self._inward.get()

    def expect(self, boundary: tuple[TensorSpec, ...], fence: Fence, codec: str = RAW) -> None:
        """Messages are handed over as they are."""

    def cancel(self) -> None:
        self._outward.end(NodeLost("the connection was given up"))
        self._inward.end(NodeLost("the connection was given up"))
        self._on_cancel()


def make_pair() -> tuple[LoopbackLink, LoopbackLink]:
    """Two ends that nobody serves."""
    down, up = _Way(), _Way()
    return LoopbackLink(down, up, lambda: None), LoopbackLink(up, down, lambda: None)


@dataclass
class MemoryNode:
    """Serves stages over loopback links; stands for a `NodeClient` to those that dial it."""

    tasks: Supervisor
    stages: list[Stage] = field(default_factory=list)
    calls: set[asyncio.Task[None]] = field(default_factory=set)

    def open_edge(self) -> LoopbackLink:
        return self._serve(lambda link: EdgeReceiver(link, "somebody", self.find_stage).serve())

    def open_results(self, boundary: Sequence[TensorSpec]) -> LoopbackLink:
        return self._serve(lambda link: ResultsSender(link, "somebody", self.find_stage).serve())

    def find_stage(self, opening: OpenEdge | OpenResults) -> Stage:
        for stage in self.stages:
            if (stage.deployment.name, stage.deployment.fence) == (opening.deployment, opening.fence):
                return stage
        raise DeploymentNotFound(f"deployment {opening.deployment!r} is not on this node")

    def _serve(self, handle: Callable[[ServerLink], Coroutine[Any, Any, None]]) -> LoopbackLink:
        down, up = _Way(), _Way()

        async def call() -> None:
            error: MeshError | None = NodeLost("the node is gone")
            try:
                await handle(LoopbackLink(up, down, lambda: None))
                error = None
            except MeshError as failure:
                error = failure
            finally:
                up.end(error)
                down.end(error)

        task = self.tasks.spawn(call(), "serve a call")
        self.calls.add(task)
        task.add_done_callback(self.calls.discard)
        return LoopbackLink(down, up, task.cancel)


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
