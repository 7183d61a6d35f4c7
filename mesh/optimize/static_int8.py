"""The pass for networks of convolutions: 8-bit weights and activations with ranges measured on the sample."""

from __future__ import annotations

from collections.abc import Sequence

import onnx

from mesh.optimize.contract import Feeds, Material
from mesh.optimize.operators import (
    FIRST_PER_CHANNEL_OPSET,
    opset_of,
    quantised_count,
    weighted_operators,
    why_not_quantisable,
)
from mesh.optimize.quantiser import quantise_static
from mesh.optimize.sensitivity import float_order


class StaticInt8:
    """Implements `contract.Pass`."""

    name = "int8"
    seven_bit = False
    """Whether weights keep one bit free, so that pairs of products never overflow 16 bits."""

    def requires(self, model: onnx.ModelProto) -> str:
        reason = why_not_quantisable(model)
        if reason:
            return reason
        if opset_of(model) < FIRST_PER_CHANNEL_OPSET:
            return f"operator set {opset_of(model)} has no scales per channel"
        if _has_attention(model):
            return "products of two activations (attention) lose too much with fixed ranges; int8-dynamic is for them"
        return ""

    def apply(self, model: onnx.ModelProto, material: Material) -> onnx.ModelProto:
        ranges = material.ranges.of(model)
        return quantise_static(model, ranges, seven_bit=self.seven_bit, keep_float=material.keep_float)

    def order(self, model: onnx.ModelProto, samples: Sequence[Feeds]) -> list[str]:
        return float_order(model, samples)

    def ensures(self, before: onnx.ModelProto, after: onnx.ModelProto) -> str:
        if not quantised_count(after):
            return "nothing was quantised"
        return "" if len(weighted_operators(after)) < len(weighted_operators(before)) else "all weights are still float"


def _has_attention(model: onnx.ModelProto) -> bool:
    constant = {each.name for each in model.graph.initializer}
    products = [node for node in model.graph.node if node.op_type == "MatMul"]
    return any(not constant.intersection(node.input) for node in products)
