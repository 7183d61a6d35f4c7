#!/usr/bin/env python3
"""Trains the sound model of the pipelines' acceptance check: which of five words of tones was played, in NumPy.

Writes into the output folder:

    tones.onnx        opset 17; input `features` float32 [batch, 1, 30, 20], the log-mel energies that a pipeline makes
                      of one second at 8 kHz; output `scores` float32 [batch, 5]
    tones_test.npz    held-back sounds: `sound` int16 [60, 8000] and `label` int64 [60]

Words: silence, a low tone, a high tone, a chirp upwards, a chirp downwards; each with random pitch, loudness, beginning
and noise, all from one seed. Repeatable: a second run writes the same bytes. No download; takes seconds.

usage: python scripts/train_tones.py --out FOLDER       (run by scripts/check_mqtt)
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

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mesh.pipelines.features import log_mel

Array = NDArray[np.float32]

SEED = 20261123
RATE_HZ = 8000
WORDS = ("silence", "low", "high", "up", "down")
TRAIN, TEST = 1500, 60
FRAME_S, STEP_S, BANDS = 0.064, 0.032, 20
HIDDEN = 48
EPOCHS = 40
BATCH = 32
RATE = 0.02
REQUIRED_ACCURACY = 0.95  # the script fails below it, and writes nothing


def make_sound(word: int, random: np.random.Generator) -> NDArray[np.int16]:
    """One second of `WORDS[word]`."""
    noise = random.standard_normal(RATE_HZ) * random.uniform(0.005, 0.08)
    if word == 0:
        return (noise * 8000).clip(-32768, 32767).astype(np.int16)
    length = int(random.uniform(0.4, 0.8) * RATE_HZ)
    begin = int(random.uniform(0, RATE_HZ - length))
    first, last = {
        1: (random.uniform(250, 500),) * 2,
        2: (random.uniform(1500, 2500),) * 2,
        3: (random.uniform(300, 600), random.uniform(1500, 2500)),
        4: (random.uniform(1500, 2500), random.uniform(300, 600)),
    }[word]
    phase = 2 * np.pi * np.cumsum(np.linspace(first, last, length)) / RATE_HZ
    noise[begin : begin + length] += random.uniform(0.1, 0.8) * np.sin(phase) * np.hanning(length) ** 0.3
    return (noise * 16000).clip(-32768, 32767).astype(np.int16)


def features_of(sound: NDArray[np.int16]) -> Array:
    return np.asarray(log_mel(sound.astype(np.float32) / 32768, RATE_HZ, FRAME_S, STEP_S, BANDS), np.float32)


def train(inputs: Array, labels: NDArray[np.int64], random: np.random.Generator) -> list[Array]:
    """Weights and biases of two dense layers with a ReLU between, by stochastic gradient descent with momentum."""
    size = inputs.shape[1]
    weights = [
        (random.standard_normal((size, HIDDEN)) / np.sqrt(size)).astype(np.float32),
        np.zeros(HIDDEN, np.float32),
        (random.standard_normal((HIDDEN, len(WORDS))) / np.sqrt(HIDDEN)).astype(np.float32),
        np.zeros(len(WORDS), np.float32),
    ]
    speeds = [np.zeros_like(weight) for weight in weights]
    for epoch in range(EPOCHS):
        order = random.permutation(len(inputs))
        for first in range(0, len(order), BATCH):
            chosen = order[first : first + BATCH]
            x = inputs[chosen]
            hidden = np.maximum(x @ weights[0] + weights[1], 0)
            scores = hidden @ weights[2] + weights[3]
            raised = np.exp(scores - scores.max(axis=1, keepdims=True))
            wrong = raised / raised.sum(axis=1, keepdims=True)
            wrong[np.arange(len(chosen)), labels[chosen]] -= 1
            wrong /= len(chosen)
            back = (wrong @ weights[2].T) * (hidden > 0)
            gradients = [x.T @ back, back.sum(axis=0), hidden.T @ wrong, wrong.sum(axis=0)]
            for weight, speed, gradient in zip(weights, speeds, gradients, strict=True):
                speed *= 0.9
                speed -= RATE * (1 - epoch / EPOCHS) * gradient
                weight += speed
    return weights


def make_model(weights: list[Array], mean: float, scale: float) -> onnx.ModelProto:
    names = ("dense1", "bias1", "dense2", "bias2")
    constants = [numpy_helper.from_array(weight, name) for weight, name in zip(weights, names, strict=True)]
    constants += [
        numpy_helper.from_array(np.array(mean, np.float32), "mean"),
        numpy_helper.from_array(np.array(scale, np.float32), "scale"),
    ]
    nodes = [
        helper.make_node("Sub", ["features", "mean"], ["centred"]),
        helper.make_node("Div", ["centred", "scale"], ["normal"]),
        helper.make_node("Flatten", ["normal"], ["flat"]),
        helper.make_node("Gemm", ["flat", "dense1", "bias1"], ["hidden"]),
        helper.make_node("Relu", ["hidden"], ["active"]),
        helper.make_node("Gemm", ["active", "dense2", "bias2"], ["scores"]),
    ]
    frames = weights[0].shape[0] // BANDS
    graph = helper.make_graph(
        nodes,
        "tones",
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", 1, frames, BANDS])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", len(WORDS)])],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the sound model of the pipelines' acceptance check.")
    parser.add_argument("--out", type=Path, required=True)
    out: Path = parser.parse_args().out
    random = np.random.default_rng(SEED)
    labels = np.arange(TRAIN + TEST) % len(WORDS)
    sounds = [make_sound(int(word), random) for word in labels]
    inputs = np.stack([features_of(sound).reshape(-1) for sound in sounds])
    mean, scale = float(inputs[:TRAIN].mean()), float(inputs[:TRAIN].std())
    normal = ((inputs - np.float32(mean)) / np.float32(scale)).astype(np.float32)
    model = make_model(train(normal[:TRAIN], labels[:TRAIN], random), mean, scale)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    frames = inputs.shape[1] // BANDS
    (scores,) = session.run(None, {"features": inputs[TRAIN:].reshape(-1, 1, frames, BANDS)})
    accuracy = float((scores.argmax(axis=1) == labels[TRAIN:]).mean())
    if accuracy < REQUIRED_ACCURACY:
        sys.exit(f"error: {accuracy:.1%} of the test sounds are right, {REQUIRED_ACCURACY:.1%} are wanted")
    out.mkdir(parents=True, exist_ok=True)
    (out / "tones.onnx").write_bytes(model.SerializeToString())
    np.savez_compressed(out / "tones_test.npz", sound=np.stack(sounds[TRAIN:]), label=labels[TRAIN:])
    print(f"{accuracy:.1%} of {TEST} test sounds right, {frames} frames; wrote {out}")


main()
