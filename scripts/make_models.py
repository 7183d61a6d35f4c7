#!/usr/bin/env python3
"""Makes ONNX models with random weights: the shapes of real networks, and models that are hard to cut.

usage: scripts/make_models.py --out DIR [--only NAME ...]

Tests, benchmarks and users who want something to split build them; nothing is downloaded. Weights
are drawn from a seed, so a name always gives the same bytes. `MODELS` lists all of them.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import ArrayLike
from onnx import TensorProto, helper, numpy_helper

OPSET = 17
IR_VERSION = 8
SEED = 7


class Builder:
    """Collects nodes and weights of one graph; tensors are named by the nodes that make them."""

    def __init__(self, seed: int = SEED) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.channels: dict[str, int] = {}
        self._rng = np.random.default_rng(seed)
        self._count = 0

    def add(self, kind: str, *inputs: str, outputs: int = 1, domain: str = "", **attributes: Any) -> str:
        """Add a node; returns its (first) output. Further outputs are called `<first>.1`, `<first>.2`, ..."""
        name = f"{kind.lower()}_{self._count}"
        self._count += 1
        made = [name, *(f"{name}.{index}" for index in range(1, outputs))]
        self.nodes.append(helper.make_node(kind, list(inputs), made, name=f"{name}/node", domain=domain, **attributes))
        if inputs and inputs[0] in self.channels:
            self.channels[name] = self.channels[inputs[0]]
        return name

    def store(self, values: ArrayLike, dtype: type[np.generic] = np.float32, name: str = "") -> str:
        array = np.asarray(values, dtype=dtype)
        self.weights.append(numpy_helper.from_array(array, name or f"weight_{len(self.weights)}"))
        return self.weights[-1].name

    def draw(self, *shape: int) -> str:
        """Random weights scaled so that activations keep their size from layer to layer."""
        scale = 1 / math.sqrt(max(1, math.prod(shape[1:])))
        return self.store(self._rng.standard_normal(shape) * scale)

    def conv(self, x: str, out: int, kernel: int = 3, stride: int = 1, groups: int = 1, act: str = "") -> str:
        made = self.add(
            "Conv",
            x,
            self.draw(out, self.channels[x] // groups, kernel, kernel),
            self.draw(out),
            kernel_shape=[kernel, kernel],
            strides=[stride, stride],
            pads=[kernel // 2] * 4,
            group=groups,
        )
        self.channels[made] = out
        if act == "SiLU":
            return self.add("Mul", made, self.add("Sigmoid", made))
        if act == "Clip":
            return self.add("Clip", made, self.store(0.0), self.store(6.0))
        return self.add(act, made) if act else made

    def concat(self, *parts: str) -> str:
        made = self.add("Concat", *parts, axis=1)
        self.channels[made] = sum(self.channels[part] for part in parts)
        return made

    def upsample(self, x: str) -> str:
        return self.add("Resize", x, "", self.store([1, 1, 2, 2]), mode="nearest")

    def pool(self, x: str, kernel: int, stride: int, pad: int = 0) -> str:
        return self.add("MaxPool", x, kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=[pad] * 4)

    def split(self, x: str) -> tuple[str, str]:
        half = self.channels[x] // 2
        made = self.add("Split", x, self.store([half, half], np.int64), outputs=2, axis=1)
        self.channels[made] = self.channels[f"{made}.1"] = half
        return made, f"{made}.1"

    def linear(self, x: str, inside: int, out: int) -> str:
        return self.add("Add", self.add("MatMul", x, self.draw(inside, out)), self.draw(out))

    def classify(self, x: str, classes: int) -> str:
        flat = self.add("Flatten", self.add("GlobalAveragePool", x))
        return self.add("Gemm", flat, self.draw(self.channels[x], classes), self.draw(classes))

    def layer_norm(self, x: str, width: int) -> str:
        """Written out as PyTorch exports it before operator set 17."""
        centred = self.add("Sub", x, self.add("ReduceMean", x, axes=[-1], keepdims=1))
        square = self.add("Pow", centred, self.store(2.0))
        variance = self.add("ReduceMean", square, axes=[-1], keepdims=1)
        deviation = self.add("Sqrt", self.add("Add", variance, self.store(1e-5)))
        scaled = self.add("Mul", self.add("Div", centred, deviation), self.store(np.ones(width)))
        return self.add("Add", scaled, self.store(np.zeros(width)))

    def gelu(self, x: str) -> str:
        inner = self.add("Erf", self.add("Div", x, self.store(math.sqrt(2))))
        return self.add("Mul", self.add("Mul", x, self.add("Add", inner, self.store(1.0))), self.store(0.5))

    def attention(self, x: str, width: int, heads: int, tokens: int) -> str:
        shape = self.store([0, tokens, heads, width // heads], np.int64)
        query, key, value = (self.add("Reshape", self.linear(x, width, width), shape) for _ in range(3))
        query = self.add("Transpose", query, perm=[0, 2, 1, 3])
        key = self.add("Transpose", key, perm=[0, 2, 3, 1])
        value = self.add("Transpose", value, perm=[0, 2, 1, 3])
        weights = self.add("MatMul", query, key)
        weights = self.add("Softmax", self.add("Div", weights, self.store(math.sqrt(width // heads))), axis=-1)
        mixed = self.add("Transpose", self.add("MatMul", weights, value), perm=[0, 2, 1, 3])
        return self.linear(self.add("Reshape", mixed, self.store([0, tokens, width], np.int64)), width, width)

    def encoder(self, x: str, width: int, heads: int, tokens: int, layers: int) -> str:
        for _ in range(layers):
            x = self.layer_norm(self.add("Add", x, self.attention(x, width, heads, tokens)), width)
            inner = self.linear(self.gelu(self.linear(x, width, 4 * width)), 4 * width, width)
            x = self.layer_norm(self.add("Add", x, inner), width)
        return x

    def model(
        self,
        name: str,
        inputs: Sequence[onnx.ValueInfoProto],
        outputs: Sequence[onnx.ValueInfoProto],
        functions: Sequence[onnx.FunctionProto] = (),
        opsets: Sequence[tuple[str, int]] = (("", OPSET),),
        ir_version: int = IR_VERSION,
    ) -> onnx.ModelProto:
        graph = helper.make_graph(self.nodes, name, list(inputs), list(outputs), self.weights)
        return helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid(domain, version) for domain, version in opsets],
            functions=list(functions),
            ir_version=ir_version,
            producer_name="infermesh",
        )


def tensor(name: str, shape: Sequence[int | str | None] | None, kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def start_image(pixels: int, channels: int = 3) -> tuple[Builder, str, list[onnx.ValueInfoProto]]:
    build = Builder()
    build.channels["image"] = channels
    return build, "image", [tensor("image", [1, channels, pixels, pixels])]


def make_yolo(pixels: int = 640, width: int = 16) -> onnx.ModelProto:
    """Shaped like YOLOv8n: CSP backbone, feature pyramid up and down, three heads at strides 8, 16 and 32."""
    build, x, inputs = start_image(pixels)
    w = width

    def conv(x: str, out: int, kernel: int = 3, stride: int = 1) -> str:
        return build.conv(x, out, kernel, stride, act="SiLU")

    def csp(x: str, out: int, depth: int, shortcut: bool) -> str:
        parts = list(build.split(conv(x, out, 1)))
        for _ in range(depth):
            inner = conv(conv(parts[-1], out // 2), out // 2)
            parts.append(build.add("Add", parts[-1], inner) if shortcut else inner)
        return conv(build.concat(*parts), out, 1)

    x = conv(conv(x, w, stride=2), 2 * w, stride=2)
    x = csp(x, 2 * w, 1, True)
    third = csp(conv(x, 4 * w, stride=2), 4 * w, 2, True)
    fourth = csp(conv(third, 8 * w, stride=2), 8 * w, 2, True)
    fifth = csp(conv(fourth, 16 * w, stride=2), 16 * w, 1, True)
    pooled = [conv(fifth, 8 * w, 1)]
    for _ in range(3):
        pooled.append(build.pool(pooled[-1], 5, 1, 2))
    fifth = conv(build.concat(*pooled), 16 * w, 1)
    up_fourth = csp(build.concat(build.upsample(fifth), fourth), 8 * w, 1, False)
    up_third = csp(build.concat(build.upsample(up_fourth), third), 4 * w, 1, False)
    down_fourth = csp(build.concat(conv(up_third, 4 * w, stride=2), up_fourth), 8 * w, 1, False)
    down_fifth = csp(build.concat(conv(down_fourth, 8 * w, stride=2), fifth), 16 * w, 1, False)
    outputs: list[onnx.ValueInfoProto] = []
    for stride, feature in ((8, up_third), (16, down_fourth), (32, down_fifth)):
        boxes = build.conv(conv(conv(feature, 4 * w), 4 * w), 64, 1)
        classes = build.conv(conv(conv(feature, 5 * w), 5 * w), 80, 1)
        build.nodes.append(helper.make_node("Concat", [boxes, classes], [f"head_{stride}"], f"head_{stride}", axis=1))
        outputs.append(tensor(f"head_{stride}", [1, 144, pixels // stride, pixels // stride]))
    return build.model("yolo", inputs, outputs)


def make_unet(pixels: int = 256, width: int = 16) -> onnx.ModelProto:
    """Four levels down, four up, with a skip connection at each; the bottom is as wide as the level above it."""
    build, x, inputs = start_image(pixels)
    skips: list[str] = []
    for level in range(4):
        x = build.conv(build.conv(x, width << level, act="Relu"), width << level, act="Relu")
        skips.append(x)
        x = build.pool(x, 2, 2)
    x = build.conv(build.conv(x, width << 3, act="Relu"), width << 3, act="Relu")
    for level in reversed(range(4)):
        channels = width << level
        weight = build.draw(build.channels[x], channels, 2, 2)
        x = build.add("ConvTranspose", x, weight, kernel_shape=[2, 2], strides=[2, 2])
        build.channels[x] = channels
        x = build.concat(skips[level], x)
        x = build.conv(build.conv(x, channels, act="Relu"), channels, act="Relu")
    x = build.conv(x, 2, 1)
    return build.model("unet", inputs, [tensor(x, [1, 2, pixels, pixels])])


def make_transformer(width: int = 64, layers: int = 6, tokens: int = 32, heads: int = 4) -> onnx.ModelProto:
    """A text encoder: embedding, layers with attention and layer norm written out, mean over tokens."""
    build = Builder()
    words = build.add("Gather", build.draw(1000, width), "tokens")
    x = build.layer_norm(build.add("Add", words, build.draw(tokens, width)), width)
    x = build.encoder(x, width, heads, tokens, layers)
    x = build.add("ReduceMean", x, axes=[1], keepdims=0)
    inputs = [tensor("tokens", ["batch", tokens], TensorProto.INT64)]
    return build.model("transformer", inputs, [tensor(x, ["batch", width])])


def make_minilm() -> onnx.ModelProto:
    """The size of a six-layer sentence encoder, 128 tokens, with a small vocabulary."""
    return make_transformer(width=384, layers=6, tokens=128, heads=12)


def make_vit_tiny(pixels: int = 224, width: int = 192, layers: int = 12) -> onnx.ModelProto:
    build, x, inputs = start_image(pixels)
    tokens = (pixels // 16) ** 2
    patches = build.add("Conv", x, build.draw(width, 3, 16, 16), kernel_shape=[16, 16], strides=[16, 16])
    x = build.add("Reshape", patches, build.store([1, width, tokens], np.int64))
    x = build.add("Add", build.add("Transpose", x, perm=[0, 2, 1]), build.draw(tokens, width))
    x = build.encoder(x, width, 3, tokens, layers)
    x = build.linear(build.add("ReduceMean", x, axes=[1], keepdims=0), width, 1000)
    return build.model("vit_tiny", inputs, [tensor(x, [1, 1000])])


def make_mobilenetv2(pixels: int = 224) -> onnx.ModelProto:
    build, x, inputs = start_image(pixels)
    x = build.conv(x, 32, stride=2, act="Clip")
    blocks = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
    for expand, out, repeats, first_stride in blocks:
        for repeat in range(repeats):
            stride = first_stride if repeat == 0 else 1
            inside = build.channels[x] * expand
            wide = build.conv(x, inside, 1, act="Clip") if expand > 1 else x
            narrow = build.conv(build.conv(wide, inside, 3, stride, groups=inside, act="Clip"), out, 1)
            x = build.add("Add", x, narrow) if stride == 1 and build.channels[x] == out else narrow
    x = build.classify(build.conv(x, 1280, 1, act="Clip"), 1000)
    return build.model("mobilenetv2", inputs, [tensor(x, [1, 1000])])


def make_squeezenet(pixels: int = 224) -> onnx.ModelProto:
    build, x, inputs = start_image(pixels)
    x = build.pool(build.conv(x, 64, stride=2, act="Relu"), 3, 2, 1)
    for index, (squeeze, expand) in enumerate(((16, 64),) * 2 + ((32, 128),) * 2 + ((48, 192),) * 2 + ((64, 256),) * 2):
        if index in (2, 4):
            x = build.pool(x, 3, 2, 1)
        x = build.conv(x, squeeze, 1, act="Relu")
        x = build.concat(build.conv(x, expand, 1, act="Relu"), build.conv(x, expand, act="Relu"))
    x = build.add("Flatten", build.add("GlobalAveragePool", build.conv(x, 1000, 1, act="Relu")))
    return build.model("squeezenet", inputs, [tensor(x, [1, 1000])])


def make_resnet18(pixels: int = 224) -> onnx.ModelProto:
    build, x, inputs = start_image(pixels)
    x = build.pool(build.conv(x, 64, 7, 2, act="Relu"), 3, 2, 1)
    for out in (64, 64, 128, 128, 256, 256, 512, 512):
        stride = 1 if out == build.channels[x] else 2
        short = x if stride == 1 else build.conv(x, out, 1, 2)
        inner = build.conv(build.conv(x, out, 3, stride, act="Relu"), out)
        x = build.add("Relu", build.add("Add", inner, short))
    x = build.classify(x, 1000)
    return build.model("resnet18", inputs, [tensor(x, [1, 1000])])


def make_resnet50(pixels: int = 224) -> onnx.ModelProto:
    """Bottleneck blocks: narrow, convolve, widen; the stride is in the middle."""
    build, x, inputs = start_image(pixels)
    x = build.pool(build.conv(x, 64, 7, 2, act="Relu"), 3, 2, 1)
    for width, repeats, first_stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for repeat in range(repeats):
            stride = first_stride if repeat == 0 else 1
            short = build.conv(x, 4 * width, 1, stride) if repeat == 0 else x
            inner = build.conv(build.conv(x, width, 1, act="Relu"), width, 3, stride, act="Relu")
            x = build.add("Relu", build.add("Add", build.conv(inner, 4 * width, 1), short))
    x = build.classify(x, 1000)
    return build.model("resnet50", inputs, [tensor(x, [1, 1000])])


def make_if_bodies(pixels: int = 32) -> onnx.ModelProto:
    """A convolutional net with two Ifs whose branches read tensors and weights of the graph around them."""
    build, x, inputs = start_image(pixels)
    for _ in range(2):
        x = build.conv(build.conv(x, 8, act="Relu"), 8, act="Relu")
        mean = build.add("ReduceMean", x, keepdims=0)
        condition = build.add("Greater", mean, build.store(0.2))
        shared = build.draw(8, 8, 1, 1)
        branches: list[onnx.GraphProto] = []
        for name, kind in (("then", "Tanh"), ("else", "Relu")):
            inner = f"{x}_{name}"
            nodes = [
                helper.make_node("Conv", [x, shared], [f"{inner}_mixed"], name=f"{inner}_mix"),
                helper.make_node(kind, [f"{inner}_mixed"], [f"{inner}_out"], name=f"{inner}_act"),
            ]
            branches.append(helper.make_graph(nodes, name, [], [tensor(f"{inner}_out", [1, 8, pixels, pixels])]))
        chosen = build.add("If", condition, then_branch=branches[0], else_branch=branches[1])
        build.channels[chosen] = 8
        x = build.add("Add", chosen, x)
    x = build.classify(x, 10)
    return build.model("if_bodies", inputs, [tensor(x, [1, 10])])


def make_local_function(width: int = 32) -> onnx.ModelProto:
    """Blocks that are calls of a local function, which calls another one."""
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("blocks", 1)]
    swish = helper.make_function(
        "blocks",
        "Swish",
        ["x"],
        ["y"],
        [helper.make_node("Sigmoid", ["x"], ["gate"]), helper.make_node("Mul", ["x", "gate"], ["y"])],
        opsets[:1],
    )
    block = helper.make_function(
        "blocks",
        "Block",
        ["x", "weight", "bias"],
        ["y"],
        [
            helper.make_node("MatMul", ["x", "weight"], ["product"]),
            helper.make_node("Add", ["product", "bias"], ["sum"]),
            helper.make_node("Swish", ["sum"], ["y"], domain="blocks"),
        ],
        opsets,
    )
    build, x = Builder(), "features"
    for _ in range(6):
        x = build.add("Block", x, build.draw(width, width), build.draw(width), domain="blocks")
    inputs, outputs = [tensor("features", ["batch", width])], [tensor(x, ["batch", width])]
    return build.model("local_function", inputs, outputs, [swish, block], [("", OPSET), ("blocks", 1)])


MODELS: dict[str, Callable[[], onnx.ModelProto]] = {
    "yolo": make_yolo,
    "unet": make_unet,
    "transformer": make_transformer,
    "mobilenetv2": make_mobilenetv2,
    "squeezenet": make_squeezenet,
    "resnet18": make_resnet18,
    "resnet50": make_resnet50,
    "vit_tiny": make_vit_tiny,
    "minilm": make_minilm,
    "if_bodies": make_if_bodies,
    "local_function": make_local_function,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder to write to; made if missing")
    parser.add_argument("--only", action="append", choices=sorted(MODELS), help="just this one; may be repeated")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.only or MODELS:
        path = options.out / f"{name}.onnx"
        path.write_bytes(MODELS[name]().SerializeToString(deterministic=True))
        print(f"{path}  {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
