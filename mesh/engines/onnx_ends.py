"""Inputs and outputs of an ONNX model, read from its bytes without the package `onnx`, which nodes do not have.

For engines whose runtime does not tell them as the model writes them: a symbolic dimension keeps its name, and an
initializer is no input. Only the fields on the way there are looked at; weights are stepped over, not copied. Raises
`LoadFailed` for what is no ONNX model, and for inputs and outputs that are no tensors of ordinary elements.
Source: onnx.proto of ONNX.
"""

from __future__ import annotations

from collections.abc import Iterator

from mesh.core.tensor import Dimension, DType, TensorSpec
from mesh.errors import LoadFailed

MAX_VARINT_BYTES = 10
"""64 bits, seven in a byte."""

_MODEL_GRAPH = 7
_GRAPH_INITIALIZER, _GRAPH_INPUT, _GRAPH_OUTPUT = 5, 11, 12
_INITIALIZER_NAME = 8
_VALUE_NAME, _VALUE_TYPE = 1, 2
_TYPE_TENSOR = 1
_TENSOR_ELEMENT, _TENSOR_SHAPE = 1, 2
_SHAPE_DIMENSION = 1
_DIMENSION_VALUE, _DIMENSION_NAME = 1, 2

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5

Field = tuple[int, int, memoryview]
"""Its number, its value where that is an integer, its bytes where it has any."""


def read_ends(model: bytes) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Specs of inputs and outputs in the model's order; a shape is None for scalars too, as with ONNX Runtime."""
    inputs: list[TensorSpec] = []
    outputs: list[TensorSpec] = []
    weights: set[str] = set()
    for number, _, graph in _fields(memoryview(model)):
        if number != _MODEL_GRAPH:
            continue
        for inner, _, data in _fields(graph):
            if inner == _GRAPH_INPUT:
                inputs.append(_read_value(data, "input"))
            elif inner == _GRAPH_OUTPUT:
                outputs.append(_read_value(data, "output"))
            elif inner == _GRAPH_INITIALIZER:
                weights.add(_find_text(data, _INITIALIZER_NAME))
    if not outputs:
        raise LoadFailed("this is no ONNX model: it has no outputs")
    return tuple(spec for spec in inputs if spec.name not in weights), tuple(outputs)


def _read_value(data: memoryview, role: str) -> TensorSpec:
    name = _find_text(data, _VALUE_NAME)
    tensor = _find(_find(data, _VALUE_TYPE), _TYPE_TENSOR)
    dtype, shape = 0, memoryview(b"")
    for number, value, inner in _fields(tensor):
        if number == _TENSOR_ELEMENT:
            dtype = value
        elif number == _TENSOR_SHAPE:
            shape = inner
    try:
        known = DType(dtype)
    except ValueError:
        raise LoadFailed(f"{role} {name!r} is no tensor of ordinary elements") from None
    dimensions = tuple(_read_dimension(inner) for number, _, inner in _fields(shape) if number == _SHAPE_DIMENSION)
    return TensorSpec(name, known, dimensions or None)


def _read_dimension(data: memoryview) -> Dimension:
    for number, value, inner in _fields(data):
        if number == _DIMENSION_VALUE and value < 1 << 63:  # above that it is negative, which says nothing
            return value
        if number == _DIMENSION_NAME:
            return _decode(inner) or "?"
    return "?"


def _find(data: memoryview, wanted: int) -> memoryview:
    return next((inner for number, _, inner in _fields(data) if number == wanted), memoryview(b""))


def _find_text(data: memoryview, wanted: int) -> str:
    return _decode(_find(data, wanted))


def _decode(data: memoryview) -> str:
    try:
        return str(data, "utf-8")
    except UnicodeDecodeError:
        raise LoadFailed("this is no ONNX model: a name is not UTF-8") from None


def _fields(data: memoryview) -> Iterator[Field]:
    at = 0
    while at < len(data):
        key, at = _read_varint(data, at)
        number, kind = key >> 3, key & 7
        value, size = 0, 0
        if kind == _VARINT:
            value, at = _read_varint(data, at)
        elif kind == _BYTES:
            size, at = _read_varint(data, at)
        elif kind in (_FIXED32, _FIXED64):
            size = 4 if kind == _FIXED32 else 8
        else:
            raise LoadFailed(f"this is no ONNX model: a field has wire type {kind}")
        if at + size > len(data):
            raise LoadFailed("this is no ONNX model, or it is cut off")
        yield number, value, data[at : at + size]
        at += size


def _read_varint(data: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for position in range(MAX_VARINT_BYTES):
        if at >= len(data):
            break
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << (7 * position)
        if byte < 0x80:
            return value, at
    raise LoadFailed("this is no ONNX model, or it is cut off")
