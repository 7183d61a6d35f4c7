"""What operators cost before anybody measured them: floating-point operations and bytes of weights.

An estimate for planning: multiply and add count as two, symbolic dimensions as 1, moving data as
nothing. Profiles measured on devices replace it (see `Costs` in planning). Bodies count once.
Pure; shapes come from `mesh.model.shapes`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import onnx

from mesh.model.tensors import tensor_bytes
from mesh.model.traverse import FunctionKey, bodies_of, function_key

Shape = tuple[int, ...]
ShapeOf = Callable[[str], Shape | None]
"""A tensor's dimensions with symbolic ones at 1; None where the rank is unknown."""

MIN_WEIGHT_BYTES = 1024
"""Constants inside nodes below this are parameters of operators (axes, shapes), not weights worth planning for."""

FREE = frozenset(
    {
        "Cast",
        "CastLike",
        "Compress",
        "Concat",
        "ConcatFromSequence",
        "Constant",
        "ConstantOfShape",
        "DepthToSpace",
        "Dropout",
        "Expand",
        "EyeLike",
        "Flatten",
        "Gather",
        "GatherElements",
        "GatherND",
        "Identity",
        "NonZero",
        "OneHot",
        "Optional",
        "Pad",
        "Range",
        "Reshape",
        "Scatter",
        "ScatterElements",
        "ScatterND",
        "SequenceAt",
        "SequenceConstruct",
        "SequenceEmpty",
        "SequenceInsert",
        "Shape",
        "Size",
        "Slice",
        "SpaceToDepth",
        "Split",
        "SplitToSequence",
        "Squeeze",
        "Tile",
        "Transpose",
        "Trilu",
        "Unsqueeze",
    }
)
"""Views, shape arithmetic and plain copies."""

PER_INPUT = {
    "BatchNormalization": 2,
    "GlobalAveragePool": 1,
    "GlobalMaxPool": 1,
    "GroupNormalization": 8,
    "InstanceNormalization": 8,
    "LayerNormalization": 8,
    "LogSoftmax": 5,
    "LpNormalization": 3,
    "RMSNormalization": 6,
    "Resize": 0,
    "Softmax": 5,
}
"""Operations per element of the first input, roughly."""

POOLS = frozenset({"AveragePool", "MaxPool", "LpPool"})
CONVOLUTIONS = {"Conv": 1, "ConvInteger": 1, "FusedConv": 1, "QLinearConv": 3, "DeformConv": 1}
"""Operator to the position of its filter."""
PRODUCTS = {"MatMul": 1, "MatMulInteger": 1, "FusedMatMul": 1, "QLinearMatMul": 3}
"""Operator to the position of its second factor."""
RECURRENT = frozenset({"LSTM", "GRU", "RNN"})
RESIZE_LINEAR = 8


class Scales:
    """Weighs the nodes of one graph or body."""

    def __init__(self, shape_of: ShapeOf, functions: Mapping[FunctionKey, onnx.FunctionProto]) -> None:
        self._shape_of = shape_of
        self._functions = functions

    def elements(self, name: str) -> int:
        """Elements of a tensor; 1 where nothing is known."""
        shape = self._shape_of(name) if name else None
        return 1 if shape is None else math.prod(shape)

    def flops(self, node: onnx.NodeProto) -> int:
        """Floating-point operations of one run of `node`."""
        bodies = [self._body_flops(body) for body in bodies_of(node)]
        if bodies:
            return max(bodies) if node.op_type == "If" else sum(bodies)
        function = self._functions.get(function_key(node))
        if function is not None:
            return self._function_flops(node, function)
        return self._operator_flops(node)

    def _operator_flops(self, node: onnx.NodeProto) -> int:
        kind = node.op_type
        made = self._made(node)
        if kind in FREE:
            return 0
        if kind in CONVOLUTIONS:
            filter_shape = self._input_shape(node, CONVOLUTIONS[kind])
            return made * (2 * math.prod(filter_shape[1:]) if filter_shape else 2)
        if kind == "ConvTranspose":
            filter_shape = self._input_shape(node, 1)
            return self._read(node) * (2 * math.prod(filter_shape[1:]) if filter_shape else 2)
        if kind in PRODUCTS:
            return self._product_flops(node, made, PRODUCTS[kind])
        if kind in ("Gemm", "FusedGemm"):
            shape = self._input_shape(node, 0) or (1, 1)
            transposed = int_attribute(node, "transA", 0)
            return 2 * made * (shape[0] if transposed else shape[-1])
        if kind == "MatMulNBits":
            return 2 * made * int_attribute(node, "K", 1)
        if kind in POOLS:
            return made * math.prod(ints_attribute(node, "kernel_shape") or (1,))
        if kind in RECURRENT:
            return self._recurrent_flops(node)
        if kind == "Einsum":
            return self._einsum_flops(node)
        if kind in ("Resize", "Upsample"):
            mode = next((a.s for a in node.attribute if a.name == "mode"), b"nearest")
            return 0 if mode == b"nearest" else made * RESIZE_LINEAR
        if kind.startswith("Reduce") or kind in ("ArgMax", "ArgMin", "CumSum", "TopK"):
            return self._read(node)
        return self._read(node) * PER_INPUT[kind] if kind in PER_INPUT else made

    def _made(self, node: onnx.NodeProto) -> int:
        """Elements of the first output, or of the first input where nothing is known of the output."""
        if node.output and self._shape_of(node.output[0]) is not None:
            return self.elements(node.output[0])
        return self._read(node)

    def _read(self, node: onnx.NodeProto) -> int:
        return self.elements(node.input[0]) if node.input else 1

    def _input_shape(self, node: onnx.NodeProto, position: int) -> Shape | None:
        return self._shape_of(node.input[position]) if position < len(node.input) else None

    def _product_flops(self, node: onnx.NodeProto, made: int, second: int) -> int:
        shape = self._input_shape(node, 0)
        if shape:
            return 2 * made * shape[-1]
        other = self._input_shape(node, second)
        return 2 * math.prod(other) if other else 2 * made

    def _recurrent_flops(self, node: onnx.NodeProto) -> int:
        steps = math.prod((self._input_shape(node, 0) or (1, 1))[:2])
        return 2 * steps * sum(self.elements(name) for name in node.input[1:3])

    def _einsum_flops(self, node: onnx.NodeProto) -> int:
        equation = next((a.s.decode(errors="replace") for a in node.attribute if a.name == "equation"), "")
        sizes: dict[str, int] = {}
        for term, name in zip(equation.split("->")[0].split(","), node.input, strict=False):
            for letter, size in zip(term.replace(" ", "").replace("...", ""), self._shape_of(name) or (), strict=False):
                sizes[letter] = max(size, sizes.get(letter, 1))
        return 2 * math.prod(sizes.values())

    def _body_flops(self, body: onnx.GraphProto) -> int:
        inner = local_shapes(body)
        scales = Scales(lambda name: inner[name] if name in inner else self._shape_of(name), self._functions)
        return sum(scales.flops(node) for node in body.node)

    def _function_flops(self, node: onnx.NodeProto, function: onnx.FunctionProto) -> int:
        """Weigh a local function on the shapes of this call, inferred step by step through its body."""
        inner = {
            formal: shape
            for formal, actual in zip(function.input, node.input, strict=False)
            if (shape := self._shape_of(actual)) is not None
        }
        for formal, actual in zip(function.output, node.output, strict=False):
            shape = self._shape_of(actual)
            if shape is not None:
                inner[formal] = shape
        scales = Scales(inner.get, self._functions)
        total = 0
        for step in function.node:
            for name in step.output:
                # Most operators answer in the shape of their largest input; good enough for an estimate.
                known = [inner[read] for read in step.input if read in inner]
                if name not in inner and known:
                    inner[name] = max(known, key=math.prod)
            total += scales.flops(step)
        return total


def local_shapes(graph: onnx.GraphProto) -> dict[str, Shape]:
    """Shapes of the values that a graph or body declares, symbolic dimensions at 1."""
    shapes: dict[str, Shape] = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for value in (*graph.input, *graph.output, *graph.value_info):
        kind = value.type.tensor_type
        if value.type.WhichOneof("value") == "tensor_type" and kind.HasField("shape"):
            shapes[value.name] = tuple(dim.dim_value if dim.dim_value > 0 else 1 for dim in kind.shape.dim)
    return shapes


def int_attribute(node: onnx.NodeProto, name: str, default: int) -> int:
    return next((attribute.i for attribute in node.attribute if attribute.name == name), default)


def ints_attribute(node: onnx.NodeProto, name: str) -> tuple[int, ...]:
    return next((tuple(attribute.ints) for attribute in node.attribute if attribute.name == name), ())


def initialiser_bytes(graph: onnx.GraphProto) -> dict[str, int]:
    """Bytes of every initialiser of a graph; sparse ones as stored."""
    sizes = {tensor.name: tensor_bytes(tensor) for tensor in graph.initializer}
    for sparse in graph.sparse_initializer:
        sizes[sparse.values.name] = tensor_bytes(sparse.values) + tensor_bytes(sparse.indices)
    return sizes


def carried_bytes(node: onnx.NodeProto) -> int:
    """Bytes of the tensors that a node carries in its attributes and bodies."""
    total = 0
    for attribute in node.attribute:
        for tensor in (attribute.t, *attribute.tensors):
            total += tensor_bytes(tensor) if tensor.data_type else 0
        for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
            if sparse.values.data_type:
                total += tensor_bytes(sparse.values) + tensor_bytes(sparse.indices)
    for body in bodies_of(node):
        total += sum(initialiser_bytes(body).values())
        total += sum(carried_bytes(inner) for inner in body.node)
    return total
