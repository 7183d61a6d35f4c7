"""Inputs and outputs as the model writes them, read without the package that wrote them."""

from __future__ import annotations

import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from mesh.core.tensor import DType, TensorSpec
from mesh.engines.onnx_ends import read_ends
from mesh.errors import LoadFailed


def graph_of(
    inputs: list[onnx.ValueInfoProto], outputs: list[onnx.ValueInfoProto], weights: list[TensorProto] | None = None
) -> bytes:
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", inputs, outputs, weights or [])
    return bytes(helper.make_model(graph).SerializeToString())


X = helper.make_tensor_value_info("x", TensorProto.FLOAT, ("batch", 300, None))
Y = helper.make_tensor_value_info("y", TensorProto.INT8, ())
MODEL = graph_of([X], [Y])


def test_names_types_and_dimensions_are_the_models() -> None:
    assert read_ends(MODEL) == (
        (TensorSpec("x", DType.FLOAT32, ("batch", 300, "?")),),
        (TensorSpec("y", DType.INT8, None),),
    )


def test_an_unknown_rank_has_no_shape() -> None:
    (spec,), _ = read_ends(graph_of([helper.make_tensor_value_info("x", TensorProto.STRING, None)], [Y]))
    assert spec == TensorSpec("x", DType.STRING, None)


def test_initializers_are_no_inputs() -> None:
    weight = helper.make_tensor("w", TensorProto.FLOAT, (2,), [1.0, 2.0])
    given_twice = helper.make_tensor_value_info("w", TensorProto.FLOAT, (2,))
    inputs, _ = read_ends(graph_of([given_twice, X], [Y], [weight]))
    assert [spec.name for spec in inputs] == ["x"]


@pytest.mark.parametrize("role", ["input", "output"])
def test_sequences_are_named(role: str) -> None:
    sequence = helper.make_tensor_sequence_value_info("many", TensorProto.FLOAT, None)
    with pytest.raises(LoadFailed, match=f"{role} 'many' is no tensor"):
        read_ends(graph_of([sequence], [Y]) if role == "input" else graph_of([X], [sequence]))


def test_odd_dimensions_are_unknown() -> None:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, ("",))
    negative = value.type.tensor_type.shape.dim.add()
    negative.dim_value = -1
    (spec,), _ = read_ends(graph_of([value], [Y]))
    assert spec.shape == ("?", "?")


@given(st.integers(0, len(MODEL) - 1), st.integers(0, 255))
def test_damaged_models_fail_by_name_or_are_read(at: int, byte: int) -> None:
    damaged = bytearray(MODEL)
    damaged[at] = byte
    for data in (bytes(damaged), MODEL[:at]):
        try:
            inputs, outputs = read_ends(data)
        except LoadFailed:
            continue
        assert outputs and all(isinstance(spec, TensorSpec) for spec in (*inputs, *outputs))


def test_a_cut_model_is_refused() -> None:
    for at in range(1, len(MODEL) // 2):
        with pytest.raises(LoadFailed, match=r"cut off|no outputs"):
            read_ends(MODEL[:at])
    with pytest.raises(LoadFailed, match="cut off"):
        read_ends(MODEL[: len(MODEL) // 2])


@pytest.mark.parametrize("junk", [b"", b"junk", b"\xff" * 99, b"{}", bytes(64), b"\x3a\x7f"])
def test_junk_is_refused(junk: bytes) -> None:
    with pytest.raises(LoadFailed, match="no ONNX model"):
        read_ends(junk)
