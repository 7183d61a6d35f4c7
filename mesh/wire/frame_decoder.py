"""Messages to frames: parsed by hand, payloads left where they were received.

Pure. Used through `mesh.wire.frame_codec`. Whatever the bytes are, the outcome is a `FramePart` or
a `MeshError` that names the field; unknown fields are skipped, so that newer peers can add some.
Deliberately stricter than protobuf where leniency would hide a fault: known fields must have their
wire type, numbers must fit, and a message holds one frame and nothing else that is known.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache

from mesh.core.coding import CODINGS_OF, RAW, CodedTensor, Coding
from mesh.core.frame import Frame, Hop, Outcome
from mesh.core.tensor import MAX_RANK, MAX_TENSOR_BYTES, DType, Tensor, TensorSpec
from mesh.errors import (
    EngineError,
    MeshError,
    NodeLost,
    Overloaded,
    ProtocolViolation,
    TensorMismatch,
    Timeout,
    from_code,
)
from mesh.wire.frame_format import (
    FRAME_TAG,
    MAX_CODE_BYTES,
    MAX_ERROR_BYTES,
    MAX_FRAME_BYTES,
    MAX_FRAMES_PER_MESSAGE,
    MAX_HOPS,
    MAX_REMEMBERED_BYTES,
    MAX_TENSORS,
    MAX_TRACEPARENT_BYTES,
    MAX_ZERO_POINT,
    FramePart,
    TensorHeader,
)
from mesh.wire.protobuf_bytes import (
    FIXED32,
    FIXED64,
    INT64_LIMIT,
    LENGTH,
    UINT32_LIMIT,
    UINT64_LIMIT,
    VARINT,
    read_fields,
    read_varint,
)

_FRAME_FIELD = 3
_FOLLOWER_FIELD = 7
_SIBLING_FIELDS = frozenset({1, 2, 4, 5, 6})
"""The other members of the oneof that a frame is in."""

ONLY_RAW = CODINGS_OF[RAW]
"""What is taken where the plan gives the edge no codec."""

_CODINGS = {coding.value: coding for coding in Coding} | {0: Coding.RAW}

_BITS = struct.Struct("<I")
_FLOAT = struct.Struct("<f")

_OUTCOMES = {outcome.value: outcome for outcome in Outcome} | {0: Outcome.OK}

_OUTCOME_ERRORS: dict[Outcome, Callable[[], MeshError]] = {
    Outcome.LATE: lambda: Timeout("the frame's budget was spent before its answer was there"),
    Outcome.FAILED: lambda: EngineError("a stage could not compute the frame and gave no reason"),
    Outcome.DROPPED: lambda: Overloaded("the frame gave way to a newer one"),
    Outcome.UNKNOWN: lambda: NodeLost("a node was lost while the frame was on its way"),
}
"""What stands in for the error that a peer left out, so that every outcome but OK has one."""

_EMPTY = memoryview(b"")

_FRAME_WIRE_TYPES = {
    1: FIXED64,
    2: VARINT,
    3: VARINT,
    4: VARINT,
    5: VARINT,
    6: VARINT,
    7: LENGTH,
    8: LENGTH,
    9: LENGTH,
    10: LENGTH,
    11: VARINT,
    12: VARINT,
    14: LENGTH,
    15: LENGTH,
}


_NO_NUMBERS = dict.fromkeys((1, 2, 3, 4, 5, 6, 11, 12), 0)


@dataclass(slots=True)
class AcceptedHeaders:
    """What the last whole frame over a boundary looked like; one more like it needs no check. Owned by the reader."""

    headers: tuple[TensorHeader, ...] | None = None
    total: int = 0
    codings: Collection[Coding] = ONLY_RAW
    """That tensors may have."""


def decode_frames(
    message: bytes, boundary: Sequence[TensorSpec], accepted: AcceptedHeaders | None = None
) -> list[FramePart]:
    """Decode one message that `is_frame` recognised, holding its tensors against `boundary`.

    The payloads of the result are views of `message`, which they keep alive. Raises `TensorMismatch`
    for tensors that do not fit the boundary, `ProtocolViolation` for everything else.
    """
    accepted = accepted or AcceptedHeaders()
    found = _find_frames(message)
    parts = [_decode_part(message, begin, end, boundary, accepted) for begin, end in found]
    if len(parts) > 1 and not all(part.is_whole for part in parts):
        raise ProtocolViolation(f"frame {parts[0].frame.sequence}: a chunk shares its message with another frame")
    return parts


def _decode_part(
    message: bytes, begin: int, end: int, boundary: Sequence[TensorSpec], accepted: AcceptedHeaders
) -> FramePart:
    numbers = _NO_NUMBERS.copy()
    headers: list[TensorHeader] = []
    hops: list[Hop] = []
    error: MeshError | None = None
    traceparent = ""
    payload = _EMPTY
    for field, wire_type, value, stop in read_fields(message, begin, end):
        if wire_type != _FRAME_WIRE_TYPES.get(field, wire_type):
            _check_wire_type("frame", field, wire_type, _FRAME_WIRE_TYPES[field])
        if field in numbers:
            numbers[field] = value
        elif field == 8:
            if len(headers) == len(boundary):
                raise TensorMismatch(f"frame has more tensors than the {len(boundary)} that cross here")
            decode = _remember_tensor_header if stop - value <= MAX_REMEMBERED_BYTES else _decode_tensor_header
            headers.append(decode(message[value:stop], boundary[len(headers)].name))
        elif field == 15:
            payload = memoryview(message)[value:stop]
        elif field == 10:
            if len(hops) == MAX_HOPS:
                raise ProtocolViolation(f"frame: more than {MAX_HOPS} hops")
            hops.append(_decode_hop(message, value, stop))
        elif field == 9:
            traceparent = _decode_text(message, value, stop, "traceparent", MAX_TRACEPARENT_BYTES)
        elif field == 7:
            error = _decode_error(message, value, stop)
    if numbers[6] not in _OUTCOMES:
        raise ProtocolViolation(f"frame {numbers[2]}: unknown outcome {numbers[6]}")
    frame = Frame(
        stream=numbers[1],
        sequence=numbers[2],
        term=numbers[3],
        generation=numbers[4],
        tensors=(),
        budget_us=numbers[5],
        outcome=_OUTCOMES[numbers[6]],
        error=error,
        traceparent=traceparent,
        hops=tuple(hops),
    )
    part = FramePart(frame, tuple(headers), numbers[11], numbers[12], payload)
    _complete(part, boundary, accepted)
    return part


def _find_frames(message: bytes) -> list[tuple[int, int]]:
    if len(message) > 1 and message[:1] == FRAME_TAG:
        size, begin = read_varint(message, 1, len(message))
        if begin + size == len(message):
            return [(begin, len(message))]
    first: tuple[int, int] | None = None
    followers: list[tuple[int, int]] = []
    for field, wire_type, value, stop in read_fields(message, 0, len(message)):
        if field == _FRAME_FIELD and wire_type == LENGTH and first is None:
            first = value, stop
        elif field == _FOLLOWER_FIELD and wire_type == LENGTH and len(followers) < MAX_FRAMES_PER_MESSAGE - 1:
            followers.append((value, stop))
        elif field == _FOLLOWER_FIELD:
            raise ProtocolViolation(f"a message holds more than {MAX_FRAMES_PER_MESSAGE} frames")
        elif field == _FRAME_FIELD or field in _SIBLING_FIELDS:
            raise ProtocolViolation(f"a message holds a frame and also field {field}")
    if first is None:
        raise ProtocolViolation("a message that should hold a frame holds none")
    return [first, *followers]


def _complete(part: FramePart, boundary: Sequence[TensorSpec], accepted: AcceptedHeaders) -> None:
    """Check how the fields go together, and give a whole frame its tensors."""
    frame = part.frame
    if frame.outcome is Outcome.OK:
        if frame.error is not None:
            raise ProtocolViolation(f"frame {frame.sequence}: outcome OK with an error ({frame.error.code})")
    else:
        if part.headers or len(part.payload) or part.chunk_offset or part.chunk_total:
            raise ProtocolViolation(f"frame {frame.sequence}: outcome {frame.outcome.name} with tensors")
        frame.error = frame.error or _OUTCOME_ERRORS[frame.outcome]()
        return
    if part.chunk_offset:
        _check_later_chunk(part)
        return
    total = part.chunk_total or len(part.payload)
    if total > MAX_FRAME_BYTES:
        raise ProtocolViolation(f"frame {frame.sequence}: {total} bytes of payload, the limit is {MAX_FRAME_BYTES}")
    if part.headers != accepted.headers or total != accepted.total:
        _check_headers(part.headers, total, boundary, accepted.codings)
        accepted.headers, accepted.total = part.headers, total
    if part.is_whole:
        frame.tensors = make_tensors(part.headers, part.payload, boundary)
    else:
        _check_chunk_size(part)


def _check_later_chunk(part: FramePart) -> None:
    frame = part.frame
    if part.headers or frame.hops or frame.traceparent or frame.budget_us:
        raise ProtocolViolation(f"frame {frame.sequence}: a later chunk repeats what the first one says")
    _check_chunk_size(part)


def _check_chunk_size(part: FramePart) -> None:
    if not 0 < len(part.payload) <= part.chunk_total - part.chunk_offset:
        raise ProtocolViolation(
            f"frame {part.frame.sequence}: chunk of {len(part.payload)} bytes at {part.chunk_offset}, "
            f"announced were {part.chunk_total}"
        )


def _check_headers(
    headers: Sequence[TensorHeader], total: int, boundary: Sequence[TensorSpec], codings: Collection[Coding]
) -> None:
    """Hold dimensions and byte counts against the boundary before any tensor is made."""
    if len(headers) != len(boundary):
        missing = ", ".join(spec.name for spec in boundary[len(headers) :][:5])
        raise TensorMismatch(f"frame has {len(headers)} tensors of {len(boundary)} that cross here; missing: {missing}")
    announced = decoded = 0
    for header, spec in zip(headers, boundary, strict=True):
        spec.check(spec.dtype, header.shape)
        extent = math.prod(size for size in header.shape if size) * max(spec.dtype.item_bytes, 1)
        if extent > MAX_TENSOR_BYTES:  # also where another dimension is 0: such shapes overflow in native code
            raise TensorMismatch(
                f"tensor {spec.name!r}: shape {list(header.shape)} is above the limit of {MAX_TENSOR_BYTES} bytes"
            )
        plain_bytes = math.prod(header.shape) * spec.dtype.item_bytes
        if header.coding is not Coding.RAW:
            _check_coding(header, spec, codings)
        elif plain_bytes != header.byte_length and spec.dtype.item_bytes:
            raise TensorMismatch(
                f"tensor {spec.name!r}: {header.byte_length} bytes for {spec.dtype.label}{list(header.shape)}, "
                f"which needs {plain_bytes}"
            )
        announced += header.byte_length
        decoded += plain_bytes
    if announced != total:
        raise TensorMismatch(f"frame has {total} bytes of payload, its tensors add up to {announced}")
    if decoded > MAX_FRAME_BYTES:
        raise TensorMismatch(f"frame has {decoded} bytes when it is decoded, the limit is {MAX_FRAME_BYTES}")


def _check_coding(header: TensorHeader, spec: TensorSpec, codings: Collection[Coding]) -> None:
    """What can be said of a coded tensor before it is decoded."""
    coding, what = header.coding, f"tensor {spec.name!r}: codec {header.coding.value}"
    if coding not in codings:
        raise ProtocolViolation(f"{what} was not offered", hint="send what the plan says, or raw tensors")
    if coding.plain is not Coding.RAW and spec.dtype is not DType.FLOAT32:
        raise ProtocolViolation(f"{what} of {spec.dtype.label}; only float32 is written with less")
    plain_bytes = math.prod(header.shape) * coding.item_bytes(spec.dtype)
    if coding.is_packed and not 0 < header.byte_length < plain_bytes:
        raise ProtocolViolation(f"{what}: packed {header.byte_length} bytes are not fewer than {plain_bytes}")
    if not coding.is_packed and header.byte_length != plain_bytes:
        raise ProtocolViolation(f"{what}: {header.byte_length} bytes for {list(header.shape)}, it needs {plain_bytes}")
    if coding.plain is Coding.INT8 and not (
        0 < header.scale < math.inf and -MAX_ZERO_POINT <= header.zero_point <= MAX_ZERO_POINT
    ):
        raise ProtocolViolation(f"{what}: scale {header.scale} and zero point {header.zero_point} make no sense")


def make_tensors(
    headers: Sequence[TensorHeader], payload: memoryview, boundary: Sequence[TensorSpec]
) -> tuple[Tensor, ...]:
    """Cut the whole `payload` into tensors, as views; raises `TensorMismatch` for broken string tensors."""
    tensors: list[Tensor] = []
    offset = 0
    for header, spec in zip(headers, boundary, strict=True):
        data = payload[offset : offset + header.byte_length]
        tensor = Tensor(spec.dtype, header.shape, data)
        if header.coding is not Coding.RAW:
            tensor = CodedTensor(spec.dtype, header.shape, data, header.coding, header.scale, header.zero_point)
        elif spec.dtype is DType.STRING:  # all others have been held against their shapes
            tensor.check_bytes(spec.name)
        tensors.append(tensor)
        offset += header.byte_length
    return tuple(tensors)


# --- nested messages ------------------------------------------------------------------------------


def _decode_tensor_header(data: bytes, name: str) -> TensorHeader:
    shape: list[int] = []
    byte_length = zero_point = 0
    coding, scale = Coding.RAW, 0.0
    for field, wire_type, value, stop in read_fields(data, 0, len(data)):
        if field == 1 and wire_type == LENGTH:
            offset = value
            while offset < stop:
                size, offset = read_varint(data, offset, stop)
                _append_dimension(shape, size, name)
        elif field == 1:
            _check_wire_type(f"tensor {name!r}", field, wire_type, VARINT)
            _append_dimension(shape, value, name)
        elif field == 2:
            _check_wire_type(f"tensor {name!r}", field, wire_type, VARINT)
            if value not in _CODINGS:
                raise ProtocolViolation(f"tensor {name!r}: codec {value} was not offered", hint="send raw tensors")
            coding = _CODINGS[value]
        elif field == 3:
            _check_wire_type(f"tensor {name!r}", field, wire_type, VARINT)
            byte_length = value
        elif field == 4:
            _check_wire_type(f"tensor {name!r}", field, wire_type, FIXED32)
            (scale,) = _FLOAT.unpack(_BITS.pack(value))
        elif field == 5:
            _check_wire_type(f"tensor {name!r}", field, wire_type, VARINT)
            zero_point = value >> 1 if value & 1 == 0 else -(value >> 1) - 1
    if coding is Coding.RAW:  # scale and zero point mean nothing to it
        return TensorHeader(tuple(shape), byte_length)
    return TensorHeader(tuple(shape), byte_length, coding, scale, zero_point)


_remember_tensor_header = lru_cache(maxsize=MAX_TENSORS)(_decode_tensor_header)
"""The frames of a stream mostly look alike."""


def _append_dimension(shape: list[int], size: int, name: str) -> None:
    if len(shape) == MAX_RANK:
        raise TensorMismatch(f"tensor {name!r}: rank is above the limit of {MAX_RANK}")
    shape.append(size if size < INT64_LIMIT else size - UINT64_LIMIT)


def _decode_hop(data: bytes, begin: int, end: int) -> Hop:
    numbers = [0, 0, 0, 0]
    for field, wire_type, value, _ in read_fields(data, begin, end):
        if field > 3:
            continue
        if wire_type != VARINT:
            _check_wire_type("hop", field, wire_type, VARINT)
        if value >= UINT32_LIMIT:
            raise ProtocolViolation(f"hop: field {field} has more than 32 bits")
        numbers[field] = value
    return Hop(numbers[1], numbers[2], numbers[3])


def _decode_error(data: bytes, begin: int, end: int) -> MeshError:
    texts = {1: "", 2: "", 3: ""}
    for field, wire_type, value, stop in read_fields(data, begin, end):
        if field in texts:
            _check_wire_type("error", field, wire_type, LENGTH)
            limit = MAX_CODE_BYTES if field == 1 else MAX_ERROR_BYTES
            texts[field] = _decode_text(data, value, stop, f"error, field {field}", limit)
    return from_code(texts[1], texts[2], texts[3])


def _decode_text(data: bytes, begin: int, end: int, what: str, limit: int) -> str:
    if end - begin > limit:
        raise ProtocolViolation(f"frame: {what} has {end - begin} bytes, the limit is {limit}")
    try:
        return data[begin:end].decode()
    except UnicodeDecodeError as error:
        raise ProtocolViolation(f"frame: {what} is not UTF-8") from error


def _check_wire_type(what: str, field: int, wire_type: int, expected: int) -> None:
    if wire_type != expected:
        raise ProtocolViolation(f"{what}: field {field} has wire type {wire_type}, it should be {expected}")
