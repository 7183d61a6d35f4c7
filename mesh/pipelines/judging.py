"""Outputs of a model to what people want to know: labels, boxes, a score. Pure.

What is told is JSON: numbers are finite, boxes are in shares of the picture (0..1, left top right bottom).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mesh.arrays import Array
from mesh.core.tensor import DType, TensorSpec
from mesh.errors import TensorMismatch
from mesh.pipelines.pipeline_file import OutputRule

MAX_BOXES = 1000
"""That are compared with each other: the best ones. A picture that shows more is none of a sensor's."""

MAX_RAW_VALUES = 4096
"""Of an output that is told as it is; larger ones are told by their shape."""

Told = dict[str, Any]


def judge(rule: OutputRule, outputs: Mapping[str, Array], size: tuple[int, int] | None = None) -> Told:
    """What `outputs` say by `rule`; `size` is the picture's height and width, for boxes in pixels.

    Raises `TensorMismatch` where the outputs are not what the rule is about.
    """
    if rule.kind == "raw":
        return {"outputs": {name: _raw(array) for name, array in outputs.items()}}
    name = _chosen(rule, list(outputs))
    values = np.asarray(outputs[name], np.float64)
    if not np.isfinite(values).all():
        raise TensorMismatch(f"output {name!r} has values that are no finite numbers")
    if rule.kind == "labels":
        return _labels(rule, values, name)
    if rule.kind == "score":
        score = float(values.max(initial=-math.inf)) if values.size else 0.0
        return {"score": score, "anomaly": rule.threshold is not None and score >= rule.threshold}
    return {"detections": _boxes(rule, values, name, size)}


def check_output(rule: OutputRule, specs: Sequence[TensorSpec]) -> None:
    """Raise `TensorMismatch` where the rule cannot be about a model with these outputs, as far as their shapes tell.

    A first size that is open is the batch, which is 1.
    """
    if rule.kind == "raw":
        return
    names = [spec.name for spec in specs]
    spec = specs[names.index(_chosen(rule, names))]
    if spec.dtype is DType.STRING:
        raise TensorMismatch(f"output {spec.name!r} is text, which nobody can judge as {rule.kind}")
    if spec.shape is None:
        return
    sizes = [1 if place == 0 and not isinstance(size, int) else size for place, size in enumerate(spec.shape)]
    known = [size for size in sizes if isinstance(size, int)]
    if len(known) == len(sizes) and rule.kind != "score":
        judge(rule, {spec.name: np.zeros(known, np.float32)}, (1, 1))


def _chosen(rule: OutputRule, names: Sequence[str]) -> str:
    """The output that the rule is about."""
    name = rule.tensor or (names[0] if len(names) == 1 else "")
    if name not in names:
        raise TensorMismatch(
            f"the model has the outputs {list(names)}, and [output] names {name!r}" if name
            else f"the model has the outputs {list(names)}: [output] must name one as 'tensor'"
        )  # fmt: skip
    return name


def _raw(array: Array) -> Any:
    if array.size > MAX_RAW_VALUES:
        return {"shape": list(array.shape), "dtype": str(array.dtype)}
    if array.dtype.kind == "f":
        return [value if math.isfinite(value) else None for value in array.reshape(-1).tolist()]
    return array.reshape(-1).tolist()


def _name(rule: OutputRule, index: int) -> str:
    return rule.labels[index] if 0 <= index < len(rule.labels) else str(index)


def _labels(rule: OutputRule, values: Array, name: str) -> Told:
    scores = values.reshape(-1)
    if rule.labels and len(scores) != len(rule.labels):
        raise TensorMismatch(f"output {name!r} has {len(scores)} scores for {len(rule.labels)} labels")
    if not len(scores):
        raise TensorMismatch(f"output {name!r} has no scores")
    if rule.softmax:
        raised = np.exp(scores - scores.max())
        scores = raised / raised.sum()
    best = np.argsort(-scores, kind="stable")[: rule.top or 1]
    told: list[Told] = [{"label": _name(rule, int(index)), "score": float(scores[index])} for index in best]
    if rule.threshold is not None:
        told = [entry for entry in told if float(entry["score"]) >= rule.threshold]
    return {"label": told[0]["label"] if told else None, "labels": told}


def _boxes(rule: OutputRule, values: Array, name: str, size: tuple[int, int] | None) -> list[Told]:
    boxes, scores, classes = _split_boxes(rule, values, name)
    keep = scores >= (rule.threshold if rule.threshold is not None else 0.25)
    boxes, scores, classes = boxes[keep], scores[keep], classes[keep]
    order = np.argsort(-scores, kind="stable")[:MAX_BOXES]
    boxes, scores, classes = boxes[order], scores[order], classes[order]
    if size is not None and boxes.size and np.abs(boxes).max() > 2.0:  # pixels, not shares
        height, width = size
        boxes = boxes / np.array([width, height, width, height])
    chosen = suppress(boxes, classes, rule.overlap)[: rule.top]
    return [
        {
            "label": _name(rule, int(classes[index])),
            "score": float(scores[index]),
            "box": [float(min(1.0, max(0.0, edge))) for edge in boxes[index]],
        }
        for index in chosen
    ]


def _split_boxes(rule: OutputRule, values: Array, name: str) -> tuple[Array, Array, Array]:
    """Corners n x 4, scores n, classes n."""
    rows = values[0] if values.ndim == 3 and values.shape[0] == 1 else values
    if rule.boxes == "xyxy":
        if rows.ndim != 2 or rows.shape[1] != 6:
            raise TensorMismatch(f"output {name!r} is {list(values.shape)}, rows of x1 y1 x2 y2 score class are due")
        return rows[:, :4], rows[:, 4], rows[:, 5].astype(np.int64)
    if rows.ndim != 2 or min(rows.shape) < 5:
        raise TensorMismatch(f"output {name!r} is {list(values.shape)}, [4 + classes, boxes] is due")
    columns = rows if rows.shape[0] < rows.shape[1] else rows.T
    centre_x, centre_y, width, height = columns[:4]
    corners = np.stack(
        [centre_x - width / 2, centre_y - height / 2, centre_x + width / 2, centre_y + height / 2], axis=1
    )
    return corners, columns[4:].max(axis=0), columns[4:].argmax(axis=0)


def suppress(boxes: Array, classes: Array, overlap: float) -> list[int]:
    """Indices of boxes that none of a better box of their class overlaps more than `overlap`; best first already."""
    areas = np.maximum(0, boxes[:, 2] - boxes[:, 0]) * np.maximum(0, boxes[:, 3] - boxes[:, 1])
    left = np.ones(len(boxes), bool)
    chosen: list[int] = []
    for index in range(len(boxes)):
        if not left[index]:
            continue
        chosen.append(index)
        width = np.minimum(boxes[:, 2], boxes[index, 2]) - np.maximum(boxes[:, 0], boxes[index, 0])
        height = np.minimum(boxes[:, 3], boxes[index, 3]) - np.maximum(boxes[:, 1], boxes[index, 1])
        shared = np.maximum(0, width) * np.maximum(0, height)
        union = areas + areas[index] - shared
        left &= ~((classes == classes[index]) & (shared > overlap * np.maximum(union, 1e-12)))
    return chosen
