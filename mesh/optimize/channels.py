"""Which channels of a network can go: those that one operator makes and one other reads.

A *span* runs from the convolution or matrix product that makes the channels, over operators that keep them apart
(activations, pools, depthwise convolutions, the flattening before a classifier), to the one that mixes them. Nothing
else may look at them on the way: what enters a residual sum, a concatenation or an output has to keep its channels, as
its other readers count on them. Pure.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import numpy_helper

from mesh.arrays import Array
from mesh.optimize.operators import float_weights

_ACTIVATIONS = {
    "Relu",
    "LeakyRelu",
    "Clip",
    "Elu",
    "Selu",
    "Celu",
    "HardSwish",
    "HardSigmoid",
    "Sigmoid",
    "Tanh",
    "Softplus",
    "Softsign",
    "Mish",
    "Gelu",
    "Identity",
}
_POOLS = {"MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"}
KEEPS_CHANNELS_APART = frozenset(_ACTIVATIONS | _POOLS)
"""Operators whose first input and only output have the same channels, each computed from its own."""


@dataclass(frozen=True, slots=True)
class Span:
    maker: str
    """Node that makes the channels: a convolution in one group, or a matrix product."""
    depthwise: tuple[str, ...]
    """Nodes on the way with weights per channel."""
    reader: str
    """Node that mixes the channels."""
    entry: str
    """Tensor that the reader reads."""
    channels: int
    per_channel: int
    """Columns of the reader's weights for each channel: 1, or the places of a flattened image."""


def find_spans(model: onnx.ModelProto) -> list[Span]:
    """In the order of the graph."""
    finder = _Finder(model)
    spans = [finder.span_from(node) for node in model.graph.node if node.op_type in ("Conv", "Gemm", "MatMul")]
    return [span for span in spans if span is not None]


class _Finder:
    def __init__(self, model: onnx.ModelProto) -> None:
        self._weights = {name: tuple(weight.dims) for name, weight in float_weights(model).items()}
        self._uses = Counter(name for node in model.graph.node for name in node.input)
        self._outputs = {each.name for each in model.graph.output}
        self._readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in model.graph.node:
            for name in node.input:
                self._readers[name].append(node)
            self._outputs |= read_inside(node)

    def span_from(self, maker: onnx.NodeProto) -> Span | None:
        if not self._is_own(maker) or (maker.op_type == "Conv" and group_of(maker) != 1):
            return None
        channels = self._made_by(maker)
        tensor, depthwise, is_flat = maker.output[0], [], False
        while True:
            node = self._only_reader(tensor)
            if node is None:
                return None
            if node.op_type == "Flatten" and attribute_of(node, "axis", 1) == 1 and maker.op_type == "Conv":
                is_flat = True
            elif node.op_type == "Conv" and self._is_depthwise(node, channels):
                depthwise.append(node.name)
            elif node.op_type not in KEEPS_CHANNELS_APART or len(node.output) > 1:
                return self._span_to(node, maker, tuple(depthwise), tensor, channels, is_flat)
            tensor = node.output[0]

    def _span_to(
        self,
        reader: onnx.NodeProto,
        maker: onnx.NodeProto,
        depthwise: tuple[str, ...],
        entry: str,
        channels: int,
        is_flat: bool,
    ) -> Span | None:
        if reader.op_type == "Conv":
            fits = maker.op_type == "Conv" and not is_flat and group_of(reader) == 1
        else:
            fits = reader.op_type in ("Gemm", "MatMul") and (is_flat or maker.op_type != "Conv")
        if not fits or not self._is_own(reader):
            return None
        columns = self._weights[reader.input[1]][reading_axis(reader)]
        if columns % channels or (columns != channels and not is_flat):
            return None
        return Span(maker.name, depthwise, reader.name, entry, channels, columns // channels)

    def _only_reader(self, tensor: str) -> onnx.NodeProto | None:
        readers = self._readers[tensor]
        if tensor in self._outputs or len(readers) != 1 or readers[0].input[0] != tensor:
            return None
        return readers[0] if list(readers[0].input).count(tensor) == 1 else None

    def _is_own(self, node: onnx.NodeProto) -> bool:
        """Whether its weights and bias are constants that nobody else uses, laid out as is known here."""
        constants = [name for name in node.input[1:] if name]
        if not constants or any(name not in self._weights or self._uses[name] > 1 for name in constants):
            return False
        if node.op_type == "Conv":
            return len(self._weights[constants[0]]) == 4
        if node.op_type == "Gemm":
            plain = attribute_of(node, "transA", 0) == 0 and attribute_of(node, "alpha", 1.0) == 1.0
            bias = len(constants) == 1 or self._weights[constants[1]] == (self._made_by(node),)
            return plain and bias and attribute_of(node, "beta", 1.0) == 1.0
        return len(self._weights[constants[0]]) == 2

    def _made_by(self, node: onnx.NodeProto) -> int:
        return self._weights[node.input[1]][making_axis(node)]

    def _is_depthwise(self, node: onnx.NodeProto, channels: int) -> bool:
        return self._is_own(node) and group_of(node) == channels == self._weights[node.input[1]][0]


def read_inside(node: onnx.NodeProto) -> set[str]:
    """Tensors that the bodies of a control-flow node read: any of the graph around it may be among them."""
    found: set[str] = set()
    for attribute in node.attribute:
        for body in (attribute.g, *attribute.graphs):
            for inner in body.node:
                found |= {*inner.input, *read_inside(inner)}
            found |= {each.name for each in body.output}
    return found


# Layout of weights ---------------------------------------------------------------------------------


def making_axis(node: onnx.NodeProto) -> int:
    """Axis of the weights that counts the channels which `node` makes."""
    if node.op_type == "Conv":
        return 0
    return 0 if attribute_of(node, "transB", 0) else 1


def reading_axis(node: onnx.NodeProto) -> int:
    return 1 - making_axis(node)


def attribute_of(node: onnx.NodeProto, name: str, default: int | float) -> int | float:
    for attribute in node.attribute:
        if attribute.name == name:
            return attribute.f if attribute.type == onnx.AttributeProto.FLOAT else attribute.i
    return default


def group_of(node: onnx.NodeProto) -> int:
    return int(attribute_of(node, "group", 1))


# Taking channels out -------------------------------------------------------------------------------


def take_out(model: onnx.ModelProto, span: Span, kept: Sequence[int]) -> None:
    """Leave only the channels at `kept`, in place; the reader's weights for them stay as they were."""
    nodes = {node.name: node for node in model.graph.node}
    weights = {each.name: each for each in model.graph.initializer}
    maker, reader = nodes[span.maker], nodes[span.reader]
    _keep(weights[maker.input[1]], making_axis(maker), kept)
    for name in maker.input[2:3]:
        _keep(weights[name], 0, kept)
    for each in span.depthwise:
        for name in nodes[each].input[1:3]:
            _keep(weights[name], 0, kept)
        for attribute in nodes[each].attribute:
            if attribute.name == "group":
                attribute.i = len(kept)
    places = np.arange(span.channels * span.per_channel).reshape(span.channels, span.per_channel)
    _keep(weights[reader.input[1]], reading_axis(reader), places[list(kept)].reshape(-1))
    _forget_shapes(model)


def _keep(weight: onnx.TensorProto, axis: int, kept: Sequence[int] | Array) -> None:
    taken = np.ascontiguousarray(np.take(numpy_helper.to_array(weight), kept, axis=axis))
    weight.CopyFrom(numpy_helper.from_array(taken, weight.name))


def _forget_shapes(model: onnx.ModelProto) -> None:
    """Of tensors inside: they told of the channels that are gone."""
    del model.graph.value_info[:]


def weight_of(model: onnx.ModelProto, node: onnx.NodeProto, weights: Mapping[str, onnx.TensorProto]) -> Array:
    """(made, read, ...) whatever the layout."""
    weight: Array = numpy_helper.to_array(weights[node.input[1]])
    return weight if making_axis(node) == 0 else weight.T
