"""Between the protocol's gRPC messages and the values of `inference`. Pure; the statuses are `oip_grpc`'s.

Raw contents become tensors over the received bytes, without a further copy; typed contents are converted, and are
answered in kind unless an output has a type that exists as raw bytes only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mesh.arrays import to_array
from mesh.core.plan import Deployment
from mesh.core.tensor import DType, Tensor, TensorSpec, unpack_strings
from mesh.errors import TensorMismatch, UsageError
from mesh.gateways.contract import MODEL_VERSION, InferenceAnswer, InferenceRequest
from mesh.gateways.datatypes import RAW_ONLY, datatype_of, dtype_of, shape_of, tensor_from_values
from mesh.gateways.public_messages import message_class
from mesh.gateways.statistics import DURATIONS, Duration, ModelStatistics

ModelInferResponse = message_class("ModelInferResponse")
ModelMetadataResponse = message_class("ModelMetadataResponse")
ModelConfigResponse = message_class("ModelConfigResponse")
ModelStatisticsMessage = message_class("ModelStatistics")
DataType: Any = ModelConfigResponse.DESCRIPTOR.file.enum_types_by_name["DataType"].values_by_name

PLATFORM = "onnxruntime_onnx"
"""What clients of the protocol know as "an ONNX model"."""

MICROSECONDS_PER_S = 1_000_000

MAX_TIMEOUT_US = (1 << 64) - 1
"""What the protocol's messages hold; JSON could say thousands of digits."""

_FIELDS: dict[DType, str] = {
    DType.BOOL: "bool_contents",
    DType.INT8: "int_contents",
    DType.INT16: "int_contents",
    DType.INT32: "int_contents",
    DType.INT64: "int64_contents",
    DType.UINT8: "uint_contents",
    DType.UINT16: "uint_contents",
    DType.UINT32: "uint_contents",
    DType.UINT64: "uint64_contents",
    DType.FLOAT32: "fp32_contents",
    DType.FLOAT64: "fp64_contents",
    DType.STRING: "bytes_contents",
}

UNSERVED_PARAMETERS = ("shared_memory_region", "classification")
"""Extensions that are announced nowhere here; a request that counts on one must not be answered as if it had not."""


def parameter_value(parameter: Any) -> bool | int | float | str | None:
    """Of an `InferParameter`; None where it holds none."""
    kind = parameter.WhichOneof("parameter_choice")
    value: bool | int | float | str | None = getattr(parameter, kind) if kind else None
    return value


def timeout_of(parameters: Mapping[str, Any]) -> float | None:
    """The request's parameter `timeout`, which is in microseconds, in seconds; None or 0 mean none."""
    if "timeout" not in parameters:
        return None
    value = parameter_value(parameters["timeout"])
    return check_timeout(value)


def check_timeout(value: object) -> float | None:
    """A `timeout` in microseconds as seconds; raises `UsageError`."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_TIMEOUT_US:
        raise UsageError(f"parameter 'timeout' is {str(value)[:40]!r}, it must be a number of microseconds")
    return value / MICROSECONDS_PER_S if value else None


def check_parameters(parameters: Mapping[str, Any], name: str) -> None:
    """Raise `UsageError` where tensor `name` counts on an extension that is not served."""
    for parameter in UNSERVED_PARAMETERS:
        if parameter in parameters:
            raise UsageError(f"tensor {name!r}: the parameter {parameter!r} is not served here")


def request_from_message(message: Any, time_left_s: float | None, traceparent: str = "") -> InferenceRequest:
    """A `ModelInferRequest`; `time_left_s` is the call's own deadline. Raises `TensorMismatch` or `UsageError`."""
    raw = message.raw_input_contents
    inputs: dict[str, Tensor] = {}
    if raw and len(raw) != len(message.inputs):
        raise TensorMismatch(f"{len(raw)} raw_input_contents for {len(message.inputs)} inputs")
    for index, entry in enumerate(message.inputs):
        if entry.name in inputs:
            raise TensorMismatch(f"input {entry.name[:80]!r} is given twice")
        check_parameters(entry.parameters, entry.name)
        inputs[entry.name] = _tensor(entry, raw[index] if raw else None)
    for output in message.outputs:
        check_parameters(output.parameters, output.name)
    limits = [limit for limit in (timeout_of(message.parameters), time_left_s) if limit is not None]
    return InferenceRequest(
        message.model_name,
        message.model_version,
        inputs,
        tuple(output.name for output in message.outputs),
        min(limits, default=None),
        traceparent,
    )


def _tensor(entry: Any, raw: bytes | None) -> Tensor:
    name: str = entry.name
    dtype, shape = dtype_of(entry.datatype, name), shape_of(entry.shape, name)
    if raw is not None:
        if entry.HasField("contents"):
            raise TensorMismatch(f"input {name!r} has typed contents beside raw_input_contents")
        return Tensor.from_bytes(dtype, shape, raw, name)
    field = _FIELDS.get(dtype)
    if field is None:
        raise TensorMismatch(f"input {name!r}: {entry.datatype} travels in raw_input_contents only")
    for other, values in entry.contents.ListFields():
        if other.name != field and len(values):
            raise TensorMismatch(f"input {name!r}: {entry.datatype} belongs in {field}, not in {other.name}")
    return tensor_from_values(dtype, shape, list(getattr(entry.contents, field)), name)


def message_from_answer(answer: InferenceAnswer, request: Any) -> Any:
    """A `ModelInferResponse` to the `ModelInferRequest` `request`."""
    response = ModelInferResponse(model_name=answer.deployment.name, model_version=MODEL_VERSION, id=request.id)
    is_raw = (
        bool(request.raw_input_contents)
        or not request.inputs
        or any(tensor.dtype in RAW_ONLY for _, tensor in answer.outputs)
    )
    for spec, tensor in answer.outputs:
        entry = response.outputs.add(name=spec.name, datatype=datatype_of(tensor.dtype), shape=tensor.shape)
        if is_raw:
            response.raw_output_contents.append(bytes(tensor.data))
        else:
            getattr(entry.contents, _FIELDS[tensor.dtype]).extend(_values(spec, tensor))
    return response


def _values(spec: TensorSpec, tensor: Tensor) -> Sequence[Any]:
    if tensor.dtype is DType.STRING:
        return unpack_strings(tensor.data, tensor.element_count, spec.name)
    values: list[Any] = to_array(tensor, spec.name).reshape(-1).tolist()
    return values


def protocol_shape(spec: TensorSpec) -> list[int]:
    """Sizes with -1 where a request decides; a tensor of unknown rank counts as one such."""
    return [-1] if spec.shape is None else [size if isinstance(size, int) else -1 for size in spec.shape]


def metadata_message(deployment: Deployment) -> Any:
    """A `ModelMetadataResponse`."""
    response = ModelMetadataResponse(name=deployment.name, versions=[MODEL_VERSION], platform=PLATFORM)
    for specs, entries in ((deployment.inputs, response.inputs), (deployment.outputs, response.outputs)):
        for spec in specs:
            entries.add(name=spec.name, datatype=datatype_of(spec.dtype), shape=protocol_shape(spec))
    return response


def config_message(deployment: Deployment) -> Any:
    """A `ModelConfigResponse`; a batch, where the model has one, is an ordinary dimension here."""
    response = ModelConfigResponse()
    config = response.config
    config.name, config.platform, config.backend = deployment.name, PLATFORM, "onnxruntime"
    config.default_model_filename = "model.onnx"
    config.version_policy.specific.versions.append(int(MODEL_VERSION))
    config.model_transaction_policy.decoupled = False
    for specs, entries in ((deployment.inputs, config.input), (deployment.outputs, config.output)):
        for spec in specs:
            entries.add(name=spec.name, data_type=DataType[config_type(spec.dtype)].number, dims=protocol_shape(spec))
    return response


def config_type(dtype: DType) -> str:
    """The model configuration's name of `dtype` ("TYPE_FP32")."""
    return "TYPE_STRING" if dtype is DType.STRING else f"TYPE_{datatype_of(dtype)}"


def statistics_message(name: str, counted: ModelStatistics) -> Any:
    """A `ModelStatistics`."""
    message = ModelStatisticsMessage(
        name=name,
        version=MODEL_VERSION,
        last_inference=counted.last_inference_ms,
        inference_count=counted.success.count,
        execution_count=counted.success.count,
    )
    for field in DURATIONS:
        duration: Duration = getattr(counted, field)
        told = getattr(message.inference_stats, field)
        told.count, told.ns = duration.count, duration.nanoseconds
    return message
