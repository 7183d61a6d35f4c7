"""Which operators lose most by quantisation: those go back to float first when a variant fails.

An operator's loss is the noise that 8-bit weights and an 8-bit input add, relative to the signal: computed in NumPy
from its weights and from what flows into it on a few samples. The first and the last operator come before all others:
raw input and final scores are where rounding hurts most. Runs one sample at a time and keeps three numbers per tensor.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import onnx
from onnx import numpy_helper

from mesh.arrays import Array
from mesh.optimize.contract import Feeds
from mesh.optimize.operators import float_weights, weighted_operators
from mesh.optimize.running import answers_of

LOOKED_AT = 8
"""Samples. The order of operators hardly changes with more."""

_LEVELS = 255.0


def float_order(model: onnx.ModelProto, samples: Sequence[Feeds]) -> list[str]:
    """Names of the operators with weights, the first to go back to float first. Raises `PassFailed`."""
    operators = weighted_operators(model)
    weights = float_weights(model)
    noise = _input_noise(model, operators, samples[:LOOKED_AT])
    loss = {
        node.name: noise.get(node.input[0], 0.0) + _weight_noise(numpy_helper.to_array(weights[node.input[1]]), node)
        for node in operators
    }
    ends = list(dict.fromkeys([operators[-1].name, operators[0].name]))
    rest = sorted((node.name for node in operators if node.name not in ends), key=lambda name: -loss[name])
    return [*ends, *rest]


def _weight_noise(weight: Array, node: onnx.NodeProto) -> float:
    """Noise power over signal power with one symmetric scale per output channel."""
    axis = 0 if node.op_type == "Conv" else weight.ndim - 1
    channels = np.moveaxis(weight.astype(np.float64), axis, 0).reshape(weight.shape[axis], -1)
    scales = np.maximum(np.abs(channels).max(axis=1, keepdims=True), 1e-30) / (_LEVELS / 2)
    return _ratio(channels, np.round(channels / scales) * scales)


def _ratio(signal: Array, rounded: Array) -> float:
    power = float(np.sum(signal * signal))
    return float(np.sum((signal - rounded) ** 2)) / power if power else 0.0


def _input_noise(
    model: onnx.ModelProto, operators: Iterable[onnx.NodeProto], samples: Iterable[Feeds]
) -> dict[str, float]:
    """Power of rounding to 255 steps over signal power, by the name of the tensor."""
    names = list(dict.fromkeys(node.input[0] for node in operators))
    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    del shown.graph.output[:]
    shown.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
        for name in names
        if name not in {each.name for each in model.graph.initializer}
    )
    found: dict[str, list[float]] = {}
    data = shown.SerializeToString()
    for feeds in samples:
        [outputs] = answers_of(data, [feeds], optimised=False)
        for value, output in zip(shown.graph.output, outputs, strict=True):
            least, most, power = found.get(value.name, [0.0, 0.0, 0.0])
            found[value.name] = [
                min(least, float(output.min())),
                max(most, float(output.max())),
                power + float(np.mean(output.astype(np.float64) ** 2)),
            ]
    count = min(LOOKED_AT, len(list(samples)))
    return {
        name: ((most - least) / _LEVELS) ** 2 / 12 / (power / count) if power else 0.0
        for name, (least, most, power) in found.items()
    }
