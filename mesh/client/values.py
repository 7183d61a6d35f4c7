"""Numbers to the bytes of a tensor and back, with the standard library alone.

Sources that make numbers (audio, synthetic signals) pack them, sinks that print numbers unpack them; numpy is not on
the sensor client's import path. `ByteLookup` is the fast way from 8-bit samples (pixels, bytes) to any element type.
"""

from __future__ import annotations

import math
import struct
import sys
from array import array
from collections.abc import Sequence
from typing import Any

from mesh.core.tensor import DType, Tensor, unpack_strings
from mesh.errors import TensorMismatch

Value = float | int | bool | str

_ARRAY_CODES = {
    DType.FLOAT32: "f",
    DType.FLOAT64: "d",
    DType.UINT8: "B",
    DType.INT8: "b",
    DType.UINT16: "H",
    DType.INT16: "h",
    DType.UINT32: "I",
    DType.INT32: "i",
    DType.UINT64: "Q",
    DType.INT64: "q",
    DType.BOOL: "B",
    DType.BFLOAT16: "H",
}
"""Type codes of the `array` module; all have the item size of the element type wherever Python runs."""

_BYTES = 256


def pack_values(values: Sequence[float], dtype: DType) -> bytes:
    """The little-endian bytes of `values` as `dtype` (any but STRING).

    Integers must be whole numbers within the type's range; raises `TensorMismatch` otherwise. Floats are rounded to the
    nearest, ties to even.
    """
    if dtype is DType.STRING:
        raise TensorMismatch("numbers cannot be packed as strings")
    packed: array[Any]
    try:
        if dtype is DType.FLOAT16:
            return struct.pack(f"<{len(values)}e", *values)
        if dtype is DType.BFLOAT16:
            packed = array("H", map(_to_bfloat16, values))
        elif dtype is DType.BOOL:
            packed = array("B", [1 if value else 0 for value in values])
        elif dtype.is_float:
            packed = array(_ARRAY_CODES[dtype], values)
        else:
            packed = array(_ARRAY_CODES[dtype], [_whole(value) for value in values])
    except (OverflowError, struct.error) as error:
        raise TensorMismatch(f"a value is outside the range of {dtype.label}: {error}") from None
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()


def unpack_values(tensor: Tensor, name: str = "?") -> list[Value]:
    """The elements of `tensor` in row-major order: float, int, bool or str.

    Strings are UTF-8; bytes that are not survive as lone surrogates. Raises `TensorMismatch` for a wrong byte count.
    """
    tensor.check_bytes(name)
    if tensor.dtype is DType.STRING:
        texts = unpack_strings(tensor.data, tensor.element_count, name)
        return [text.decode("utf-8", "surrogateescape") for text in texts]
    if tensor.dtype is DType.FLOAT16:
        return list(struct.unpack(f"<{tensor.element_count}e", tensor.data))
    values: array[Any] = array(_ARRAY_CODES[tensor.dtype])
    values.frombytes(tensor.data)
    if sys.byteorder == "big":
        values.byteswap()
    if tensor.dtype is DType.BFLOAT16:
        widened = array("I", [bits << 16 for bits in values])
        return list(struct.unpack(f"={len(widened)}f", widened.tobytes()))
    if tensor.dtype is DType.BOOL:
        return [value != 0 for value in values]
    return list(values)


def _whole(value: float) -> int:
    whole = int(value) if math.isfinite(value) else 0
    if whole != value:
        raise OverflowError(f"{value} is not a whole number")
    return whole


def _to_bfloat16(value: float) -> int:
    if math.isnan(value):
        return 0x7FC0
    try:
        (bits,) = struct.unpack("<I", struct.pack("<f", value))
    except OverflowError:
        return 0x7F80 if value > 0 else 0xFF80
    # Round to nearest, ties to even, on the half that is cut off.
    return int(bits + 0x7FFF + ((bits >> 16) & 1)) >> 16


class ByteLookup:
    """A table from each of the 256 byte values to one element of `dtype`.

    Works on whole byte strings by one translation per byte of the element, so that a video frame costs milliseconds
    without numpy. Immutable.
    """

    def __init__(self, values: Sequence[float], dtype: DType) -> None:
        if len(values) != _BYTES:
            raise ValueError(f"a table has {_BYTES} entries, not {len(values)}")
        packed = pack_values(values, dtype)
        self._item_bytes = dtype.item_bytes
        self._planes = tuple(packed[offset :: self._item_bytes] for offset in range(self._item_bytes))

    def apply(self, samples: bytes) -> bytes | bytearray:
        """The elements for `samples`, one per byte, as little-endian bytes."""
        if self._item_bytes == 1:
            return samples.translate(self._planes[0])
        packed = bytearray(len(samples) * self._item_bytes)
        for offset, plane in enumerate(self._planes):
            packed[offset :: self._item_bytes] = samples.translate(plane)
        return packed


def keep(tensor: Tensor) -> Tensor:
    """The same values in memory that nobody changes: a copy unless they are `bytes`. A frame may be sent again."""
    if isinstance(tensor.data.obj, bytes):
        return tensor
    return Tensor(tensor.dtype, tensor.shape, memoryview(bytes(tensor.data)))
