"""Tensors and NumPy arrays: the same bytes, checked both ways."""

from __future__ import annotations

from typing import Any

import ml_dtypes  # a requirement of onnx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from mesh.arrays import from_array, to_array
from mesh.core.tensor import DType, Tensor, pack_strings, unpack_strings
from mesh.errors import TensorMismatch

FIXED = [dtype for dtype in DType if dtype not in (DType.STRING, DType.BFLOAT16)]


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(FIXED), arrays_of.array_shapes(min_dims=0, min_side=0, max_side=5), st.data())
def test_array_becomes_itself_again(dtype: DType, shape: tuple[int, ...], data: st.DataObject) -> None:
    array = data.draw(arrays_of.arrays(np.dtype(dtype.label), shape))
    tensor = from_array(array)
    assert (tensor.dtype, tensor.shape, bytes(tensor.data)) == (dtype, shape, array.tobytes())
    back = to_array(tensor)
    assert back.dtype == array.dtype
    assert back.shape == shape
    assert back.tobytes() == array.tobytes()


def test_nothing_is_copied() -> None:
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    back = to_array(from_array(array))
    assert np.shares_memory(array, back)
    assert not back.flags.writeable
    assert from_array(array).data.readonly


def test_array_over_received_bytes_is_a_view() -> None:
    message = bytes(range(16))
    array = to_array(Tensor.from_bytes(DType.UINT8, (4,), memoryview(message)[3:7]))
    assert array.tolist() == [3, 4, 5, 6]
    assert array.ctypes.data == np.frombuffer(message, np.uint8).ctypes.data + 3


def test_arrays_of_other_layouts_are_made_contiguous() -> None:
    array = np.arange(12, dtype=np.int16).reshape(3, 4)
    for other in (array.T, array[:, ::2], array[::-1], np.asfortranarray(array), np.broadcast_to(array, (2, 3, 4))):
        assert np.array_equal(to_array(from_array(other)), other)


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros(3, ">f4"), "big-endian"),
        (np.zeros(3, ">i8"), "big-endian"),
        (np.zeros(3, np.complex64), "complex64 does not travel"),
        (np.zeros(3, "datetime64[s]"), "does not travel"),
        (np.zeros(3, [("a", "i4")]), "does not travel"),
        (np.zeros(3, "V2"), "does not travel"),
        (np.array([{"a": 1}], object), "holds a dict"),
        (np.array(["a", None], object), "holds a NoneType"),
        (np.array([1, 2], object), "holds a int"),
        (np.array(["\ud800"], object), "UTF-8"),
        (np.zeros((1,) * 33), "rank 33"),
    ],
)
def test_what_does_not_travel_is_named(array: np.ndarray[Any, Any], words: str) -> None:
    with pytest.raises(TensorMismatch, match=f"'image'.*{words}"):
        from_array(array, "image")


@pytest.mark.parametrize(
    "array",
    [
        np.array([["a", "grüße"]]),
        np.array([["a", "grüße"]], object),
        np.array([[b"a", "grüße".encode()]], object),
        np.array([[b"a", "grüße".encode()]]),
        np.array([["a", "grüße"]], np.dtypes.StringDType()),
    ],
)
def test_text_of_any_kind_becomes_strings(array: np.ndarray[Any, Any]) -> None:
    tensor = from_array(array)
    assert (tensor.dtype, tensor.shape) == (DType.STRING, (1, 2))
    assert unpack_strings(tensor.data, 2) == [b"a", "grüße".encode()]
    assert to_array(tensor).tolist() == [["a", "grüße"]]


def test_strings_may_be_empty_or_scalar() -> None:
    assert to_array(from_array(np.array([], object))).shape == (0,)
    assert to_array(from_array(np.array("a", object))).item() == "a"


def test_strings_that_are_not_utf8_are_named() -> None:
    with pytest.raises(TensorMismatch, match=r"'words'.*UTF-8"):
        to_array(Tensor.from_bytes(DType.STRING, (1,), pack_strings([b"\xff"])), "words")


def test_bfloat16_is_its_bits() -> None:
    bits = np.array([0x3F80, 0x4000], np.uint16)
    tensor = from_array(bits, dtype=DType.BFLOAT16)
    assert tensor.dtype is DType.BFLOAT16
    assert to_array(tensor).tolist() == bits.tolist()
    assert to_array(tensor).dtype == np.uint16


def test_bfloat16_of_ml_dtypes_is_recognised() -> None:
    tensor = from_array(np.array([1, 2], ml_dtypes.bfloat16))
    assert tensor.dtype is DType.BFLOAT16
    assert to_array(tensor).tolist() == [0x3F80, 0x4000]


def test_wanted_type_is_held_against_the_array() -> None:
    with pytest.raises(TensorMismatch, match="dtype is float64, float32 is wanted"):
        from_array(np.zeros(2), dtype=DType.FLOAT32)


def test_byte_counts_that_do_not_fit_are_named() -> None:
    with pytest.raises(TensorMismatch, match="'image': 7 bytes"):
        to_array(Tensor(DType.FLOAT32, (2,), memoryview(bytes(7))), "image")


def test_shapes_that_numpy_cannot_hold_are_named() -> None:
    with pytest.raises(TensorMismatch, match="'image'"):
        to_array(Tensor(DType.FLOAT32, (1 << 62, 1 << 62, 0), memoryview(b"")), "image")
