"""Operators that only ONNX Runtime has, replaced by ONNX operators of the same shape.

Models that the runtime optimised or quantised contain operators of its own domain, where ONNX's
shape inference would stop. In the skeleton, and only there, each is replaced by an operator that
answers in the same shape and element type and costs about the same, so that inference goes on and
operations are counted. What has no stand-in keeps its place.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx

from mesh.model.skeleton import RUNTIME_DOMAIN

FUSED_ATTRIBUTES = frozenset(
    {"activation", "activation_params", "activation_alpha", "activation_beta", "activation_gamma", "channels_last"}
)
"""What the fused operators have beyond their ONNX namesakes."""


def _keep(*positions: int) -> Callable[[list[str]], list[str]]:
    return lambda names: [names[position] for position in positions if position < len(names)]


def _every_third(names: list[str]) -> list[str]:
    """QLinearConcat lists scale and zero point of the result, then tensor, scale and zero point of each part."""
    return names[2::3]


STAND_INS: dict[str, tuple[str, Callable[[list[str]], list[str]]]] = {
    "FusedConv": ("Conv", _keep(0, 1, 2)),
    "FusedGemm": ("Gemm", _keep(0, 1, 2)),
    "QGemm": ("Gemm", _keep(0, 3)),
    "QLinearAdd": ("Add", _keep(0, 3)),
    "QLinearMul": ("Mul", _keep(0, 3)),
    "QLinearAveragePool": ("AveragePool", _keep(0)),
    "QLinearGlobalAveragePool": ("GlobalAveragePool", _keep(0)),
    "QLinearConcat": ("Concat", _every_third),
    "QLinearLeakyRelu": ("Relu", _keep(0)),
    "QLinearSigmoid": ("Relu", _keep(0)),
    "QLinearSoftmax": ("Relu", _keep(0)),
    "BiasGelu": ("Relu", _keep(0)),
    "FastGelu": ("Relu", _keep(0)),
    "Gelu": ("Relu", _keep(0)),
    "QuickGelu": ("Relu", _keep(0)),
    "SimplifiedLayerNormalization": ("Relu", _keep(0)),
    "LayerNormalization": ("Relu", _keep(0)),
    "SkipLayerNormalization": ("Relu", _keep(0)),
    "SkipSimplifiedLayerNormalization": ("Relu", _keep(0)),
}
"""Operator of the runtime -> ONNX operator, and which inputs it takes."""

KEEPS_ATTRIBUTES = frozenset({"AveragePool", "Concat", "Conv", "Gemm"})


def replace_runtime_operators(skeleton: onnx.ModelProto) -> None:
    """Put stand-ins into the graph of `skeleton`. Only the first output of a replaced node is described."""
    for node in skeleton.graph.node:
        if node.domain != RUNTIME_DOMAIN or node.op_type not in STAND_INS:
            continue
        if any(a.name == "channels_last" and a.i for a in node.attribute):
            continue  # laid out in another order than ONNX knows
        kind, choose = STAND_INS[node.op_type]
        inputs = choose(list(node.input))
        if not inputs:
            continue
        kept = [a for a in node.attribute if kind in KEEPS_ATTRIBUTES and a.name not in FUSED_ATTRIBUTES]
        stand_in = onnx.helper.make_node(kind, inputs, list(node.output[:1]), name=node.name)
        stand_in.attribute.extend(kept)
        node.CopyFrom(stand_in)
