"""Protobuf's wire format, as far as frames need it: varints, tags and a walk over fields.

Pure functions over bytes, used by `mesh.wire.frame_codec` alone. Everything that can be wrong with
the bytes of a peer ends here as `ProtocolViolation`. Source: https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

from collections.abc import Iterator

from mesh.errors import ProtocolViolation

VARINT = 0
FIXED64 = 1
LENGTH = 2
FIXED32 = 5

UINT32_LIMIT = 1 << 32
INT64_LIMIT = 1 << 63
UINT64_LIMIT = 1 << 64

_MAX_TAG = (1 << 32) - 1
"""Field numbers have 29 bits, wire types 3."""
_SMALL_VARINTS = tuple(bytes((value,)) for value in range(128))


def encode_varint(value: int) -> bytes:
    """`value` (0 <= value < 2**64) in 1 to 10 bytes."""
    if value < 128:
        return _SMALL_VARINTS[value]
    encoded = bytearray()
    append_varint(encoded, value)
    return bytes(encoded)


def append_varint(encoded: bytearray, value: int) -> None:
    while value > 127:
        encoded.append(value & 127 | 128)
        value >>= 7
    encoded.append(value)


def varint_size(value: int) -> int:
    """Bytes that `encode_varint(value)` has."""
    return max(1, (value.bit_length() + 6) // 7)


def read_varint(data: bytes, offset: int, end: int) -> tuple[int, int]:
    """The varint at `offset` and the offset after it; raises `ProtocolViolation` if cut short or above 64 bits."""
    value = 0
    for shift in range(0, 70, 7):
        if offset >= end:
            raise ProtocolViolation("frame: a number is cut short")
        byte = data[offset]
        offset += 1
        value |= (byte & 127) << shift
        if byte < 128:
            if value >= UINT64_LIMIT:
                break
            return value, offset
    raise ProtocolViolation("frame: a number has more than 64 bits")


def read_fields(data: bytes, offset: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Walk over the fields of the message at `data[offset:end]`.

    Yields (field number, wire type, value, stop). For VARINT, FIXED64 and FIXED32 `value` is the
    unsigned number; for LENGTH the content is `data[value:stop]`. Groups are refused: no message
    here has any, and they are the only way to nest without announcing a length.
    """
    while offset < end:
        # Numbers of one byte, which most are, without a call: headers are walked for every frame.
        tag = data[offset]
        offset += 1
        if tag > 127:
            tag, offset = read_varint(data, offset - 1, end)
        number, wire_type = tag >> 3, tag & 7
        if number == 0 or tag > _MAX_TAG:
            raise ProtocolViolation(f"frame: {number} is not a field number")
        if wire_type in (VARINT, LENGTH):
            if offset < end and data[offset] < 128:
                value = data[offset]
                offset += 1
            else:
                value, offset = read_varint(data, offset, end)
            if wire_type == VARINT:
                yield number, wire_type, value, offset
                continue
            begin = offset
            offset += value
            if offset > end:
                raise ProtocolViolation(f"frame: field {number} reaches beyond its message")
            yield number, wire_type, begin, offset
            continue
        if wire_type == FIXED64:
            begin, offset = offset, offset + 8
        elif wire_type == FIXED32:
            begin, offset = offset, offset + 4
        else:
            raise ProtocolViolation(f"frame: field {number} has the unknown wire type {wire_type}")
        if offset > end:
            raise ProtocolViolation(f"frame: field {number} reaches beyond its message")
        yield number, wire_type, int.from_bytes(data[begin:offset], "little"), offset


def cut_text(text: str, limit: int) -> bytes:
    """`text` as at most `limit` bytes of valid UTF-8; what UTF-8 cannot say becomes "?"."""
    return text.encode("utf-8", "replace")[:limit].decode("utf-8", "ignore").encode()
