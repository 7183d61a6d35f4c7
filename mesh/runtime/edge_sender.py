"""The sending half of an edge: dials, keeps credits, and notices when the other side is gone.

Frames leave in the codec that the plan gives the edge (`edge_coding`).
Used by a stage for the next stage and by a client for the head. One edge carries many streams. It is
dialled when the first stream is opened and again after a loss, so a node that came back is found
without anybody's help. Losing the connection closes every stream on it with `NodeLost`.

Owned by the stage or the client stream that made it; runs on its event loop.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from mesh.control.flow import SendWindow
from mesh.control.timing import DIAL_TIMEOUT_S, HEARTBEAT_INTERVAL_S, STREAM_OPEN_TIMEOUT_S, Liveness
from mesh.core.coding import RAW
from mesh.core.frame import Frame
from mesh.core.messages import (
    CloseStream,
    Credit,
    Draining,
    EdgeAccepted,
    Heartbeat,
    Message,
    OpenEdge,
    OpenStream,
    StreamAccepted,
)
from mesh.core.tensor import TensorSpec
from mesh.errors import MeshError, NodeLost, ProtocolViolation, Timeout
from mesh.runtime.edge_coding import encode_frames

Spawn = Callable[[Coroutine[Any, Any, None], str], object]


class Link(Protocol):
    """One bidirectional stream of messages with a peer, as `mesh.wire` provides it."""

    async def send(self, message: Message) -> None: ...

    async def send_frames(self, frames: Sequence[Frame]) -> None:
        """In order; the link may put small ones together."""
        ...

    async def receive(self) -> Message | None: ...

    def cancel(self) -> None: ...


class StreamNode(Protocol):
    """A node to which streams can be opened: `mesh.wire.channel.NodeClient`, or the one of this process."""

    def open_edge(self) -> Link: ...

    def open_results(self, boundary: Sequence[TensorSpec]) -> Link: ...


@dataclass(slots=True)
class _Connection:
    link: Link
    window: SendWindow
    liveness: Liveness
    streams: set[int] = field(default_factory=set)
    opening: dict[int, asyncio.Future[None]] = field(default_factory=dict)
    credited: asyncio.Event = field(default_factory=asyncio.Event)
    is_beating: bool = False
    """A heartbeat waits to be written."""
    is_lost: bool = False


def ignore_closed(stream: int, error: MeshError | None) -> None:
    """Stands in until the owner has registered."""


def ignore_draining() -> None:
    """Stands in until the owner has registered."""


def _ignore_credit(size_bytes: int) -> None:
    """Stands in where nobody counts."""


def _ignore_loss() -> None:
    """Stands in where nobody counts."""


class EdgeSender:
    """`peer` names the other side in errors, e.g. "node 1f3a… at 10.0.0.7:50071"; `address` is where that is, `device`
    its id."""

    def __init__(
        self,
        dial: Callable[[], Link],
        open_edge: OpenEdge,
        peer: str,
        spawn: Spawn,
        now: Callable[[], float] = time.monotonic,
        address: str = "",
        codec: str = RAW,
        device: str = "",
    ) -> None:
        self._address = address
        self._device = device
        self._sent_bytes = 0
        self._codec = codec
        self._dial = dial
        self._open_edge = open_edge
        self._peer = peer
        self._spawn = spawn
        self._now = now
        self._connection: _Connection | None = None
        self._connecting = asyncio.Lock()
        self.on_stream_closed: Callable[[int, MeshError | None], None] = ignore_closed
        self.on_draining: Callable[[], None] = ignore_draining
        self.on_credited: Callable[[int], None] = _ignore_credit
        """Told of the bytes that the peer is done with."""
        self.on_lost: Callable[[], None] = _ignore_loss
        """Told of a lost connection, before the streams on it are closed."""

    @property
    def sent_bytes(self) -> Mapping[str, int]:
        """Payload of the frames that left, by the device that they went to."""
        return {self._device: self._sent_bytes}

    async def connect(self) -> None:
        """Make sure that the edge is there; raises `NodeLost`, or what the peer said against it."""
        await self._connected()

    async def _connected(self) -> _Connection:
        async with self._connecting:
            if self._connection is not None:
                return self._connection
            link = self._dial()
            try:
                async with asyncio.timeout(DIAL_TIMEOUT_S):
                    await link.send(self._open_edge)
                    accepted = await link.receive()
                if not isinstance(accepted, EdgeAccepted):
                    raise ProtocolViolation(f"{self._peer} answered an edge with {type(accepted).__name__}")
                window = SendWindow(accepted.credit_bytes)
            except TimeoutError:
                link.cancel()
                lost = NodeLost(f"{self._peer} did not answer within {DIAL_TIMEOUT_S:g} s")
                raise self._name_it(lost) from None
            except BaseException as error:
                link.cancel()
                self._name_it(error)
                raise
            connection = _Connection(link, window, Liveness(self._now()))
            self._connection = connection
            self._spawn(self._read(connection), f"edge to {self._peer}: read")
            self._spawn(self._watch(connection), f"edge to {self._peer}: watch")
            return connection

    def _name_it(self, error: BaseException) -> BaseException:
        """Say which node is lost, unless a node further down is."""
        if isinstance(error, NodeLost) and not error.address:
            error.address = self._address
        return error

    async def open_stream(self, info: OpenStream) -> None:
        """Open a stream over this edge; returns when every stage after it has accepted."""
        connection = await self._connected()
        accepted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        connection.opening[info.stream] = accepted
        connection.streams.add(info.stream)
        try:
            async with asyncio.timeout(STREAM_OPEN_TIMEOUT_S):
                await self._write(connection, info)
                await accepted
        except TimeoutError:
            self.close_stream(info.stream, None)  # the peer may still come to open it
            raise Timeout(f"{self._peer} did not open the stream within {STREAM_OPEN_TIMEOUT_S:g} s") from None
        except asyncio.CancelledError:
            self.close_stream(info.stream, None)
            raise
        except BaseException:
            connection.streams.discard(info.stream)
            raise
        finally:
            connection.opening.pop(info.stream, None)
            if accepted.done() and not accepted.cancelled():
                accepted.exception()  # seen, even where the write failed first

    async def send(self, frames: Sequence[Frame]) -> int:
        """Send frames of open streams in order, waiting for credit, small ones together; returns how many left.

        Those whose stream was closed meanwhile are left out: `on_stream_closed` has told of it.
        """
        connection = self._connection
        sent = 0
        ready: list[Frame] = []
        for frame in frames:
            size_bytes = frame.payload_bytes
            while connection is not None and not connection.is_lost and frame.stream in connection.streams:
                if connection.window.may_send(size_bytes):
                    if size_bytes:
                        connection.window.sent(size_bytes)
                    ready.append(frame)
                    sent += 1
                    break
                if ready:
                    await self._write_frames(connection, ready)  # what has credit does not wait for what has none
                    ready = []
                    continue
                connection.credited.clear()
                await connection.credited.wait()
        if connection is not None and ready:
            await self._write_frames(connection, ready)
        return sent

    async def _write_frames(self, connection: _Connection, frames: Sequence[Frame]) -> None:
        try:
            coded = await encode_frames(frames, self._codec)
            await connection.link.send_frames(coded)
            self._sent_bytes += sum([frame.payload_bytes for frame in coded])
        except MeshError as error:
            self._lose(connection, error)

    def close_stream(self, stream: int, error: MeshError | None) -> None:
        """End a stream from this side."""
        connection = self._connection
        if connection is None or stream not in connection.streams:
            return
        connection.streams.discard(stream)
        connection.credited.set()
        self._spawn(
            self._write(connection, CloseStream(stream, error), loses_quietly=True),
            f"edge to {self._peer}: close stream",
        )

    async def close(self) -> None:
        """Hang up. Streams that are still open are closed on the other side by that."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.is_lost = True
            connection.credited.set()
            connection.link.cancel()

    async def _write(self, connection: _Connection, message: Message, *, loses_quietly: bool = False) -> None:
        try:
            await connection.link.send(message)
        except MeshError as error:
            self._lose(connection, error)
            if not loses_quietly:
                raise

    async def _read(self, connection: _Connection) -> None:
        try:
            while (message := await connection.link.receive()) is not None:
                connection.liveness.heard(self._now())
                self._handle(connection, message)
            self._lose(connection, NodeLost(f"{self._peer} closed the connection"))
        except MeshError as error:
            self._lose(connection, error)

    def _handle(self, connection: _Connection, message: Message) -> None:
        match message:
            case Credit(size_bytes):
                connection.window.credited(size_bytes)
                connection.credited.set()
                self.on_credited(size_bytes)
            case StreamAccepted(stream):
                waiting = connection.opening.get(stream)
                if waiting is not None and not waiting.done():
                    waiting.set_result(None)
            case CloseStream(stream, error):
                waiting = connection.opening.get(stream)
                connection.streams.discard(stream)
                connection.credited.set()
                if waiting is not None and not waiting.done():
                    waiting.set_exception(error or NodeLost(f"{self._peer} closed the stream"))
                else:
                    self.on_stream_closed(stream, error)
            case Draining():
                self.on_draining()
            case Heartbeat():
                pass
            case _:
                raise ProtocolViolation(f"{self._peer} sent {type(message).__name__} up an edge")

    async def _watch(self, connection: _Connection) -> None:
        """Heartbeat, and judge the other side's silence."""
        while not connection.is_lost:
            await asyncio.sleep(HEARTBEAT_INTERVAL_S)
            if connection.liveness.is_lost(self._now()):
                self._lose(connection, NodeLost(f"{self._peer} has gone silent"))
                return
            if not connection.is_beating:
                connection.is_beating = True
                self._spawn(self._beat(connection), f"edge to {self._peer}: heartbeat")

    async def _beat(self, connection: _Connection) -> None:
        """On its own, because a write may have to wait while the silence must be watched."""
        try:
            await self._write(connection, Heartbeat(), loses_quietly=True)
        finally:
            connection.is_beating = False

    def _lose(self, connection: _Connection, error: MeshError) -> None:
        if connection.is_lost:
            return
        connection.is_lost = True
        self._name_it(error)
        if self._connection is connection:
            self._connection = None
        connection.link.cancel()
        connection.credited.set()
        self.on_lost()
        streams, connection.streams = connection.streams, set()
        for stream in streams:
            waiting = connection.opening.get(stream)
            if waiting is not None and not waiting.done():
                waiting.set_exception(error)
            else:
                self.on_stream_closed(stream, error)
