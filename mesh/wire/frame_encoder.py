"""Frames to messages: the bytes that protobuf would write, with one copy of the payload.

Pure, apart from the copy counter. Used through `mesh.wire.frame_codec`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from functools import lru_cache

from mesh.core.coding import CodedTensor
from mesh.core.frame import Frame, Hop, Outcome
from mesh.core.tensor import MAX_RANK
from mesh.errors import MeshError, ProtocolViolation
from mesh.wire.frame_format import (
    CHUNK_BYTES,
    FOLLOWER_TAG,
    FRAME_TAG,
    MAX_CHUNKS,
    MAX_CODE_BYTES,
    MAX_ERROR_BYTES,
    MAX_FRAME_BYTES,
    MAX_FRAMES_PER_MESSAGE,
    MAX_HOPS,
    MAX_TENSORS,
    MAX_TRACEPARENT_BYTES,
    PAYLOAD_ALIGNMENT,
    SMALL_FRAME_BYTES,
    payload_copies,
)
from mesh.wire.protobuf_bytes import (
    INT64_LIMIT,
    UINT32_LIMIT,
    UINT64_LIMIT,
    append_varint,
    cut_text,
    encode_varint,
    varint_size,
)

_STREAM = struct.Struct("<BQ")
_SCALE = struct.Struct("<Bf")


def encode_frames(frames: Sequence[Frame]) -> Iterator[bytes]:
    """The messages that carry `frames`, in order; small ones that follow each other share one."""
    together: list[Frame] = []
    for frame in frames:
        is_small = frame.payload_bytes <= SMALL_FRAME_BYTES
        if together and (not is_small or len(together) == MAX_FRAMES_PER_MESSAGE):
            yield _encode_together(together)
            together = []
        if is_small:
            together.append(frame)
        else:
            yield from encode_frame(frame)
    if together:
        yield _encode_together(together)


def _encode_together(frames: Sequence[Frame]) -> bytes:
    (first,) = encode_frame(frames[0])
    parts = [first]
    for frame in frames[1:]:
        # Without padding: what a follower's payload is aligned to depends on all frames before it, and it is small.
        (message,) = encode_frame(frame, is_padded=False)
        parts += (FOLLOWER_TAG, message[len(FRAME_TAG) :])
    return b"".join(parts) if len(parts) > 1 else first


def encode_frame(frame: Frame, *, max_chunk_bytes: int = CHUNK_BYTES, is_padded: bool = True) -> Iterator[bytes]:
    """The messages that carry `frame`, in order, each made when it is asked for.

    `tensors` must not change before the last message is made. Raises `ProtocolViolation` at once for
    a frame that no peer would accept.
    """
    total = frame.payload_bytes
    _check_encodable(frame, total, max_chunk_bytes)
    headers = _encode_identity(frame)
    identity = bytes(headers)
    _append_headers(headers, frame)
    if total <= 2 * max_chunk_bytes:
        return iter((_encode_whole(headers, [tensor.data for tensor in frame.tensors], total, is_padded),))
    return _encode_chunks(frame, identity, bytes(headers), total, max_chunk_bytes)


def _check_encodable(frame: Frame, total: int, max_chunk_bytes: int) -> None:
    numbers = (frame.stream, frame.sequence, frame.term, frame.generation, frame.budget_us)
    if min(numbers) < 0 or max(numbers) >= UINT64_LIMIT:
        raise ProtocolViolation(f"frame: stream, sequence, term, generation, budget {numbers} do not fit 64 bits")
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


def _encode_identity(frame: Frame) -> bytearray:
    encoded = bytearray(_STREAM.pack(0x09, frame.stream) if frame.stream else b"")
    for tag, value in ((0x10, frame.sequence), (0x18, frame.term), (0x20, frame.generation)):
        if value:
            encoded.append(tag)
            append_varint(encoded, value)
    return encoded


def _append_headers(encoded: bytearray, frame: Frame) -> None:
    """Fields 5 to 10: what the first message of a frame says beyond its identity."""
    if frame.budget_us:
        encoded.append(0x28)
        append_varint(encoded, frame.budget_us)
    if frame.outcome is not Outcome.OK:
        encoded += bytes((0x30, frame.outcome.value))
    if frame.error is not None:
        _append_delimited(encoded, 0x3A, _encode_error(frame.error))
    for tensor in frame.tensors:
        if isinstance(tensor, CodedTensor):
            header = _encode_coded_header(tensor)
        else:
            header = _encode_tensor_header(tensor.shape, len(tensor.data))
        _append_delimited(encoded, 0x42, header)
    if frame.traceparent:
        _append_delimited(encoded, 0x4A, frame.traceparent.encode())
    for hop in frame.hops:
        _append_delimited(encoded, 0x52, _encode_hop(hop))


def _append_delimited(encoded: bytearray, tag: int, content: bytes | bytearray) -> None:
    encoded.append(tag)
    append_varint(encoded, len(content))
    encoded += content


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


@lru_cache(maxsize=MAX_TENSORS)
def _encode_tensor_header(shape: tuple[int, ...], size_bytes: int) -> bytes:
    """Remembered, because the frames of a stream mostly look alike."""
    if any(not 0 <= size < INT64_LIMIT for size in shape) or len(shape) > MAX_RANK:
        raise ProtocolViolation(f"frame: {list(shape)[: MAX_RANK + 1]} is not a shape that can travel")
    dimensions = b"".join(map(encode_varint, shape))
    encoded = b"\x0a" + encode_varint(len(dimensions)) + dimensions if dimensions else b""
    return encoded + b"\x18" + encode_varint(size_bytes) if size_bytes else encoded


def _encode_coded_header(tensor: CodedTensor) -> bytes:
    shape = _encode_tensor_header(tensor.shape, 0)
    encoded = bytearray(shape)
    encoded += bytes((0x10, tensor.coding))
    encoded.append(0x18)
    append_varint(encoded, len(tensor.data))
    if tensor.scale:
        encoded += _SCALE.pack(0x25, tensor.scale)
    if tensor.zero_point:
        encoded.append(0x28)
        append_varint(encoded, 2 * tensor.zero_point if tensor.zero_point >= 0 else -2 * tensor.zero_point - 1)
    return bytes(encoded)


def _encode_hop(hop: Hop) -> bytearray:
    encoded = bytearray()
    for tag, value in ((0x08, hop.stage), (0x10, hop.queue_us), (0x18, hop.compute_us)):
        if value > 0:
            encoded.append(tag)
            # A statistic must not be what fails a frame that waited for more than 71 minutes.
            append_varint(encoded, value if value < UINT32_LIMIT else UINT32_LIMIT - 1)
    return encoded


def _encode_whole(headers: bytearray, views: list[memoryview], total: int, is_padded: bool) -> bytes:
    if not total:
        return b"".join((FRAME_TAG, encode_varint(len(headers)), headers))
    tail = b"\x7a" + encode_varint(total)
    padding = _padding_field(len(headers) + len(tail), total) if is_padded else b""
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
