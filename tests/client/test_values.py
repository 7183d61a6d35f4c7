from __future__ import annotations

import math
from typing import Any

import ml_dtypes  # type: ignore[import-untyped, unused-ignore]
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.client.values import ByteLookup, keep, pack_values, unpack_values
from mesh.core.tensor import DType, Tensor, pack_strings
from mesh.errors import TensorMismatch

NUMPY_TYPES: dict[DType, np.dtype[Any]] = {
    dtype: np.dtype(dtype.label).newbyteorder("<") for dtype in DType if dtype not in (DType.STRING, DType.BFLOAT16)
}
INTEGERS = [dtype for dtype in NUMPY_TYPES if dtype is not DType.BOOL and not dtype.is_float]


@pytest.mark.parametrize("dtype", INTEGERS)
def test_integers_are_packed_as_numpy_does(dtype: DType) -> None:
    limits = np.iinfo(NUMPY_TYPES[dtype])
    values = [int(limits.min), 0, 1, 2, int(limits.max)]
    packed = pack_values(values, dtype)
    assert packed == np.array(values, NUMPY_TYPES[dtype]).tobytes()
    assert unpack_values(Tensor.from_bytes(dtype, (5,), packed)) == values


@pytest.mark.parametrize("dtype", INTEGERS)
@pytest.mark.parametrize("value", [0.5, math.nan, math.inf, 1e30, -(2**70)])
def test_integers_that_do_not_fit_are_refused(dtype: DType, value: float) -> None:
    with pytest.raises(TensorMismatch, match=f"range of {dtype.label}"):
        pack_values([value], dtype)


@pytest.mark.parametrize("dtype", [DType.FLOAT16, DType.FLOAT32, DType.FLOAT64])
@given(values=st.lists(st.floats(-60000, 60000), max_size=20))
def test_floats_are_packed_as_numpy_does(dtype: DType, values: list[float]) -> None:
    packed = pack_values([*values, math.inf, -math.inf, math.nan], dtype)
    want = np.array([*values, math.inf, -math.inf, math.nan], NUMPY_TYPES[dtype])
    assert np.array_equal(np.frombuffer(packed, NUMPY_TYPES[dtype]), want, equal_nan=True)
    back = unpack_values(Tensor.from_bytes(dtype, (len(want),), packed))
    assert np.array_equal(np.array(back), want.astype(np.float64), equal_nan=True)


@given(values=st.lists(st.floats(width=32, allow_nan=False), max_size=20))
def test_bfloat16_rounds_like_the_reference(values: list[float]) -> None:
    packed = pack_values(values, DType.BFLOAT16)
    with np.errstate(over="ignore"):
        want = np.array(values, np.float32).astype(ml_dtypes.bfloat16)
    assert packed == want.tobytes()
    back = unpack_values(Tensor.from_bytes(DType.BFLOAT16, (len(values),), packed))
    assert np.array_equal(np.array(back, np.float32), want.astype(np.float32))


def test_bfloat16_keeps_what_is_not_finite() -> None:
    packed = pack_values([math.nan, math.inf, -math.inf, 1e300, -1e300], DType.BFLOAT16)
    nan, *rest = unpack_values(Tensor.from_bytes(DType.BFLOAT16, (5,), packed))
    assert math.isnan(float(nan))
    assert rest == [math.inf, -math.inf, math.inf, -math.inf]


def test_booleans_and_strings_come_back() -> None:
    assert unpack_values(Tensor.from_bytes(DType.BOOL, (3,), b"\0\1\2")) == [False, True, True]
    packed = pack_strings(["grün".encode(), b"\xff", b""])
    texts = unpack_values(Tensor.from_bytes(DType.STRING, (3,), packed))
    assert texts == ["grün", "\udcff", ""]


def test_strings_are_not_numbers() -> None:
    with pytest.raises(TensorMismatch):
        pack_values([1.0], DType.STRING)


@pytest.mark.parametrize("dtype", [DType.FLOAT16, DType.FLOAT32, DType.FLOAT64, DType.UINT8, DType.INT64, DType.BOOL])
@given(samples=st.binary(max_size=64))
def test_a_lookup_is_a_table(dtype: DType, samples: bytes) -> None:
    values = [float(level // 2 if not dtype.is_float else level / 255) for level in range(256)]
    table = np.array(values).astype(NUMPY_TYPES[dtype])
    assert bytes(ByteLookup(values, dtype).apply(samples)) == table[np.frombuffer(samples, np.uint8)].tobytes()


def test_a_lookup_has_an_entry_per_byte() -> None:
    with pytest.raises(ValueError, match="256 entries"):
        ByteLookup([0.0], DType.FLOAT32)


def test_what_is_kept_does_not_change_with_the_memory_that_it_came_from() -> None:
    values = np.array([1, 2], np.uint8)
    shared = Tensor.from_bytes(DType.UINT8, (2,), values.data.toreadonly())
    kept = keep(shared)
    values[:] = 9
    assert (bytes(kept.data), bytes(shared.data)) == (b"\x01\x02", b"\x09\x09")
    assert keep(kept) is kept
