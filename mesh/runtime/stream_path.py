"""One path of a client's stream: an edge into the head of one generation and a results link from its tail.

Where the first stage is on several devices, the edge goes to all of them (`mesh.runtime.replicated_edge`); where the
last one is, there is a results link from each, and answers come in any order. `Results` is opened first, then the
edge, whose opening travels through every stage, so a path that is open is whole. What happens on it is told to its
owner by calls: answers, the generation's draining, and, once, that the path is lost. Every path is a stream of its
own to the mesh, with a random number, because the nodes may still hold the one that it takes over from.

Made and owned by `mesh.runtime.frame_stream.FrameStream`; its tasks belong to the supervisor that is handed in.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from mesh.control.timing import GOODBYE_LIMIT_S
from mesh.core.frame import Frame, StreamClass
from mesh.core.messages import OpenStream
from mesh.core.plan import Deployment
from mesh.errors import MeshError, NodeLost
from mesh.runtime.edge_sender import StreamNode
from mesh.runtime.replicated_edge import make_edge
from mesh.runtime.results_link import ResultsEvents, ResultsLink
from mesh.runtime.supervise import Supervisor, together


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
        client: Callable[[str], StreamNode],
        tasks: Supervisor,
        now: Callable[[], float],
    ) -> None:
        self.deployment = deployment
        self.stream = secrets.randbits(63)
        self._info = OpenStream(self.stream, stream_class, is_ordered, window, traceparent="")
        self._tasks = tasks
        self._now = now
        self._own: list[asyncio.Task[None]] = []
        self._edge = make_edge(deployment, 0, lambda address: client(address).open_edge(), self._spawn, now)
        self._edge.on_stream_closed = self._closed_by_head
        self._edge.on_draining = self._told_to_leave
        told = ResultsEvents(self._answered, self._told_to_leave, self._lose)
        self._results = [
            ResultsLink(deployment, device, client, self._spawn, now, told)
            for device in deployment.plan.stages[-1].devices
        ]
        self._events: PathEvents | None = None
        self._error: MeshError | None = None
        self._is_draining = False
        self._is_ending = False

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
        await together(each.open(self.stream, from_sequence, self._info.window) for each in self._results)
        await self._edge.open_stream(self._info)
        if self._error is not None:
            raise self._error

    def listen(self, events: PathEvents) -> None:
        """Be told of everything from now on; right after `open`, before anything else is awaited."""
        self._events = events
        if self._is_draining:
            events.on_draining()

    async def end(self) -> None:
        """Close in an orderly way: the stages hear that the stream is over and confirm it, then hang up."""
        self.close_stream()
        try:
            reading = {each.reading for each in self._results if each.reading is not None}
            if reading:
                await asyncio.wait(reading, timeout=GOODBYE_LIMIT_S)
        finally:
            await self.close()

    async def close(self) -> None:
        """Hang up at once."""
        self.close_stream()
        await self._edge.close()
        for each in self._results:
            each.cancel()
        for task in self._own:
            task.cancel()
        await asyncio.gather(*self._own, return_exceptions=True)

    def close_stream(self) -> None:
        """Tell the stages that nothing more will come, without waiting for anything."""
        self._is_ending = True
        for each in self._results:
            each.stop()
        self._edge.close_stream(self.stream, None)

    def _lose(self, error: MeshError) -> None:
        if self._error is not None or self._is_ending:
            return
        self._error = error
        for each in self._results:
            each.stop()
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
        await self._edge.send((frame,))

    def acknowledge(self, sequence: int) -> None:
        """Every answer up to and including this one was taken."""
        for each in self._results:
            each.acknowledge(sequence)

    def _answered(self, frame: Frame) -> None:
        if self._events is not None and not self.is_lost:
            self._events.on_answer(frame)
