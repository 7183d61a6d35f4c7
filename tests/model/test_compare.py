"""The rule by which parts and whole are equal, and the inputs on which that is tried."""

from __future__ import annotations

import numpy as np
import pytest

from mesh.core.tensor import DType, TensorSpec
from mesh.errors import VerificationFailed
from mesh.model.compare import compare, generate_inputs


def floats(*values: float) -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]:
    return {"y": np.array(values, dtype=np.float32)}


def test_floats_agree_within_the_rule() -> None:
    whole = floats(100.0, 1.0)
    assert compare(whole, floats(100.0009, 1.0)).equal
    assert not compare(whole, floats(100.0, 1.002)).equal
    assert compare(floats(0.0), floats(9e-7)).equal
    assert not compare(floats(0.0), floats(2e-6)).equal
    assert compare(whole, floats(100.0, 1.0005)).max_abs_diff["y"] == pytest.approx(0.0005, rel=0.01)


@pytest.mark.parametrize(
    ("whole", "parts", "equal"),
    [
        ((np.nan, 1), (np.nan, 1), True),
        ((np.nan, 1), (1, np.nan), False),
        ((np.inf, 1), (np.inf, 1), True),
        ((np.inf, 1), (-np.inf, 1), False),
        ((np.inf, 1), (np.nan, 1), False),
        ((1e30, 1), (np.inf, 1), False),
        ((np.nan, np.nan), (np.nan, np.nan), True),
        ((), (), True),
    ],
)
def test_what_is_not_finite_must_be_at_the_same_places(
    whole: tuple[float, ...], parts: tuple[float, ...], equal: bool
) -> None:
    assert compare(floats(*whole), floats(*parts)).equal is equal


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.bool_, object])
def test_everything_else_is_exact(dtype: type) -> None:
    one = np.array([0, 1, 1], dtype=dtype) if dtype is not object else np.array(["a", "b", "c"], dtype=object)
    other = one.copy()
    assert compare({"y": one}, {"y": other}).equal
    other[0] = one[1]
    comparison = compare({"y": one}, {"y": other})
    assert not comparison.equal
    with pytest.raises(VerificationFailed, match=r"'y'.*1 of 3"):
        comparison.require()


def test_missing_outputs_shapes_and_types_are_differences() -> None:
    assert not compare(floats(1), {}).equal
    assert not compare({}, floats(1)).equal
    assert not compare(floats(1, 2), {"y": np.ones((2, 1), np.float32)}).equal
    assert not compare(floats(1), {"y": np.ones(1, np.float64)}).equal


def test_bfloat16_bits_are_compared_as_numbers() -> None:
    one = {"y": np.array([0x3F80, 0x4000], dtype=np.uint16)}
    other = {"y": np.array([0x3F80, 0x4001], dtype=np.uint16)}
    assert compare(one, one, bfloat16={"y"}).equal
    assert compare(one, other, bfloat16={"y"}).max_abs_diff["y"] == pytest.approx(2**-6)


def test_inputs_are_seeded_and_fit_their_specs() -> None:
    specs = [TensorSpec(dtype.label, dtype, ("batch", 3, "time")) for dtype in DType]
    made = generate_inputs(specs, seed=5, batch=4)
    for spec in specs:
        assert made[spec.name].shape == (4, 3, 1)
    assert compare(made, generate_inputs(specs, seed=5, batch=4)).equal
    assert not compare(made, generate_inputs(specs, seed=6, batch=4)).equal
    assert set(np.unique(made["int64"])) <= {0, 1}
    assert made["string"].dtype == object


def test_a_dimension_has_one_size_wherever_it_is_named() -> None:
    specs = [TensorSpec("a", DType.FLOAT32, ("n", 2)), TensorSpec("b", DType.FLOAT32, (2, "n"))]
    made = generate_inputs([*specs, TensorSpec("c", DType.FLOAT32, None)], 0, batch=7)
    assert made["b"].shape == (2, 7)
    assert made["c"].shape == (1,)


def test_half_precision_is_held_to_its_own_steps() -> None:
    one = np.array([100.0, 1.0], np.float16)
    assert compare({"y": one}, {"y": np.nextafter(one, np.float16(200))}).equal
    assert not compare({"y": one}, {"y": one + np.float16(1)}).equal
    # Float32 outputs are held to the strict rule unless a cut has rounded on the way.
    whole, parts = floats(100.0), floats(100.1)
    assert not compare(whole, parts, crossed={DType.FLOAT32, DType.INT64}).equal
    assert compare(whole, parts, crossed={DType.FLOAT32, DType.FLOAT16}).equal
    assert not compare(whole, floats(101.0), crossed={DType.FLOAT16}).equal


def test_integers_may_be_drawn_from_one_on() -> None:
    spec = TensorSpec("size", DType.INT64, (50,))
    assert set(generate_inputs([spec], seed=1)["size"].tolist()) == {0, 1}
    assert set(generate_inputs([spec], seed=1, least_integer=1)["size"].tolist()) == {1}
