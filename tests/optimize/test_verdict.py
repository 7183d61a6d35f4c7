"""The gate on answers that are written down here, so that every figure is known."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from mesh.errors import CalibrationError
from mesh.optimize.verdict import make_golden


def one_hot(*classes: int, of: int = 4, scale: float = 1.0) -> list[list[Any]]:
    return [[np.eye(of, dtype=np.float32)[[each]] * np.float32(scale)] for each in classes]


def test_with_labels_top_1_decides() -> None:
    golden = make_golden(one_hot(0, 1, 2, 3), np.array([0, 1, 2, 0]), range(4))
    reference = golden.score(golden.answers)
    scores = golden.score(one_hot(0, 1, 3, 3))
    assert (golden.metric, reference.accuracy, scores.accuracy, scores.agreement) == ("top-1", 0.75, 0.5, 0.75)
    assert "falls by 25.00 points" in golden.judge(scores, reference, 24.9)
    assert golden.judge(scores, reference, 25.0) == ""
    assert golden.judge(golden.score(one_hot(0, 1, 2, 0)), reference, 0.0) == "", "better than float is no drop"


def test_without_labels_agreement_and_noise_decide() -> None:
    golden = make_golden(one_hot(0, 1, 2, 3), None, range(4))
    reference = golden.score(golden.answers)
    assert (golden.metric, reference.accuracy) == ("agreement", 1.0)
    assert "agreement" in golden.judge(golden.score(one_hot(0, 1, 2, 2)), reference, 1.0)
    noisy = golden.score(one_hot(0, 1, 2, 3, scale=0.5))
    assert noisy.accuracy == 1.0
    assert noisy.sqnr_db == pytest.approx(20 * math.log10(2), abs=1e-4)
    assert "noise" in golden.judge(noisy, reference, 1.0)
    assert golden.judge(golden.score(one_hot(0, 1, 2, 3, scale=0.99)), reference, 1.0) == ""


def test_outputs_without_classes_are_judged_by_noise() -> None:
    golden = make_golden([[np.array([[2.0]], np.float32)]], None, range(1))
    assert golden.metric == "sqnr"
    reference = golden.score(golden.answers)
    assert reference.accuracy is None
    assert golden.judge(golden.score([[np.array([[2.001]], np.float32)]]), reference, 1.0) == ""
    assert "noise" in golden.judge(golden.score([[np.array([[1.0]], np.float32)]]), reference, 1.0)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("labels", [None, np.array([1, 1])])
def test_answers_that_are_no_numbers_are_refused(value: float, labels: Any) -> None:
    golden = make_golden(one_hot(1, 1), labels, range(2))
    broken = one_hot(1, 1)
    broken[1][0][0, 0] = value
    assert "finite" in golden.judge(golden.score(broken), golden.score(golden.answers), 100.0)


def test_a_float_model_that_answers_nan_cannot_judge() -> None:
    with pytest.raises(CalibrationError, match="sample 17 with NaN"):
        make_golden([[np.array([[np.nan, 1.0]], np.float32)]], None, [17])


@pytest.mark.parametrize("labels", [[0, 1, 2, 4], [-1, 0, 1, 2], [0, 1, 2]])
def test_labels_that_do_not_fit_are_refused(labels: list[int]) -> None:
    with pytest.raises(CalibrationError) as raised:
        make_golden(one_hot(0, 1, 2, 3), np.array(labels), range(4))
    assert raised.value.hint
