"""Small models that are hard to cut: one per feature of ONNX that a splitter can get wrong."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from scripts.make_models import Builder, start_image, tensor


def make_many_inputs() -> onnx.ModelProto:
    """Three inputs, one read late and one never; three outputs, one made early."""
    build = Builder()
    early = build.linear("first", 8, 8)
    middle = build.add("Relu", build.linear(early, 8, 8))
    late = build.linear(build.add("Add", middle, "second"), 8, 8)
    inputs = [tensor(name, ["batch", 8]) for name in ("first", "second", "unread")]
    return build.model("many_inputs", inputs, [tensor(name, ["batch", 8]) for name in (late, early, middle)])


def make_passing_outputs() -> onnx.ModelProto:
    """Outputs that are an input, a weight, and a constant."""
    build = Builder()
    x = build.linear(build.linear("x", 8, 8), 8, 8)
    constant = build.add("Constant", value=numpy_helper.from_array(np.arange(3, dtype=np.float32)))
    negated = build.add("Neg", constant)
    weight = build.store([1.0, 2.0], name="shown_weight")
    outputs = [tensor("x", [1, 8]), tensor(weight, [2]), tensor(negated, [3]), tensor(x, [1, 8])]
    return build.model("passing_outputs", [tensor("x", [1, 8])], outputs)


def make_shared_weight() -> onnx.ModelProto:
    """One weight read by four layers, and unnamed nodes."""
    build, x = Builder(), "x"
    shared = build.draw(16, 16)
    for _ in range(4):
        x = build.add("Tanh", build.add("MatMul", x, shared))
    for node in build.nodes:
        node.name = ""
    return build.model("shared_weight", [tensor("x", [None, 16])], [tensor(x, [None, 16])])


def make_strings() -> onnx.ModelProto:
    """Strings mapped, compared and chosen; a string tensor crosses every inner cut."""
    build = Builder()
    keys = {"keys_strings": ["text 0", "text 2"], "values_strings": ["zero", "two"], "default_string": "text 1"}
    lower = build.add("LabelEncoder", "words", domain="ai.onnx.ml", **keys)
    other = build.add("Identity", lower)
    same = build.add("Equal", other, build.store(np.array(["text 1"], dtype=object), np.object_))
    chosen = build.add("Where", same, other, build.store(np.array(["none"], dtype=object), np.object_))
    number = build.add("LabelEncoder", chosen, domain="ai.onnx.ml", keys_strings=["none"], values_int64s=[5])
    outputs = [tensor(chosen, [4], TensorProto.STRING), tensor(number, [4], TensorProto.INT64)]
    inputs = [tensor("words", [4], TensorProto.STRING)]
    return build.model("strings", inputs, outputs, opsets=[("", 19), ("ai.onnx.ml", 3)])


def make_old(opset: int, ir_version: int) -> onnx.ModelProto:
    """Before IR version 4 initialisers are inputs too."""
    build, x, inputs = start_image(16)
    x = build.conv(build.conv(x, 4, act="Relu"), 4, act="Relu")
    scale, shift, mean = (build.draw(4) for _ in range(3))
    variance = build.store(np.ones(4))
    x = build.add("BatchNormalization", x, scale, shift, mean, variance, epsilon=1e-3)
    x = build.add("Gemm", build.add("Flatten", x), build.draw(4 * 256, 5), build.draw(5))
    inputs = [*inputs, *(tensor(w.name, list(w.dims)) for w in build.weights)]
    return build.model("old", inputs, [tensor(x, [1, 5])], opsets=[("", opset)], ir_version=ir_version)


def make_loop() -> onnx.ModelProto:
    """A Loop whose body reads a tensor and a weight of the graph, and scans an output."""
    build = Builder()
    x = build.linear("x", 4, 4)
    weight = build.draw(4, 4)
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["state", weight], ["turned"], name="turn"),
            helper.make_node("Add", ["turned", x], ["state_out"], name="shift"),
            helper.make_node("ReduceSum", ["state_out"], ["seen"], name="sum", keepdims=0),
            helper.make_node("Identity", ["going"], ["going_out"], name="go"),
        ],
        "body",
        [tensor("step", [], TensorProto.INT64), tensor("going", [], TensorProto.BOOL), tensor("state", [1, 4])],
        [tensor("going_out", [], TensorProto.BOOL), tensor("state_out", [1, 4]), tensor("seen", [])],
    )
    count, go = build.store(3, np.int64), build.store(True, np.bool_)
    start = build.add("Relu", x)
    final = build.add("Loop", count, go, start, outputs=2, body=body)
    y = build.linear(final, 4, 4)
    return build.model("loop", [tensor("x", [1, 4])], [tensor(y, [1, 4]), tensor(f"{final}.1", [3])])


def make_quantised(dtype: type[np.generic] = np.int8, zero_point: int = 0, act: str = "Relu") -> onnx.ModelProto:
    """Q/DQ convolutions with a residual, weights dequantised from int8; activations are `dtype`."""
    build, x, inputs = start_image(16, 4)

    def quantised(x: str, scale: float) -> str:
        step, zero = build.store(scale), build.store(zero_point, dtype)
        held = build.add("DequantizeLinear", build.add("QuantizeLinear", x, step, zero), step, zero)
        build.channels[held] = build.channels[x]
        return held

    def conv(x: str) -> str:
        weight = build.store(np.random.default_rng(3).integers(-90, 90, (4, 4, 3, 3)), np.int8)
        held = build.add("DequantizeLinear", weight, build.store(0.004), build.store(0, np.int8))
        made = build.add("Conv", x, held, kernel_shape=[3, 3], pads=[1] * 4)
        build.channels[made] = 4
        return quantised(build.add(act, made) if act else made, 0.05)

    x = quantised(x, 0.03)
    for _ in range(3):
        x = quantised(build.add("Add", conv(x), x), 0.06)
    x = build.add("GlobalAveragePool", x)
    return build.model("quantised", inputs, [tensor(x, [1, 4, 1, 1])])


def make_sequence() -> onnx.ModelProto:
    """A sequence is alive in the middle, where no cut may be."""
    build = Builder()
    x = build.linear(build.linear("x", 6, 6), 6, 6)
    pieces = build.add("SplitToSequence", x, axis=1)
    whole = build.add("ConcatFromSequence", build.add("Identity", pieces), axis=1)
    y = build.linear(build.add("Relu", whole), 6, 6)
    return build.model("sequence", [tensor("x", [2, 6])], [tensor(y, [2, None])])


def make_unknown_shape() -> onnx.ModelProto:
    """Ranks that depend on data: types are known, shapes are not."""
    build = Builder()
    x = build.add("Reshape", "x", "shape")
    x = build.add("Relu", build.add("Mul", x, x))
    x = build.add("Exp", build.add("Neg", x))
    inputs = [tensor("x", ["n"]), tensor("shape", ["rank"], TensorProto.INT64)]
    return build.model("unknown_shape", inputs, [tensor(x, None)])


def make_shape_arithmetic() -> onnx.ModelProto:
    """Reshape to a shape computed from the input's, as exporters write it for dynamic axes."""
    build = Builder()
    x = build.linear("x", 8, 8)
    batch = build.add("Gather", build.add("Shape", x), build.store([0], np.int64), axis=0)
    shape = build.add("Concat", batch, build.store([2, 4], np.int64), axis=0)
    x = build.add("Transpose", build.add("Reshape", x, shape), perm=[0, 2, 1])
    y = build.linear(x, 2, 3)
    return build.model("shape_arithmetic", [tensor("x", ["batch", 8])], [tensor(y, ["batch", 4, 3])])


def make_sparse() -> onnx.ModelProto:
    """A sparse initialiser."""
    build = Builder()
    values = numpy_helper.from_array(np.array([1.5, -2.0, 0.5], dtype=np.float32), "sparse_weight")
    indices = numpy_helper.from_array(np.array([1, 6, 11], dtype=np.int64), "sparse_weight_indices")
    sparse = helper.make_sparse_tensor(values, indices, [4, 4])
    x = build.linear("x", 4, 4)
    x = build.linear(build.add("MatMul", x, "sparse_weight"), 4, 4)
    model = build.model("sparse", [tensor("x", [1, 4])], [tensor(x, [1, 4])])
    model.graph.sparse_initializer.append(sparse)
    return model


def make_nothing() -> onnx.ModelProto:
    """No node at all."""
    return Builder().model("nothing", [tensor("x", [3])], [tensor("x", [3])])


def make_computed_weights() -> onnx.ModelProto:
    """Weights that nodes compute from constants; one of them is read in several layers."""
    build, x = Builder(), "x"
    shape = build.store([8, 8], np.int64)
    fill = numpy_helper.from_array(np.array([0.1], dtype=np.float32))
    shared = build.add("ConstantOfShape", shape, value=fill)
    for _ in range(3):
        own = build.add("Mul", shared, build.draw(8, 8))
        x = build.add("Relu", build.add("MatMul", build.add("MatMul", x, shared), own))
    return build.model("computed_weights", [tensor("x", [1, 8])], [tensor(x, [1, 8])])


def make_dead_nodes() -> onnx.ModelProto:
    """A branch that no output needs, in the middle of a chain."""
    build, x = Builder(), "x"
    for _ in range(4):
        x = build.linear(x, 4, 4)
        build.linear(build.add("Tanh", x), 4, 2)
    return build.model("dead_nodes", [tensor("x", [1, 4])], [tensor(x, [1, 4])])


def make_half() -> onnx.ModelProto:
    """Float16 in the middle and integers at the end."""
    build = Builder()
    x = build.add("Cast", build.linear("x", 8, 8), to=TensorProto.FLOAT16)
    weight = build.store(np.random.default_rng(1).standard_normal((8, 8)), np.float16)
    x = build.add("Relu", build.add("MatMul", x, weight))
    best = build.add("ArgMax", build.add("Cast", x, to=TensorProto.FLOAT), axis=1)
    return build.model("half", [tensor("x", [5, 8])], [tensor(best, [5, 1], TensorProto.INT64)])


ODD_MODELS: dict[str, Callable[[], onnx.ModelProto]] = {
    "many_inputs": make_many_inputs,
    "passing_outputs": make_passing_outputs,
    "shared_weight": make_shared_weight,
    "strings": make_strings,
    "opset7_ir3": lambda: make_old(7, 3),
    "opset9_ir4": lambda: make_old(9, 4),
    "loop": make_loop,
    "quantised": make_quantised,
    "quantised_shifted": lambda: make_quantised(np.int8, -7, ""),
    "quantised_unsigned": lambda: make_quantised(np.uint8, 128, ""),
    "sequence": make_sequence,
    "unknown_shape": make_unknown_shape,
    "shape_arithmetic": make_shape_arithmetic,
    "sparse": make_sparse,
    "nothing": make_nothing,
    "computed_weights": make_computed_weights,
    "dead_nodes": make_dead_nodes,
    "half": make_half,
}
