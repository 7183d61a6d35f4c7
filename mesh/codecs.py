"""Tensors to bytes for slow links, and back: halves, bytes and Zstandard, vectorised and without a copy too many.

Stands beside `mesh.arrays`, for the two ends of an edge and for whoever prices its codecs. `encode_tensor` takes any
tensor and any codec: where the codec cannot write it (no float32, NaN or infinity, beyond what a half holds), or would
not make it smaller, the tensor stays as it is, so that integers and masks are never touched. `decode_tensor` takes
what the door has let in and trusts none of its bytes. Pure; safe to call from any thread.

int8 is affine and per tensor, with step and zero point chosen for each frame. 0.0, which ReLU makes half of all
elements, stays exactly 0.0, and no element is off by more than half a step, but for the rounding of float32. Halves
are off by half a unit in their last place. Both quantise what crosses the cut: that is after the activation where the
cut is behind one.
"""

from __future__ import annotations

import math

import numpy as np

from mesh.arrays import Array, from_array, to_array
from mesh.core.coding import CODECS, FLOAT16, INT8, RAW, CodedTensor, Coding, is_packed, loss_of
from mesh.core.frame import Frame
from mesh.core.tensor import DType, Tensor
from mesh.errors import MissingExtra, ProtocolViolation
from mesh.packing import HINT, is_available, pack, unpack

LEAST_BYTES = 1024
"""Smaller tensors stay as they are: a packet more or less does not matter, and they are pooled features, scores and
counts, in which every digit tells (of ResNet-8's 64 features, int8 cost 0.4 points)."""

BLOCK_ELEMENTS = 16_384
"""Worked on at once: the temporary arrays of that many stay in the cache of a small board."""

LARGEST_HALF = 65_504.0

HALF_BIAS = 2.0**112
"""Between the exponents of a half and those of a float32 with the same bits."""

MAX_ZERO_POINT = 1 << 15
"""Far enough for elements that are all close to each other; beyond, float32 could not tell the steps apart."""

STEPS = 255
ROOM = 1 + 2.0**-17
"""Widens the step by what float32 arithmetic may round up, so that the last step is never passed."""

SAFE_ZERO_POINT = 1 << 10
"""Up to here `ROOM` is more than float32 rounds, and nothing needs to be kept from passing the last step."""

LEAST_SCALE = 2.0**-100
"""Below this float32 runs out of exponents; such tensors are zeros for every purpose, but stay as they are."""


def spoken_codecs() -> tuple[str, ...]:
    """The codecs that this installation reads and writes."""
    has_zstd = is_available()
    return tuple(codec for codec in CODECS if has_zstd or not is_packed(codec))


def check_spoken(codec: str) -> None:
    """Raise `MissingExtra` for a codec that needs what is not installed, `ProtocolViolation` for an unknown one."""
    if codec not in CODECS:
        raise ProtocolViolation(f"codec {codec[:40]!r} is not spoken here", hint=f"known: {', '.join(CODECS)}")
    if codec not in spoken_codecs():
        raise MissingExtra(f"codec {codec!r} needs the package zstandard", hint=HINT)


def encode_frame_tensors(frame: Frame, codec: str) -> Frame:
    """`frame` as it travels over an edge of `codec`; the same object where nothing of it changes."""
    if codec == RAW or not frame.tensors:
        return frame
    coded = tuple(encode_tensor(tensor, codec) for tensor in frame.tensors)
    return _with_tensors(frame, coded)


def decode_frame_tensors(frame: Frame) -> Frame:
    """`frame` as the stage computes it. Raises `ProtocolViolation` for bytes that are not what their header says."""
    return _with_tensors(
        frame,
        tuple(
            decode_tensor(tensor, str(position)) if isinstance(tensor, CodedTensor) else tensor
            for position, tensor in enumerate(frame.tensors)
        ),
    )


def _with_tensors(frame: Frame, tensors: tuple[Tensor, ...]) -> Frame:
    return Frame(
        frame.stream,
        frame.sequence,
        frame.term,
        frame.generation,
        tensors,
        frame.budget_us,
        frame.outcome,
        frame.error,
        frame.traceparent,
        frame.hops,
    )


def encode_tensor(tensor: Tensor, codec: str) -> Tensor:
    """`tensor` as `codec` writes it: a `CodedTensor`, or itself where that is no smaller. Raises as `check_spoken`."""
    if codec == RAW or tensor.dtype is DType.STRING or len(tensor.data) < LEAST_BYTES:
        return tensor
    plain = _encode_lossy(tensor, loss_of(codec))
    if not is_packed(codec):
        return plain
    packed = _pack(plain)
    return plain if packed is None else packed


def decode_tensor(coded: CodedTensor, name: str = "?") -> Tensor:
    """The tensor that was encoded. Raises `ProtocolViolation` for bytes that are not what the header says."""
    coding, count = coded.coding, coded.element_count
    item_bytes = coding.item_bytes(coded.dtype)
    data: memoryview | bytes = coded.data
    if coding.is_packed:
        data = _unpack(coded, count, item_bytes, name)
    if len(data) != count * item_bytes:
        raise ProtocolViolation(f"tensor {name!r}: {len(data)} bytes of {coding.name} for {count} elements")
    if coding.plain is Coding.RAW:
        return Tensor(coded.dtype, coded.shape, memoryview(data))
    flat = (
        _from_halves(np.frombuffer(data, "<u2"), name)
        if coding.plain is Coding.FLOAT16
        else _from_bytes(np.frombuffer(data, np.uint8), coded.scale, coded.zero_point)
    )
    return from_array(flat.reshape(coded.shape), name)


# Losing -------------------------------------------------------------------------------------------


def _encode_lossy(tensor: Tensor, loss: str) -> Tensor:
    if not loss or tensor.dtype is not DType.FLOAT32:
        return tensor
    values = to_array(tensor).reshape(-1)
    low, high = float(values.min()), float(values.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        return tensor
    if loss == FLOAT16 and max(-low, high) <= LARGEST_HALF:
        return CodedTensor(tensor.dtype, tensor.shape, _view(_to_halves(values)), Coding.FLOAT16)
    if loss == INT8 and (steps := _choose_steps(low, high)) is not None:
        scale, zero_point = steps
        data = _view(_to_bytes(values, scale, zero_point))
        return CodedTensor(tensor.dtype, tensor.shape, data, Coding.INT8, scale, zero_point)
    return tensor


def _view(array: Array) -> memoryview:
    return array.view(np.uint8).data.toreadonly()


def _choose_steps(low: float, high: float) -> tuple[float, int] | None:
    """Step and zero point for elements from `low` to `high`; None where float32 cannot hold the step.

    0.0 is on the grid wherever the grid lies, so the zero point is a whole number of steps away from `low`.
    """
    step = max((high - low) / STEPS, max(-low, high) / (MAX_ZERO_POINT - STEPS)) * ROOM
    if step == 0:
        return 1.0, 0
    scale = float(np.float32(step))
    if not LEAST_SCALE <= scale <= 1 / LEAST_SCALE:
        return None
    lowest = math.floor(float(np.float32(low) * np.float32(1 / scale)) + 0.5)
    return scale, -lowest


def _to_bytes(values: Array, scale: float, zero_point: int) -> Array:
    made = np.empty(values.size, np.uint8)
    block = np.empty(min(values.size, BLOCK_ELEMENTS), np.float32)
    factor, shift = np.float32(1 / scale), np.float32(zero_point + 0.5)
    may_pass = abs(zero_point) > SAFE_ZERO_POINT
    for start in range(0, values.size, BLOCK_ELEMENTS):
        part = values[start : start + BLOCK_ELEMENTS]
        work = block[: part.size]
        np.multiply(part, factor, out=work)
        np.add(work, shift, out=work)
        if may_pass:
            np.clip(work, 0, STEPS, out=work)
        made[start : start + part.size] = work  # cuts off, which after adding a half rounds
    return made


def _from_bytes(data: Array, scale: float, zero_point: int) -> Array:
    values = data.astype(np.float32)
    values -= np.float32(zero_point)
    values *= np.float32(scale)
    return values


def _to_halves(values: Array) -> Array:
    """By integer arithmetic, which is vectorised on every processor where a cast to float16 is not."""
    made = np.empty(values.size, np.uint16)
    floats = np.empty(min(values.size, BLOCK_ELEMENTS), np.float32)
    signs = np.empty(floats.size, np.int32)
    for start in range(0, values.size, BLOCK_ELEMENTS):
        part = values[start : start + BLOCK_ELEMENTS]
        np.multiply(part, np.float32(1 / HALF_BIAS), out=floats[: part.size])
        bits, sign = floats[: part.size].view(np.int32), signs[: part.size]
        np.right_shift(bits, 16, out=sign)
        sign &= 0x8000
        bits += 0x1000  # half of what is cut off
        bits >>= 13
        bits &= 0x7FFF
        bits |= sign
        made[start : start + part.size] = bits
    return made


def _from_halves(halves: Array, name: str) -> Array:
    made = np.empty(halves.size, np.float32)
    signed = halves.view(np.int16)
    mask = np.int32(-0x70002000)  # the sign, and what is below an exponent that no half has
    for start in range(0, halves.size, BLOCK_ELEMENTS):
        part = made[start : start + BLOCK_ELEMENTS]
        bits = part.view(np.int32)
        bits[:] = signed[start : start + BLOCK_ELEMENTS]
        bits <<= 13
        bits &= mask
        part *= np.float32(HALF_BIAS)
    if made.size and max(-float(made.min()), float(made.max())) > LARGEST_HALF:
        raise ProtocolViolation(f"tensor {name!r}: a half that is no finite number, which is never sent")
    return made


# Packing ------------------------------------------------------------------------------------------


def _pack(tensor: Tensor) -> CodedTensor | None:
    """None where that is not smaller."""
    coding, scale, zero_point = Coding.RAW, 0.0, 0
    if isinstance(tensor, CodedTensor):
        coding, scale, zero_point = tensor.coding, tensor.scale, tensor.zero_point
    item_bytes = coding.item_bytes(tensor.dtype)
    data: memoryview | Array = tensor.data
    if item_bytes > 1:
        data = np.ascontiguousarray(np.frombuffer(tensor.data, np.uint8).reshape(-1, item_bytes).T)
    packed = pack(data)
    if len(packed) >= len(tensor.data):
        return None
    return CodedTensor(tensor.dtype, tensor.shape, memoryview(packed), Coding(coding + 3), scale, zero_point)


def _unpack(coded: CodedTensor, count: int, item_bytes: int, name: str) -> memoryview | bytes:
    try:
        data = unpack(coded.data, count * item_bytes)
    except ProtocolViolation as error:
        raise ProtocolViolation(f"tensor {name!r}: {error.message}") from None
    if item_bytes == 1:
        return data
    return _join(np.frombuffer(data, np.uint8).reshape(item_bytes, count))


def _join(planes: Array) -> memoryview:
    """First bytes of all elements, second bytes and so on, as elements; by shifts, which are vectorised."""
    made: Array = planes[0].astype(f"<u{len(planes)}")
    for position in range(1, len(planes)):
        plane = planes[position].astype(made.dtype)
        plane <<= 8 * position
        made |= plane
    return _view(made)
