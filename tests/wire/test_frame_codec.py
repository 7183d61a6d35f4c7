"""The frame codec against protobuf itself and against its own inverse: bytes, copies, alignment, outcomes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.core.frame import Frame, Hop, Outcome
from mesh.core.tensor import DType, Tensor
from mesh.errors import EngineError, MeshError, NodeLost, Overloaded, ProtocolViolation, RunFailed, Timeout
from mesh.v1 import stream_pb2
from mesh.wire import frame_codec, frame_format
from mesh.wire.frame_codec import FrameAssembler, encode_frame, encode_frames, is_frame, payload_copies
from mesh.wire.frame_format import MAX_FRAMES_PER_MESSAGE, SMALL_FRAME_BYTES
from tests.wire.frame_material import (
    BYTES,
    FEW,
    as_protobuf,
    assemble,
    boundary_of,
    decode_frame,
    frames,
    make_frame,
    plain,
)

# --- against protobuf -----------------------------------------------------------------------------


@FEW
@given(frames())
def test_whole_frames_are_the_bytes_that_protobuf_writes(frame: Frame) -> None:
    (message,) = encode_frame(frame)
    padding = stream_pb2.EdgeRequest.FromString(message).frame.padding
    assert padding.strip(b"\0") == b""
    expected = as_protobuf(frame, padding)
    assert message == stream_pb2.EdgeRequest(frame=expected).SerializeToString()
    assert message == stream_pb2.ResultsResponse(frame=expected).SerializeToString()


@FEW
@given(frames(), st.integers(1, 30))
def test_chunks_are_the_bytes_that_protobuf_writes(frame: Frame, chunk: int) -> None:
    whole = as_protobuf(frame)
    messages = list(encode_frame(frame, max_chunk_bytes=chunk))
    if frame.payload_bytes <= 2 * chunk:
        assert len(messages) == 1
        return
    for index, message in enumerate(messages):
        expected = stream_pb2.Frame()
        if index == 0:
            expected.CopyFrom(whole)
        else:
            for field in ("stream", "sequence", "term", "generation"):
                setattr(expected, field, getattr(whole, field))
        expected.chunk_offset = index * chunk
        expected.chunk_total = len(whole.payload)
        expected.payload = whole.payload[index * chunk : (index + 1) * chunk]
        assert message == stream_pb2.EdgeRequest(frame=expected).SerializeToString()


@FEW
@given(frames(), st.integers(1, 30))
def test_decoding_undoes_encoding(frame: Frame, chunk: int) -> None:
    messages = list(encode_frame(frame, max_chunk_bytes=chunk))
    assert all(map(is_frame, messages))
    assert plain(assemble(messages, boundary_of(frame))) == plain(frame)


@FEW
@given(frames())
def test_what_protobuf_writes_is_decoded(frame: Frame) -> None:
    message = stream_pb2.EdgeRequest(frame=as_protobuf(frame)).SerializeToString()
    assert plain(decode_frame(message, boundary_of(frame)).frame) == plain(frame)


def test_other_messages_are_not_frames() -> None:
    assert not is_frame(b"")
    for other in (
        stream_pb2.EdgeRequest(open_edge=stream_pb2.OpenEdge()),
        stream_pb2.EdgeRequest(heartbeat=stream_pb2.Heartbeat(loop_lag_ms=3)),
        stream_pb2.ResultsResponse(close_stream=stream_pb2.CloseStream(stream=1)),
    ):
        assert not is_frame(other.SerializeToString())


# --- copies, alignment, sizes ---------------------------------------------------------------------


def count_copies() -> tuple[int, int]:
    return payload_copies.sent, payload_copies.received


def test_whole_frame_is_copied_once_out_and_never_in() -> None:
    sent, received = count_copies()
    (message,) = encode_frame(make_frame(1 << 16))
    assert count_copies() == (sent + 1, received)
    frame = assemble([message], BYTES)
    assert count_copies() == (sent + 1, received)
    assert frame.tensors[0].data.obj is message


def test_chunked_frame_is_copied_once_per_side() -> None:
    sent, received = count_copies()
    messages = list(encode_frame(make_frame(1000), max_chunk_bytes=100))
    assert len(messages) == 10
    frame = assemble(messages, BYTES)
    assert count_copies() == (sent + 10, received + 1)
    assert bytes(frame.tensors[0].data) == bytes(make_frame(1000).tensors[0].data)


@pytest.mark.parametrize("chunk", [1, 5, 64, 100, 1 << 20])
def test_two_chunks_worth_goes_whole_and_one_byte_more_does_not(chunk: int) -> None:
    assert len(list(encode_frame(make_frame(2 * chunk), max_chunk_bytes=chunk))) == 1
    assert len(list(encode_frame(make_frame(2 * chunk + 1), max_chunk_bytes=chunk))) == 3


def test_default_limits_agree() -> None:
    sizes = [len(m) for m in encode_frame(make_frame(frame_codec.MAX_WHOLE_BYTES + 1))]
    assert sizes[0] > frame_codec.CHUNK_BYTES
    assert max(sizes) <= frame_codec.CHUNK_BYTES + frame_codec.MAX_HEADER_BYTES


def test_payload_is_aligned_for_every_header_size() -> None:
    near_longer_lengths = (*range(1, 140), *range(16_330, 16_390))
    for size in near_longer_lengths:
        for label in range(17):
            (message,) = encode_frame(make_frame(size, traceparent="0" * label))
            assert (len(message) - size) % frame_format.PAYLOAD_ALIGNMENT == 0
            assert stream_pb2.EdgeRequest.FromString(message).SerializeToString() == message


def test_largest_headers_stay_below_their_limit() -> None:
    scalar = Tensor.from_bytes(DType.UINT8, (1,) * 32, b"x")
    frame = make_frame(
        tensors=(scalar,) * frame_format.MAX_TENSORS, hops=(Hop(*[(1 << 32) - 1] * 3),) * frame_format.MAX_HOPS
    )
    (message,) = encode_frame(frame)
    assert len(message) < frame_codec.MAX_HEADER_BYTES
    assert plain(assemble([message], boundary_of(frame))) == plain(frame)


# --- outcomes and errors --------------------------------------------------------------------------


def test_outcome_ok_is_left_out() -> None:
    (message,) = encode_frame(make_frame(tensors=()))
    assert stream_pb2.EdgeRequest.FromString(message).frame.outcome == stream_pb2.OUTCOME_UNSPECIFIED
    explicit = stream_pb2.Frame(stream=7, outcome=stream_pb2.OUTCOME_OK)
    message = stream_pb2.EdgeRequest(frame=explicit).SerializeToString()
    assert decode_frame(message, ()).frame.outcome is Outcome.OK


def test_error_becomes_itself_again() -> None:
    frame = make_frame(tensors=(), outcome=Outcome.FAILED, error=RunFailed("no memory", hint="use a smaller batch"))
    answer = assemble(list(encode_frame(frame)), BYTES)
    assert type(answer.error) is RunFailed
    assert str(answer.error) == "no memory (use a smaller batch)"


@pytest.mark.parametrize(
    ("outcome", "expected"),
    [
        (Outcome.LATE, Timeout),
        (Outcome.FAILED, EngineError),
        (Outcome.DROPPED, Overloaded),
        (Outcome.UNKNOWN, NodeLost),
    ],
)
def test_missing_error_is_stood_in_for(outcome: Outcome, expected: type[MeshError]) -> None:
    frame = make_frame(tensors=(), outcome=outcome)
    assert type(assemble(list(encode_frame(frame)), BYTES).error) is expected


def test_long_error_texts_are_cut_at_a_character() -> None:
    frame = make_frame(tensors=(), outcome=Outcome.FAILED, error=RunFailed("é" * 5000 + "\ud800"))
    answer = assemble(list(encode_frame(frame)), BYTES)
    assert answer.error is not None
    assert answer.error.message == "é" * (frame_format.MAX_ERROR_BYTES // 2)


@pytest.mark.parametrize(
    "frame",
    [
        make_frame(outcome=Outcome.LATE),
        make_frame(error=Timeout("late")),
        make_frame(stream=-1),
        make_frame(sequence=1 << 64),
        make_frame(traceparent="é"),
        make_frame(traceparent="0" * 129),
        make_frame(hops=(Hop(0, 0, 0),) * 257),
        make_frame(tensors=make_frame().tensors * 1025),
        make_frame(tensors=(Tensor(DType.UINT8, (-1,), memoryview(b"")),)),
        make_frame(tensors=(Tensor(DType.UINT8, (1,) * 33, memoryview(b"x")),)),
    ],
)
def test_frames_that_no_peer_would_take_are_not_sent(frame: Frame) -> None:
    with pytest.raises(ProtocolViolation):
        encode_frame(frame)


def test_hop_statistics_saturate() -> None:
    frame = make_frame(hops=(Hop(1, 1 << 40, -5),))
    assert assemble(list(encode_frame(frame)), BYTES).hops == (Hop(1, (1 << 32) - 1, 0),)


@given(st.lists(frames(), min_size=2, max_size=MAX_FRAMES_PER_MESSAGE))
@FEW
def test_small_frames_share_a_message_that_protobuf_reads(several: list[Frame]) -> None:
    (message,) = encode_frames(several)
    parsed = stream_pb2.EdgeRequest.FromString(message)
    padding = parsed.frame.padding
    assert parsed.frame == as_protobuf(several[0], padding)
    assert list(parsed.followers) == [as_protobuf(frame) for frame in several[1:]]
    assert stream_pb2.ResultsResponse.FromString(message).SerializeToString() == message


def test_frames_come_out_as_they_went_in_whatever_their_sizes() -> None:
    sizes = [10, 20, SMALL_FRAME_BYTES, SMALL_FRAME_BYTES + 1, 5, *[1] * (2 * MAX_FRAMES_PER_MESSAGE)]
    several = [make_frame(size, sequence=sequence) for sequence, size in enumerate(sizes)]
    messages = list(encode_frames(several))
    assembler = FrameAssembler(BYTES)
    received = [assembler.feed(message) for message in messages]
    assert [plain(frame) for group in received for frame in group] == [plain(frame) for frame in several]
    assert [len(group) for group in received] == [3, 1, MAX_FRAMES_PER_MESSAGE, MAX_FRAMES_PER_MESSAGE, 1]
