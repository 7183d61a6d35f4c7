"""Messages and JSON to tensors and back: every type comes back as it was, and what does not add up is refused."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mesh.arrays import from_array
from mesh.core.tensor import DType, Tensor, TensorSpec
from mesh.errors import MeshError, Refused, TensorMismatch, UsageError
from mesh.gateways.contract import InferenceAnswer
from mesh.gateways.datatypes import RAW_ONLY, datatype_of, dtype_of
from mesh.gateways.oip_json import (
    body_of_answer,
    config_document,
    json_length,
    metadata_document,
    read_document,
    request_from_document,
    split_body,
)
from mesh.gateways.oip_messages import (
    _FIELDS,
    config_message,
    message_from_answer,
    metadata_message,
    request_from_message,
)
from mesh.gateways.public_messages import message_class
from tests.gateways.played_mesh import deployment_of

ModelInferRequest = message_class("ModelInferRequest")
TYPED = sorted(set(DType) - RAW_ONLY, key=lambda dtype: dtype.value)


@st.composite
def tensors(draw: st.DrawFn, dtypes: list[DType], finite: bool = False) -> Tensor:
    dtype = draw(st.sampled_from(dtypes))
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
    if dtype is DType.STRING:
        count = int(np.prod(shape))
        values = draw(st.lists(st.text(max_size=5), min_size=count, max_size=count))
        return from_array(np.array(values, dtype=object).reshape(shape), dtype=dtype)
    numpy_type = np.dtype("uint16" if dtype is DType.BFLOAT16 else dtype.label)
    elements: dict[str, Any] = {}
    if finite and numpy_type.kind == "f":
        elements["elements"] = {"allow_nan": False, "allow_infinity": False}
    return from_array(draw(hnp.arrays(numpy_type, shape, **elements)), dtype=dtype)


def answer_of(tensor: Tensor) -> InferenceAnswer:
    spec = TensorSpec("y", tensor.dtype, None)
    return InferenceAnswer(deployment_of("m", (), (spec,)), ((spec, tensor),))


def message_with(tensor: Tensor, **more: Any) -> Any:
    entry = {"name": "y", "datatype": datatype_of(tensor.dtype), "shape": tensor.shape}
    return ModelInferRequest(model_name="m", id="7", inputs=[entry], **more)


@given(tensors(list(DType)))
def test_raw_tensors_come_back_byte_by_byte(tensor: Tensor) -> None:
    request = message_with(tensor, raw_input_contents=[bytes(tensor.data)])
    assert request_from_message(request, None).inputs == {"y": tensor}
    response = message_from_answer(answer_of(tensor), request)
    (entry,) = response.outputs
    assert (entry.datatype, tuple(entry.shape)) == (datatype_of(tensor.dtype), tensor.shape)
    assert list(response.raw_output_contents) == [bytes(tensor.data)]
    assert response.id == "7"


@given(tensors(TYPED))
def test_typed_tensors_come_back_as_they_were(tensor: Tensor) -> None:
    asked = message_with(tensor)
    response = message_from_answer(answer_of(tensor), asked)
    assert not response.raw_output_contents
    again = message_with(tensor)
    again.inputs[0].contents.CopyFrom(response.outputs[0].contents)
    assert bytes(request_from_message(again, None).inputs["y"].data) == bytes(tensor.data)


@given(tensors(sorted(set(TYPED) | {DType.FLOAT16}, key=lambda dtype: dtype.value), finite=True))
def test_json_tensors_come_back_as_they_were(tensor: Tensor) -> None:
    head = {"inputs": [{"name": "y", "datatype": datatype_of(tensor.dtype), "shape": list(tensor.shape)}]}
    empty = {"inputs": [], "id": "a"}
    asked = request_from_document("m", "", empty, memoryview(b""))
    body, json_bytes = body_of_answer(answer_of(tensor), asked)
    assert json_bytes is None
    told = json.loads(body)
    assert told["id"] == "a"
    head["inputs"][0]["data"] = told["outputs"][0]["data"]
    again = request_from_document("m", "", head, memoryview(b"")).request.inputs["y"]
    assert bytes(again.data) == bytes(tensor.data)


@given(tensors(list(DType)), tensors(list(DType)))
def test_binary_tensors_come_back_byte_by_byte(first: Tensor, second: Tensor) -> None:
    specs = [TensorSpec(name, tensor.dtype, None) for name, tensor in (("a", first), ("b", second))]
    answer = InferenceAnswer(deployment_of("m", (), specs), tuple(zip(specs, (first, second), strict=True)))
    asked = request_from_document("m", "", {"inputs": [], "parameters": {"binary_data_output": True}}, memoryview(b""))
    body, json_bytes = body_of_answer(answer, asked)
    assert json_bytes is not None
    document, binary = split_body(body, json_length(str(json_bytes), len(body)))
    again = request_from_document("m", "", {"inputs": document["outputs"]}, binary).request.inputs
    assert again == {"a": first, "b": second}


def test_nested_lists_are_row_major() -> None:
    entry = {"name": "x", "datatype": "INT32", "shape": [2, 2], "data": [[1, 2], [3, 4]]}
    found = request_from_document("m", "", {"inputs": [entry]}, memoryview(b"")).request.inputs["x"]
    assert np.frombuffer(found.data, "<i4").tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"name": 3}, "'name' must be a text"),
        ({"datatype": "FP31"}, "unknown datatype 'FP31'"),
        ({"datatype": "BF16"}, "raw bytes only"),
        ({"shape": [-2]}, "negative dimension"),
        ({"shape": "2"}, "'shape' must be a list"),
        ({"shape": [True, 2]}, "'shape' must be a list"),
        ({"shape": [3]}, "2 elements for shape"),
        ({"shape": [1 << 60, 1 << 60]}, "2 elements for shape"),
        ({"shape": [1] * 100, "data": [1]}, "rank 100 is above"),
        ({"shape": [10**4000] * 8}, "a dimension is above"),
        ({"shape": [0, 1 << 62, 1 << 62], "data": []}, "cannot be"),
        ({"data": [1, 1e300]}, "does not fit FP32"),
        ({"datatype": "BYTES", "data": ["a", "\ud800"]}, "no UTF-8"),
        ({"data": None}, "'data' must be a list"),
        ({"data": "ab"}, "'data' must be a list"),
        ({"data": [1, "2"]}, "'2' is no FP32"),
        ({"data": [1, True]}, "'True' is no FP32"),
        ({"data": [1, {}]}, "is no FP32"),
        ({"data": [1, None]}, "is no FP32"),
        ({"datatype": "INT8", "data": [1, 128]}, "does not fit INT8"),
        ({"datatype": "UINT8", "data": [1, -1]}, "does not fit UINT8"),
        ({"datatype": "INT64", "data": [1, 1.5]}, "'1.5' is no INT64"),
        ({"datatype": "BOOL", "data": [1, 0]}, "is no BOOL"),
        ({"datatype": "BYTES", "data": [1, 0]}, "BYTES in JSON are texts"),
        ({"parameters": 3}, "'parameters' must be an object"),
        ({"parameters": {"binary_data_size": 1}}, "is not what follows"),
        ({"parameters": {"binary_data_size": -1}}, "is not what follows"),
        ({"parameters": {"shared_memory_region": "r"}}, "not served"),
    ],
)
def test_json_inputs_that_do_not_add_up_are_refused(change: dict[str, Any], said: str) -> None:
    entry = {"name": "x", "datatype": "FP32", "shape": [2], "data": [1, 2.5], **change}
    with pytest.raises((TensorMismatch, UsageError), match=said):
        request_from_document("m", "", {"inputs": [entry]}, memoryview(b""))


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ({}, "'inputs' must be a list"),
        ({"inputs": {}}, "'inputs' must be a list"),
        ({"inputs": [1]}, "'inputs' must be a list of objects"),
        ({"inputs": [], "outputs": 3}, "'outputs' must be a list"),
        ({"inputs": [], "outputs": [{"name": "y", "parameters": {"classification": 2}}]}, "not served"),
        ({"inputs": [], "id": 3}, "'id' must be a text"),
        ({"inputs": [], "parameters": {"timeout": "soon"}}, "microseconds"),
        ({"inputs": [], "parameters": {"timeout": -1}}, "microseconds"),
        ({"inputs": [], "parameters": {"timeout": 10**400}}, "microseconds"),
    ],
)
def test_json_requests_that_make_no_sense_are_refused(document: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        request_from_document("m", "", document, memoryview(b""))


@pytest.mark.parametrize("header", ["-1", "9", "x", "²", "", "9" * 5000])
def test_header_lengths_that_make_no_sense_are_refused(header: str) -> None:
    with pytest.raises(UsageError, match="Inference-Header-Content-Length"):
        json_length(header, 2)


@pytest.mark.parametrize("body", [b"{", b"[]", b"3", b"\xff", b"[" * 100_000])
def test_bodies_that_are_no_json_object_are_refused(body: bytes) -> None:
    with pytest.raises(UsageError, match="body is"):
        read_document(body)


def test_bytes_after_the_last_tensor_are_refused() -> None:
    with pytest.raises(TensorMismatch, match="2 bytes after"):
        request_from_document("m", "", {"inputs": []}, memoryview(b"ab"))


def test_lists_nested_beyond_reason_are_refused() -> None:
    data: Any = 1
    for _ in range(200):
        data = [data]
    entry = {"name": "x", "datatype": "FP32", "shape": [1], "data": data}
    with pytest.raises(TensorMismatch, match="lists within lists"):
        request_from_document("m", "", {"inputs": [entry]}, memoryview(b""))


@pytest.mark.parametrize(
    "tensor",
    [
        from_array(np.array([1, np.nan], np.float32)),
        from_array(np.array([np.inf], np.float64)),
        Tensor.from_bytes(DType.BFLOAT16, (1,), b"\0\0"),
        Tensor.from_bytes(DType.STRING, (1,), b"\1\0\0\0\xff"),
    ],
)
def test_what_json_cannot_say_must_be_asked_for_as_binary(tensor: Tensor) -> None:
    asked = request_from_document("m", "", {"inputs": []}, memoryview(b""))
    with pytest.raises(Refused, match="ask for it with binary_data"):
        body_of_answer(answer_of(tensor), asked)


def two_floats(**more: Any) -> Any:
    return message_with(Tensor.from_bytes(DType.FLOAT32, (2,), bytes(8)), **more)


def test_messages_that_do_not_add_up_are_refused() -> None:
    cases: list[tuple[Any, str]] = [
        (two_floats(raw_input_contents=[b"", b""]), "2 raw_input_contents for 1 inputs"),
        (two_floats(raw_input_contents=[bytes(7)]), "7 bytes for float32"),
        (two_floats(), "0 elements for shape"),
        (two_floats(parameters={"timeout": {"string_param": "1"}}, raw_input_contents=[bytes(8)]), "microseconds"),
        (
            two_floats(raw_input_contents=[bytes(8)], outputs=[{"name": "y", "parameters": {"classification": {}}}]),
            "not",
        ),
    ]
    both = two_floats(raw_input_contents=[bytes(8)])
    both.inputs[0].contents.fp32_contents.extend([1, 2])
    cases.append((both, "typed contents beside"))
    wrong = two_floats()
    wrong.inputs[0].contents.int_contents.extend([1, 2])
    cases.append((wrong, "belongs in fp32_contents, not in int_contents"))
    twice = two_floats(raw_input_contents=[bytes(8), bytes(8)])
    twice.inputs.append(twice.inputs[0])
    cases.append((twice, "given twice"))
    half = message_with(Tensor.from_bytes(DType.FLOAT16, (2,), bytes(4)))
    cases.append((half, "raw_input_contents only"))
    for message, said in cases:
        with pytest.raises(MeshError, match=said):
            request_from_message(message, None)


def test_the_earlier_of_both_deadlines_holds() -> None:
    raw = {"raw_input_contents": [bytes(8)]}
    timed = two_floats(parameters={"timeout": {"int64_param": 250_000}}, **raw)
    assert request_from_message(timed, None).timeout_s == 0.25
    assert request_from_message(timed, 0.1).timeout_s == 0.1
    assert request_from_message(timed, 1.0).timeout_s == 0.25
    assert request_from_message(two_floats(**raw), None).timeout_s is None
    assert request_from_message(two_floats(parameters={"timeout": {"int64_param": 0}}, **raw), None).timeout_s is None


def test_every_type_has_a_name_and_a_place() -> None:
    assert {dtype_of(datatype_of(dtype), "x") for dtype in DType} == set(DType)
    assert set(_FIELDS) == set(DType) - RAW_ONLY


def test_models_are_described_alike_in_both_forms() -> None:
    inputs = [TensorSpec(f"i{dtype.value}", dtype, ("n", 3)) for dtype in DType]
    deployment = deployment_of("m", inputs, [TensorSpec("y", DType.FLOAT32, None)])
    from google.protobuf.json_format import MessageToDict

    told = MessageToDict(metadata_message(deployment), preserving_proto_field_name=True)
    document = metadata_document(deployment)
    assert [(entry["name"], entry["datatype"]) for entry in told["inputs"]] == [
        (entry["name"], entry["datatype"]) for entry in document["inputs"]
    ]
    assert [[int(size) for size in entry["shape"]] for entry in told["inputs"]] == [[-1, 3]] * len(inputs)
    assert document["outputs"][0]["shape"] == [-1]
    config = MessageToDict(config_message(deployment), preserving_proto_field_name=True)["config"]
    assert [entry["data_type"] for entry in config["input"]] == [
        entry["data_type"] for entry in config_document(deployment)["input"]
    ]
