"""One stage on a simulated node: the shipped inbox, windows and credits around an engine that only takes time.

The rules are those of `mesh.runtime.stage`: a frame is taken from the inbox when the engine has room, its credit
goes back then, and results leave in the order in which frames were taken. What the real node does about a peer
that breaks the protocol is a `Violation` here, because every peer is honest.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mesh.control.flow import Inbox, ReceiveWindow
from mesh.control.timing import DRAIN_TIMEOUT_S
from mesh.core.frame import Frame, Outcome, StreamClass
from mesh.core.messages import (
    CloseStream,
    Credit,
    Draining,
    EdgeAccepted,
    Message,
    OpenEdge,
    OpenStream,
    StreamAccepted,
)
from mesh.core.plan import Deployment
from mesh.errors import DeploymentNotFound, MeshError, NodeLost, Overloaded, ProtocolViolation, Refused
from mesh.simulate.edge import EdgeOut
from mesh.simulate.network import End
from mesh.simulate.world import Violation

if TYPE_CHECKING:
    from mesh.simulate.node import Node

CREDIT_BYTES = 600
"""Small beside the frames of a scenario, so that edges run out of credit all the time."""

MAX_SLOTS = 4
MAX_QUEUED_FRAMES = 64


class EdgeIn:
    """An edge that comes in, and the stage that it feeds."""

    def __init__(self, stage: Stage, end: End) -> None:
        self.stage = stage
        self.end = end
        self._window = ReceiveWindow(CREDIT_BYTES)
        end.on_message = self._handle
        end.on_lost = self._lost
        end.send(EdgeAccepted(CREDIT_BYTES))

    def consumed(self, size_bytes: int) -> None:
        if size_bytes and (credit := self._window.consumed(size_bytes)):
            self.end.send(Credit(credit))

    def close_stream(self, stream: int, error: MeshError | None) -> None:
        self.end.send(CloseStream(stream, error))

    def _handle(self, message: Message) -> None:
        match message:
            case Frame():
                fence = self.stage.deployment.fence
                if (message.term, message.generation) != (fence.term, fence.generation):
                    raise Violation(f"a frame of {message.term}.{message.generation} on an edge of {fence}")
                self._window.received(message.payload_bytes)
                self.stage.offer(message, self)
            case OpenStream():
                try:
                    self.stage.open_stream(message, self)
                except MeshError as error:
                    self.close_stream(message.stream, error)
            case CloseStream(stream, error):
                self.stage.close_stream(stream, self, error)
            case _:
                raise Violation(f"{type(message).__name__} came down an edge")

    def _lost(self, error: MeshError) -> None:
        for stream in self.stage.streams_of(self):
            self.stage.close_stream(stream, self, NodeLost("whoever sent this stream is gone"))


@dataclass(slots=True)
class Item:
    frame: Frame
    edge: EdgeIn
    is_live: bool
    deadline_at: float | None
    result: Frame | None = None


@dataclass(slots=True)
class Opened:
    info: OpenStream
    edge: EdgeIn
    held: int = 0


def _is_superseded(old: Item, new: Item) -> bool:
    return old.is_live and old.frame.stream == new.frame.stream and old.frame.outcome is Outcome.OK


class Stage:
    def __init__(self, node: Node, deployment: Deployment, index: int) -> None:
        self.deployment = deployment
        self.index = index
        self.is_accepting = False
        self._node = node
        self._world = node.host.world
        self._streams: dict[int, Opened] = {}
        self._sinks: dict[int, End] = {}
        self._inbox: Inbox[Item] = Inbox(MAX_QUEUED_FRAMES, _is_superseded)
        self._slots: deque[Item] = deque()
        self._is_computing = False
        self._is_gone = False
        self._drained: Callable[[], None] | None = None
        self._after: EdgeOut | None = None
        if index + 1 < len(deployment.plan.stages):
            target = node.peers[deployment.plan.stages[index + 1].devices[0]]
            opening = OpenEdge(deployment.name, deployment.fence, index + 1)
            self._after = EdgeOut(node.network, node.host, target, opening, self)

    # Streams --------------------------------------------------------------------------------------

    def attach_sink(self, stream: int, end: End) -> None:
        if not self.is_accepting:
            raise Refused(f"generation {self.deployment.fence} takes no new streams")
        self._sinks[stream] = end
        end.on_lost = lambda error: self._detach_sink(stream, end)

    def _detach_sink(self, stream: int, end: End) -> None:
        if self._sinks.get(stream) is end:
            del self._sinks[stream]
            opened = self._forget(stream)
            if opened is not None:
                opened.edge.close_stream(stream, NodeLost("the client hung up"))

    def open_stream(self, info: OpenStream, edge: EdgeIn) -> None:
        if not self.is_accepting:
            raise Refused(f"generation {self.deployment.fence} takes no new streams")
        if info.stream in self._streams:
            raise ProtocolViolation(f"stream {info.stream:x} is open already")
        if self._after is None and info.stream not in self._sinks:
            raise NodeLost(f"stream {info.stream:x} has lost its consumer")
        self._streams[info.stream] = Opened(info, edge)
        if self._after is None:
            edge.end.send(StreamAccepted(info.stream))
        else:
            self._after.open_stream(info)

    def stream_accepted(self, stream: int) -> None:
        self._streams[stream].edge.end.send(StreamAccepted(stream))

    def stream_closed(self, stream: int, error: MeshError | None) -> None:
        opened = self._forget(stream)
        if opened is not None:
            opened.edge.close_stream(stream, error or NodeLost("the next stage closed the stream"))

    def close_stream(self, stream: int, edge: EdgeIn, error: MeshError | None) -> None:
        opened = self._streams.get(stream)
        if opened is None or opened.edge is not edge:
            return
        self._forget(stream)
        if self._after is not None:
            self._after.close_stream(stream, error)
        sink = self._sinks.pop(stream, None)
        if sink is not None:
            sink.send(CloseStream(stream, error))
            sink.close(error)

    def streams_of(self, edge: EdgeIn) -> tuple[int, ...]:
        return tuple(stream for stream, opened in self._streams.items() if opened.edge is edge)

    def _forget(self, stream: int) -> Opened | None:
        opened = self._streams.pop(stream, None)
        for item in self._inbox.remove(lambda item: item.frame.stream == stream):
            item.edge.consumed(item.frame.payload_bytes)
        if not self._streams and self._drained is not None:
            self._node.host.after(0.0, self._drained)
        return opened

    def drain(self, drained: Callable[[], None]) -> None:
        self.is_accepting = False
        for end in self._sinks.values():
            end.send(Draining())
        self._drained = drained
        if not self._streams:
            self._node.host.after(0.0, drained)
        self._node.host.after(DRAIN_TIMEOUT_S, self._end_streams)

    def _end_streams(self) -> None:
        error = DeploymentNotFound(f"generation {self.deployment.fence} was removed")
        for stream, opened in list(self._streams.items()):
            self.close_stream(stream, opened.edge, error)
            opened.edge.close_stream(stream, error)

    def close(self) -> None:
        self._is_gone = True
        for sink in list(self._sinks.values()):
            sink.close(DeploymentNotFound(f"generation {self.deployment.fence} was removed"))
        self._sinks.clear()
        if self._after is not None:
            self._after.close()

    # Frames ---------------------------------------------------------------------------------------

    def offer(self, frame: Frame, edge: EdgeIn) -> None:
        opened = self._streams.get(frame.stream)
        if opened is None:
            edge.consumed(frame.payload_bytes)
            return
        if opened.held >= opened.info.window:
            raise Violation(f"more than the window of {opened.info.window} frames are at stage {self.index}")
        opened.held += 1
        deadline_at = self._world.now + frame.budget_us / 1e6 if frame.budget_us else None
        item = Item(frame, edge, opened.info.stream_class is StreamClass.LIVE, deadline_at)
        for old in self._inbox.put(item):
            old.edge.consumed(old.frame.payload_bytes)
            old.result = _without_tensors(old.frame, Outcome.DROPPED, Overloaded("superseded"))
            self._slots.append(old)
        self._pump()

    def _pump(self) -> None:
        while not self._is_computing and len(self._slots) < MAX_SLOTS and (item := self._inbox.take()) is not None:
            self._slots.append(item)
            if item.frame.outcome is not Outcome.OK:
                item.result = item.frame
            elif item.deadline_at is not None and self._world.now >= item.deadline_at:
                item.result = _without_tensors(item.frame, Outcome.LATE, Overloaded("its time was up"))
            else:
                self._is_computing = True
                self._node.host.after(self._node.service_seconds(), lambda item=item: self._computed(item))  # type: ignore[misc]
            item.edge.consumed(item.frame.payload_bytes)
        self.may_send_more()

    def _computed(self, item: Item) -> None:
        self._is_computing = False
        item.result = item.frame
        self._pump()

    def may_send_more(self) -> None:
        """Let go of what is done, in order, as far as the next edge has credit."""
        while self._slots and (result := self._slots[0].result) is not None and not self._is_gone:
            opened = self._streams.get(result.stream)
            if opened is not None and self._after is not None:
                if self._after.is_open(result.stream) and not self._after.may_send(result):
                    return
                self._after.send(replace(result, budget_us=self._remaining_us(self._slots[0])))
            elif opened is not None:
                self._sinks[result.stream].send(result)
            if opened is not None:
                opened.held -= 1
            self._slots.popleft()
            if not self._is_computing and len(self._inbox):
                self._pump()

    def _remaining_us(self, item: Item) -> int:
        return max(1, int((item.deadline_at - self._world.now) * 1e6)) if item.deadline_at is not None else 0


def _without_tensors(frame: Frame, outcome: Outcome, error: MeshError) -> Frame:
    return Frame(frame.stream, frame.sequence, frame.term, frame.generation, (), frame.budget_us, outcome, error)
