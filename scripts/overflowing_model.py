"""A classifier of digits whose 8-bit form overflows 16-bit sums: what a processor without VNNI gets wrong.

Bright pictures (digits dark on white) are blurred by positive weights, so that neighbouring products of 8 bits are all
near their largest: 2 x 255 x 127 is twice what 16 bits hold. With weights of 7 bits it fits. Above the blur stands a
linear classifier by ridge regression; nothing is random but the blur, which is seeded.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

CHANNELS = 16
PENALTY = 10.0
CLASSES = 10
TRAINED_SHARE = 0.5


def make_bright(images: Any) -> Any:
    """float32 [n, 1, 1, 8, 8], digits dark on white."""
    return (1 - images).astype(np.float32).reshape(-1, 1, 1, 8, 8)


def train_overflowing(images: Any, labels: Any) -> onnx.ModelProto:
    """`images` as `make_bright` gives them; the first half trains."""
    pictures = images.reshape(-1, 8, 8)
    blur = (0.5 + 0.5 * np.random.default_rng(0).random((CHANNELS, 1, 3, 3))).astype(np.float32)
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(pictures, ((0, 0), (1, 1), (1, 1))), (3, 3), axis=(1, 2))
    blurred = np.einsum("nhwij,cij->nchw", windows, blur[:, 0])
    bias = -np.median(blurred, axis=(0, 2, 3)).astype(np.float32)
    features = np.maximum(blurred + bias[None, :, None, None], 0).reshape(len(pictures), -1)
    trained = slice(0, round(TRAINED_SHARE * len(pictures)))
    mean, wanted = features[trained].mean(axis=0), np.eye(CLASSES)[labels[trained]]
    centred = features[trained] - mean
    gram = centred.T @ centred + PENALTY * np.eye(centred.shape[1])
    weights = np.linalg.solve(gram, centred.T @ wanted).astype(np.float32)
    offset = (wanted.mean(axis=0) - mean @ weights).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["image", "blur", "bias"], ["blurred"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["blurred"], ["kept"]),
        helper.make_node("Flatten", ["kept"], ["features"]),
        helper.make_node("Gemm", ["features", "weights", "offset"], ["scores"]),
    ]
    constants = {"blur": blur, "bias": bias, "weights": weights, "offset": offset}
    graph = helper.make_graph(
        nodes,
        "overflowing",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 1, 8, 8])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [1, CLASSES])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
