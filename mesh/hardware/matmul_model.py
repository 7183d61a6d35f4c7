"""A one-operator ONNX model as bytes: Y = X @ W, single precision, W inside.

Nodes have no `onnx` package, and a board is to be measured through the runtime that will do the work, so
this file writes the few protobuf fields itself. Field numbers are those of `onnx.proto` (ONNX 1.x, which
never renumbers); a test reads the bytes back with `onnx` and runs its checker on them.

The weights lie in the model, as in models in use: ONNX Runtime packs them once at load.
"""

from __future__ import annotations

IR_VERSION = 8
"""Read by every ONNX Runtime since 1.10."""

OPSET_VERSION = 13
FLOAT = 1
"""TensorProto.DataType.FLOAT"""

INPUT_NAME = "x"
OUTPUT_NAME = "y"
_WEIGHT_NAME = "w"


def build_matmul_model(size: int, weights: bytes) -> bytes:
    """A serialised ModelProto with input x (size, size) and output y (size, size), both float32.

    `weights`: size * size little-endian float32, row-major. Raises `ValueError` for another length.
    """
    if len(weights) != 4 * size * size:
        raise ValueError(f"{len(weights)} bytes of weights for a {size} x {size} matrix")
    node = _text(1, INPUT_NAME) + _text(1, _WEIGHT_NAME) + _text(2, OUTPUT_NAME) + _text(4, "MatMul")
    tensor = _number(1, size) + _number(1, size) + _number(2, FLOAT) + _text(8, _WEIGHT_NAME) + _bytes(9, weights)
    graph = (
        _bytes(1, node)
        + _text(2, "benchmark")
        + _bytes(5, tensor)
        + _bytes(11, _value_info(INPUT_NAME, size))
        + _bytes(12, _value_info(OUTPUT_NAME, size))
    )
    opset = _text(1, "") + _number(2, OPSET_VERSION)
    return _number(1, IR_VERSION) + _text(2, "infermesh") + _bytes(7, graph) + _bytes(8, opset)


def _value_info(name: str, size: int) -> bytes:
    dimension = _bytes(1, _number(1, size))
    tensor_type = _number(1, FLOAT) + _bytes(2, dimension + dimension)
    return _text(1, name) + _bytes(2, _bytes(1, tensor_type))


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _text(field: int, value: str) -> bytes:
    return _bytes(field, value.encode())


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
