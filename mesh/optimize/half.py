"""The pass for transfer and accelerators: weights and arithmetic in float16, inputs and outputs as they were.

Half the size at hardly any loss. Processors without float16 arithmetic convert back and forth and are slower, which the
timing shows. Weights beyond float16's range are cut to it by the converter; the gate judges what that did.
Source: onnxruntime.transformers.float16.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import onnx
import onnxruntime
from onnx import TensorProto

from mesh.optimize.contract import Feeds, Material, PassFailed
from mesh.optimize.operators import float_weights, quantised_count
from mesh.optimize.quantiser import quantiser_calls
from mesh.optimize.sensitivity import float_order


class Half:
    """Implements `contract.Pass`."""

    name = "fp16"

    def requires(self, model: onnx.ModelProto) -> str:
        if quantised_count(model):
            return "the model is quantised already"
        return "" if float_weights(model) else "there are no float32 weights"

    def apply(self, model: onnx.ModelProto, material: Material) -> onnx.ModelProto:
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        with quantiser_calls("conversion to float16"):
            convert = _load_converter().convert_float_to_float16
            made: onnx.ModelProto = convert(copy, keep_io_types=True, node_block_list=sorted(material.keep_float))
        return made

    def order(self, model: onnx.ModelProto, samples: Sequence[Feeds]) -> list[str]:
        return float_order(model, samples)

    def ensures(self, before: onnx.ModelProto, after: onnx.ModelProto) -> str:
        if any(each.data_type == TensorProto.FLOAT16 for each in after.graph.initializer):
            return ""
        return "no weight became float16"


def _load_converter() -> ModuleType:
    """The file alone: its package puts a folder of modules with common names on the import path."""
    path = Path(onnxruntime.__file__).parent / "transformers" / "float16.py"
    spec = importlib.util.spec_from_file_location("onnxruntime_float16", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise PassFailed("this onnxruntime has no converter to float16")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
