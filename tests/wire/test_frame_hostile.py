"""The frame codec against bytes that nobody should send: each ends in an error that names what was wrong."""

from __future__ import annotations

import contextlib
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.core.frame import Frame, Outcome
from mesh.core.tensor import DType, TensorSpec
from mesh.errors import MeshError, ProtocolViolation, TensorMismatch
from mesh.v1 import stream_pb2, tensor_pb2
from mesh.wire import frame_codec
from mesh.wire.frame_codec import FrameAssembler, encode_frame, encode_frames
from mesh.wire.frame_format import MAX_FRAMES_PER_MESSAGE
from tests.wire.frame_material import BYTES, UINT64_MAX, assemble, boundary_of, decode_frame, frames, make_frame, plain

# --- tensors that do not fit -------------------------------------------------


def message_of(**fields: object) -> bytes:
    return stream_pb2.EdgeRequest(frame=stream_pb2.Frame(**fields)).SerializeToString()  # type: ignore[arg-type]


def header(*dimensions: int, byte_length: int = 0, codec: int = 0) -> stream_pb2.TensorHeader:
    return stream_pb2.TensorHeader(
        dimensions=dimensions, byte_length=byte_length, codec=stream_pb2.Codec.ValueType(codec)
    )


FLOATS = (TensorSpec("image", DType.FLOAT32, ("n", 3)),)
STRINGS = (TensorSpec("words", DType.STRING, ("n",)),)
ANY_RANK = (TensorSpec("blob", DType.FLOAT32, None),)


@pytest.mark.parametrize(
    ("boundary", "headers", "payload", "words"),
    [
        (FLOATS, [header(3, byte_length=12)], bytes(12), "rank"),
        (FLOATS, [header(1, 4, byte_length=16)], bytes(16), "dimension 1 is 4"),
        (FLOATS, [header(-1, 3, byte_length=12)], bytes(12), "negative dimension"),
        (FLOATS, [header(1 << 31, 3, byte_length=12)], bytes(12), "above the limit"),
        (FLOATS, [header(1, 3, byte_length=8)], bytes(8), "needs 12"),
        (FLOATS, [header(1, 3, byte_length=12)], bytes(8), "add up to 12"),
        (FLOATS, [header(1, 3, byte_length=12)], bytes(16), "add up to 12"),
        (FLOATS, [header(1, 3, byte_length=UINT64_MAX)], bytes(12), "needs 12"),
        (FLOATS, [], b"", "missing: image"),
        (FLOATS, [header(1, 3, byte_length=12)] * 2, bytes(24), "more tensors"),
        (FLOATS, [header(*[1] * 33, byte_length=4)], bytes(4), "rank"),
        (ANY_RANK, [header(1 << 62, 1 << 62)], b"", "above the limit"),
        (ANY_RANK, [header(1 << 62, 1 << 62, 0)], b"", "above the limit"),
        (ANY_RANK, [header(*[1] * 33, byte_length=4)], bytes(4), "rank"),
        (STRINGS, [header(2, byte_length=4)], bytes(4), "cannot hold 2"),
        (STRINGS, [header(1, byte_length=6)], struct.pack("<I", 3) + b"ab", "inside an element"),
        (STRINGS, [header(1, byte_length=5)], struct.pack("<I", 0) + b"a", "after its 1 elements"),
    ],
)
def test_misfitting_tensors_are_named(
    boundary: tuple[TensorSpec, ...], headers: list[stream_pb2.TensorHeader], payload: bytes, words: str
) -> None:
    with pytest.raises(TensorMismatch, match=words):
        decode_frame(message_of(tensors=headers, payload=payload), boundary)
    if len(headers) == 1 and headers[0].byte_length < 1 << 32:  # the first chunk is refused already
        with pytest.raises((TensorMismatch, ProtocolViolation)):
            FrameAssembler(boundary).feed(message_of(tensors=headers, payload=payload, chunk_total=len(payload) + 1))


def test_empty_tensors_travel() -> None:
    frame = decode_frame(message_of(tensors=[header(0, 3)]), FLOATS).frame
    assert frame.tensors[0].shape == (0, 3)
    assert len(frame.tensors[0].data) == 0


@pytest.mark.parametrize("codec", [2, 3, 4, 5, 6, 99])
def test_only_raw_is_offered(codec: int) -> None:
    with pytest.raises(ProtocolViolation, match=r"codec \d+ was not offered"):
        decode_frame(message_of(tensors=[header(1, 3, byte_length=12, codec=codec)], payload=bytes(12)), FLOATS)


def test_raw_may_be_said_explicitly() -> None:
    message = message_of(tensors=[header(1, 3, byte_length=12, codec=1)], payload=bytes(12))
    assert decode_frame(message, FLOATS).frame.tensors[0].shape == (1, 3)


# --- broken protobuf ---------------------------------------------------------


def wrap(content: bytes) -> bytes:
    assert len(content) < 128
    return b"\x1a" + bytes([len(content)]) + content


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"\x1a",
        b"\x1a\x05",
        wrap(b"\x00"),  # field number 0
        wrap(b"\x10"),  # number cut short
        wrap(b"\x10" + b"\xff" * 10),  # 70 bits
        wrap(b"\x10" + b"\xff" * 9 + b"\x02"),  # 65 bits
        wrap(b"\x09\x00"),  # fixed64 cut short
        wrap(b"\x0d\x00\x00\x00\x00"),  # stream as fixed32
        wrap(b"\x12\x00"),  # sequence as bytes
        wrap(b"\x78\x00"),  # payload as number
        wrap(b"\x70\x00"),  # padding as number
        wrap(b"\x7a\x7f"),  # payload longer than the message
        wrap(b"\x7a" + b"\xff" * 9 + b"\x01"),  # payload of 2**64 - 1 bytes
        wrap(b"\x13\x14"),  # a group
        wrap(b"\x17"),  # wire type 7
        wrap(b"\x30\x63"),  # outcome 99
        wrap(b"\x30\x02\x7a\x01x"),  # late, with payload
        wrap(b"\x30\x02\x60\x05"),  # late, in chunks
        wrap(b"\x3a\x00"),  # ok, with an error
        wrap(b"\x30\x02\x3a\x03\x0a\x01\xff"),  # error code that is not UTF-8
        wrap(b"\x30\x02\x3a\x02\x08\x01"),  # error code as number
        wrap(b"\x4a\x01\xff"),  # traceparent that is not UTF-8
        wrap(b"\x52\x02\x0a\x00"),  # hop with bytes
        wrap(b"\x52\x06\x08" + b"\xff" * 4 + b"\x10"),  # hop with a stage above 32 bits
        wrap(b"\x52\x06\x08\xff\xff\xff\xff\x10"),
        wrap(b"") + b"\x0a\x00",  # a frame and an open_edge
        wrap(b"") + wrap(b""),  # two frames
        b"\x0a\x00",  # no frame at all
        wrap(b"\x58\x05\x60\x0a\x7a\x06abcdef"),  # chunk beyond its total
        wrap(b"\x58\x05\x7a\x01a"),  # offset without a total
        wrap(b"\x58\x05\x60\x0a"),  # empty chunk
        wrap(b"\x58\x05\x60\x0a\x28\x01\x7a\x01a"),  # later chunk with a budget
    ],
)
def test_broken_messages_are_violations(message: bytes) -> None:
    with pytest.raises(ProtocolViolation):
        decode_frame(message, ())


@pytest.mark.parametrize("limit_field", ["traceparent", "message", "code"])
def test_texts_are_bounded(limit_field: str) -> None:
    if limit_field == "traceparent":
        message = message_of(traceparent="0" * 129)
    else:
        error = tensor_pb2.Error(**{limit_field: "x" * 4097})  # type: ignore[arg-type]
        message = message_of(outcome=stream_pb2.OUTCOME_LATE, error=error)
    with pytest.raises(ProtocolViolation, match="limit"):
        decode_frame(message, ())


def test_many_empty_items_are_refused_early() -> None:
    junk = b"\x52\x00" * 4_000_000
    size = len(junk)
    length = bytes(((size >> shift) & 127) | (128 if shift < 21 else 0) for shift in (0, 7, 14, 21))
    with pytest.raises(ProtocolViolation, match="256 hops"):
        decode_frame(b"\x1a" + length + junk, ())


def test_unknown_fields_are_skipped() -> None:
    message = wrap(b"\xf8\x07\x05" + b"\xfa\x07\x03abc" + b"\x10\x09" + b"\xf9\x07" + bytes(8) + b"\xfd\x07" + bytes(4))
    part = decode_frame(message + b"\xfa\x07\x02xy", ())
    assert part.frame.sequence == 9


def test_dimensions_may_come_unpacked() -> None:
    unpacked = b"\x08\x01\x08\x03\x18\x0c"
    message = wrap(b"\x42" + bytes([len(unpacked)]) + unpacked + b"\x7a\x0c" + bytes(12))
    assert decode_frame(message, FLOATS).frame.tensors[0].shape == (1, 3)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_arbitrary_bytes_raise_only_mesh_errors(junk: bytes) -> None:
    for message in (junk, b"\x1a" + junk, wrap(junk[:120])):
        for boundary in ((), FLOATS, STRINGS + FLOATS):
            with contextlib.suppress(MeshError):
                FrameAssembler(boundary).feed(message)


@settings(max_examples=200, deadline=None)
@given(frames(), st.data())
def test_mutated_messages_raise_only_mesh_errors(frame: Frame, data: st.DataObject) -> None:
    (message,) = encode_frame(frame)
    mutated = bytearray(message)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, max(len(mutated) - 1, 0)))
        kind = data.draw(st.sampled_from(("set", "cut", "insert", "repeat")))
        if kind == "set" and mutated:
            mutated[place] = data.draw(st.integers(0, 255))
        elif kind == "cut":
            del mutated[place : place + data.draw(st.integers(1, 5))]
        elif kind == "insert":
            mutated[place:place] = data.draw(st.binary(min_size=1, max_size=5))
        else:
            mutated[place:place] = mutated[place : place + 8]
    boundary = boundary_of(frame)
    try:
        answers = FrameAssembler(boundary).feed(bytes(mutated))
    except MeshError:
        return
    for answer in answers:
        for tensor, spec in zip(answer.tensors, boundary, strict=answer.outcome is Outcome.OK):
            spec.check(tensor.dtype, tensor.shape)
            tensor.check_bytes()


# --- chunks ---------------------------------------------------------------------------------------


def chunks(sequence: int = 3, size: int = 50, **changes: object) -> list[bytes]:
    return list(encode_frame(make_frame(size, sequence=sequence, **changes), max_chunk_bytes=10))


@pytest.mark.parametrize(
    ("order", "words"),
    [
        ([1], "first chunk is missing"),
        ([0, 2], "expected the one at 10 of 50"),
        ([0, 1, 1], "expected the one at 20 of 50"),
        ([0, 0], "chunk at 0 of 50"),
        ([0, 1, 2, 3, 4, 4], "first chunk is missing"),
    ],
)
def test_chunks_out_of_order_are_violations(order: list[int], words: str) -> None:
    assembler = FrameAssembler(BYTES)
    messages = chunks()
    with pytest.raises(ProtocolViolation, match=words):
        for index in order:
            assembler.feed(messages[index])
    assert assembler.pending_bytes == 0


@pytest.mark.parametrize(
    "other",
    [chunks(4)[1], chunks(4)[0], next(iter(encode_frame(make_frame(5)))), chunks(term=9)[1], chunks(size=60)[1]],
)
def test_chunks_of_different_frames_do_not_mix(other: bytes) -> None:
    assembler = FrameAssembler(BYTES)
    assembler.feed(chunks()[0])
    with pytest.raises(ProtocolViolation):
        assembler.feed(other)
    assert assembler.pending_bytes == 0
    assert plain(assemble(chunks(), BYTES)) == plain(make_frame(50))


def test_pending_bytes_follow_the_chunks() -> None:
    assembler = FrameAssembler(BYTES)
    seen = []
    for message in chunks():
        assembler.feed(message)
        seen.append(assembler.pending_bytes)
    assert seen == [10, 20, 30, 40, 0]


def test_frames_above_the_limit_are_refused_at_their_first_message() -> None:
    with pytest.raises(ProtocolViolation, match="limit is 49"):
        FrameAssembler(BYTES, max_frame_bytes=49).feed(chunks()[0])
    with pytest.raises(ProtocolViolation, match="limit is 49"):
        FrameAssembler(BYTES, max_frame_bytes=49).feed(next(iter(encode_frame(make_frame(50)))))
    huge = message_of(tensors=[header(1 << 40, byte_length=1 << 40)], chunk_total=1 << 40, payload=b"x")
    with pytest.raises(ProtocolViolation, match="limit"):
        FrameAssembler(BYTES).feed(huge)


def test_more_chunks_than_the_limit_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    messages = chunks()
    monkeypatch.setattr(frame_codec, "MAX_CHUNKS", 3)
    assembler = FrameAssembler(BYTES)
    with pytest.raises(ProtocolViolation, match="more than 3 chunks"):
        for message in messages:
            assembler.feed(message)


def test_broken_strings_in_chunks_are_found_at_the_end() -> None:
    assembler = FrameAssembler(STRINGS)
    payload = struct.pack("<I", 90) + bytes(20)
    assert assembler.feed(message_of(tensors=[header(1, byte_length=24)], chunk_total=24, payload=payload[:12])) == []
    with pytest.raises(TensorMismatch, match="inside an element"):
        assembler.feed(message_of(chunk_offset=12, chunk_total=24, payload=payload[12:]))
    assert assembler.pending_bytes == 0


# --- several frames in a message ----------------------------------------------------------------------------


def followed_by(first: bytes, *others: bytes) -> bytes:
    return first + b"".join(b"\x3a" + other[1:] for other in others)


def test_more_frames_than_may_share_a_message_are_refused() -> None:
    small = next(iter(encode_frame(make_frame(1))))
    assert len(FrameAssembler(BYTES).feed(followed_by(*[small] * MAX_FRAMES_PER_MESSAGE))) == MAX_FRAMES_PER_MESSAGE
    with pytest.raises(ProtocolViolation, match="more than 32 frames"):
        FrameAssembler(BYTES).feed(followed_by(*[small] * (MAX_FRAMES_PER_MESSAGE + 1)))


def test_a_follower_without_a_first_frame_is_refused() -> None:
    small = next(iter(encode_frame(make_frame(1))))
    with pytest.raises(TensorMismatch, match="missing: x"):
        FrameAssembler(BYTES).feed(b"\x1a" + b"\x00" + b"\x3a" + small[1:])
    with pytest.raises(ProtocolViolation, match="also field 4"):
        FrameAssembler(BYTES).feed(followed_by(small, small) + b"\x22\x00")


def test_chunks_share_no_message() -> None:
    small = next(iter(encode_frame(make_frame(1))))
    for message in (followed_by(small, chunks()[0]), followed_by(chunks()[0], small), followed_by(*chunks())):
        assembler = FrameAssembler(BYTES)
        with pytest.raises(ProtocolViolation, match="shares its message"):
            assembler.feed(message)
        assert assembler.pending_bytes == 0


def test_one_bad_follower_spoils_the_message() -> None:
    small = next(iter(encode_frame(make_frame(1))))
    bad = message_of(tensors=[header(1, byte_length=2)], payload=bytes(2))
    with pytest.raises(TensorMismatch):
        FrameAssembler(BYTES).feed(followed_by(small, bad))


@given(st.integers(0, 400), st.binary(max_size=3))
@settings(max_examples=80, deadline=None)
def test_cut_or_mutated_batches_raise_only_mesh_errors(at: int, junk: bytes) -> None:
    (message,) = encode_frames([make_frame(40, sequence=sequence) for sequence in range(5)])
    for mutated in (message[:at], message[:at] + junk + message[at + len(junk) :]):
        with contextlib.suppress(MeshError):
            FrameAssembler(BYTES).feed(mutated)
