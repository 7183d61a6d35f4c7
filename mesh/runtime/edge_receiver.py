"""The receiving halves of the data plane: one object per edge that comes in, one per consumer.

The wire server calls `serve` for each connection; it returns when the connection is over. What was
open on it is then closed towards the stages after this one or towards the sender, with `NodeLost`
unless the end was orderly, so that neither side waits for a peer that is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Protocol

from mesh.control.flow import MAX_UNREAD_BYTES, ReceiveWindow
from mesh.control.timing import HANDSHAKE_TIMEOUT_S, HEARTBEAT_INTERVAL_S, Liveness
from mesh.core.coding import RAW
from mesh.core.frame import Frame
from mesh.core.messages import (
    Acknowledge,
    CloseStream,
    Credit,
    Draining,
    EdgeAccepted,
    Heartbeat,
    Message,
    OpenEdge,
    OpenResults,
    OpenStream,
    ResultsAccepted,
    StreamAccepted,
)
from mesh.core.plan import Fence
from mesh.core.tensor import TensorSpec
from mesh.errors import MeshError, NodeLost, Overloaded, ProtocolViolation, StaleGeneration, Timeout, UsageError
from mesh.runtime.edge_coding import decode_frame, tensor_bytes
from mesh.runtime.edge_sender import Link
from mesh.runtime.stage import MAX_QUEUED_FRAMES, Stage
from mesh.wire.frame_codec import MAX_FRAMES_PER_MESSAGE

EDGE_CREDIT_BYTES = 8 << 20
"""Unconsumed bytes per edge: a few frames of the usual 0.1-2 MB activations; larger frames go one at a time."""

GOODBYE_LIMIT_S = 0.5
"""For a peer to hear why its link ends and to stop sending, if it still reads."""

MAX_OUTGOING_MESSAGES = 1024
"""Credits and closings that wait to go up an edge; a peer that reads none of them is cut off."""


SPARE_MESSAGES = 16
"""To a consumer, besides the answers of its window: hello, end, and heartbeats that wait behind answers."""


class ServerLink(Link, Protocol):
    """A link whose frames can only be read once it is known what they must look like."""

    def expect(self, boundary: tuple[TensorSpec, ...], fence: Fence, codec: str = RAW) -> None: ...


FindStage = Callable[[OpenEdge | OpenResults], Stage]
"""Raises `DeploymentNotFound`, `StaleGeneration` or `Refused`."""


class _Outgoing:
    """Messages that wait for the one task that writes to a link. What does not fit is the end of the link."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._messages: deque[Message] = deque()
        self._waiting_bytes = 0
        self._wake = asyncio.Event()
        self._is_closing = False
        self._overflowed = asyncio.Event()

    def put(self, message: Message) -> None:
        size_bytes = message.payload_bytes if isinstance(message, Frame) else 0
        # One large answer may be on its way: what has no payload, as a heartbeat, waits behind it.
        is_too_much = min(self._waiting_bytes, size_bytes) > 0 and self._waiting_bytes + size_bytes > MAX_UNREAD_BYTES
        if self._overflowed.is_set() or len(self._messages) >= self._capacity or is_too_much:
            self._messages.clear()
            self._overflowed.set()
            return
        self._messages.append(message)
        self._waiting_bytes += size_bytes
        self._wake.set()

    async def watch(self) -> None:
        """Raise `Overloaded` once the peer has left more unread than may wait; `run` may then be stuck in a write."""
        await self._overflowed.wait()
        raise Overloaded("too much waits for the peer, which does not read what it is sent")

    def finish(self) -> None:
        """No more will come; what waits is still sent."""
        self._is_closing = True
        self._wake.set()

    async def _send_frames(self, first: Frame, link: Link) -> None:
        """With those that wait right behind it: small ones share a message."""
        frames = [first]
        while (
            len(frames) < MAX_FRAMES_PER_MESSAGE
            and self._messages
            and isinstance(following := self._messages[0], Frame)
        ):
            self._messages.popleft()
            frames.append(following)
        await link.send_frames(frames)
        self._waiting_bytes -= sum(frame.payload_bytes for frame in frames)

    async def run(self, link: Link) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._messages:
                message = self._messages.popleft()
                if isinstance(message, Frame):
                    await self._send_frames(message, link)
                else:
                    await link.send(message)
            if self._is_closing:
                return


async def _beat(link: Link, outgoing: _Outgoing, liveness: Liveness, peer: str, now: Callable[[], float]) -> None:
    while True:
        await asyncio.sleep(HEARTBEAT_INTERVAL_S)
        if liveness.is_lost(now()):
            raise NodeLost(f"{peer} has gone silent")
        outgoing.put(Heartbeat())


async def _receive_first(link: Link) -> Message | None:
    try:
        async with asyncio.timeout(HANDSHAKE_TIMEOUT_S):
            return await link.receive()
    except TimeoutError:
        raise Timeout(f"nothing was said within {HANDSHAKE_TIMEOUT_S:g} s of connecting") from None


Work = asyncio.Task[MeshError | None]


async def _outcome(work: Coroutine[Any, Any, None]) -> MeshError | None:
    """How `work` ended, as a value: raising would end the writer, which still has to tell the peer."""
    try:
        await work
    except MeshError as error:
        return error
    return None


async def _first_outcome(works: Sequence[Work]) -> MeshError | None:
    """Wait until one of them ends; what ended it, None for an orderly end."""
    await asyncio.wait(works, return_when=asyncio.FIRST_COMPLETED)
    return next((error for work in works if work.done() and (error := work.result()) is not None), None)


async def _say_goodbye(link: Link, reading: Work) -> None:
    """Let what waits be written, and take what still comes, until the peer has heard why the link ends.

    A peer's write that meets the end of the call would cost it the call's status and all that it has not read.
    """
    with contextlib.suppress(MeshError, TimeoutError):  # it hung up, or goes on as before; the status says the same
        async with asyncio.timeout(GOODBYE_LIMIT_S):
            await asyncio.wait({reading})
            while await _receive_anything(link):
                pass


async def _receive_anything(link: Link) -> bool:
    """Whether more may come; the rest of a frame that was refused makes no sense by itself."""
    try:
        return await link.receive() is not None
    except NodeLost:
        raise
    except MeshError:
        return True


def _name_sender(stage: Stage) -> str:
    """Who sends into `stage`, as errors call them."""
    if stage.index == 0:
        return "the client"
    deployment = stage.deployment
    devices = deployment.plan.stages[stage.index - 1].devices
    return " or ".join(f"node {device[:8]} at {deployment.addresses[device]}" for device in devices)


class EdgeReceiver:
    """One incoming edge: an `Upstream` to the stage that it feeds."""

    def __init__(self, link: ServerLink, peer: str, find_stage: FindStage, now: Callable[[], float] = time.monotonic):
        self._link = link
        self._peer = peer
        self._find_stage = find_stage
        self._now = now
        self._outgoing = _Outgoing(MAX_OUTGOING_MESSAGES)
        self._window = ReceiveWindow(EDGE_CREDIT_BYTES)
        self._opening: set[asyncio.Task[None]] = set()
        self._liveness = Liveness(now())

    # Upstream, as the stage sees it ---------------------------------------------------------------

    def tell_draining(self) -> None:
        self._outgoing.put(Draining())

    def consumed(self, size_bytes: int) -> None:
        if size_bytes and (credit := self._window.consumed(size_bytes)):
            self._outgoing.put(Credit(credit))

    def close_stream(self, stream: int, error: MeshError | None) -> None:
        self._outgoing.put(CloseStream(stream, error))

    # ----------------------------------------------------------------------------------------------

    async def serve(self) -> None:
        """Serve the edge until either side ends it; raises what must be told to the peer as its status."""
        first = await _receive_first(self._link)
        if first is None:
            return
        if not isinstance(first, OpenEdge):
            raise ProtocolViolation(f"an edge began with {type(first).__name__}")
        stage = self._find_stage(first)
        deployment = stage.deployment
        self._codec = deployment.plan.codec_into(stage.index)
        self._link.expect(deployment.boundaries[stage.index], deployment.fence, self._codec)
        is_replica = len(stage.deployment.plan.stages[stage.index].devices) > 1
        self._window = ReceiveWindow(EDGE_CREDIT_BYTES, is_prompt=is_replica)
        self._outgoing.put(EdgeAccepted(EDGE_CREDIT_BYTES))
        self._peer = _name_sender(stage)
        reason: MeshError = NodeLost(f"{self._peer}, which sent this stream, closed the connection")
        streams: tuple[int, ...] = ()
        async with asyncio.TaskGroup() as group:
            writing = group.create_task(_outcome(self._outgoing.run(self._link)))
            reading = group.create_task(_outcome(self._read(stage, group)))
            beating = group.create_task(
                _outcome(_beat(self._link, self._outgoing, self._liveness, self._peer, self._now))
            )
            watching = group.create_task(_outcome(self._outgoing.watch()))
            try:
                reason = await _first_outcome((reading, watching, beating, writing)) or reason
            finally:
                streams = stage.streams_of(self)
                for stream in streams:
                    stage.close_stream(stream, self, reason)
            if streams and not isinstance(reason, NodeLost):
                for stream in streams:
                    self._outgoing.put(CloseStream(stream, reason))
                await _say_goodbye(self._link, reading)
            for work in (reading, watching, beating, writing, *self._opening):
                work.cancel()
        if not isinstance(reason, NodeLost):
            raise reason

    async def _read(self, stage: Stage, group: asyncio.TaskGroup) -> None:
        fence = stage.deployment.fence
        while (message := await self._link.receive()) is not None:
            self._liveness.heard(self._now())
            match message:
                case Frame():
                    if (message.term, message.generation) != (fence.term, fence.generation):
                        raise StaleGeneration(
                            f"a frame of generation {message.term}.{message.generation} on an edge of {fence}"
                        )
                    size_bytes = message.payload_bytes if self._codec == RAW else tensor_bytes(message)
                    if size_bytes:
                        self._window.received(size_bytes)
                    stage.offer(message if self._codec == RAW else await decode_frame(message), self)
                case OpenStream():
                    _check_open(message)
                    opening = group.create_task(self._open(stage, message))
                    self._opening.add(opening)
                    opening.add_done_callback(self._opening.discard)
                case CloseStream(stream, error):
                    stage.close_stream(stream, self, error)
                case Heartbeat():
                    pass
                case _:
                    raise ProtocolViolation(f"{type(message).__name__} does not belong on an edge")

    async def _open(self, stage: Stage, message: OpenStream) -> None:
        try:
            await stage.open_stream(message, self)
        except MeshError as error:
            self._outgoing.put(CloseStream(message.stream, error))
        else:
            self._outgoing.put(StreamAccepted(message.stream))


def _check_open(message: OpenStream) -> None:
    if not 1 <= message.window <= MAX_QUEUED_FRAMES:
        raise UsageError(f"a window of {message.window} frames is outside 1..{MAX_QUEUED_FRAMES}")


class ResultsSender:
    """One consumer at the tail: a `Sink` to the stage. Bounded by the stream's window."""

    def __init__(self, link: ServerLink, peer: str, find_stage: FindStage, now: Callable[[], float] = time.monotonic):
        self._link = link
        self._peer = peer
        self._find_stage = find_stage
        self._now = now
        self._outgoing = _Outgoing(1)
        self._liveness = Liveness(now())
        self._stream = 0
        self._is_closed = False
        self._last_acknowledged = -1

    # Sink, as the stage sees it -------------------------------------------------------------------

    def deliver(self, frame: Frame) -> None:
        self._outgoing.put(frame)

    def tell_draining(self) -> None:
        self._outgoing.put(Draining())

    def close(self, error: MeshError | None) -> None:
        self._is_closed = True
        self._outgoing.put(CloseStream(self._stream, error))
        self._outgoing.finish()

    # ----------------------------------------------------------------------------------------------

    async def serve(self) -> None:
        """Send answers until the stream is closed or the consumer goes away."""
        first = await _receive_first(self._link)
        if first is None:
            return
        if not isinstance(first, OpenResults):
            raise ProtocolViolation(f"a results link began with {type(first).__name__}")
        if not 1 <= first.window <= MAX_QUEUED_FRAMES:
            raise UsageError(f"a window of {first.window} frames is outside 1..{MAX_QUEUED_FRAMES}")
        stage = self._find_stage(first)
        self._stream = first.stream
        self._outgoing = _Outgoing(first.window + SPARE_MESSAGES)
        stage.attach_sink(first.stream, self)
        self._outgoing.put(ResultsAccepted())
        reason: MeshError = NodeLost("the client, which reads the answers, closed the connection")
        async with asyncio.TaskGroup() as group:
            writing = group.create_task(_outcome(self._outgoing.run(self._link)))
            reading = group.create_task(_outcome(self._read()))
            beating = group.create_task(
                _outcome(_beat(self._link, self._outgoing, self._liveness, self._peer, self._now))
            )
            watching = group.create_task(_outcome(self._outgoing.watch()))
            was_closed = False
            try:
                reason = await _first_outcome((reading, watching, beating, writing)) or reason
            finally:
                was_closed = self._is_closed
                if not was_closed:
                    stage.detach_sink(self._stream, reason)
            if was_closed or not isinstance(reason, NodeLost):
                if not was_closed:
                    self.close(reason)
                await _say_goodbye(self._link, reading)
            for work in (reading, watching, beating, writing):
                work.cancel()
        if not was_closed and not isinstance(reason, NodeLost):
            raise reason

    async def _read(self) -> None:
        while (message := await self._link.receive()) is not None:
            self._liveness.heard(self._now())
            match message:
                case Acknowledge(sequence):
                    if sequence <= self._last_acknowledged:
                        raise ProtocolViolation(f"answer {sequence} was acknowledged before")
                    self._last_acknowledged = sequence
                case Heartbeat():
                    pass
                case _:
                    raise ProtocolViolation(f"{type(message).__name__} does not belong on a results link")
