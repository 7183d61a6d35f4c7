"""Small networks with seeded weights, one for each thing that a pass may meet."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from mesh.arrays import Array

FLOAT = TensorProto.FLOAT
SIDE = 6
WIDTH = 8


def weight(name: str, *shape: int, seed: int = 0) -> onnx.TensorProto:
    drawn = np.random.default_rng([seed, *shape]).normal(0, 1 / np.sqrt(np.prod(shape[1:])), shape)
    return numpy_helper.from_array(drawn.astype(np.float32), name)


def make(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    weights: Sequence[onnx.TensorProto],
    opset: int = 17,
) -> onnx.ModelProto:
    graph = helper.make_graph(nodes, "tiny", inputs, outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.checker.check_model(model)
    return model


def conv_net(opset: int = 17, batch: int | str = "batch", side: int | str = SIDE) -> onnx.ModelProto:
    """Two convolutions and a classifier of four classes."""
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], name="first", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"], name="relu1"),
        helper.make_node("Conv", ["r1", "w2"], ["c2"], name="second", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c2"], ["r2"], name="relu2"),
        helper.make_node("GlobalAveragePool", ["r2"], ["p"], name="pool"),
        helper.make_node("Flatten", ["p"], ["f"], name="flatten"),
        helper.make_node("Gemm", ["f", "w3", "b3"], ["y"], name="last", transB=1),
    ]
    weights = [
        weight("w1", WIDTH, 2, 3, 3),
        weight("b1", WIDTH),
        weight("w2", WIDTH, WIDTH, 3, 3),
        weight("w3", 4, WIDTH),
        weight("b3", 4),
    ]
    return make(
        nodes,
        [helper.make_tensor_value_info("x", FLOAT, [batch, 2, side, side])],
        [helper.make_tensor_value_info("y", FLOAT, [batch, 4])],
        weights,
        opset,
    )


def product_net() -> onnx.ModelProto:
    """Two matrix products."""
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["m1"], name="first"),
        helper.make_node("Relu", ["m1"], ["r1"], name="relu"),
        helper.make_node("MatMul", ["r1", "w2"], ["y"], name="last"),
    ]
    return make(
        nodes,
        [helper.make_tensor_value_info("x", FLOAT, ["batch", 16])],
        [helper.make_tensor_value_info("y", FLOAT, ["batch", 4])],
        [weight("w1", 16, 32), weight("w2", 32, 4)],
    )


def attention_net() -> onnx.ModelProto:
    """Queries and keys are both activations."""
    nodes = [
        helper.make_node("MatMul", ["x", "wq"], ["q"], name="queries"),
        helper.make_node("MatMul", ["x", "wk"], ["k"], name="keys"),
        helper.make_node("Transpose", ["k"], ["kt"], name="turn", perm=[0, 2, 1]),
        helper.make_node("MatMul", ["q", "kt"], ["s"], name="scores"),
        helper.make_node("Softmax", ["s"], ["a"], name="attention"),
        helper.make_node("MatMul", ["a", "q"], ["y"], name="mix"),
    ]
    return make(
        nodes,
        [helper.make_tensor_value_info("x", FLOAT, ["batch", 5, 16])],
        [helper.make_tensor_value_info("y", FLOAT, ["batch", 5, 16])],
        [weight("wq", 16, 16), weight("wk", 16, 16, seed=1)],
    )


def weightless_net() -> onnx.ModelProto:
    return make(
        [helper.make_node("Relu", ["x"], ["y"], name="relu")],
        [helper.make_tensor_value_info("x", FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("y", FLOAT, ["batch", 4])],
        [],
    )


MODELS: dict[str, Callable[[], onnx.ModelProto]] = {
    "conv": conv_net,
    "conv-opset-7": lambda: conv_net(opset=7),
    "conv-opset-11": lambda: conv_net(opset=11),
    "conv-batch-1": lambda: conv_net(batch=1),
    "conv-open-sides": lambda: conv_net(side="side"),
    "products": product_net,
    "attention": attention_net,
    "weightless": weightless_net,
}


def draw(model: onnx.ModelProto, count: int, seed: int = 3) -> dict[str, Array]:
    """Arrays of `count` samples for every input."""
    made = {}
    for value in model.graph.input:
        dims = [each.dim_value or SIDE for each in value.type.tensor_type.shape.dim][1:]
        made[value.name] = np.random.default_rng(seed).normal(size=(count, *dims)).astype(np.float32)
    return made
