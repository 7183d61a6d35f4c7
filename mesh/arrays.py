"""Tensors to NumPy arrays and back, without copying where layouts agree.

Stands just above `mesh.core`, for everything that may use NumPy: engines, the model tools, the
client's NumPy part. Pure. Little-endian, row-major; BFLOAT16, which NumPy lacks, appears as its raw
bits in uint16.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mesh.core.tensor import MAX_RANK, DType, Tensor, pack_strings, unpack_strings
from mesh.errors import TensorMismatch

Array = np.ndarray[Any, np.dtype[Any]]

_NUMPY_TYPES: dict[DType, np.dtype[Any]] = {
    dtype: np.dtype("uint16" if dtype is DType.BFLOAT16 else dtype.label).newbyteorder("<")
    for dtype in DType
    if dtype is not DType.STRING
}
_DTYPES = {numpy_type: dtype for dtype, numpy_type in _NUMPY_TYPES.items() if dtype is not DType.BFLOAT16}
_TEXT_KINDS = "USOT"
"""NumPy's kinds of text, bytes, objects and variable-width strings."""


def to_array(tensor: Tensor, name: str = "?") -> Array:
    """`tensor` as a read-only array over the same bytes; it may be unaligned.

    STRING becomes an array of `str` objects (that is a copy), BFLOAT16 an array of uint16 bits.
    Raises `TensorMismatch` for byte counts that do not fit and for strings that are not UTF-8.
    """
    tensor.check_bytes(name)
    try:
        if tensor.dtype is DType.STRING:
            return _to_text_array(tensor, name)
        array = np.ndarray(tensor.shape, _NUMPY_TYPES[tensor.dtype], buffer=tensor.data)
    except ValueError as error:
        raise TensorMismatch(f"tensor {name!r}: NumPy cannot hold shape {list(tensor.shape)}: {error}") from error
    array.flags.writeable = False
    return array


def _to_text_array(tensor: Tensor, name: str) -> Array:
    array = np.empty(tensor.element_count, dtype=object)
    try:
        for index, element in enumerate(unpack_strings(tensor.data, tensor.element_count, name)):
            array[index] = element.decode()
    except UnicodeDecodeError as error:
        raise TensorMismatch(f"string tensor {name!r} has an element that is not UTF-8") from error
    array = array.reshape(tensor.shape)
    array.flags.writeable = False
    return array


def as_array(value: object) -> Array:
    """Whatever NumPy can make an array of: lists, scalars, arrays."""
    return np.asarray(value)


def from_array(array: Array, name: str = "?", *, dtype: DType | None = None) -> Tensor:
    """`array` as a tensor over the same memory, which must not change as long as the tensor is used.

    Arrays that are not contiguous are copied; arrays of text, bytes or objects that are all `str` or
    `bytes` become STRING. `dtype` is needed only to say BFLOAT16 of a uint16 array. Raises
    `TensorMismatch` for element types that do not travel, big-endian ones and other objects.
    """
    if array.ndim > MAX_RANK:
        raise TensorMismatch(f"tensor {name!r}: rank {array.ndim} is above the limit of {MAX_RANK}")
    if array.dtype.kind in _TEXT_KINDS:
        found, data = DType.STRING, memoryview(_pack_text(array, name))
    else:
        found = _find_dtype(array.dtype, name)
        contiguous = array if array.flags.c_contiguous else array.copy(order="C")
        data = contiguous.reshape(-1).view(np.uint8).data.toreadonly()
    if dtype is DType.BFLOAT16 and found is DType.UINT16:
        found = dtype
    if dtype is not None and found is not dtype:
        raise TensorMismatch(f"tensor {name!r}: dtype is {found.label}, {dtype.label} is wanted")
    return Tensor.from_bytes(found, array.shape, data, name)


def _find_dtype(numpy_type: np.dtype[Any], name: str) -> DType:
    if numpy_type.name == "bfloat16":  # registered with NumPy by ml_dtypes, where that is installed
        return DType.BFLOAT16
    little_endian = numpy_type.newbyteorder("<")
    if little_endian not in _DTYPES:
        raise TensorMismatch(f"tensor {name!r}: element type {numpy_type} does not travel")
    if numpy_type != little_endian:
        raise TensorMismatch(
            f"tensor {name!r}: element type {numpy_type} is big-endian",
            hint="convert it with array.astype(array.dtype.newbyteorder('<'))",
        )
    return _DTYPES[little_endian]


def _pack_text(array: Array, name: str) -> bytes:
    elements: list[bytes] = []
    for element in array.reshape(-1).tolist():
        if isinstance(element, str):
            try:
                elements.append(element.encode())
            except UnicodeEncodeError as error:
                raise TensorMismatch(f"tensor {name!r}: a text cannot be said in UTF-8 ({error.reason})") from error
        elif isinstance(element, bytes):
            elements.append(element)
        else:
            raise TensorMismatch(
                f"tensor {name!r}: an array of objects holds a {type(element).__name__}, only text and bytes travel"
            )
    return pack_strings(elements)
