"""Keeping QuantizeLinear/DequantizeLinear pairs whole on both sides of a cut through an int8 tensor.

Where ONNX Runtime on x86 sees a Q and the only DQ that reads it, it turns int8 into uint8, for which
it has fast kernels; where it sees one half, it computes in floats, or fuses other operators. A cut
would show each side one half, and parts and whole would round differently. So each side gets the
other half again, in plain arithmetic that the runtime does not fold away:

    producer   ... Q -> DQ -> divide by scale, round, add zero point, cast -> the cut's int8
    consumer   the cut's int8 -> cast, subtract zero point, multiply by scale -> Q -> DQ ...

Quantising what was just dequantised returns the same integers: no value changes, and the cut still
carries int8. Tensors with several readers are left alone, as the runtime leaves them.

Works on the graph of a segment that `mesh.model.extract` is building, and modifies only that.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from mesh.core.tensor import DType, TensorSpec

ROUND_SINCE = 11
"""Operator set from which there is Round."""


class _Pair:
    """A QuantizeLinear, the only DequantizeLinear that reads it, and their common scale and zero point."""

    def __init__(self, quantise: onnx.NodeProto, dequantise: onnx.NodeProto, scale: float, zero: int) -> None:
        self.quantise = quantise
        self.dequantise = dequantise
        self.scale = scale
        self.zero = zero


def complete_pairs(part: onnx.GraphProto, source: onnx.GraphProto, specs: Mapping[str, TensorSpec], opset: int) -> None:
    """Complete the pairs at the int8 inputs and outputs of `part`, which is cut from `source`."""
    entering = [value.name for value in part.input if specs[value.name].dtype is DType.INT8]
    leaving = [value.name for value in part.output if specs[value.name].dtype is DType.INT8]
    if opset < ROUND_SINCE or not (entering or leaving):
        return
    pairs = _find_pairs(source, {*entering, *leaving})
    leading: list[onnx.NodeProto] = []
    trailing: list[onnx.NodeProto] = []
    for name in (*entering, *leaving):
        if name in pairs:
            steps = _begin(part, name, pairs[name]) if name in entering else _end(part, name, pairs[name])
            (leading if name in entering else trailing).extend(steps)
    own = [onnx.NodeProto.FromString(node.SerializeToString()) for node in part.node]
    del part.node[:]
    part.node.extend([*leading, *own, *trailing])


def _find_pairs(source: onnx.GraphProto, names: set[str]) -> dict[str, _Pair]:
    quantisers = {node.output[0]: node for node in source.node if node.op_type == "QuantizeLinear"}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in source.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    shown = {value.name for value in source.output}
    constants = {tensor.name: tensor for tensor in source.initializer}
    for node in source.node:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
            constants[node.output[0]] = node.attribute[0].t
    pairs: dict[str, _Pair] = {}
    for name in names - shown:
        followers = readers.get(name, [])
        if name not in quantisers or len(followers) != 1 or followers[0].op_type != "DequantizeLinear":
            continue
        floats = followers[0].output[0]
        if len(readers.get(floats, [])) + (floats in shown) != 1:
            continue
        parameters = list(quantisers[name].input[1:])
        stored = [constants[parameter] for parameter in parameters if parameter in constants]
        if parameters != list(followers[0].input[1:]) or len(stored) != len(parameters):
            continue
        values = [numpy_helper.to_array(tensor) for tensor in stored]
        if values and values[0].dtype == np.float32 and all(value.size == 1 for value in values):
            zero = int(values[1].item()) if len(values) > 1 else 0
            pairs[name] = _Pair(quantisers[name], followers[0], float(values[0].item()), zero)
    return pairs


def _begin(part: onnx.GraphProto, name: str, pair: _Pair) -> list[onnx.NodeProto]:
    """`name`, an input, as floats, quantised again; what read `name` reads that."""
    inner = f"{name}/again"
    for node in part.node:
        for index, read in enumerate(node.input):
            if read == name:
                node.input[index] = inner
    parameters, scale, zero = _store(part, name, pair)
    steps = [helper.make_node("Cast", [name], [f"{name}/cast"], name=f"{name}/cast", to=TensorProto.FLOAT)]
    if pair.zero:
        steps.append(helper.make_node("Sub", [f"{name}/cast", zero], [f"{name}/centred"], name=f"{name}/centred"))
    steps.append(helper.make_node("Mul", [steps[-1].output[0], scale], [f"{name}/floats"], name=f"{name}/floats"))
    steps.append(_copy(pair.quantise, f"{name}/floats", parameters, inner))
    return steps


def _end(part: onnx.GraphProto, name: str, pair: _Pair) -> list[onnx.NodeProto]:
    """`name`, an output, from what made it dequantised and turned into integers by arithmetic."""
    inner = f"{name}/first"
    for node in part.node:
        for index, made in enumerate(node.output):
            if made == name:
                node.output[index] = inner
        for index, read in enumerate(node.input):
            if read == name:
                node.input[index] = inner
    parameters, scale, zero = _store(part, name, pair)
    steps = [
        _copy(pair.dequantise, inner, parameters, f"{name}/floats"),
        helper.make_node("Div", [f"{name}/floats", scale], [f"{name}/scaled"], name=f"{name}/scaled"),
        helper.make_node("Round", [f"{name}/scaled"], [f"{name}/round"], name=f"{name}/round"),
    ]
    if pair.zero:
        steps.append(helper.make_node("Add", [f"{name}/round", zero], [f"{name}/shifted"], name=f"{name}/shifted"))
    steps.append(helper.make_node("Cast", [steps[-1].output[0]], [name], name=f"{name}/cast", to=TensorProto.INT8))
    return steps


def _copy(node: onnx.NodeProto, start: str, parameters: list[str], end: str) -> onnx.NodeProto:
    copy = onnx.NodeProto.FromString(node.SerializeToString())
    copy.name = end
    copy.input[:] = [start, *parameters[: len(node.input) - 1]]
    copy.output[:] = [end]
    return copy


def _store(part: onnx.GraphProto, name: str, pair: _Pair) -> tuple[list[str], str, str]:
    """Store a pair's parameters: names for Q and DQ, and the scale and zero point as floats."""
    scale, zero, shift = f"{name}/scale", f"{name}/zero", f"{name}/shift"
    part.initializer.append(numpy_helper.from_array(np.array(pair.scale, dtype=np.float32), scale))
    part.initializer.append(numpy_helper.from_array(np.array(pair.zero, dtype=np.int8), zero))
    if pair.zero:
        part.initializer.append(numpy_helper.from_array(np.array(pair.zero, dtype=np.float32), shift))
    return [scale, zero], scale, shift
