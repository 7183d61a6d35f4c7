"""The offences of scripts/check_bad_peers: each speaks the stream protocol by hand, wrongly, to one daemon.

An offence returns what it was told in the end: an error, or None where nothing is refused.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any

import grpc

from mesh.core.frame import Frame, StreamClass
from mesh.core.messages import (
    CloseStream,
    Credit,
    EdgeAccepted,
    Heartbeat,
    Message,
    OpenEdge,
    OpenResults,
    OpenStream,
    ResultsAccepted,
    StreamAccepted,
)
from mesh.core.plan import Deployment, Fence
from mesh.core.tensor import DType, Tensor
from mesh.errors import (
    DeploymentNotFound,
    MeshError,
    NodeLost,
    Overloaded,
    ProtocolViolation,
    StaleGeneration,
    TensorMismatch,
)
from mesh.v1 import stream_pb2
from mesh.wire.channel import NodeClient
from mesh.wire.frame_codec import CHUNK_BYTES, encode_frame
from mesh.wire.links import ClientLink

MIB = 1 << 20
OFFENCE_LIMIT_S = 15.0
BEAT_S = 0.5


@dataclass(slots=True)
class HostileNode:
    """What the daemon's edge to the next node leads to: it accepts everything and credits nonsense."""

    initial_credit: int = MIB
    credit: int = 0

    async def serve(self, requests: object, context: Any) -> None:
        while (data := await context.read()) is not grpc.aio.EOF:
            request = stream_pb2.EdgeRequest.FromString(data)
            if request.HasField("open_edge"):
                answer = stream_pb2.EdgeResponse(
                    edge_accepted=stream_pb2.EdgeAccepted(credit_bytes=self.initial_credit)
                )
            elif request.HasField("open_stream"):
                accepted = stream_pb2.StreamAccepted(stream=request.open_stream.stream)
                answer = stream_pb2.EdgeResponse(stream_accepted=accepted)
            elif request.HasField("frame"):
                answer = stream_pb2.EdgeResponse(credit=stream_pb2.Credit(bytes=self.credit))
            else:
                continue
            await context.write(answer.SerializeToString())

    async def listen(self) -> tuple[grpc.aio.Server, str]:
        server = grpc.aio.server()
        handlers = {"Edge": grpc.stream_stream_rpc_method_handler(self.serve)}
        server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("mesh.v1.StreamService", handlers)])
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        return server, f"127.0.0.1:{port}"


@dataclass(slots=True)
class Offender:
    """Raw links to the daemon. `copies` gives back the floats that it gets; `hostile` leads on to `next_node`."""

    client: NodeClient
    copies: Deployment
    digits: Deployment
    hostile: Deployment
    next_node: HostileNode

    async def edge(self, deployment: Deployment, **changes: Any) -> ClientLink:
        link = self.client.open_edge()
        await link.send(replace(OpenEdge(deployment.name, deployment.fence, 0), **changes))
        return link

    async def opened(self, deployment: Deployment, window: int = 4) -> tuple[ClientLink, ClientLink, int]:
        stream = secrets.randbits(60)
        results = self.client.open_results(deployment.outputs)
        if deployment is not self.hostile:
            await results.send(OpenResults(deployment.name, deployment.fence, stream, 0, window))
            assert isinstance(await results.receive(), ResultsAccepted)
        edge = await self.edge(deployment)
        await next_of(edge, EdgeAccepted)
        await edge.send(OpenStream(stream, StreamClass.LOSSLESS, True, window))
        await next_of(edge, StreamAccepted)
        return edge, results, stream

    def frame(self, stream: int, sequence: int, size_bytes: int, fence: Fence | None = None) -> Frame:
        used = fence or self.copies.fence
        tensor = Tensor.from_bytes(DType.FLOAT32, (size_bytes // 4,), bytes(size_bytes))
        return Frame(stream, sequence, used.term, used.generation, (tensor,))

    def digit(self, stream: int, side: int = 8) -> Frame:
        fence = self.digits.fence
        tensor = Tensor.from_bytes(DType.FLOAT32, (1, 1, side, side), bytes(4 * side * side))
        return Frame(stream, 0, fence.term, fence.generation, (tensor,))


async def next_of(link: ClientLink, kind: type[Message]) -> Any:
    """The next message of that kind; raises the error that came instead."""
    while (message := await link.receive()) is not None:
        if isinstance(message, kind):
            return message
        if isinstance(message, CloseStream) and message.error is not None:
            raise message.error
    raise NodeLost("the link ended")


async def told(link: ClientLink) -> MeshError | None:
    """With what the daemon ends the link, or the stream on it."""
    try:
        closing = await next_of(link, CloseStream)
    except MeshError as error:
        return error
    return closing.error


# --- slow and stalled -----------------------------------------------------------------------------


async def slow_consumer(peer: Offender) -> MeshError | None:
    """It keeps to its window and takes an answer of 1 MiB every 20 ms: held to that pace, and nothing else."""
    window, frames = 8, 60
    edge, results, stream = await peer.opened(peer.copies, window)
    room = asyncio.Semaphore(window)

    async def send() -> None:
        outstanding = 0
        for sequence in range(frames):
            await room.acquire()
            while outstanding + MIB > 8 * MIB:
                outstanding -= (await next_of(edge, Credit)).bytes
            outstanding += MIB
            await edge.send(peer.frame(stream, sequence, MIB))

    sending = asyncio.ensure_future(send())
    for sequence in range(frames):
        answer = await next_of(results, Frame)
        assert answer.sequence == sequence
        room.release()
        await asyncio.sleep(0.02)
    await sending
    edge.cancel()
    results.cancel()
    return None


async def stalled_link(peer: Offender) -> MeshError | None:
    """Open, in use, and then nothing: neither a word nor a byte that is read."""
    edge, results, stream = await peer.opened(peer.copies)
    await edge.send(peer.frame(stream, 0, MIB))
    await asyncio.sleep(3.5)
    edge.cancel()
    return await told(results)


async def never_reads(peer: Offender) -> MeshError | None:
    """A window of 1000 frames of 1 MiB, kept to, and no answer is ever read."""
    edge, results, stream = await peer.opened(peer.copies, window=1000)
    outstanding, sequence, beaten_at = 0, 0, time.monotonic()
    try:
        while True:
            while outstanding + MIB > 8 * MIB:
                outstanding -= (await next_of(edge, Credit)).bytes
            outstanding += MIB
            await edge.send(peer.frame(stream, sequence, MIB))
            sequence += 1
            if time.monotonic() - beaten_at > BEAT_S:
                await results.send(Heartbeat())
                beaten_at = time.monotonic()
    except MeshError as error:
        results.cancel()
        edge.cancel()
        return error


# --- frames ---------------------------------------------------------------------------------------


async def larger_than_agreed(peer: Offender) -> MeshError | None:
    """A tensor of other dimensions than the model's, in chunks of which the first is refused."""
    edge, _, stream = await peer.opened(peer.digits)
    writing = asyncio.ensure_future(edge.send(peer.digit(stream, side=900)))
    error = await told(edge)
    await asyncio.gather(writing, return_exceptions=True)
    return error


async def announces_a_terabyte(peer: Offender) -> MeshError | None:
    edge, _, stream = await peer.opened(peer.copies)
    header = stream_pb2.TensorHeader(dimensions=[1 << 38], byte_length=1 << 40)
    fence = peer.copies.fence
    frame = stream_pb2.Frame(
        stream=stream,
        term=fence.term,
        generation=fence.generation,
        tensors=[header],
        chunk_total=1 << 40,
        payload=bytes(1000),
    )
    await edge._call.write(stream_pb2.EdgeRequest(frame=frame).SerializeToString())
    return await told(edge)


async def chunks_out_of_order(peer: Offender) -> MeshError | None:
    edge, _, stream = await peer.opened(peer.copies)
    first, _, third = encode_frame(peer.frame(stream, 0, 3 * CHUNK_BYTES))
    for chunk in (first, third):
        await edge._call.write(chunk)
    return await told(edge)


async def sequence_jump(peer: Offender) -> MeshError | None:
    """Forwards, backwards and to the end of the numbers: a stage keeps no count, its window is what bounds it."""
    edge, results, stream = await peer.opened(peer.copies)
    for sequence in (0, 5, (1 << 64) - 1, 3):
        await edge.send(peer.frame(stream, sequence, 64))
        assert (await next_of(results, Frame)).sequence == sequence
    edge.cancel()
    results.cancel()
    return None


# --- generations ----------------------------------------------------------------------------------


async def old_generation(peer: Offender) -> MeshError | None:
    return await told(await peer.edge(peer.copies, fence=Fence(0, 1)))


async def unknown_generation(peer: Offender) -> MeshError | None:
    return await told(await peer.edge(peer.copies, fence=Fence(1 << 40, 1)))


async def frame_of_another_generation(peer: Offender) -> MeshError | None:
    edge, _, stream = await peer.opened(peer.copies)
    await edge.send(peer.frame(stream, 0, 64, Fence(0, 1)))
    return await told(edge)


# --- credits, from the node that the daemon sends to ----------------------------------------------


def credit_of(size_bytes: int) -> Callable[[Offender], Awaitable[MeshError | None]]:
    async def offend(peer: Offender) -> MeshError | None:
        peer.next_node.initial_credit, peer.next_node.credit = MIB, size_bytes % (1 << 64)
        edge, _, stream = await peer.opened(peer.hostile)
        frame = peer.digit(stream)
        frame.term, frame.generation = peer.hostile.fence.term, peer.hostile.fence.generation
        await edge.send(frame)
        return await told(edge)

    return offend


async def first_credit_too_large(peer: Offender) -> MeshError | None:
    peer.next_node.initial_credit = 1 << 63
    try:
        await peer.opened(peer.hostile)
    except MeshError as error:
        return error
    return None


OFFENCES: dict[str, tuple[Callable[[Offender], Awaitable[MeshError | None]], type[MeshError] | None]] = {
    "slow consumer": (slow_consumer, None),
    "stalled link": (stalled_link, NodeLost),
    "sends and never reads": (never_reads, Overloaded),
    "frame larger than agreed": (larger_than_agreed, TensorMismatch),
    "frame of a terabyte": (announces_a_terabyte, ProtocolViolation),
    "chunks out of order": (chunks_out_of_order, ProtocolViolation),
    "credit of -1": (credit_of(-1), ProtocolViolation),
    "credit of 2^63": (credit_of(1 << 63), ProtocolViolation),
    "first credit of 2^63": (first_credit_too_large, ProtocolViolation),
    "sequence jump": (sequence_jump, None),
    "old generation": (old_generation, StaleGeneration),
    "unknown generation": (unknown_generation, DeploymentNotFound),
    "frame of an old generation": (frame_of_another_generation, StaleGeneration),
}
"""What each does, and the error that it must be told; None where nobody is refused."""
