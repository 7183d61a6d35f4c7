"""Models for scripts/bench_dataplane: shapes of make_models.py, and tiny ones that carry much and compute nothing."""

from __future__ import annotations

import json
import os
import tempfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import make_models
import onnx
from make_models import Builder, tensor
from onnx import TensorProto

from mesh.model.read import read_model_bytes
from mesh.model.summarise import summarise

CARRY_200_KB, CARRY_1_MB = 200 << 10, 1 << 20
RELAYED_1_MIB, RELAYED_64_B = 1 << 20, 64
SMALL_INPUT_PIXELS = 74
"""3 x 74 x 74 floats are 64 KiB."""
BENCH_WINDOW = 8


def make_carry(size_bytes: int) -> onnx.ModelProto:
    """A tensor of this size is made by the first half and reduced to one number by the second."""
    count = size_bytes // 4
    build = Builder()
    made = build.add("Abs", "x")
    reduced = build.add("ReduceMax", made, keepdims=0)
    return build.model("carry", [tensor("x", [1, count])], [tensor(reduced, [])])


def make_relay(size_bytes: int) -> onnx.ModelProto:
    """A tensor of this size passes through the first half untouched; the second looks at one element of it."""
    count = size_bytes // 4
    build = Builder()
    # Where to look is computed first, so that no order of the operators looks before the cut.
    where = build.add("Neg", build.add("Neg", "s"))
    y = build.add("Gather", "x", build.add("Neg", where))
    return build.model("relay", [tensor("x", [count]), tensor("s", [1], TensorProto.INT64)], [tensor(y, [1])])


def make_heavy(width: int = 2048, layers: int = 12, rows: int = 4) -> onnx.ModelProto:
    """Much weight, little work: 200 MB for 400 million operations."""
    build = Builder()
    x = "x"
    for _ in range(layers):
        x = build.add("Relu", build.add("MatMul", x, build.draw(width, width)))
    return build.model("heavy", [tensor("x", [rows, width])], [tensor(x, [rows, width])])


MODELS: dict[str, Callable[[], onnx.ModelProto]] = {
    **make_models.MODELS,
    "mobilenetv2_64kb": lambda: make_models.make_mobilenetv2(SMALL_INPUT_PIXELS),
    "carry_200kb": lambda: make_carry(CARRY_200_KB),
    "carry_1mb": lambda: make_carry(CARRY_1_MB),
    "relay_1mib": lambda: make_relay(RELAYED_1_MIB),
    "heavy": make_heavy,
    "yolo_320": lambda: make_models.make_yolo(320),
    "relay_64b": lambda: make_relay(RELAYED_64_B),
}


def default_folder() -> Path:
    """In the folder for temporary files, of this user and of these very generators."""
    sources = b"".join(Path(file).read_bytes() for file in (__file__, str(make_models.__file__)))
    return Path(tempfile.gettempdir()) / f"infermesh-bench-models-{os.getuid()}-{zlib.crc32(sources):08x}"


def model_file(folder: Path, name: str) -> Path:
    """Made once per folder; a name always gives the same bytes."""
    path = folder / f"{name}.onnx"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        partial.write_bytes(MODELS[name]().SerializeToString(deterministic=True))
        partial.replace(path)
    return path


def write_plan(model: Path, devices: Sequence[str], file: Path, cut_bytes: int | None = None) -> Path:
    """A plan that puts MODEL whole on one device, or on two with the cut whose tensors have `cut_bytes` at least."""
    graph = summarise(read_model_bytes(model.read_bytes()))
    positions = [0, len(graph.groups)]
    if len(devices) == 2:
        inner = [cut for cut in graph.cuts if 0 < cut.position < len(graph.groups) and cut.bytes >= (cut_bytes or 0)]
        positions.insert(1, min(inner, key=lambda cut: abs(cut.position - len(graph.groups) / 2)).position)
    stages = [
        {"devices": [device], "start": start, "end": end}
        for device, start, end in zip(devices, positions[:-1], positions[1:], strict=True)
    ]
    file.write_text(json.dumps({"model_sha256": graph.model_sha256, "stages": stages, "window": BENCH_WINDOW}))
    return file


def cut_bytes(model: Path, stages: Sequence[dict[str, Any]]) -> list[int]:
    """What a frame carries out of each stage of a plan document but the last."""
    graph = summarise(read_model_bytes(model.read_bytes()))
    return [graph.cut_at[stage["end"]].bytes for stage in stages[:-1]]
