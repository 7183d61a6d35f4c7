from __future__ import annotations

import numpy
import onnx
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.hardware.matmul_model import INPUT_NAME, IR_VERSION, OPSET_VERSION, OUTPUT_NAME, _varint, build_matmul_model


@given(st.integers(1, 200))
def test_the_bytes_are_a_valid_model_that_multiplies(size: int) -> None:
    generator = numpy.random.default_rng(size)
    weights = generator.uniform(-1, 1, (size, size)).astype("<f4")
    values = generator.uniform(-1, 1, (size, size)).astype("<f4")
    data = build_matmul_model(size, weights.tobytes())
    model = onnx.load_model_from_string(data)
    onnx.checker.check_model(model, full_check=True)
    assert (model.ir_version, model.opset_import[0].version) == (IR_VERSION, OPSET_VERSION)
    assert model.SerializeToString(deterministic=True) == data, "as the protobuf library would write it"
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    [result] = session.run([OUTPUT_NAME], {INPUT_NAME: values})
    numpy.testing.assert_allclose(result, values @ weights, rtol=1e-4, atol=1e-4)


def test_weights_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match="3 x 3"):
        build_matmul_model(3, bytes(4 * 8))


@given(st.integers(0, 2**63 - 1))
def test_varints_decode_to_what_was_encoded(value: int) -> None:
    encoded = _varint(value)
    assert sum((byte & 0x7F) << (7 * at) for at, byte in enumerate(encoded)) == value
    assert [byte >> 7 for byte in encoded] == [1] * (len(encoded) - 1) + [0]
