"""Frames with coded tensors: the bytes that protobuf writes, and what the door lets in."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.arrays import from_array, to_array
from mesh.codecs import decode_frame_tensors, encode_frame_tensors
from mesh.core.coding import CODECS, CODINGS_OF, RAW, CodedTensor, Coding
from mesh.core.frame import Frame
from mesh.core.tensor import DType, TensorSpec
from mesh.errors import MeshError, ProtocolViolation, TensorMismatch
from mesh.v1 import stream_pb2
from mesh.wire.frame_codec import FrameAssembler, encode_frame
from tests.wire.frame_material import FEW, as_protobuf

VALUES = np.maximum(np.random.default_rng(3).standard_normal((2, 600)), 0).astype(np.float32)
MASK = np.arange(100, dtype=np.int64)
BOUNDARY = (TensorSpec("values", DType.FLOAT32, ("n", 600)), TensorSpec("mask", DType.INT64, ("m",)))
LOSSY = [codec for codec in CODECS if codec != RAW]


def frame_of(codec: str, sign: int = 1) -> Frame:
    frame = Frame(7, 3, 1, 2, (from_array(VALUES + np.float32(sign * 100)), from_array(MASK)))
    return encode_frame_tensors(frame, codec)


def with_header(codec: str, changes: dict[str, object]) -> bytes:
    """A frame whose first tensor says something else."""
    (message,) = encode_frame(frame_of(codec))
    request = stream_pb2.EdgeRequest.FromString(message)
    for name, value in changes.items():
        header = request.frame.tensors[0]
        if name == "dimensions":
            del header.dimensions[:]
            header.dimensions.extend(value)  # type: ignore[arg-type]
        else:
            setattr(header, name, value)
    return request.SerializeToString()


@FEW
@given(st.sampled_from(CODECS), st.sampled_from((-1, 0, 1)))
def test_coded_frames_are_the_bytes_that_protobuf_writes(codec: str, sign: int) -> None:
    frame = frame_of(codec, sign)
    (message,) = encode_frame(frame)
    expected = as_protobuf(frame, stream_pb2.EdgeRequest.FromString(message).frame.padding)
    for header, tensor in zip(expected.tensors, frame.tensors, strict=True):
        if isinstance(tensor, CodedTensor):
            header.codec = stream_pb2.Codec.ValueType(tensor.coding)
            header.scale, header.zero_point = tensor.scale, tensor.zero_point
    assert message == stream_pb2.EdgeRequest(frame=expected).SerializeToString()
    assert {coding.name for coding in Coding} == {name.removeprefix("CODEC_") for name in stream_pb2.Codec.keys()[1:]}


@pytest.mark.parametrize("codec", CODECS)
def test_what_is_sent_is_received_whole_or_in_chunks(codec: str) -> None:
    frame = frame_of(codec)
    for chunk in (100, 1 << 20):
        assembler = FrameAssembler(BOUNDARY, codec=codec)
        (received,) = [got for m in encode_frame(frame, max_chunk_bytes=chunk) for got in assembler.feed(m)]
        for sent, got in zip(frame.tensors, received.tensors, strict=True):
            assert dataclasses.replace(got, data=memoryview(b"")) == dataclasses.replace(sent, data=memoryview(b""))
            assert bytes(got.data) == bytes(sent.data)
        values, mask = (to_array(tensor) for tensor in decode_frame_tensors(received).tensors)
        assert np.abs(values - (VALUES + 100)).max() <= (0.04 if codec != "zstd" else 0)
        assert np.array_equal(mask, MASK)


@pytest.mark.parametrize("spoken", CODECS)
@pytest.mark.parametrize("sent", LOSSY)
def test_a_coding_that_the_plan_does_not_give_the_edge_is_refused(spoken: str, sent: str) -> None:
    assembler = FrameAssembler(BOUNDARY, codec=spoken)
    frame = frame_of(sent)
    (message,) = encode_frame(frame)
    used = {tensor.coding for tensor in frame.tensors if isinstance(tensor, CodedTensor)}
    if used <= CODINGS_OF[spoken]:
        assert len(assembler.feed(message)) == 1
        return
    with pytest.raises(ProtocolViolation, match=r"codec \d was not offered"):
        assembler.feed(message)


@pytest.mark.parametrize(
    ("codec", "changes", "error", "match"),
    [
        ("int8", {"codec": 99}, ProtocolViolation, "codec 99 was not offered"),
        ("int8", {"byte_length": 1199}, ProtocolViolation, "1199 bytes for"),
        ("int8", {"scale": 0.0}, ProtocolViolation, "make no sense"),
        ("int8", {"scale": float("nan")}, ProtocolViolation, "make no sense"),
        ("int8", {"scale": float("inf")}, ProtocolViolation, "make no sense"),
        ("int8", {"scale": -1.0}, ProtocolViolation, "make no sense"),
        ("int8", {"zero_point": 1 << 17}, ProtocolViolation, "make no sense"),
        ("int8", {"dimensions": [2, 601]}, TensorMismatch, "dimension 1 is 601"),
        ("int8", {"dimensions": [3, 600]}, ProtocolViolation, "it needs 1800"),
        ("fp16", {"codec": 3}, ProtocolViolation, "codec 3 was not offered"),
        ("fp16", {"dimensions": [1, 600]}, ProtocolViolation, "it needs 1200"),
        ("int8+zstd", {"byte_length": 0}, ProtocolViolation, "packed 0 bytes"),
        ("int8+zstd", {"dimensions": [1 << 40, 600]}, TensorMismatch, "above the limit"),
        ("int8+zstd", {"dimensions": [-2, 600]}, TensorMismatch, "negative"),
        ("zstd", {"dimensions": [0, 600]}, ProtocolViolation, "not fewer than 0"),
    ],
)
def test_headers_that_make_no_sense_are_refused(
    codec: str, changes: dict[str, object], error: type[MeshError], match: str
) -> None:
    with pytest.raises(error, match=match):
        FrameAssembler(BOUNDARY, codec=codec).feed(with_header(codec, changes))


def test_only_float32_is_written_with_less() -> None:
    boundary = (TensorSpec("values", DType.INT32, ("n", 600)), BOUNDARY[1])
    (message,) = encode_frame(frame_of("int8"))
    with pytest.raises(ProtocolViolation, match="codec 3 of int32; only float32"):
        FrameAssembler(boundary, codec="int8").feed(message)


def test_frames_that_would_be_too_large_when_unpacked_are_refused_before() -> None:
    boundary = tuple(TensorSpec(name, DType.FLOAT32, ("n",)) for name in "ab")
    header = stream_pb2.TensorHeader(
        dimensions=[200_000_000], byte_length=50, codec=stream_pb2.CODEC_INT8_ZSTD, scale=1
    )
    frame = stream_pb2.Frame(stream=1, tensors=[header, header], payload=bytes(100))
    with pytest.raises(TensorMismatch, match="1600000000 bytes when it is decoded"):
        FrameAssembler(boundary, codec="int8+zstd").feed(stream_pb2.EdgeRequest(frame=frame).SerializeToString())


@FEW
@given(
    st.sampled_from(LOSSY), st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), min_size=1, max_size=4)
)
def test_changed_bytes_end_in_a_typed_error_or_a_frame_that_fits(codec: str, changes: list[tuple[int, int]]) -> None:
    (message,) = encode_frame(frame_of(codec))
    mutated = bytearray(message)
    for position, value in changes:
        mutated[1 + position % (len(mutated) - 1)] = value
    try:
        frames = [decode_frame_tensors(f) for f in FrameAssembler(BOUNDARY, codec=codec).feed(bytes(mutated))]
    except MeshError:
        return
    for frame in frames:
        for tensor, spec in zip(frame.tensors, BOUNDARY, strict=False):
            spec.check(tensor.dtype, tensor.shape)
            tensor.check_bytes()
