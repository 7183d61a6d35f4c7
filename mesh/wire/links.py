"""One bidirectional gRPC stream as a link of messages: the client's side and the server's.

gRPC allows one write at a time per stream, so each link has a lock; a chunked frame is written under
it as a whole, because chunks of different frames must not interleave.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import grpc

from mesh.core.coding import RAW
from mesh.core.frame import Frame
from mesh.core.messages import Message
from mesh.core.plan import Fence
from mesh.core.tensor import TensorSpec
from mesh.errors import MeshError, NodeLost
from mesh.wire.frame_codec import FrameAssembler, encode_frames
from mesh.wire.status import from_rpc_error

Encode = Callable[[Message], Iterable[bytes]]
Decode = Callable[[bytes, FrameAssembler | None], Sequence[Message]]

CUT_OFF = "Internal error from Core"
"""What grpc.aio reports in place of the peer's status when a write meets the end of the call; the status is lost
then, and so are messages that were not read (in one of three such ends, measured). Why a link ends must therefore
be told as a message, and some time before."""


class ClientLink:
    """The calling side. `boundary` is what frames that come back look like; None where none do."""

    def __init__(
        self, call: Any, peer: str, encode: Encode, decode: Decode, boundary: tuple[TensorSpec, ...] | None = None
    ) -> None:
        self._call = call
        self._peer = peer
        self._encode = encode
        self._decode = decode
        self._assembler = FrameAssembler(boundary) if boundary is not None else None
        self._writing = asyncio.Lock()
        self._received: deque[Message] = deque()
        """Frames that came in one message."""

    async def send(self, message: Message) -> None:
        """Raises `NodeLost`, or the error with which the peer ended the call."""
        await self._write(self._encode(message))

    async def send_frames(self, frames: Sequence[Frame]) -> None:
        """As `send`; small ones share messages."""
        await self._write(encode_frames(frames))

    async def _write(self, messages: Iterable[bytes]) -> None:
        try:
            async with self._writing:
                for data in messages:
                    await self._call.write(data)
        except grpc.aio.AioRpcError as error:
            raise self._translate(error) from None
        except (asyncio.InvalidStateError, grpc.aio.UsageError):
            raise await self._ended() from None
        except asyncio.CancelledError:
            if self._call.cancelled() and not _is_cancelling():
                raise NodeLost(f"the connection to {self._peer} was given up") from None
            raise

    async def receive(self) -> Message | None:
        """The next message; None at an orderly end. Raises as `send` does."""
        while not self._received:
            try:
                data = await self._call.read()
            except grpc.aio.AioRpcError as error:
                raise self._translate(error) from None
            except asyncio.CancelledError:
                if self._call.cancelled() and not _is_cancelling():
                    raise NodeLost(f"the connection to {self._peer} was given up") from None
                raise
            if data is grpc.aio.EOF:
                return None
            self._received.extend(self._decode(data, self._assembler))
        return self._received.popleft()

    def cancel(self) -> None:
        self._call.cancel()

    async def _ended(self) -> Exception:
        code = await self._call.code()
        if code is grpc.StatusCode.OK:
            return NodeLost(f"{self._peer} closed the connection")
        error = grpc.aio.AioRpcError(
            code,
            await self._call.initial_metadata(),
            await self._call.trailing_metadata(),
            await self._call.details(),
        )
        return self._translate(error)

    def _translate(self, error: grpc.aio.AioRpcError) -> MeshError:
        if error.code() is grpc.StatusCode.INTERNAL and error.details() == CUT_OFF:
            return NodeLost(f"{self._peer} ended the connection")
        return from_rpc_error(error, self._peer)


def _is_cancelling() -> bool:
    """Whether this very task is being cancelled, rather than the call that it waits for."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


class AcceptedLink:
    """The serving side, within the handler of one call."""

    def __init__(self, context: Any, encode: Encode, decode: Decode) -> None:
        self._context = context
        self._encode = encode
        self._decode = decode
        self._assembler: FrameAssembler | None = None
        self._writing = asyncio.Lock()
        self._received: deque[Message] = deque()
        """Frames that came in one message."""

    def expect(self, boundary: tuple[TensorSpec, ...], fence: Fence, codec: str = RAW) -> None:
        """From now on frames are understood, and must look like this; coded tensors are left to whoever receives."""
        self._assembler = FrameAssembler(boundary, codec=codec)

    async def send(self, message: Message) -> None:
        await self._write(self._encode(message))

    async def send_frames(self, frames: Sequence[Frame]) -> None:
        await self._write(encode_frames(frames))

    async def _write(self, messages: Iterable[bytes]) -> None:
        try:
            async with self._writing:
                for data in messages:
                    await self._context.write(data)
        except (asyncio.InvalidStateError, grpc.aio.BaseError, grpc.RpcError) as error:
            raise NodeLost(f"the peer hung up: {error}") from None

    async def receive(self) -> Message | None:
        while not self._received:
            try:
                data = await self._context.read()
            except (asyncio.InvalidStateError, grpc.aio.BaseError, grpc.RpcError) as error:
                raise NodeLost(f"the peer hung up: {error}") from None
            if data is grpc.aio.EOF:
                return None
            self._received.extend(self._decode(data, self._assembler))
        return self._received.popleft()

    def cancel(self) -> None:
        """The handler's return ends the call; nothing more is needed on this side."""
