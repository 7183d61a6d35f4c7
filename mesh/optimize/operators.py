"""What a graph holds that could be quantised, and what says that somebody did so already. Pure."""

from __future__ import annotations

import onnx
from onnx import TensorProto

WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
"""Operators whose second input is the weight, and that have int8 kernels."""

FIRST_PER_CHANNEL_OPSET = 13
"""QuantizeLinear and DequantizeLinear have an axis since then."""

_QUANTISED = frozenset(
    {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "ConvInteger", "MatMulInteger", "MatMulNBits"}
)


def opset_of(model: onnx.ModelProto) -> int:
    """The version of ONNX's own operators that `model` imports; 0 where it imports none."""
    return next((each.version for each in model.opset_import if each.domain in ("", "ai.onnx")), 0)


def float_weights(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    """Float32 initialisers by name."""
    return {each.name: each for each in model.graph.initializer if each.data_type == TensorProto.FLOAT}


def weighted_operators(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """Operators with a constant float32 weight, in graph order."""
    weights = float_weights(model)
    return [
        node
        for node in model.graph.node
        if node.op_type in WEIGHTED and len(node.input) > 1 and node.input[1] in weights
    ]


def is_quantised(node: onnx.NodeProto) -> bool:
    return node.op_type in _QUANTISED or node.op_type.startswith(("QLinear", "QGemm", "QAttention", "DynamicQuantize"))


def quantised_count(model: onnx.ModelProto) -> int:
    return sum(is_quantised(node) for node in model.graph.node)


def why_not_quantisable(model: onnx.ModelProto) -> str:
    """ "" where there is something to quantise."""
    if quantised_count(model):
        return "the model is quantised already"
    if not weighted_operators(model):
        return "there is nothing to quantise: no convolution or matrix product with constant float32 weights"
    return ""
