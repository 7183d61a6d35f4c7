"""Raw links to one node, for tests that speak the stream protocol by hand, rightly or wrongly."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from typing import Any

from mesh.core.frame import Frame, StreamClass
from mesh.core.messages import EdgeAccepted, Message, OpenEdge, OpenResults, OpenStream, ResultsAccepted, StreamAccepted
from mesh.core.plan import Deployment, Fence
from mesh.errors import MeshError
from mesh.runtime.frame_stream import FrameStream
from mesh.wire.links import ClientLink
from tests.runtime.fake_mesh import FakeMesh, FakeNode
from tests.runtime.fake_models import values_of, vector, zeros

STREAM = 7


@dataclass
class Peer:
    """Raw links to one node that serves one stage, and an honest stream beside them."""

    mesh: FakeMesh
    node: FakeNode
    deployment: Deployment

    def edge(self) -> ClientLink:
        return self.node.client.open_edge()

    def opening(self, **changes: Any) -> OpenEdge:
        return replace(OpenEdge(self.deployment.name, self.deployment.fence, 0), **changes)

    async def opened_edge(self) -> ClientLink:
        link = self.edge()
        await link.send(self.opening())
        assert isinstance(await link.receive(), EdgeAccepted)
        return link

    async def results(self, window: int = 4, stream: int = STREAM, **changes: Any) -> ClientLink:
        link = self.node.client.open_results(self.deployment.outputs)
        opening = OpenResults(self.deployment.name, self.deployment.fence, stream, 0, window)
        await link.send(replace(opening, **changes))
        return link

    async def opened(self, window: int = 4, stream: int = STREAM) -> tuple[ClientLink, ClientLink]:
        results = await self.results(window, stream)
        assert isinstance(await results.receive(), ResultsAccepted)
        edge = await self.opened_edge()
        await edge.send(OpenStream(stream, StreamClass.LOSSLESS, True, window))
        assert await next_of(edge, StreamAccepted) == StreamAccepted(stream)
        return edge, results

    def frame(self, sequence: int, size_bytes: int = 4, stream: int = STREAM, fence: Fence | None = None) -> Frame:
        used = fence or self.deployment.fence
        return Frame(stream, sequence, used.term, used.generation, (zeros(size_bytes),))

    async def is_well(self) -> None:
        """The honest work of others goes on, and nothing of the offender is left."""
        async with self.mesh.stream(self.deployment) as stream:
            await still_answers(stream)
        await self.mesh.is_clean(self.deployment)


async def still_answers(stream: FrameStream) -> None:
    await stream.send([vector(5)])
    answer = await anext(stream.answers())
    assert values_of(answer.tensors) == [5.0]


async def next_of(link: ClientLink, kind: type[Message]) -> Message | None:
    async with asyncio.timeout(10):
        while (message := await link.receive()) is not None:
            if isinstance(message, kind):
                return message
    return None


async def error_of(link: ClientLink) -> MeshError:
    """With what the peer ended the link."""
    try:
        async with asyncio.timeout(10):
            while await link.receive() is not None:
                pass
    except MeshError as error:
        return error
    raise AssertionError("the link ended in an orderly way")
