"""Frames to messages: the bytes that protobuf would write, with one copy of the payload.

Pure, apart from the copy counter. Used through `mesh.wire.frame_codec`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

from mesh.core.frame import Frame, Hop, Outcome
from mesh.core.tensor import MAX_RANK, Tensor
from mesh.errors import MeshError, ProtocolViolation
from mesh.wire.frame_format import (
    CHUNK_BYTES,
    FRAME_TAG,
    MAX_CHUNKS,
    MAX_CODE_BYTES,
    MAX_ERROR_BYTES,
    MAX_FRAME_BYTES,
    MAX_HOPS,
    MAX_TENSORS,
    MAX_TRACEPARENT_BYTES,
    PAYLOAD_ALIGNMENT,
    payload_copies,
)
from mesh.wire.protobuf_bytes import INT64_LIMIT, UINT32_LIMIT, UINT64_LIMIT, cut_text, encode_varint, varint_size

_STREAM = struct.Struct("<BQ")


def encode_frame(frame: Frame, *, max_chunk_bytes: int = CHUNK_BYTES) -> Iterator[bytes]:
    """The messages that carry `frame`, in order, each made when it is asked for.

    `tensors` must not change before the last message is made. Raises `ProtocolViolation` at once for
    a frame that no peer would accept.
    """
    total = frame.payload_bytes
    _check_encodable(frame, total, max_chunk_bytes)
    identity = _encode_identity(frame)
    headers = identity + _encode_headers(frame)
    if total <= 2 * max_chunk_bytes:
        return iter((_encode_whole(headers, [tensor.data for tensor in frame.tensors], total),))
    return _encode_chunks(frame, identity, headers, total, max_chunk_bytes)


def _check_encodable(frame: Frame, total: int, max_chunk_bytes: int) -> None:
    for field in ("stream", "sequence", "term", "generation", "budget_us"):
        if not 0 <= getattr(frame, field) < UINT64_LIMIT:
            raise ProtocolViolation(f"frame: {field} {getattr(frame, field)} does not fit 64 bits")
    if frame.outcome is not Outcome.OK and frame.tensors:
        raise ProtocolViolation(f"frame {frame.sequence}: outcome {frame.outcome.name} carries no tensors")
    if frame.outcome is Outcome.OK and frame.error is not None:
        raise ProtocolViolation(f"frame {frame.sequence}: outcome OK carries no error")
    if len(frame.tensors) > MAX_TENSORS or len(frame.hops) > MAX_HOPS:
        raise ProtocolViolation(
            f"frame {frame.sequence}: {len(frame.tensors)} tensors and {len(frame.hops)} hops, "
            f"the limits are {MAX_TENSORS} and {MAX_HOPS}"
        )
    if len(frame.traceparent) > MAX_TRACEPARENT_BYTES or not frame.traceparent.isascii():
        raise ProtocolViolation(
            f"frame {frame.sequence}: traceparent is not ASCII or has more than {MAX_TRACEPARENT_BYTES} characters"
        )
    if total > MAX_FRAME_BYTES:
        raise ProtocolViolation(
            f"frame {frame.sequence}: {total} bytes of payload, the limit is {MAX_FRAME_BYTES}",
            hint="send fewer items per frame",
        )
    if max_chunk_bytes < 1 or total > max_chunk_bytes * MAX_CHUNKS:
        raise ProtocolViolation(f"frame {frame.sequence}: {total} bytes need more than {MAX_CHUNKS} chunks")


def _encode_identity(frame: Frame) -> bytes:
    parts = [_STREAM.pack(0x09, frame.stream)] if frame.stream else []
    for tag, value in ((b"\x10", frame.sequence), (b"\x18", frame.term), (b"\x20", frame.generation)):
        if value:
            parts += (tag, encode_varint(value))
    return b"".join(parts)


def _encode_headers(frame: Frame) -> bytes:
    """Fields 5 to 10: what the first message of a frame says beyond its identity."""
    parts: list[bytes] = []
    if frame.budget_us:
        parts += (b"\x28", encode_varint(frame.budget_us))
    if frame.outcome is not Outcome.OK:
        parts += (b"\x30", encode_varint(frame.outcome.value))
    if frame.error is not None:
        parts += _length_delimited(b"\x3a", _encode_error(frame.error))
    for tensor in frame.tensors:
        parts += _length_delimited(b"\x42", _encode_tensor_header(tensor))
    if frame.traceparent:
        parts += _length_delimited(b"\x4a", frame.traceparent.encode())
    for hop in frame.hops:
        parts += _length_delimited(b"\x52", _encode_hop(hop))
    return b"".join(parts)


def _length_delimited(tag: bytes, content: bytes) -> tuple[bytes, bytes, bytes]:
    return tag, encode_varint(len(content)), content


def _encode_error(error: MeshError) -> bytes:
    parts: list[bytes] = []
    for tag, text, limit in (
        (b"\x0a", error.code, MAX_CODE_BYTES),
        (b"\x12", error.message, MAX_ERROR_BYTES),
        (b"\x1a", error.hint, MAX_ERROR_BYTES),
    ):
        if text:
            parts += _length_delimited(tag, cut_text(text, limit))
    return b"".join(parts)


def _encode_tensor_header(tensor: Tensor) -> bytes:
    if any(not 0 <= size < INT64_LIMIT for size in tensor.shape) or len(tensor.shape) > MAX_RANK:
        raise ProtocolViolation(f"frame: {list(tensor.shape)[: MAX_RANK + 1]} is not a shape that can travel")
    dimensions = b"".join(map(encode_varint, tensor.shape))
    encoded = b"\x0a" + encode_varint(len(dimensions)) + dimensions if dimensions else b""
    size = len(tensor.data)
    return encoded + b"\x18" + encode_varint(size) if size else encoded


def _encode_hop(hop: Hop) -> bytes:
    parts: list[bytes] = []
    for tag, value in ((b"\x08", hop.stage), (b"\x10", hop.queue_us), (b"\x18", hop.compute_us)):
        if value:
            # A statistic must not be what fails a frame that waited for more than 71 minutes.
            parts += (tag, encode_varint(min(max(value, 0), UINT32_LIMIT - 1)))
    return b"".join(parts)


def _encode_whole(headers: bytes, views: list[memoryview], total: int) -> bytes:
    if not total:
        return b"".join((FRAME_TAG, encode_varint(len(headers)), headers))
    tail = b"\x7a" + encode_varint(total)
    padding = _padding_field(len(headers) + len(tail), total)
    length = len(headers) + len(padding) + len(tail) + total
    payload_copies.sent += 1
    return b"".join((FRAME_TAG, encode_varint(length), headers, padding, tail, *views))


def _padding_field(header_size: int, payload_size: int) -> bytes:
    """Field 14, of the size that lets the payload begin at a multiple of `PAYLOAD_ALIGNMENT` of the message."""
    length = header_size + payload_size
    missing = -(1 + varint_size(length) + header_size) % PAYLOAD_ALIGNMENT
    for size in (missing, missing + 15, missing + 16, missing + 31):
        # The padding counts towards the length, whose own size may grow by one byte for it. A field takes two bytes
        # and its content; protobuf leaves fields without content out.
        if size not in (1, 2) and (1 + varint_size(length + size) + header_size + size) % PAYLOAD_ALIGNMENT == 0:
            return b"\x72" + encode_varint(size - 2) + bytes(size - 2) if size else b""
    raise AssertionError(f"no padding for {header_size} and {payload_size} bytes")


def _encode_chunks(frame: Frame, identity: bytes, headers: bytes, total: int, max_chunk_bytes: int) -> Iterator[bytes]:
    offset = 0
    announced = b"\x60" + encode_varint(total)
    for views in _split_views([tensor.data for tensor in frame.tensors], max_chunk_bytes):
        size = sum(map(len, views))
        prefix = headers if offset == 0 else identity + b"\x58" + encode_varint(offset)
        prefix += announced + b"\x7a" + encode_varint(size)
        payload_copies.sent += 1
        yield b"".join((FRAME_TAG, encode_varint(len(prefix) + size), prefix, *views))
        offset += size


def _split_views(views: Sequence[memoryview], size: int) -> Iterator[list[memoryview]]:
    """The bytes of `views`, one after the other, in groups of `size` bytes; the last may be smaller."""
    group: list[memoryview] = []
    room = size
    for view in views:
        offset = 0
        while offset < len(view):
            taken = view[offset : offset + room]
            group.append(taken)
            offset += len(taken)
            room -= len(taken)
            if room == 0:
                yield group
                group, room = [], size
    if group:
        yield group
