"""A client's link from one device of the tail: opened, read, acknowledged, kept alive and watched.

A path has one per replica of the last stage (`mesh.runtime.stream_path`), which gets from each what that one computed.
What comes is told to the owner by calls: answers, draining, and, once, that the link is lost. Its tasks are the
owner's to cancel.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from mesh.control.timing import DIAL_TIMEOUT_S, HEARTBEAT_INTERVAL_S, Liveness
from mesh.core.frame import Frame
from mesh.core.ids import NodeId
from mesh.core.messages import Acknowledge, CloseStream, Draining, Heartbeat, OpenResults, ResultsAccepted
from mesh.core.plan import Deployment
from mesh.errors import MeshError, NodeLost, ProtocolViolation
from mesh.runtime.edge_sender import Link, StreamNode


@dataclass(frozen=True, slots=True)
class ResultsEvents:
    """What the owner is told, from the link's tasks."""

    on_answer: Callable[[Frame], None]
    """May raise `ProtocolViolation`, which loses the link."""
    on_draining: Callable[[], None]
    on_lost: Callable[[MeshError], None]


class ResultsLink:
    """`await open()` once, then everything comes as events until `cancel`."""

    def __init__(
        self,
        deployment: Deployment,
        device: NodeId,
        client: Callable[[str], StreamNode],
        spawn: Callable[[Coroutine[Any, Any, None], str], asyncio.Task[None]],
        now: Callable[[], float],
        events: ResultsEvents,
    ) -> None:
        self._deployment = deployment
        self._address = deployment.addresses[device]
        self._name = f"node {device[:8]} at {self._address}"
        self._node = client(self._address)
        self._spawn = spawn
        self._now = now
        self._events = events
        self._link: Link | None = None
        self._beating: asyncio.Task[None] | None = None
        self._liveness = Liveness(now())
        self._acknowledged = -1
        self._is_over = False
        self.reading: asyncio.Task[None] | None = None
        """Ends when the other side has hung up; None until the link is open."""

    async def open(self, stream: int, from_sequence: int, window: int) -> None:
        """Connect; raises what the node says against it, or `NodeLost`."""
        deployment = self._deployment
        link = self._link = self._node.open_results(deployment.outputs)
        try:
            async with asyncio.timeout(DIAL_TIMEOUT_S):
                await link.send(OpenResults(deployment.name, deployment.fence, stream, from_sequence, window))
                accepted = await link.receive()
        except TimeoutError:
            lost = NodeLost(f"{self._name} did not answer within {DIAL_TIMEOUT_S:g} s")
            raise self._name_it(lost) from None
        except NodeLost as error:
            raise self._name_it(error) from None
        if not isinstance(accepted, ResultsAccepted):
            raise ProtocolViolation(f"{self._name} answered with {type(accepted).__name__}")
        self._liveness.heard(self._now())
        self.reading = self._spawn(self._read(link), "stream: answers")
        self._spawn(self._watch(link), "stream: watch the tail")

    def _name_it(self, error: MeshError) -> MeshError:
        """Say which node is lost, where the tail's own connection is."""
        if isinstance(error, NodeLost) and not error.address:
            error.address = self._address
        return error

    def stop(self) -> None:
        """Say nothing more: the stream is being ended."""
        self._is_over = True

    def cancel(self) -> None:
        """Hang up at once."""
        self._is_over = True
        if self._link is not None:
            self._link.cancel()

    def acknowledge(self, sequence: int) -> None:
        """Every answer up to and including this one was taken."""
        if self._link is not None and sequence > self._acknowledged and not self._is_over:
            self._acknowledged = sequence
            self._spawn(self._say(self._link, Acknowledge(sequence)), "stream: acknowledge")

    def _lose(self, error: MeshError) -> None:
        if not self._is_over:
            self._is_over = True
            self._events.on_lost(error)

    async def _say(self, link: Link, message: Acknowledge | Heartbeat) -> None:
        try:
            await link.send(message)
        except MeshError as error:
            self._lose(self._name_it(error))

    async def _read(self, link: Link) -> None:
        try:
            while (message := await link.receive()) is not None:
                self._liveness.heard(self._now())
                match message:
                    case Frame():
                        self._events.on_answer(message)
                    case Draining():
                        self._events.on_draining()
                    case CloseStream(_, error):
                        self._lose(error or NodeLost(f"{self._name} ended the stream"))
                        return
                    case Heartbeat():
                        pass
                    case _:
                        raise ProtocolViolation(f"{self._name} sent {type(message).__name__} among answers")
            self._lose(self._name_it(NodeLost(f"{self._name} closed the connection")))
        except MeshError as error:
            self._lose(self._name_it(error))

    async def _watch(self, link: Link) -> None:
        """Heartbeat, and judge the tail's silence."""
        while not self._is_over:
            await asyncio.sleep(HEARTBEAT_INTERVAL_S)
            if self._liveness.is_lost(self._now()):
                self._lose(self._name_it(NodeLost(f"{self._name} has gone silent")))
                return
            if self._beating is None or self._beating.done():  # a write may wait while the silence must be watched
                self._beating = self._spawn(self._say(link, Heartbeat()), "stream: heartbeat")
