"""One path of a client's stream: an edge into the head of one generation and a results link from its tail.

`Results` is opened first, then the edge, whose opening travels through every stage, so a path that is open is
whole. What happens on it is told to its owner by calls: answers, the generation's draining, and, once, that
the path is lost. Every path is a stream of its own to the mesh, with a random number, because the nodes may
still hold the one that it takes over from.

Made and owned by `mesh.runtime.frame_stream.FrameStream`; its tasks belong to the supervisor that is handed in.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from mesh.control.timing import DIAL_TIMEOUT_S, GOODBYE_LIMIT_S, HEARTBEAT_INTERVAL_S, Liveness
from mesh.core.frame import Frame, StreamClass
from mesh.core.messages import (
    Acknowledge,
    CloseStream,
    Draining,
    Heartbeat,
    OpenEdge,
    OpenResults,
    OpenStream,
    ResultsAccepted,
)
from mesh.core.plan import Deployment
from mesh.errors import MeshError, NodeLost, ProtocolViolation
from mesh.runtime.edge_sender import EdgeSender, Link
from mesh.runtime.supervise import Supervisor
from mesh.wire.channel import NodeClient


@dataclass(frozen=True, slots=True)
class PathEvents:
    """What the owner is told. Called from the path's tasks, never while `open` runs, never after `on_lost`."""

    on_answer: Callable[[Frame], None]
    """May raise `ProtocolViolation`, which loses the path."""
    on_draining: Callable[[], None]
    on_lost: Callable[[MeshError], None]


class StreamPath:
    """`await open()`, then `send`; `end` or `close` in any case."""

    def __init__(
        self,
        deployment: Deployment,
        stream_class: StreamClass,
        is_ordered: bool,
        window: int,
        client: Callable[[str], NodeClient],
        tasks: Supervisor,
        now: Callable[[], float],
    ) -> None:
        self.deployment = deployment
        self.stream = secrets.randbits(63)
        self._info = OpenStream(self.stream, stream_class, is_ordered, window, traceparent="")
        self._tasks = tasks
        self._now = now
        self._own: list[asyncio.Task[None]] = []
        tail_address, head_address = deployment.addresses[deployment.tail], deployment.addresses[deployment.head]
        self._tail = client(tail_address)
        self._tail_address = tail_address
        self._tail_name = f"node {deployment.tail[:8]} at {tail_address}"
        self._edge = EdgeSender(
            lambda: client(head_address).open_edge(),
            OpenEdge(deployment.name, deployment.fence, 0),
            f"node {deployment.head[:8]} at {head_address}",
            self._spawn,
            now,
            head_address,
        )
        self._edge.on_stream_closed = self._closed_by_head
        self._edge.on_draining = self._told_to_leave
        self._results: Link | None = None
        self._reading: asyncio.Task[None] | None = None
        self._beating: asyncio.Task[None] | None = None
        self._liveness = Liveness(now())
        self._events: PathEvents | None = None
        self._error: MeshError | None = None
        self._is_draining = False
        self._is_ending = False
        self._acknowledged = -1

    @property
    def is_lost(self) -> bool:
        return self._error is not None

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        self._own = [task for task in self._own if not task.done()]
        task = self._tasks.spawn(work, name)
        self._own.append(task)
        return task

    # Opening and closing --------------------------------------------------------------------------

    async def open(self, from_sequence: int) -> None:
        """Connect to tail and head; raises what any stage says against it, `NodeLost` or `Timeout`.

        `from_sequence`: the first answer that is still wanted.
        """
        await self._open_results(from_sequence)
        await self._edge.open_stream(self._info)
        if self._error is not None:
            raise self._error

    async def _open_results(self, from_sequence: int) -> None:
        link = self._results = self._tail.open_results(self.deployment.outputs)
        deployment = self.deployment
        opening = OpenResults(deployment.name, deployment.fence, self.stream, from_sequence, self._info.window)
        try:
            async with asyncio.timeout(DIAL_TIMEOUT_S):
                await link.send(opening)
                accepted = await link.receive()
        except TimeoutError:
            lost = NodeLost(f"{self._tail_name} did not answer within {DIAL_TIMEOUT_S:g} s")
            raise self._name_tail(lost) from None
        except NodeLost as error:
            raise self._name_tail(error) from None
        if not isinstance(accepted, ResultsAccepted):
            raise ProtocolViolation(f"{self._tail_name} answered with {type(accepted).__name__}")
        self._liveness.heard(self._now())
        self._reading = self._spawn(self._read_answers(link), "stream: answers")
        self._spawn(self._watch(link), "stream: watch the tail")

    def _name_tail(self, error: MeshError) -> MeshError:
        """Say which node is lost, where the tail's own connection is."""
        if isinstance(error, NodeLost) and not error.address:
            error.address = self._tail_address
        return error

    def listen(self, events: PathEvents) -> None:
        """Be told of everything from now on; right after `open`, before anything else is awaited."""
        self._events = events
        if self._is_draining:
            events.on_draining()

    async def end(self) -> None:
        """Close in an orderly way: the stages hear that the stream is over and confirm it, then hang up."""
        self.close_stream()
        try:
            if self._reading is not None:
                await asyncio.wait({self._reading}, timeout=GOODBYE_LIMIT_S)
        finally:
            await self.close()

    async def close(self) -> None:
        """Hang up at once."""
        self.close_stream()
        await self._edge.close()
        if self._results is not None:
            self._results.cancel()
        for task in self._own:
            task.cancel()
        await asyncio.gather(*self._own, return_exceptions=True)

    def close_stream(self) -> None:
        """Tell the stages that nothing more will come, without waiting for anything."""
        self._is_ending = True
        self._edge.close_stream(self.stream, None)

    def _lose(self, error: MeshError) -> None:
        if self._error is not None or self._is_ending:
            return
        self._error = error
        if self._events is not None:
            self._events.on_lost(error)

    def _closed_by_head(self, stream: int, error: MeshError | None) -> None:
        self._lose(error or NodeLost("the head of the deployment closed the stream"))

    def _told_to_leave(self) -> None:
        if self._is_draining:
            return  # by another stage, or from the other end
        self._is_draining = True
        if self._events is not None and not self._is_ending:
            self._events.on_draining()

    # Frames and answers ---------------------------------------------------------------------------

    async def send(self, frame: Frame) -> None:
        """Send one frame, waiting for credit; returns without sending where the path is lost."""
        await self._edge.send(frame)

    def acknowledge(self, sequence: int) -> None:
        """Every answer up to and including this one was taken."""
        if self._results is not None and sequence > self._acknowledged and not self.is_lost and not self._is_ending:
            self._acknowledged = sequence
            self._spawn(self._say(self._results, Acknowledge(sequence)), "stream: acknowledge")

    async def _say(self, link: Link, message: Acknowledge | Heartbeat) -> None:
        try:
            await link.send(message)
        except MeshError as error:
            self._lose(self._name_tail(error))

    async def _read_answers(self, link: Link) -> None:
        try:
            while (message := await link.receive()) is not None:
                self._liveness.heard(self._now())
                match message:
                    case Frame():
                        if self._events is not None and not self.is_lost:
                            self._events.on_answer(message)
                    case Draining():
                        self._told_to_leave()
                    case CloseStream(_, error):
                        self._lose(error or NodeLost(f"{self._tail_name} ended the stream"))
                        return
                    case Heartbeat():
                        pass
                    case _:
                        raise ProtocolViolation(f"{self._tail_name} sent {type(message).__name__} among answers")
            self._lose(self._name_tail(NodeLost(f"{self._tail_name} closed the connection")))
        except MeshError as error:
            self._lose(self._name_tail(error))

    async def _watch(self, link: Link) -> None:
        """Heartbeat, and judge the tail's silence."""
        while not self.is_lost and not self._is_ending:
            await asyncio.sleep(HEARTBEAT_INTERVAL_S)
            if self._liveness.is_lost(self._now()):
                self._lose(self._name_tail(NodeLost(f"{self._tail_name} has gone silent")))
                return
            if self._beating is None or self._beating.done():  # a write may wait while the silence must be watched
                self._beating = self._spawn(self._say(link, Heartbeat()), "stream: heartbeat")
