"""A node that a test plays by hand: it takes the frames of one stream and answers when and how it is told."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import cast

from mesh.core.frame import Frame, Outcome
from mesh.core.ids import NodeId
from mesh.core.messages import (
    Acknowledge,
    CloseStream,
    EdgeAccepted,
    Message,
    OpenEdge,
    OpenResults,
    OpenStream,
    ResultsAccepted,
    StreamAccepted,
)
from mesh.errors import MeshError, NodeLost
from mesh.runtime.frame_stream import FrameStream, StreamOptions
from mesh.runtime.own_node import OwnLink, make_pair
from mesh.runtime.supervise import Supervisor
from mesh.wire.channel import NodeClient
from tests.runtime.fake_models import copy, make_deployment, until

CREDIT_BYTES = 1 << 20


@dataclass
class Server:
    """One node, played by the test: takes frames and answers when and how it is told."""

    tasks: Supervisor
    frames: dict[int, Frame] = field(default_factory=dict)
    """Not answered yet."""
    most: int = 0
    edge: OwnLink | None = None
    results: OwnLink | None = None
    stream: int = 0
    is_closed: bool = False
    acknowledged: list[int] = field(default_factory=list)

    def open_edge(self) -> OwnLink:
        near, self.edge = make_pair()
        self.tasks.spawn(self._serve_edge(self.edge), "made-up edge")
        return near

    def open_results(self, boundary: object) -> OwnLink:
        near, self.results = make_pair()
        self.tasks.spawn(self._serve_results(self.results), "made-up results")
        return near

    async def _serve_edge(self, link: OwnLink) -> None:
        try:
            while (message := await link.receive()) is not None:
                match message:
                    case OpenEdge():
                        await link.send(EdgeAccepted(CREDIT_BYTES))
                    case OpenStream(stream):
                        self.stream = stream
                        await link.send(StreamAccepted(stream))
                    case Frame():
                        self.frames[message.sequence] = message
                        self.most = max(self.most, len(self.frames))
                    case CloseStream():
                        self.is_closed = True
        except NodeLost:
            self.is_closed = True

    async def _serve_results(self, link: OwnLink) -> None:
        try:
            while (message := await link.receive()) is not None:
                if isinstance(message, OpenResults):
                    await link.send(ResultsAccepted())
                elif isinstance(message, Acknowledge):
                    self.acknowledged.append(message.sequence)
        except NodeLost:
            pass

    async def answer(self, sequence: int, outcome: Outcome = Outcome.OK, error: MeshError | None = None) -> None:
        await until(lambda: sequence in self.frames, f"frame {sequence}")
        frame = self.frames.pop(sequence)
        tensors = frame.tensors if outcome is Outcome.OK else ()
        await self.tell(Frame(frame.stream, sequence, 1, 1, tensors, 0, outcome, error))

    async def tell(self, message: Message) -> None:
        assert self.results is not None
        await self.results.send(message)


@dataclass
class Played:
    server: Server
    tasks: Supervisor

    def make(self, options: StreamOptions | None = None, window: int = 4) -> FrameStream:
        deployment = make_deployment([copy()], {NodeId("a" * 32): "played:1"}, window=window, answer_shape=(1,))
        return FrameStream(deployment, options or StreamOptions(), lambda _: cast(NodeClient, self.server), self.tasks)
