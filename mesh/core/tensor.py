"""Tensors as bytes with a spec: what crosses wires, engines and files without needing numpy.

Layout is always little-endian and row-major without padding. BOOL is one byte per element. STRING
elements are a 4-byte little-endian length followed by that many bytes, one after the other (the
BYTES convention of the Open Inference Protocol).
"""

from __future__ import annotations

import enum
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from mesh.errors import ModelUnsupported, TensorMismatch

Dimension = int | str
"""A fixed size, or the name of a symbolic one ("batch"; "?" where the model gives none)."""

MAX_RANK = 32
"""No operator in ONNX needs more; bounds the header of a frame."""

MAX_TENSOR_BYTES = 1 << 30
"""Largest tensor that the mesh carries: half of what a protobuf message may hold."""

STRING_LENGTH = struct.Struct("<I")


class DType(enum.Enum):
    """Element types, named as numpy names them; the value is ONNX's `TensorProto.DataType` number."""

    FLOAT32 = 1
    UINT8 = 2
    INT8 = 3
    UINT16 = 4
    INT16 = 5
    INT32 = 6
    INT64 = 7
    STRING = 8
    BOOL = 9
    FLOAT16 = 10
    FLOAT64 = 11
    UINT32 = 12
    UINT64 = 13
    BFLOAT16 = 16

    @property
    def label(self) -> str:
        return self.name.lower()

    @property
    def item_bytes(self) -> int:
        """Bytes per element; 0 for STRING, whose elements vary."""
        return _ITEM_BYTES[self]

    @property
    def is_float(self) -> bool:
        return self in _FLOATS

    @classmethod
    def from_label(cls, label: str) -> DType:
        """The type called `label` ("float32"); raises `TensorMismatch` for an unknown one."""
        try:
            return cls[label.upper()]
        except KeyError:
            raise TensorMismatch(f"unknown element type {label[:40]!r}") from None


_ITEM_BYTES = {
    DType.FLOAT32: 4,
    DType.UINT8: 1,
    DType.INT8: 1,
    DType.UINT16: 2,
    DType.INT16: 2,
    DType.INT32: 4,
    DType.INT64: 8,
    DType.STRING: 0,
    DType.BOOL: 1,
    DType.FLOAT16: 2,
    DType.FLOAT64: 8,
    DType.UINT32: 4,
    DType.UINT64: 8,
    DType.BFLOAT16: 2,
}
_FLOATS = frozenset({DType.FLOAT32, DType.FLOAT16, DType.FLOAT64, DType.BFLOAT16})


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """What a tensor must look like. `shape` is None where the rank is unknown before run time."""

    name: str
    dtype: DType
    shape: tuple[Dimension, ...] | None

    def __str__(self) -> str:
        dims = "?" if self.shape is None else ",".join(str(dim) for dim in self.shape)
        return f"{self.name} {self.dtype.label}[{dims}]"

    @property
    def is_fixed(self) -> bool:
        return self.shape is not None and all(isinstance(dim, int) for dim in self.shape)

    def nominal_bytes(self, symbolic: int = 1) -> int | None:
        """Bytes with every symbolic dimension at `symbolic`; None for unknown rank or strings."""
        if self.shape is None or self.dtype is DType.STRING:
            return None
        return self.dtype.item_bytes * math.prod(dim if isinstance(dim, int) else symbolic for dim in self.shape)

    def check(self, dtype: DType, shape: Sequence[int]) -> None:
        """Raise `TensorMismatch`, naming the field, unless `dtype` and `shape` fit this spec."""
        if dtype is not self.dtype:
            raise TensorMismatch(f"tensor {self.name!r}: dtype is {dtype.label}, the model wants {self.dtype.label}")
        if len(shape) > MAX_RANK:
            raise TensorMismatch(f"tensor {self.name!r}: rank {len(shape)} is above the limit of {MAX_RANK}")
        if any(dim < 0 for dim in shape):
            raise TensorMismatch(f"tensor {self.name!r}: negative dimension in {list(shape)}")
        if self.shape is None:
            return
        if len(shape) != len(self.shape):
            raise TensorMismatch(
                f"tensor {self.name!r}: rank is {len(shape)} {list(shape)}, the model wants {len(self.shape)} ({self})"
            )
        for axis, (got, want) in enumerate(zip(shape, self.shape, strict=True)):
            if isinstance(want, int) and got != want:
                raise TensorMismatch(
                    f"tensor {self.name!r}: dimension {axis} is {got}, the model wants {want} ({self})"
                )


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor: concrete dtype and shape, and its bytes. Never copied on the way if it can be helped."""

    dtype: DType
    shape: tuple[int, ...]
    data: memoryview

    @classmethod
    def from_bytes(
        cls, dtype: DType, shape: Sequence[int], data: bytes | bytearray | memoryview, name: str = "?"
    ) -> Tensor:
        """Wrap `data` after checking its length against `dtype` and `shape`; raises `TensorMismatch`."""
        view = memoryview(data)
        if view.format != "B" or view.ndim != 1:
            view = view.cast("B")
        tensor = cls(dtype, tuple(shape), view)
        tensor.check_bytes(name)
        return tensor

    @property
    def element_count(self) -> int:
        return math.prod(self.shape)

    def check_bytes(self, name: str = "?") -> None:
        """Raise `TensorMismatch` unless the byte count is what dtype and shape need."""
        if len(self.data) > MAX_TENSOR_BYTES:
            raise TensorMismatch(f"tensor {name!r}: {len(self.data)} bytes is above the limit of {MAX_TENSOR_BYTES}")
        if self.dtype is DType.STRING:
            check_strings(self.data, self.element_count, name)
            return
        want = self.element_count * self.dtype.item_bytes
        if len(self.data) != want:
            raise TensorMismatch(
                f"tensor {name!r}: {len(self.data)} bytes for {self.dtype.label}{list(self.shape)}, which needs {want}"
            )


def pack_strings(values: Sequence[bytes]) -> bytes:
    """The bytes of a STRING tensor from its elements in row-major order."""
    return b"".join(STRING_LENGTH.pack(len(value)) + value for value in values)


def unpack_strings(data: memoryview, count: int, name: str = "?") -> list[bytes]:
    """The elements of a STRING tensor; raises `TensorMismatch` unless `data` holds exactly `count`."""
    values: list[bytes] = []
    offset = 0
    for _ in range(count):
        if offset + STRING_LENGTH.size > len(data):
            raise TensorMismatch(f"string tensor {name!r} ends before its {count} elements")
        (length,) = STRING_LENGTH.unpack_from(data, offset)
        offset += STRING_LENGTH.size
        if offset + length > len(data):
            raise TensorMismatch(f"string tensor {name!r} ends inside an element")
        values.append(bytes(data[offset : offset + length]))
        offset += length
    if offset != len(data):
        raise TensorMismatch(f"string tensor {name!r} has {len(data) - offset} bytes after its {count} elements")
    return values


def check_strings(data: memoryview, count: int, name: str = "?") -> None:
    """Raise `TensorMismatch` unless `data` is exactly `count` length-prefixed strings."""
    if count * STRING_LENGTH.size > len(data):
        raise TensorMismatch(f"string tensor {name!r}: {len(data)} bytes cannot hold {count} elements")
    unpack_strings(data, count, name)


def blank_tensor(spec: TensorSpec) -> Tensor:
    """Zeros (empty strings) in the shape of `spec`, symbolic dimensions at 1; for timing only."""
    if spec.shape is None:
        raise ModelUnsupported(f"input {spec.name!r} has no rank, so it cannot be timed with made-up data")
    shape = tuple(dim if isinstance(dim, int) else 1 for dim in spec.shape)
    if spec.dtype is DType.STRING:
        count = 1
        for dim in shape:
            count *= dim
        return Tensor.from_bytes(spec.dtype, shape, pack_strings([b""] * count), spec.name)
    return Tensor.from_bytes(spec.dtype, shape, bytes(spec.nominal_bytes() or 0), spec.name)
