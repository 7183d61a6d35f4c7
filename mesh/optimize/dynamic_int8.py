"""The pass for transformers and other networks of matrix products: int8 weights, activations scaled as they come."""

from __future__ import annotations

import math
from collections.abc import Sequence

import onnx

from mesh.optimize.contract import Feeds, Material
from mesh.optimize.operators import float_weights, quantised_count, weighted_operators, why_not_quantisable
from mesh.optimize.quantiser import quantise_dynamic
from mesh.optimize.sensitivity import float_order

TYPES = ("MatMul", "Gemm", "Gather")
"""Convolutions are left out: their dynamic kernel is slow. Gather holds the embeddings."""


class DynamicInt8:
    """Implements `contract.Pass`."""

    name = "int8-dynamic"

    def requires(self, model: onnx.ModelProto) -> str:
        reason = why_not_quantisable(model)
        if reason:
            return reason
        weights = float_weights(model)
        elements = {"products": 0, "convolutions": 0}
        for node in weighted_operators(model):
            kind = "products" if node.op_type in TYPES else "convolutions"
            elements[kind] += math.prod(weights[node.input[1]].dims)
        if elements["products"] <= elements["convolutions"]:
            return "most weights belong to convolutions, which dynamic quantisation makes slower"
        return ""

    def apply(self, model: onnx.ModelProto, material: Material) -> onnx.ModelProto:
        return quantise_dynamic(model, TYPES, material.keep_float)

    def order(self, model: onnx.ModelProto, samples: Sequence[Feeds]) -> list[str]:
        return float_order(model, samples)

    def ensures(self, before: onnx.ModelProto, after: onnx.ModelProto) -> str:
        return "" if quantised_count(after) else "nothing was quantised"
