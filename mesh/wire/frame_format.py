"""What encoder and decoder of frames agree on: limits, the parts of a message, and the copy counters."""

from __future__ import annotations

from dataclasses import dataclass

from mesh.core.coding import Coding
from mesh.core.frame import Frame
from mesh.core.tensor import MAX_TENSOR_BYTES

CHUNK_BYTES = 1 << 20
"""Payload per chunk: above 1 MiB the allocator maps each buffer anew, below the messages cost more than they save."""

MAX_WHOLE_BYTES = 2 * CHUNK_BYTES
"""Payload up to which a frame goes as one message: two chunks would cost what one message does."""

MAX_HEADER_BYTES = 512 << 10
"""More than all other fields of a frame can take; with `MAX_WHOLE_BYTES` it bounds a message."""

MAX_FRAME_BYTES = MAX_TENSOR_BYTES
"""Payload of one frame: nodes with less memory are protected by the byte credits of the edge."""

MAX_CHUNKS = 1 << 16
"""Chunks of one frame: bounds the bookkeeping for a peer that sends one byte at a time to about 20 MB."""

MAX_HOPS = 256
"""Stages that a frame can have passed."""

MAX_TENSORS = 1024
"""Tensors in a frame; a decoder wants exactly as many as its boundary has."""

MAX_ERROR_BYTES = 4096
"""Of an error's message and of its hint: people read them. Longer ones are cut by the sender."""

MAX_CODE_BYTES = 64
MAX_TRACEPARENT_BYTES = 128
"""W3C trace context needs 55."""

PAYLOAD_ALIGNMENT = 16
"""What allocators give a message's own bytes; no element type needs more than 8."""

SMALL_FRAME_BYTES = 4 << 10
"""Payload up to which frames share a message: copying so much costs less than the write that it saves."""

MAX_FRAMES_PER_MESSAGE = 32
"""What a write costs is shared by then; a receiver knows what one message can cost it."""

FOLLOWER_TAG = b"\x3a"
"""Field 7, length-delimited: each further frame of a message."""

FRAME_TAG = b"\x1a"
"""Field 3, length-delimited: how a message that holds a frame begins."""


@dataclass(slots=True)
class PayloadCopies:
    """How often the bytes of a payload were copied since the counters were last set to zero."""

    sent: int = 0
    """Messages built: each holds one copy of its part of the payload."""
    received: int = 0
    """Frames put together from chunks; whole frames are views of the message."""


payload_copies = PayloadCopies()


@dataclass(frozen=True, slots=True)
class TensorHeader:
    shape: tuple[int, ...]
    byte_length: int
    coding: Coding = Coding.RAW
    scale: float = 0.0
    zero_point: int = 0


MAX_ZERO_POINT = 1 << 16
"""Of int8: a sender stays within half of it."""

MAX_REMEMBERED_BYTES = 64
"""Of a tensor's header: longer ones are read anew each time, so that a peer cannot fill memory with them."""


@dataclass(slots=True)
class FramePart:
    """One decoded message: a whole frame, its first chunk, or a later chunk.

    `frame.tensors` are views of the message where the frame is whole, else empty. A later chunk
    carries only the identity (stream, sequence, term, generation) of its frame.
    """

    frame: Frame
    headers: tuple[TensorHeader, ...]
    chunk_offset: int
    chunk_total: int
    """Payload bytes of the whole frame; 0 where this message is the whole frame."""
    payload: memoryview

    @property
    def is_whole(self) -> bool:
        return self.chunk_total == 0
