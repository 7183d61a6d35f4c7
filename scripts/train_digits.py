#!/usr/bin/env python3
"""Trains the demo model: a small convolutional network that reads handwritten digits, written in NumPy.

Writes two files into the output folder (default `nodes/demo_data`):

    digits.onnx       opset 17; input `image` float32 [batch, 1, 8, 8] in 0..1, output `scores` float32 [batch, 10]
    digits_test.npz   the held-back test images: `image` float32 [360, 1, 1, 8, 8] (frames of batch 1)
                      and `label` int64 [360]

`--network residual` trains the one that the optimizer's tests prune, with residual sums, and writes it alone, to
`tests/optimize/digits_residual.onnx`.

Data: "Optical Recognition of Handwritten Digits" (E. Alpaydin, C. Kaynak; UCI Machine Learning Repository, CC BY 4.0),
in the 1797-image copy that scikit-learn bundles as `load_digits` (scikit-learn is BSD-3-Clause). No download.

Repeatable: one seed, one BLAS thread, no early stopping and no choice made by looking at the test images, so a second
run on the same machine and library versions writes the same bytes. The accuracy is measured through ONNX Runtime.

usage: python scripts/train_digits.py [--out FOLDER]      (packages: requirements/train.txt; half a minute)
"""

from __future__ import annotations

import os

os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")  # before numpy: threads would reorder the sums

import argparse
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import load_digits

Array = NDArray[np.float32]

SEED = 20250117
TEST_IMAGES = 360  # a fifth of the data, never trained on
EPOCHS = 60
BATCH = 32
PEAK_RATE = 2e-3
WEIGHT_DECAY = 2e-4
AVERAGING = 0.998  # decay of the running average of the weights, which is what gets exported
REQUIRED_ACCURACY = 0.985  # the script fails below it, and writes nothing


class Convolution:
    """3x3 convolution, stride 1, zero padding 1, with bias."""

    def __init__(self, channels_in: int, channels_out: int, random: np.random.Generator) -> None:
        scale = np.sqrt(2 / (9 * channels_in))
        self.weight = (random.standard_normal((channels_out, channels_in, 3, 3)) * scale).astype(np.float32)
        self.bias = np.zeros(channels_out, np.float32)

    def forward(self, x: Array) -> Array:
        count, channels, height, width = x.shape
        padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
        self.columns = windows.transpose(0, 2, 3, 1, 4, 5).reshape(count * height * width, channels * 9)
        self.shape = x.shape
        out = self.columns @ self.weight.reshape(len(self.bias), -1).T + self.bias
        return out.reshape(count, height, width, -1).transpose(0, 3, 1, 2)

    def backward(self, upstream: Array) -> Array:
        count, channels, height, width = self.shape
        rows = upstream.transpose(0, 2, 3, 1).reshape(-1, len(self.bias))
        self.weight_gradient = (rows.T @ self.columns).reshape(self.weight.shape)
        self.bias_gradient = rows.sum(axis=0)
        columns = (rows @ self.weight.reshape(len(self.bias), -1)).reshape(count, height, width, channels, 3, 3)
        padded = np.zeros((count, channels, height + 2, width + 2), np.float32)
        for row in range(3):
            for column in range(3):
                padded[:, :, row : row + height, column : column + width] += columns[..., row, column].transpose(
                    0, 3, 1, 2
                )
        return padded[:, :, 1:-1, 1:-1]


class Dense:
    """Fully connected layer; flattens what it is given."""

    def __init__(self, size_in: int, size_out: int, random: np.random.Generator) -> None:
        self.weight = (random.standard_normal((size_out, size_in)) * np.sqrt(2 / size_in)).astype(np.float32)
        self.bias = np.zeros(size_out, np.float32)

    def forward(self, x: Array) -> Array:
        self.shape = x.shape
        self.rows = x.reshape(len(x), -1)
        return self.rows @ self.weight.T + self.bias

    def backward(self, upstream: Array) -> Array:
        self.weight_gradient = upstream.T @ self.rows
        self.bias_gradient = upstream.sum(axis=0)
        return (upstream @ self.weight).reshape(self.shape)


class Relu:
    def forward(self, x: Array) -> Array:
        self.positive = x > 0
        return x * self.positive

    def backward(self, upstream: Array) -> Array:
        return upstream * self.positive


class MaxPool:
    """2x2 maximum, stride 2."""

    def forward(self, x: Array) -> Array:
        count, channels, height, width = x.shape
        blocks = x.reshape(count, channels, height // 2, 2, width // 2, 2)
        out = blocks.max(axis=(3, 5))
        winners = blocks == out[:, :, :, None, :, None]
        self.share = winners / winners.sum(axis=(3, 5), keepdims=True, dtype=np.float32)  # ties share the gradient
        self.shape = x.shape
        return out

    def backward(self, upstream: Array) -> Array:
        return (self.share * upstream[:, :, :, None, :, None]).reshape(self.shape)


class Residual:
    """Two convolutions beside which the input passes unchanged; what is between them is nobody else's."""

    def __init__(self, channels: int, inner: int, random: np.random.Generator) -> None:
        self.widen, self.relu = Convolution(channels, inner, random), Relu()
        self.narrow = Convolution(inner, channels, random)

    def forward(self, x: Array) -> Array:
        return x + self.narrow.forward(self.relu.forward(self.widen.forward(x)))

    def backward(self, upstream: Array) -> Array:
        return upstream + self.widen.backward(self.relu.backward(self.narrow.backward(upstream)))


Layer = Convolution | Dense | Relu | MaxPool | Residual


def build_residual_network(random: np.random.Generator) -> list[Layer]:
    return [
        Convolution(1, 16, random),
        Relu(),
        Residual(16, 48, random),
        Relu(),
        MaxPool(),
        Residual(16, 48, random),
        Relu(),
        Residual(16, 48, random),
        Relu(),
        Dense(16 * 4 * 4, 10, random),
    ]


def build_network(random: np.random.Generator) -> list[Layer]:
    """Weights stand at the end and arithmetic at the start, so that two or three devices each get a sensible part."""
    return [
        Convolution(1, 24, random),
        Relu(),
        Convolution(24, 32, random),
        Relu(),
        MaxPool(),
        Convolution(32, 32, random),
        Relu(),
        Dense(32 * 4 * 4, 80, random),
        Relu(),
        Dense(80, 10, random),
    ]


def weighted(network: list[Layer]) -> list[Convolution | Dense]:
    found: list[Convolution | Dense] = []
    for layer in network:
        if isinstance(layer, Residual):
            found += [layer.widen, layer.narrow]
        elif isinstance(layer, Convolution | Dense):
            found.append(layer)
    return found


def get_weights(network: list[Layer]) -> list[Array]:
    return [array for layer in weighted(network) for array in (layer.weight, layer.bias)]


def get_gradients(network: list[Layer]) -> list[Array]:
    return [array for layer in weighted(network) for array in (layer.weight_gradient, layer.bias_gradient)]


def jitter(images: Array, random: np.random.Generator) -> Array:
    """Moves each image by up to one pixel, between pixels too (bilinear), and varies its contrast."""
    count = len(images)
    padded = np.pad(images, ((0, 0), (0, 0), (2, 2), (2, 2)))
    shift = random.uniform(-1, 1, (count, 2)).astype(np.float32)
    whole = np.floor(shift).astype(int)
    rest = (shift - whole)[:, :, None, None, None]
    corners = np.zeros((2, 2, *images.shape), np.float32)
    for index, (row, column) in enumerate(whole):
        for down in range(2):
            for right in range(2):
                top, left = 2 + row + down, 2 + column + right
                corners[down, right, index] = padded[index, :, top : top + 8, left : left + 8]
    across = corners[:, 0] * (1 - rest[:, 1]) + corners[:, 1] * rest[:, 1]
    moved = across[0] * (1 - rest[:, 0]) + across[1] * rest[:, 0]
    contrast = random.uniform(0.85, 1.15, (count, 1, 1, 1)).astype(np.float32)
    return np.clip(moved * contrast, 0, 1)


def train(network: list[Layer], images: Array, labels: NDArray[np.int64], random: np.random.Generator) -> list[Layer]:
    """Adam with a warm-up and cosine decay, decoupled weight decay and label smoothing; returns averaged weights."""
    weights = get_weights(network)
    average = [weight.copy() for weight in weights]
    first = [np.zeros_like(weight) for weight in weights]
    second = [np.zeros_like(weight) for weight in weights]
    targets = (np.eye(10, dtype=np.float32) * 0.95 + 0.005)[labels]
    steps = EPOCHS * (len(images) // BATCH)
    step = 0
    for _epoch in range(EPOCHS):
        order = random.permutation(len(images))
        moved = jitter(images, random)
        for start in range(0, len(order) - BATCH + 1, BATCH):
            chosen = order[start : start + BATCH]
            scores = moved[chosen]
            for layer in network:
                scores = layer.forward(scores)
            exponents = np.exp(scores - scores.max(axis=1, keepdims=True))
            gradient = (exponents / exponents.sum(axis=1, keepdims=True) - targets[chosen]) / np.float32(BATCH)
            for layer in reversed(network):
                gradient = layer.backward(gradient)
            step += 1
            rate = PEAK_RATE * min(step / 100, 0.5 * (1 + np.cos(np.pi * step / steps)))
            correction = np.sqrt(1 - 0.999**step) / (1 - 0.9**step)
            for index, (weight, slope) in enumerate(zip(weights, get_gradients(network), strict=True)):
                first[index] += 0.1 * (slope - first[index])
                second[index] += 0.001 * (slope * slope - second[index])
                weight -= (rate * correction * first[index] / (np.sqrt(second[index]) + 1e-8)).astype(np.float32)
                if weight.ndim > 1:
                    weight *= np.float32(1 - rate * WEIGHT_DECAY)
                average[index] += np.float32(1 - AVERAGING) * (weight - average[index])
    for weight, mean in zip(weights, average, strict=True):
        weight[...] = mean
    return network


def export(network: list[Layer]) -> onnx.ModelProto:
    nodes: list[onnx.NodeProto] = []
    initializers: list[onnx.TensorProto] = []
    counts: dict[str, int] = {}
    current = "image"
    flat = False
    steps: list[Convolution | Dense | Relu | MaxPool | str] = []
    for layer in network:
        steps += ["keep", layer.widen, layer.relu, layer.narrow, "add"] if isinstance(layer, Residual) else [layer]
    kept = ""
    for layer in steps:
        if layer == "keep":
            kept = current
            continue
        if isinstance(layer, str):
            nodes.append(helper.make_node("Add", [current, kept], [f"{current}_sum"], f"{current}_sum"))
            current = f"{current}_sum"
            continue
        kind = type(layer).__name__.lower()
        counts[kind] = counts.get(kind, 0) + 1
        name = f"{kind}_{counts[kind]}"
        inputs = [current]
        if isinstance(layer, Convolution | Dense):
            inputs += [f"{name}.weight", f"{name}.bias"]
            initializers += [
                numpy_helper.from_array(np.ascontiguousarray(layer.weight), inputs[1]),
                numpy_helper.from_array(layer.bias, inputs[2]),
            ]
        if isinstance(layer, Dense) and not flat:
            nodes.append(helper.make_node("Flatten", [current], ["flatten"], name="flatten", axis=1))
            inputs[0], flat = "flatten", True
        current = "scores" if layer is network[-1] else name
        match layer:
            case Convolution():
                node = helper.make_node("Conv", inputs, [current], name, kernel_shape=[3, 3], pads=[1, 1, 1, 1])
            case Dense():
                node = helper.make_node("Gemm", inputs, [current], name, transB=1)
            case Relu():
                node = helper.make_node("Relu", inputs, [current], name)
            case MaxPool():
                node = helper.make_node("MaxPool", inputs, [current], name, kernel_shape=[2, 2], strides=[2, 2])
        nodes.append(node)
    graph = helper.make_graph(
        nodes,
        "digits",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 1, 8, 8])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", 10])],
        initializers,
        doc_string="Reads handwritten digits: 8x8 grey images in 0..1 to ten scores. Made by scripts/train_digits.py.",
    )
    # Opset 17 and IR 8: read by every ONNX Runtime that the project supports.
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8, producer_name="infermesh"
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def main() -> int:
    parser = argparse.ArgumentParser(description="Train and export the demo model.")
    root = Path(__file__).parents[1]
    parser.add_argument("--network", choices=("plain", "residual"), default="plain")
    parser.add_argument("--out", type=Path, help="folder; default nodes/demo_data, for residual tests/optimize")
    options = parser.parse_args()
    is_plain = options.network == "plain"
    out = options.out or root / ("nodes/demo_data" if is_plain else "tests/optimize")

    random = np.random.default_rng(SEED)
    digits = load_digits()
    images = (digits.images / 16).astype(np.float32)[:, None]  # pixel values are 0..16
    labels = digits.target.astype(np.int64)
    order = random.permutation(len(images))
    held_back, kept = order[:TEST_IMAGES], order[TEST_IMAGES:]

    network = (build_network if is_plain else build_residual_network)(random)
    content = export(train(network, images[kept], labels[kept], random)).SerializeToString(deterministic=True)
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    [scores] = session.run(["scores"], {"image": images[held_back]})
    right = int((scores.argmax(axis=1) == labels[held_back]).sum())
    accuracy = right / TEST_IMAGES
    print(f"{right} of {TEST_IMAGES} test images right: {accuracy:.2%} (ONNX Runtime {onnxruntime.__version__})")
    if accuracy < REQUIRED_ACCURACY:
        print(f"error: below the required {REQUIRED_ACCURACY:.1%}; nothing written", file=sys.stderr)
        return 1
    out.mkdir(parents=True, exist_ok=True)
    written = [out / ("digits.onnx" if is_plain else "digits_residual.onnx")]
    written[0].write_bytes(content)
    if is_plain:
        written.append(out / "digits_test.npz")
        np.savez_compressed(written[1], image=images[held_back][:, None], label=labels[held_back])
    for path in written:
        print(f"wrote {path}: {path.stat().st_size} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
