"""Bad samples and labels are refused at the door, in words that say what to do."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mesh.core.tensor import DType, TensorSpec
from mesh.errors import CalibrationError, ModelUnsupported, TensorMismatch
from mesh.optimize.samples import MAX_CALIBRATION_SAMPLES, read_labels, read_samples

SPEC = TensorSpec("x", DType.FLOAT32, ("batch", 3))


def numbers(*shape: int) -> Any:
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


@pytest.mark.parametrize("shape", [(10, 3), (10, 1, 3)])
def test_the_first_axis_counts_samples(shape: tuple[int, ...]) -> None:
    samples = read_samples({"x": numbers(*shape)}, [SPEC])
    assert len(samples) == 10
    assert [feeds["x"].shape for feeds in samples] == [(1, 3)] * 10
    assert [feeds["x"][0, 0] for feeds in samples] == [3.0 * index for index in range(10)]


def test_the_halves_share_no_sample_and_leave_none_out() -> None:
    calibrating, judging = read_samples({"x": numbers(11, 3)}, [SPEC]).halves()
    assert calibrating.rows == (0, 2, 4, 6, 8, 10)
    assert judging.rows == (1, 3, 5, 7, 9)


def test_calibration_is_bounded_and_spread() -> None:
    calibrating, judging = read_samples({"x": numbers(2000, 3)}, [SPEC]).halves()
    assert len(calibrating) == MAX_CALIBRATION_SAMPLES
    assert (calibrating.rows[0], calibrating.rows[-1]) == (0, 1998)
    assert not set(calibrating.rows) & set(judging.rows)
    assert len(judging) == 1000


def test_whole_numbers_become_the_type_of_the_model() -> None:
    samples = read_samples({"x": numbers(10, 3).astype(np.uint8)}, [SPEC])
    assert samples[3]["x"].dtype == np.float32
    assert samples[3]["x"].tolist() == [[9.0, 10.0, 11.0]]


def poisoned(value: float) -> Any:
    array = numbers(10, 3)
    array[4, 1] = value
    return array


@pytest.mark.parametrize(
    ("arrays", "error", "said"),
    [
        ({"z": numbers(10, 3)}, TensorMismatch, "no array named x"),
        ({"x": numbers(10, 4)}, TensorMismatch, "shape [10, 4]"),
        ({"x": numbers(10)}, TensorMismatch, "shape [10]"),
        ({"x": numbers(10, 1, 1, 3)}, TensorMismatch, "shape [10, 1, 1, 3]"),
        ({"x": numbers(10, 0)}, TensorMismatch, "shape [10, 0]"),
        ({"x": numbers(10, 3).astype("U4")}, TensorMismatch, "wants float32"),
        ({"x": numbers(10, 3).astype(complex)}, TensorMismatch, "wants float32"),
        ({"x": numbers(1, 3)}, CalibrationError, "holds 1 sample"),
        ({"x": numbers(0, 3)}, CalibrationError, "holds 0 samples"),
        ({"x": poisoned(np.nan)}, CalibrationError, "first in sample 4"),
        ({"x": poisoned(-np.inf)}, CalibrationError, "NaN or infinity"),
        ({"x": numbers(10, 3).astype(np.float64) * 1e39}, CalibrationError, "NaN or infinity"),
    ],
)
@pytest.mark.filterwarnings("ignore:overflow encountered in cast:RuntimeWarning")
def test_bad_samples_are_refused(arrays: dict[str, Any], error: type[Exception], said: str) -> None:
    with pytest.raises(error) as raised:
        read_samples(arrays, [SPEC])
    assert said in str(raised.value)
    assert getattr(raised.value, "hint", "")


def test_a_fixed_batch_needs_an_axis_of_its_own() -> None:
    spec = TensorSpec("x", DType.FLOAT32, (4, 3))
    assert read_samples({"x": numbers(10, 4, 3)}, [spec])[2]["x"].shape == (4, 3)
    with pytest.raises(TensorMismatch):
        read_samples({"x": numbers(40, 3)}, [spec])


def test_inputs_must_have_as_many_samples() -> None:
    with pytest.raises(TensorMismatch, match="different numbers"):
        read_samples({"x": numbers(10, 3), "y": numbers(9, 3)}, [SPEC, TensorSpec("y", DType.FLOAT32, ("batch", 3))])


def test_text_is_refused() -> None:
    with pytest.raises(ModelUnsupported, match="string"):
        read_samples({"x": numbers(10, 3)}, [TensorSpec("x", DType.STRING, ("batch", 3))])


def test_constant_samples_are_seen() -> None:
    assert read_samples({"x": np.ones((9, 3), np.float32)}, [SPEC]).are_all_the_same()
    assert not read_samples({"x": numbers(9, 3)}, [SPEC]).are_all_the_same()


@pytest.mark.parametrize("arrays", [{"any": np.arange(5)}, {"y": np.arange(5), "x": numbers(5, 3)}])
def test_labels_are_found(arrays: dict[str, Any]) -> None:
    assert read_labels(arrays, 5).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    "arrays",
    [
        {"y": np.arange(4)},
        {"y": np.arange(6)},
        {"y": np.arange(5.0)},
        {"y": np.array(list("abcde"))},
        {"a": np.arange(5), "b": np.arange(5)},
        {},
    ],
)
def test_bad_labels_are_refused(arrays: dict[str, Any]) -> None:
    with pytest.raises(CalibrationError) as raised:
        read_labels(arrays, 5)
    assert raised.value.hint
