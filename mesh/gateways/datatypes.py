"""The element types of the Open Inference Protocol, and tensors from what JSON and typed messages hold.

Names and layouts: the protocol's "Tensor Data Types". Pure; used by both translations.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mesh.arrays import Array, from_array
from mesh.core.tensor import MAX_RANK, DType, Tensor, pack_strings
from mesh.errors import TensorMismatch

BYTES = "BYTES"

MAX_DIMENSION = (1 << 63) - 1
"""What the protocol's messages hold; JSON could say thousands of digits."""

_NAMES: dict[DType, str] = {
    DType.BOOL: "BOOL",
    DType.UINT8: "UINT8",
    DType.UINT16: "UINT16",
    DType.UINT32: "UINT32",
    DType.UINT64: "UINT64",
    DType.INT8: "INT8",
    DType.INT16: "INT16",
    DType.INT32: "INT32",
    DType.INT64: "INT64",
    DType.FLOAT16: "FP16",
    DType.FLOAT32: "FP32",
    DType.FLOAT64: "FP64",
    DType.BFLOAT16: "BF16",
    DType.STRING: BYTES,
}
_TYPES = {name: dtype for dtype, name in _NAMES.items()}

RAW_ONLY = frozenset({DType.FLOAT16, DType.BFLOAT16})
"""Types that the protocol has no typed field for: they exist as raw bytes only."""


def datatype_of(dtype: DType) -> str:
    """The protocol's name of `dtype`."""
    return _NAMES[dtype]


def dtype_of(datatype: str, name: str) -> DType:
    """The element type that the protocol calls `datatype`; raises `TensorMismatch`, naming the tensor."""
    try:
        return _TYPES[datatype]
    except KeyError:
        raise TensorMismatch(
            f"tensor {name!r}: unknown datatype {datatype[:40]!r}", hint=f"known are {', '.join(sorted(_TYPES))}"
        ) from None


def shape_of(dimensions: Sequence[int], name: str) -> tuple[int, ...]:
    """`dimensions` as a concrete shape; raises `TensorMismatch` for one that no tensor has."""
    shape = tuple(dimensions)
    if len(shape) > MAX_RANK:
        raise TensorMismatch(f"tensor {name!r}: rank {len(shape)} is above the limit of {MAX_RANK}")
    if any(dimension > MAX_DIMENSION for dimension in shape):
        raise TensorMismatch(f"tensor {name!r}: a dimension is above {MAX_DIMENSION}")
    if any(dimension < 0 for dimension in shape):
        raise TensorMismatch(f"tensor {name!r}: negative dimension in {list(shape)[:40]}")
    return shape


def tensor_from_values(dtype: DType, shape: tuple[int, ...], values: Sequence[Any], name: str) -> Tensor:
    """A tensor of `shape` from its elements in row-major order: numbers, or bytes for STRING.

    Raises `TensorMismatch` where an element is no number of that type, or too many or too few are given.
    """
    if dtype is DType.STRING:
        return Tensor.from_bytes(dtype, shape, pack_strings(values), name)
    array = _numbers(dtype, values, name)
    count = 1
    for dimension in shape:
        count *= dimension
    if array.size != count:
        raise TensorMismatch(f"tensor {name!r}: {array.size} elements for shape {list(shape)}, which needs {count}")
    try:
        array = array.reshape(shape)
    except ValueError as error:  # no elements, and yet beyond what NumPy can address
        raise TensorMismatch(f"tensor {name!r}: shape {list(shape)} cannot be: {error}") from None
    return from_array(array, name, dtype=dtype)


def _numbers(dtype: DType, values: Sequence[Any], name: str) -> Array:
    if dtype is DType.BFLOAT16:
        raise TensorMismatch(f"tensor {name!r}: BF16 travels as raw bytes only")
    wanted: Any = bool if dtype is DType.BOOL else (int, float) if dtype.is_float else int
    for value in values:
        if not isinstance(value, wanted) or (dtype is not DType.BOOL and isinstance(value, bool)):
            told = str(value)[:40]
            raise TensorMismatch(f"tensor {name!r}: {told!r} is no {datatype_of(dtype)}")
    try:
        with np.errstate(over="raise"):  # else a number that is too large would become infinite
            return np.array(values, dtype=np.dtype(dtype.label))
    except (FloatingPointError, OverflowError, ValueError) as error:
        raise TensorMismatch(f"tensor {name!r}: a value does not fit {datatype_of(dtype)} ({error})") from error
