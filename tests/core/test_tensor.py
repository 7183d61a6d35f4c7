"""Specs and tensors: what fits, what does not, and that the message names it."""

from __future__ import annotations

import struct
from array import array

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.core.tensor import (
    MAX_RANK,
    MAX_TENSOR_BYTES,
    DType,
    Tensor,
    TensorSpec,
    check_strings,
    pack_strings,
    unpack_strings,
)
from mesh.errors import MeshError, TensorMismatch
from mesh.v1 import tensor_pb2

FEW = settings(max_examples=100, deadline=None)
IMAGE = TensorSpec("image", DType.FLOAT32, ("batch", 3, 2, "?"))


@pytest.mark.parametrize("dtype", DType)
def test_numbers_are_those_of_onnx_and_of_the_wire(dtype: DType) -> None:
    name = {"FLOAT32": "FLOAT", "FLOAT64": "DOUBLE"}.get(dtype.name, dtype.name)
    assert onnx.TensorProto.DataType.Value(name) == dtype.value
    assert tensor_pb2.DataType.Value(f"DATA_TYPE_{dtype.name}") == dtype.value


@pytest.mark.parametrize("dtype", DType)
def test_labels_lead_back(dtype: DType) -> None:
    assert DType.from_label(dtype.label) is dtype


@pytest.mark.parametrize("dtype", [dtype for dtype in DType if dtype not in (DType.STRING, DType.BFLOAT16)])
def test_sizes_are_those_of_numpy(dtype: DType) -> None:
    assert np.dtype(dtype.label).itemsize == dtype.item_bytes
    assert dtype.is_float == (np.dtype(dtype.label).kind == "f")


def test_bfloat16_and_strings_have_their_sizes() -> None:
    assert (DType.BFLOAT16.item_bytes, DType.BFLOAT16.is_float) == (2, True)
    assert (DType.STRING.item_bytes, DType.STRING.is_float) == (0, False)


@pytest.mark.parametrize("label", ["", "int4", "complex64", "float", "x" * 1000])
def test_unknown_labels_are_refused_briefly(label: str) -> None:
    with pytest.raises(TensorMismatch) as caught:
        DType.from_label(label)
    assert len(str(caught.value)) < 100


def test_specs_read_well() -> None:
    assert str(IMAGE) == "image float32[batch,3,2,?]"
    assert str(TensorSpec("s", DType.STRING, None)) == "s string[?]"
    assert str(TensorSpec("s", DType.INT8, ())) == "s int8[]"


@pytest.mark.parametrize(("shape", "fixed"), [((), True), ((1, 2), True), ((1, "n"), False), (None, False)])
def test_fixed_means_that_every_dimension_is_known(shape: tuple[int | str, ...] | None, fixed: bool) -> None:
    assert TensorSpec("x", DType.INT8, shape).is_fixed is fixed


def test_nominal_bytes_put_a_number_for_symbols() -> None:
    assert IMAGE.nominal_bytes() == 4 * 3 * 2
    assert IMAGE.nominal_bytes(symbolic=5) == 4 * 3 * 2 * 25
    assert TensorSpec("x", DType.FLOAT64, ()).nominal_bytes() == 8
    assert TensorSpec("x", DType.FLOAT64, None).nominal_bytes() is None
    assert TensorSpec("x", DType.STRING, (2,)).nominal_bytes() is None


@pytest.mark.parametrize("shape", [(1, 3, 2, 1), (7, 3, 2, 9), (0, 3, 2, 0)])
def test_shapes_that_fit_pass(shape: tuple[int, ...]) -> None:
    IMAGE.check(DType.FLOAT32, shape)


@pytest.mark.parametrize(
    ("dtype", "shape", "words"),
    [
        (DType.FLOAT64, (1, 3, 2, 1), "dtype is float64, the model wants float32"),
        (DType.FLOAT32, (3, 2, 1), "rank is 3"),
        (DType.FLOAT32, (), "rank is 0"),
        (DType.FLOAT32, (1, 4, 2, 1), "dimension 1 is 4, the model wants 3"),
        (DType.FLOAT32, (1, 3, 3, 1), "dimension 2 is 3, the model wants 2"),
        (DType.FLOAT32, (-1, 3, 2, 1), "negative dimension"),
        (DType.FLOAT32, (1,) * (MAX_RANK + 1), "rank 33 is above the limit"),
    ],
)
def test_shapes_that_do_not_fit_are_named(dtype: DType, shape: tuple[int, ...], words: str) -> None:
    with pytest.raises(TensorMismatch, match=f"'image'.*{words}"):
        IMAGE.check(dtype, shape)


def test_unknown_rank_still_has_limits() -> None:
    spec = TensorSpec("any", DType.INT8, None)
    spec.check(DType.INT8, (5,) * MAX_RANK)
    for shape in ((1,) * (MAX_RANK + 1), (1, -2)):
        with pytest.raises(TensorMismatch, match="'any'"):
            spec.check(DType.INT8, shape)


@FEW
@given(st.sampled_from([d for d in DType if d is not DType.STRING]), st.lists(st.integers(0, 5), max_size=4), st.data())
def test_byte_count_decides(dtype: DType, shape: list[int], data: st.DataObject) -> None:
    size = TensorSpec("x", dtype, tuple(shape)).nominal_bytes()
    assert size is not None
    assert Tensor.from_bytes(dtype, shape, bytes(size)).element_count * dtype.item_bytes == size
    wrong = data.draw(st.integers(0, size + 9).filter(lambda count: count != size))
    with pytest.raises(TensorMismatch, match=f"{wrong} bytes.*needs {size}"):
        Tensor.from_bytes(dtype, shape, bytes(wrong), "x")


def test_data_is_a_view_of_what_was_given() -> None:
    received = bytearray(12)
    tensor = Tensor.from_bytes(DType.FLOAT32, (3,), received)
    received[0] = 9
    assert tensor.data[0] == 9
    assert tensor.data.format == "B"


def test_views_of_other_elements_become_bytes() -> None:
    tensor = Tensor.from_bytes(DType.FLOAT32, (2, 2), memoryview(array("f", [1, 2, 3, 4])))
    assert len(tensor.data) == 16
    assert struct.unpack("<4f", tensor.data) == (1, 2, 3, 4)


def test_dimensions_whose_product_overflows_do_not_fit() -> None:
    with pytest.raises(TensorMismatch, match="needs"):
        Tensor.from_bytes(DType.UINT8, (1 << 62, 1 << 62), b"")


def test_tensors_above_the_limit_are_refused() -> None:
    class Huge:
        """Stands for a buffer above the limit without the memory."""

        def __len__(self) -> int:
            return MAX_TENSOR_BYTES + 1

    tensor = Tensor(DType.UINT8, (MAX_TENSOR_BYTES + 1,), Huge())  # type: ignore[arg-type]
    with pytest.raises(TensorMismatch, match="above the limit"):
        tensor.check_bytes("x")


@FEW
@given(st.lists(st.binary(max_size=20), max_size=8))
def test_strings_become_themselves_again(values: list[bytes]) -> None:
    packed = memoryview(pack_strings(values))
    assert unpack_strings(packed, len(values)) == values
    Tensor.from_bytes(DType.STRING, (len(values),), packed)


def test_strings_are_length_and_bytes() -> None:
    assert pack_strings([b"ab", b""]) == b"\x02\x00\x00\x00ab\x00\x00\x00\x00"


@pytest.mark.parametrize(
    ("data", "count"),
    [
        (b"", 1),
        (b"\x00\x00\x00", 1),
        (b"\x02\x00\x00\x00a", 1),
        (b"\xff\xff\xff\xffa", 1),
        (b"\x00\x00\x00\x00", 0),
        (b"\x00\x00\x00\x00a", 1),
        (b"\x00\x00\x00\x00", 1 << 62),
    ],
)
def test_broken_strings_are_named(data: bytes, count: int) -> None:
    with pytest.raises(TensorMismatch, match="'words'"):
        check_strings(memoryview(data), count, "words")


@FEW
@given(st.binary(max_size=30), st.integers(0, 5))
def test_any_bytes_are_strings_or_a_mismatch(data: bytes, count: int) -> None:
    try:
        values = unpack_strings(memoryview(data), count)
    except MeshError:
        return
    assert pack_strings(values) == data
