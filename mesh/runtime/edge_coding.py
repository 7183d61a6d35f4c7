"""Coding at the two ends of an edge: frames are made smaller as its plan says, and as they were again.

Called by `edge_sender` and `edge_receiver`, which count credits in the bytes of the tensors themselves: a receiver's
memory is what they bound. Large frames are worked on in a thread, so that heartbeats and other edges do not wait.
NumPy is imported only where an edge has a codec: a sensor client's has none.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from mesh.core.coding import RAW, CodedTensor
from mesh.core.frame import Frame
from mesh.core.plan import Deployment

INLINE_BYTES = 64 << 10
"""Tensors up to this many bytes are coded on the event loop: that takes less than handing them to a thread."""


def check_codecs(deployment: Deployment, stages: Sequence[int]) -> None:
    """Raise `MissingExtra` where `stages`, which are to be loaded here, receive or send what is not spoken here."""
    for codec in sorted(frozenset().union(*map(deployment.plan.codecs_at, stages)) - {RAW}):
        from mesh.codecs import check_spoken

        check_spoken(codec)


def is_coded(frame: Frame) -> bool:
    """Whether `frame` must be decoded before anybody computes on it."""
    return any(isinstance(tensor, CodedTensor) for tensor in frame.tensors)


def tensor_bytes(frame: Frame) -> int:
    """Of its tensors as they are computed on; as `payload_bytes` where nothing is coded."""
    return sum(t.plain_bytes if isinstance(t, CodedTensor) else len(t.data) for t in frame.tensors)


async def encode_frames(frames: Sequence[Frame], codec: str) -> Sequence[Frame]:
    """As they travel over an edge of `codec`."""
    if codec == RAW:
        return frames
    from mesh.codecs import encode_frame_tensors

    if sum(frame.payload_bytes for frame in frames) <= INLINE_BYTES:
        return [encode_frame_tensors(frame, codec) for frame in frames]
    return [await asyncio.to_thread(encode_frame_tensors, frame, codec) for frame in frames]


async def decode_frame(frame: Frame) -> Frame:
    """As the stage computes it. Raises `ProtocolViolation` for bytes that are not what their header says."""
    if not is_coded(frame):
        return frame
    from mesh.codecs import decode_frame_tensors

    if tensor_bytes(frame) <= INLINE_BYTES:
        return decode_frame_tensors(frame)
    return await asyncio.to_thread(decode_frame_tensors, frame)
