"""Labels, boxes and scores from outputs; boxes against a plain reading of what suppression means."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.arrays import Array
from mesh.errors import TensorMismatch
from mesh.pipelines.judging import MAX_RAW_VALUES, judge, suppress
from mesh.pipelines.pipeline_file import OutputRule


def outputs(values: object, name: str = "y") -> dict[str, Array]:
    return {name: np.array(values, np.float32)}


def test_the_best_labels_come_first() -> None:
    rule = OutputRule("labels", labels=("cat", "dog", "hen"), top=2, softmax=True)
    told = judge(rule, outputs([[1.0, 3.0, 2.0]]))
    assert told["label"] == "dog"
    assert [entry["label"] for entry in told["labels"]] == ["dog", "hen"]
    np.testing.assert_allclose([entry["score"] for entry in told["labels"]], [0.66524096, 0.24472847], rtol=1e-6)
    assert judge(OutputRule("labels", threshold=5.0), outputs([1.0, 3.0])) == {"label": None, "labels": []}
    assert judge(OutputRule("labels"), outputs([1.0, 3.0]))["label"] == "1", "an index where there are no labels"
    large = judge(OutputRule("labels", softmax=True), outputs([1e30, -1e30]))
    assert large["labels"][0]["score"] == 1.0


def test_a_score_is_held_against_its_threshold() -> None:
    rule = OutputRule("score", threshold=0.5)
    assert judge(rule, outputs([[0.7]])) == {"score": pytest.approx(0.7), "anomaly": True}
    assert judge(rule, outputs([[0.2]]))["anomaly"] is False


def test_raw_outputs_are_told_unless_they_are_large() -> None:
    told = judge(
        OutputRule(), {"a": np.array([[1, 2]]), "b": np.array([np.nan, 1.5]), "c": np.zeros(MAX_RAW_VALUES + 1)}
    )
    assert told["outputs"]["a"] == [1, 2]
    assert told["outputs"]["b"] == [None, 1.5]
    assert told["outputs"]["c"]["shape"] == [MAX_RAW_VALUES + 1]


def test_boxes_of_both_forms() -> None:
    rows = [[10, 20, 30, 40, 0.9, 1], [11, 21, 31, 41, 0.8, 1], [11, 21, 31, 41, 0.7, 0], [0, 0, 5, 5, 0.1, 0]]
    rule = OutputRule("boxes", labels=("a", "b"), threshold=0.5)
    found = judge(rule, outputs([rows]), (100, 200))["detections"]
    assert [(entry["label"], entry["score"]) for entry in found] == [
        ("b", pytest.approx(0.9)),
        ("a", pytest.approx(0.7)),
    ]
    assert found[0]["box"] == pytest.approx([0.05, 0.2, 0.15, 0.4])
    yolo = np.zeros((1, 6, 20), np.float32)
    yolo[0, :, 3] = [0.5, 0.5, 0.2, 0.4, 0.1, 0.8]
    (entry,) = judge(OutputRule("boxes", boxes="yolo", threshold=0.5), outputs(yolo))["detections"]
    assert (entry["label"], entry["box"]) == ("1", pytest.approx([0.4, 0.3, 0.6, 0.7]))


@pytest.mark.parametrize(("top", "count"), [(None, 3), (1, 1), (2, 2)])
def test_boxes_are_as_many_as_were_asked_for(top: int | None, count: int) -> None:
    rows = [[0, 0, 0.1, 0.1, 0.9, 0], [0.5, 0.5, 0.6, 0.6, 0.8, 0], [0.8, 0.8, 0.9, 0.9, 0.7, -1]]
    found = judge(OutputRule("boxes", labels=("cat",), top=top), outputs(rows))["detections"]
    assert [box["label"] for box in found] == ["cat", "cat", "-1"][:count]


@given(st.lists(st.tuples(*[st.integers(0, 20)] * 4, st.integers(0, 1)), max_size=12), st.floats(0.1, 0.9))
def test_suppression_is_what_it_says(rows: list[tuple[int, ...]], overlap: float) -> None:
    boxes = np.array([[x, y, x + w, y + h] for x, y, w, h, _ in rows], np.float64).reshape(-1, 4)
    classes = np.array([row[4] for row in rows], np.int64)
    expected: list[int] = []
    for index in range(len(rows)):
        if all(classes[index] != classes[kept] or _overlap(boxes[index], boxes[kept]) <= overlap for kept in expected):
            expected.append(index)
    assert suppress(boxes, classes, overlap) == expected


def _overlap(one: Array, other: Array) -> float:
    width = max(0, min(one[2], other[2]) - max(one[0], other[0]))
    height = max(0, min(one[3], other[3]) - max(one[1], other[1]))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    union = sum(areas) - width * height
    return float(width * height / union) if union else 0.0


@pytest.mark.parametrize(
    ("rule", "found", "said"),
    [
        (OutputRule("labels"), {"a": np.zeros(2), "b": np.zeros(2)}, "must name one"),
        (OutputRule("labels", tensor="c"), {"a": np.zeros(2)}, "names 'c'"),
        (OutputRule("labels", labels=("a",)), {"a": np.zeros(2)}, "2 scores for 1 labels"),
        (OutputRule("labels"), {"a": np.zeros((1, 0))}, "no scores"),
        (OutputRule("score"), {"a": np.array([np.nan])}, "no finite"),
        (OutputRule("boxes"), {"a": np.zeros((3, 5))}, "rows of x1"),
        (OutputRule("boxes", boxes="yolo"), {"a": np.zeros((4, 9))}, "classes, boxes"),
    ],
)
def test_outputs_that_do_not_fit_are_told(rule: OutputRule, found: dict[str, Array], said: str) -> None:
    with pytest.raises(TensorMismatch, match=said):
        judge(rule, found)
