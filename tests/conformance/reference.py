"""Plain ONNX Runtime in this process: what a case must pass before the mesh is held to it."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
import onnxruntime
from onnx import TensorProto

FATAL = 4

NARROW_TYPES = {
    "bfloat16": (TensorProto.BFLOAT16, np.uint16, ml_dtypes.bfloat16),
    "float8e4m3fn": (TensorProto.FLOAT8E4M3FN, np.uint8, ml_dtypes.float8_e4m3fn),
    "float8e4m3fnuz": (TensorProto.FLOAT8E4M3FNUZ, np.uint8, ml_dtypes.float8_e4m3fnuz),
    "float8e5m2": (TensorProto.FLOAT8E5M2, np.uint8, ml_dtypes.float8_e5m2),
    "float8e5m2fnuz": (TensorProto.FLOAT8E5M2FNUZ, np.uint8, ml_dtypes.float8_e5m2fnuz),
}
"""ONNX Runtime's name -> ONNX's number, the bits as NumPy has them, and the type that expected values have."""


def load(model: bytes) -> onnxruntime.InferenceSession:
    """Raises whatever ONNX Runtime raises."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = FATAL
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def run(session: onnxruntime.InferenceSession, feeds: Mapping[str, Any]) -> list[Any]:
    """Outputs in the model's order. Raises whatever ONNX Runtime raises."""
    options = onnxruntime.RunOptions()
    options.log_severity_level = FATAL
    arrays = [*feeds.values()]
    kinds = [node.type for node in (*session.get_inputs(), *session.get_outputs())]
    narrow = any(kind == f"tensor({name})" for kind in kinds for name in NARROW_TYPES)
    if not narrow or not all(isinstance(array, np.ndarray) and array.dtype != object for array in arrays):
        outputs: list[Any] = session.run(None, dict(feeds), options)
        return outputs
    values = {name: _to_value(array) for name, array in feeds.items()}
    names = [node.name for node in session.get_outputs()]
    return [_to_array(value) for value in session.run_with_ort_values(names, values, options)]


def _to_value(array: np.ndarray[Any, Any]) -> onnxruntime.OrtValue:
    for number, bits, kind in NARROW_TYPES.values():
        if array.dtype == kind:
            return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(
                np.ascontiguousarray(array).view(bits), number
            )
    return onnxruntime.OrtValue.ortvalue_from_numpy(array)


def _to_array(value: onnxruntime.OrtValue) -> Any:
    name = value.data_type().removeprefix("tensor(").removesuffix(")")
    if name not in NARROW_TYPES:
        return value.numpy()
    _, bits, kind = NARROW_TYPES[name]
    shape = value.shape()
    size = math.prod(shape) * np.dtype(bits).itemsize
    data = ctypes.string_at(value.data_ptr(), size) if size else b""
    return np.frombuffer(data, bits).view(kind).reshape(shape)
