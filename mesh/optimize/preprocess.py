"""The first pass: a float model that a quantiser can work on.

Brings the operators to a version with scales per channel, folds batch normalisation and constants with the runtime's
portable optimisations (the same that onnxruntime.quantization's preprocess applies), and infers shapes. Symbolic shape
inference is left out: it needs one more package and helps only where shapes depend on values.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx
import onnxruntime

from mesh.optimize.contract import Feeds, Material, PassFailed
from mesh.optimize.operators import FIRST_PER_CHANNEL_OPSET, opset_of, quantised_count
from mesh.optimize.quantiser import first_line, quantiser_calls

_FATAL = 4
"""Log severity: reasons travel in exceptions, so the runtime need not print them as well."""


class Preprocess:
    """Implements `contract.Pass`."""

    name = "preprocess"

    def requires(self, model: onnx.ModelProto) -> str:
        return "the model is quantised already" if quantised_count(model) else ""

    def apply(self, model: onnx.ModelProto, material: Material) -> onnx.ModelProto:
        fused = _fuse(_converted(model))
        with quantiser_calls("shape inference"):
            inferred = onnx.shape_inference.infer_shapes(fused)
        _name_nodes(inferred)
        return inferred

    def ensures(self, before: onnx.ModelProto, after: onnx.ModelProto) -> str:
        if [each.name for each in before.graph.output] != [each.name for each in after.graph.output]:
            return "the outputs are not those of the model"
        if [each.name for each in before.graph.input] != [each.name for each in after.graph.input]:
            return "the inputs are not those of the model"
        return "" if opset_of(after) >= FIRST_PER_CHANNEL_OPSET else f"the operator set is still {opset_of(after)}"

    def order(self, model: onnx.ModelProto, samples: Sequence[Feeds]) -> list[str]:
        return []  # all or nothing


def _converted(model: onnx.ModelProto) -> onnx.ModelProto:
    opset = opset_of(model)
    if opset >= FIRST_PER_CHANNEL_OPSET:
        return model
    try:
        return onnx.version_converter.convert_version(model, FIRST_PER_CHANNEL_OPSET)
    except Exception as error:  # the converter's C++ errors come as RuntimeError and others
        raise PassFailed(
            f"operator set {opset} cannot be converted to {FIRST_PER_CHANNEL_OPSET}, the first with scales per "
            f"channel: {first_line(error)}; export the model with a newer operator set"
        ) from error


def _fuse(model: onnx.ModelProto) -> onnx.ModelProto:
    with quantiser_calls("fusion") as folder:
        target = folder / "fused.onnx"
        options = onnxruntime.SessionOptions()
        options.log_severity_level = _FATAL
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(target)
        onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return onnx.load(target)


def _name_nodes(model: onnx.ModelProto) -> None:
    """Each node by a name of its own: operators that stay in float are told by name."""
    seen: set[str] = set()
    for index, node in enumerate(model.graph.node):
        if not node.name or node.name in seen:
            node.name = f"{node.op_type}_{index}_{node.output[0] if node.output else ''}"
        seen.add(node.name)
