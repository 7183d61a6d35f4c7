"""Between the protocol's JSON, with the binary tensor extension, and the values of `inference`. Pure.

A body is a JSON document, followed, where the header `Inference-Header-Content-Length` says where it ends, by the bytes
of those tensors that have a `binary_data_size`. Tensors in JSON are lists of numbers, booleans or texts, also nested.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mesh.arrays import to_array
from mesh.core.plan import Deployment
from mesh.core.tensor import DType, Tensor, TensorSpec, unpack_strings
from mesh.errors import Refused, TensorMismatch, UsageError
from mesh.gateways.contract import MODEL_VERSION, InferenceAnswer, InferenceRequest
from mesh.gateways.datatypes import datatype_of, dtype_of, shape_of, tensor_from_values
from mesh.gateways.oip_messages import PLATFORM, check_parameters, check_timeout, config_type, protocol_shape
from mesh.gateways.statistics import DURATIONS, ModelStatistics

MAX_NESTING = 64
"""Of lists within lists: above every rank that a tensor may have."""

MAX_LENGTH_DIGITS = 18
"""Of a length in a header: more than any body has."""

Document = dict[str, Any]


@dataclass(frozen=True, slots=True)
class JsonRequest:
    """An inference request, and in what form its answer is wanted."""

    request: InferenceRequest
    id: str
    binary_outputs: Mapping[str, bool]
    """By output, where the request says it of one."""
    is_binary: bool
    """What holds for the others."""


def read_document(data: bytes) -> Document:
    """The JSON object in `data`; an empty body is an empty one. Raises `UsageError`."""
    if not data:
        return {}
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"the body is not JSON: {error}") from None
    if not isinstance(document, dict):
        raise UsageError(f"the body is a JSON {type(document).__name__}, it must be an object")
    return document


def json_length(header: str | None, body_bytes: int) -> int:
    """Bytes of JSON in a body; `header` is `Inference-Header-Content-Length`. Raises `UsageError`."""
    if header is None:
        return body_bytes
    is_number = header.isascii() and header.isdecimal() and len(header) <= MAX_LENGTH_DIGITS
    if not is_number or int(header) > body_bytes:
        raise UsageError(f"Inference-Header-Content-Length is {header[:40]!r} for a body of {body_bytes} bytes")
    return int(header)


def split_body(body: bytes, json_bytes: int) -> tuple[Document, memoryview]:
    """The JSON document and the bytes after it. Raises `UsageError`."""
    return read_document(body[:json_bytes]), memoryview(body)[json_bytes:]


def request_from_document(
    model: str, version: str, document: Document, binary: memoryview, traceparent: str = ""
) -> JsonRequest:
    """Raises `UsageError` for fields of the wrong kind, `TensorMismatch` for tensors that do not add up."""
    inputs: dict[str, Tensor] = {}
    offset = 0
    for entry in _objects(document, "inputs"):
        name = _text(entry, "name")
        if name in inputs:
            raise TensorMismatch(f"input {name[:80]!r} is given twice")
        parameters = _object(entry, "parameters")
        check_parameters(parameters, name)
        dtype, shape = dtype_of(_text(entry, "datatype"), name), shape_of(_dimensions(entry, name), name)
        size = parameters.get("binary_data_size")
        if size is None:
            inputs[name] = _tensor(dtype, shape, entry.get("data"), name)
            continue
        if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size <= len(binary) - offset:
            raise TensorMismatch(f"input {name!r}: binary_data_size {str(size)[:40]} is not what follows the JSON")
        inputs[name] = Tensor.from_bytes(dtype, shape, binary[offset : offset + size], name)
        offset += size
    if offset != len(binary):
        raise TensorMismatch(f"{len(binary) - offset} bytes after the last tensor's")
    outputs = _objects(document, "outputs", is_optional=True)
    for output in outputs:
        check_parameters(_object(output, "parameters"), _text(output, "name"))
    parameters = _object(document, "parameters")
    request = InferenceRequest(
        model,
        version,
        inputs,
        tuple(_text(output, "name") for output in outputs),
        check_timeout(parameters["timeout"]) if "timeout" in parameters else None,
        traceparent,
    )
    chosen = {
        _text(output, "name"): bool(_object(output, "parameters")["binary_data"])
        for output in outputs
        if "binary_data" in _object(output, "parameters")
    }
    identifier = document.get("id", "")
    if not isinstance(identifier, str):
        raise UsageError("'id' must be a text")
    return JsonRequest(request, identifier, chosen, bool(parameters.get("binary_data_output", False)))


def body_of_answer(answer: InferenceAnswer, asked: JsonRequest) -> tuple[bytes, int | None]:
    """The response body, and the length of its JSON where bytes follow.

    Raises `Refused` for values that JSON cannot say: those must be asked for as binary.
    """
    outputs: list[Document] = []
    blobs: list[memoryview] = []
    for spec, tensor in answer.outputs:
        entry: Document = {"name": spec.name, "datatype": datatype_of(tensor.dtype), "shape": list(tensor.shape)}
        if asked.binary_outputs.get(spec.name, asked.is_binary):
            entry["parameters"] = {"binary_data_size": len(tensor.data)}
            blobs.append(tensor.data)
        else:
            entry["data"] = _values(spec, tensor)
        outputs.append(entry)
    document: Document = {"model_name": answer.deployment.name, "model_version": MODEL_VERSION, "outputs": outputs}
    if asked.id:
        document["id"] = asked.id
    head = json.dumps(document, separators=(",", ":"), allow_nan=False).encode()
    return (b"".join([head, *blobs]), len(head)) if blobs else (head, None)


def metadata_document(deployment: Deployment) -> Document:
    def tensors(specs: Sequence[TensorSpec]) -> list[Document]:
        return [
            {"name": spec.name, "datatype": datatype_of(spec.dtype), "shape": protocol_shape(spec)} for spec in specs
        ]

    return {
        "name": deployment.name,
        "versions": [MODEL_VERSION],
        "platform": PLATFORM,
        "inputs": tensors(deployment.inputs),
        "outputs": tensors(deployment.outputs),
    }


def config_document(deployment: Deployment) -> Document:
    def tensors(specs: Sequence[TensorSpec]) -> list[Document]:
        return [
            {"name": spec.name, "data_type": config_type(spec.dtype), "dims": protocol_shape(spec)} for spec in specs
        ]

    return {
        "name": deployment.name,
        "platform": PLATFORM,
        "backend": "onnxruntime",
        "max_batch_size": 0,
        "version_policy": {"specific": {"versions": [int(MODEL_VERSION)]}},
        "input": tensors(deployment.inputs),
        "output": tensors(deployment.outputs),
        "default_model_filename": "model.onnx",
        "model_transaction_policy": {"decoupled": False},
    }


def statistics_document(name: str, counted: ModelStatistics) -> Document:
    return {
        "name": name,
        "version": MODEL_VERSION,
        "last_inference": counted.last_inference_ms,
        "inference_count": counted.success.count,
        "execution_count": counted.success.count,
        "inference_stats": {
            field: {"count": getattr(counted, field).count, "ns": getattr(counted, field).nanoseconds}
            for field in DURATIONS
        },
        "batch_stats": [],
    }


# ---------------------------------------------------------------------------------------------------


def _tensor(dtype: DType, shape: tuple[int, ...], data: Any, name: str) -> Tensor:
    if not isinstance(data, list):
        raise TensorMismatch(f"input {name!r}: 'data' must be a list", hint="or a binary_data_size and bytes")
    values = list(_flat(data, name, 0))
    if dtype is DType.STRING:
        if not all(isinstance(value, str) for value in values):
            raise TensorMismatch(f"input {name!r}: BYTES in JSON are texts")
        try:
            values = [value.encode() for value in values]
        except UnicodeEncodeError:
            raise TensorMismatch(f"input {name!r}: a text has half of a surrogate pair, which is no UTF-8") from None
    return tensor_from_values(dtype, shape, values, name)


def _flat(data: list[Any], name: str, depth: int) -> Iterator[Any]:
    if depth > MAX_NESTING:
        raise TensorMismatch(f"input {name!r}: lists within lists, more than {MAX_NESTING} deep")
    for value in data:
        if isinstance(value, list):
            yield from _flat(value, name, depth + 1)
        else:
            yield value


def _values(spec: TensorSpec, tensor: Tensor) -> list[Any]:
    if tensor.dtype is DType.BFLOAT16:
        raise Refused(f"output {spec.name!r} is BF16, which JSON does not carry", hint="ask for it with binary_data")
    if tensor.dtype is DType.STRING:
        try:
            texts = unpack_strings(tensor.data, tensor.element_count, spec.name)
            return [text.decode() for text in texts]
        except UnicodeDecodeError:
            raise Refused(f"output {spec.name!r} is no text", hint="ask for it with binary_data") from None
    values: list[Any] = to_array(tensor, spec.name).reshape(-1).tolist()
    if tensor.dtype.is_float and not all(map(math.isfinite, values)):
        raise Refused(
            f"output {spec.name!r} has values that are no finite numbers, which JSON cannot say",
            hint="ask for it with binary_data",
        )
    return values


def _objects(document: Document, field: str, is_optional: bool = False) -> list[Document]:
    entries = document.get(field, [] if is_optional else None)
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise UsageError(f"{field!r} must be a list of objects")
    return entries


def _object(document: Document, field: str) -> Document:
    value = document.get(field, {})
    if not isinstance(value, dict):
        raise UsageError(f"{field!r} must be an object")
    return value


def _text(document: Document, field: str) -> str:
    value = document.get(field)
    if not isinstance(value, str):
        raise UsageError(f"{field!r} must be a text")
    return value


def _dimensions(entry: Document, name: str) -> list[int]:
    shape = entry.get("shape")
    if not isinstance(shape, list) or not all(isinstance(size, int) and not isinstance(size, bool) for size in shape):
        raise TensorMismatch(f"input {name!r}: 'shape' must be a list of whole numbers")
    return shape
