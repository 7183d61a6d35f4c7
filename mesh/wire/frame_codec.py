"""Frames as bytes: the hand-written half of protos/mesh/v1/stream.proto.

A frame is field 3 of both `EdgeRequest` and `ResultsResponse`, so one codec serves both directions.
The bytes are those that protobuf writes (a test proves it); writing them by hand is what allows one
copy of the payload on the way out and none on the way in, where protobuf needs one more each.

What fits goes as one message (up to two chunks' worth: wrapping a frame of one chunk costs more than
it gains); larger frames go as consecutive chunks, so that no buffer of the size of a frame has to be
mapped and unmapped per frame. Small frames that wait together share a message. The first frame of a
message is padded so that its payload begins at a multiple of 16 bytes of the message, where the first
tensor can be computed on in place.

Encoding and decoding are pure. `FrameAssembler` is the only state: one per edge, owned by whoever
reads that edge. `payload_copies` counts copies for tests; it belongs to the event loop's thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from mesh.core.coding import CODINGS_OF, RAW
from mesh.core.frame import Frame
from mesh.core.tensor import TensorSpec
from mesh.errors import ProtocolViolation
from mesh.wire.frame_decoder import AcceptedHeaders, decode_frames, make_tensors
from mesh.wire.frame_encoder import encode_frame, encode_frames
from mesh.wire.frame_format import (
    CHUNK_BYTES,
    FRAME_TAG,
    MAX_CHUNKS,
    MAX_FRAME_BYTES,
    MAX_FRAMES_PER_MESSAGE,
    MAX_HEADER_BYTES,
    MAX_WHOLE_BYTES,
    FramePart,
    PayloadCopies,
    TensorHeader,
    payload_copies,
)

__all__ = [
    "CHUNK_BYTES",
    "MAX_FRAMES_PER_MESSAGE",
    "MAX_FRAME_BYTES",
    "MAX_HEADER_BYTES",
    "MAX_WHOLE_BYTES",
    "FrameAssembler",
    "FramePart",
    "PayloadCopies",
    "TensorHeader",
    "decode_frames",
    "encode_frame",
    "encode_frames",
    "is_frame",
    "payload_copies",
]


def is_frame(message: bytes) -> bool:
    """True for an `EdgeRequest` or `ResultsResponse` that holds a frame; looks at its first byte only."""
    return message[:1] == FRAME_TAG


class FrameAssembler:
    """Puts the frames of one edge together from its messages.

    The chunks of a frame follow each other without anything of another frame between them. Whole
    frames pass through as views of their message; chunks are kept until the last one and then joined,
    so that a peer takes no more memory than it has sent.
    """

    def __init__(
        self, boundary: Sequence[TensorSpec], *, codec: str = RAW, max_frame_bytes: int = MAX_FRAME_BYTES
    ) -> None:
        """`codec` of the edge: tensors that are written otherwise than it allows are refused."""
        self._boundary = tuple(boundary)
        self._max_frame_bytes = max_frame_bytes
        self._accepted = AcceptedHeaders(codings=CODINGS_OF[codec])
        self._first: FramePart | None = None
        self._chunks: list[memoryview] = []
        self._pending_bytes = 0

    @property
    def pending_bytes(self) -> int:
        """Payload bytes of the frame that has begun and is not complete."""
        return self._pending_bytes

    def feed(self, message: bytes) -> list[Frame]:
        """The frames that `message` completes; none while chunks are missing.

        Raises `ProtocolViolation` for chunks that are missing, repeated, out of order, interleaved or
        more than announced, for frames above the limit, and `TensorMismatch` for tensors that do not
        fit the boundary. What was pending is then dropped: the edge is to be closed.
        """
        try:
            parts = decode_frames(message, self._boundary, self._accepted)
            return [frame for part in parts if (frame := self._accept(part)) is not None]
        except BaseException:
            self._forget()
            raise

    def _accept(self, part: FramePart) -> Frame | None:
        size = len(part.payload)
        if max(part.chunk_total, size) > self._max_frame_bytes:
            raise ProtocolViolation(
                f"frame {part.frame.sequence}: {max(part.chunk_total, size)} bytes of payload, "
                f"the limit is {self._max_frame_bytes}"
            )
        if self._first is None:
            if part.is_whole:
                return part.frame
            if part.chunk_offset:
                raise ProtocolViolation(f"frame {part.frame.sequence}: its first chunk is missing")
            self._first = part
        else:
            self._check_continues(self._first, part)
        self._chunks.append(part.payload)
        self._pending_bytes += size
        return self._finish(self._first) if self._pending_bytes == self._first.chunk_total else None

    def _check_continues(self, first: FramePart, part: FramePart) -> None:
        if part.is_whole or _identity(part.frame) != _identity(first.frame):
            raise ProtocolViolation(
                f"frame {first.frame.sequence} was cut off by frame {part.frame.sequence} "
                f"after {self._pending_bytes} of {first.chunk_total} bytes"
            )
        if part.chunk_total != first.chunk_total or part.chunk_offset != self._pending_bytes:
            raise ProtocolViolation(
                f"frame {first.frame.sequence}: chunk at {part.chunk_offset} of {part.chunk_total}, "
                f"expected the one at {self._pending_bytes} of {first.chunk_total}"
            )
        if len(self._chunks) >= MAX_CHUNKS:
            raise ProtocolViolation(f"frame {first.frame.sequence}: more than {MAX_CHUNKS} chunks")

    def _finish(self, first: FramePart) -> Frame:
        payload = memoryview(b"".join(self._chunks))
        payload_copies.received += 1
        self._forget()
        return replace(first.frame, tensors=make_tensors(first.headers, payload, self._boundary))

    def _forget(self) -> None:
        self._first = None
        self._chunks = []
        self._pending_bytes = 0


def _identity(frame: Frame) -> tuple[int, int, int, int]:
    return frame.stream, frame.sequence, frame.term, frame.generation
