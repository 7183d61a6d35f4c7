"""Frames, strategies for frames, and the oracle for their bytes, for the tests of the frame codec."""

from __future__ import annotations

import math
from collections.abc import Sequence

from hypothesis import settings
from hypothesis import strategies as st

from mesh.core.frame import Frame, Hop, Outcome
from mesh.core.tensor import DType, Tensor, TensorSpec, pack_strings
from mesh.errors import BY_CODE, from_code
from mesh.v1 import stream_pb2, tensor_pb2
from mesh.wire.frame_codec import FrameAssembler, FramePart, decode_frames

UINT64_MAX = (1 << 64) - 1
FEW = settings(max_examples=60, deadline=None)

uint64 = st.one_of(st.integers(0, 300), st.integers(0, UINT64_MAX))
uint32 = st.one_of(st.integers(0, 300), st.integers(0, (1 << 32) - 1))
text = st.text(st.characters(codec="utf-8"), max_size=40)


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    dtype = draw(st.sampled_from(DType))
    shape = tuple(draw(st.lists(st.integers(0, 4), max_size=4)))
    count = math.prod(shape)
    if dtype is DType.STRING:
        data = pack_strings(draw(st.lists(st.binary(max_size=5), min_size=count, max_size=count)))
    else:
        data = bytes(i % 251 for i in range(count * dtype.item_bytes))
    return Tensor.from_bytes(dtype, shape, data)


@st.composite
def frames(draw: st.DrawFn) -> Frame:
    outcome = draw(st.sampled_from(Outcome))
    ok = outcome is Outcome.OK
    error = None if ok else from_code(draw(st.sampled_from(sorted(BY_CODE))), draw(text), draw(text))
    return Frame(
        stream=draw(uint64),
        sequence=draw(uint64),
        term=draw(uint64),
        generation=draw(uint64),
        tensors=tuple(draw(st.lists(tensors(), max_size=4))) if ok else (),
        budget_us=draw(uint64),
        outcome=outcome,
        error=error,
        traceparent=draw(st.text("0123456789abcdef-", max_size=55)),
        hops=tuple(draw(st.lists(st.builds(Hop, uint32, uint32, uint32), max_size=4))),
    )


def decode_frame(message: bytes, boundary: Sequence[TensorSpec]) -> FramePart:
    (part,) = decode_frames(message, boundary)
    return part


def boundary_of(frame: Frame) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(f"t{i}", tensor.dtype, tensor.shape) for i, tensor in enumerate(frame.tensors))


def as_protobuf(frame: Frame, padding: bytes = b"") -> stream_pb2.Frame:
    """The oracle: the same frame through protobuf's own classes."""
    return stream_pb2.Frame(
        stream=frame.stream,
        sequence=frame.sequence,
        term=frame.term,
        generation=frame.generation,
        budget_us=frame.budget_us,
        outcome=stream_pb2.Outcome.ValueType(0 if frame.outcome is Outcome.OK else frame.outcome.value),
        error=None
        if frame.error is None
        else tensor_pb2.Error(code=frame.error.code, message=frame.error.message, hint=frame.error.hint),
        tensors=[stream_pb2.TensorHeader(dimensions=t.shape, byte_length=len(t.data)) for t in frame.tensors],
        traceparent=frame.traceparent,
        hops=[stream_pb2.Hop(stage=h.stage, queue_us=h.queue_us, compute_us=h.compute_us) for h in frame.hops],
        padding=padding,
        payload=b"".join(bytes(t.data) for t in frame.tensors),
    )


def plain(frame: Frame) -> tuple[object, ...]:
    """A frame as values that compare by content."""
    error = frame.error and (frame.error.code, frame.error.message, frame.error.hint)
    content = [(t.dtype, t.shape, bytes(t.data)) for t in frame.tensors]
    numbers = (frame.stream, frame.sequence, frame.term, frame.generation, frame.budget_us)
    return (*numbers, frame.outcome, error, frame.traceparent, frame.hops, content)


def assemble(messages: Sequence[bytes], boundary: Sequence[TensorSpec]) -> Frame:
    assembler = FrameAssembler(boundary)
    answers = [assembler.feed(message) for message in messages]
    assert answers[:-1] == [[]] * (len(messages) - 1)
    assert assembler.pending_bytes == 0
    (frame,) = answers[-1]
    return frame


def make_frame(size: int = 24, **changes: object) -> Frame:
    tensor = Tensor.from_bytes(DType.UINT8, (size,), bytes(i % 251 for i in range(size)))
    fields: dict[str, object] = {"stream": 7, "sequence": 3, "term": 1, "generation": 2, "tensors": (tensor,)}
    return Frame(**(fields | changes))  # type: ignore[arg-type]


BYTES = (TensorSpec("x", DType.UINT8, ("n",)),)
