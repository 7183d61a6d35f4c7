"""A model on its way to a coordinator: in chunks, its size announced in the first message.

Both ends are here: the client cuts, the server collects and counts. A model is collected in memory,
because planning works on it there; a caller who stops half-way leaves nothing behind.
"""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator
from typing import Any, TypeVar

from mesh.errors import ModelUnsupported, ProtocolViolation, Timeout
from mesh.v1 import coordinator_pb2
from mesh.wire.channel import CHUNK_BYTES

MAX_MODEL_BYTES = 2 << 30
"""A model is one protobuf message, which ends at 2 GiB."""

UPLOAD_SILENCE_S = 30.0
"""A caller who sends nothing for so long gives up its place: a chunk at the slowest supported rate takes 8 s."""

UploadMessage = TypeVar("UploadMessage", coordinator_pb2.PlanModelRequest, coordinator_pb2.DeployRequest)


async def cut_upload(first: UploadMessage, model: bytes) -> AsyncIterator[UploadMessage]:
    """`first`, completed with size and first chunk, and then the other chunks."""
    view = memoryview(model)
    first.model_bytes = len(model)
    first.chunk = bytes(view[:CHUNK_BYTES])
    yield first
    for offset in range(CHUNK_BYTES, len(model), CHUNK_BYTES):
        yield type(first)(chunk=bytes(view[offset : offset + CHUNK_BYTES]))


def check_model_size(size_bytes: int) -> None:
    """Raise `ModelUnsupported` above the limit, `ProtocolViolation` for nothing at all."""
    if size_bytes > MAX_MODEL_BYTES:
        raise ModelUnsupported(
            f"a model of {size_bytes} bytes is above the limit of {MAX_MODEL_BYTES}",
            hint="a model is handled as one protobuf message, which ends there",
        )
    if size_bytes == 0:
        raise ProtocolViolation("a model of 0 bytes was announced")


async def first_of(requests: AsyncIterator[Any]) -> Any:
    """The message that opens an upload; raises `ProtocolViolation` where none comes."""
    first = await _next(requests)
    if first is None:
        raise ProtocolViolation("the call ended before a model was announced")
    return first


async def collect_upload(first: Any, requests: AsyncIterator[Any]) -> bytes:
    """The whole model. Raises `ProtocolViolation` for more or fewer bytes than announced, `Timeout` for silence."""
    announced = first.model_bytes
    check_model_size(announced)
    collected = io.BytesIO()
    message = first
    while True:
        if not message.chunk:
            raise ProtocolViolation("an upload came with an empty chunk")
        collected.write(message.chunk)
        if collected.tell() > announced:
            raise ProtocolViolation(f"a model of {announced} bytes was announced, more came")
        message = await _next(requests)
        if message is None:
            break
    if collected.tell() < announced:
        raise ProtocolViolation(f"a model of {announced} bytes was announced, only {collected.tell()} came")
    return collected.getvalue()


async def _next(requests: AsyncIterator[Any]) -> Any:
    try:
        async with asyncio.timeout(UPLOAD_SILENCE_S):
            return await anext(requests, None)
    except TimeoutError:
        raise Timeout(f"nothing of the model came for {UPLOAD_SILENCE_S:g} s") from None
