from mesh.v1 import tensor_pb2 as _tensor_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Objective(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    OBJECTIVE_UNSPECIFIED: _ClassVar[Objective]
    OBJECTIVE_THROUGHPUT: _ClassVar[Objective]
    OBJECTIVE_LATENCY: _ClassVar[Objective]
    OBJECTIVE_MEMORY: _ClassVar[Objective]
    OBJECTIVE_ENERGY: _ClassVar[Objective]
OBJECTIVE_UNSPECIFIED: Objective
OBJECTIVE_THROUGHPUT: Objective
OBJECTIVE_LATENCY: Objective
OBJECTIVE_MEMORY: Objective
OBJECTIVE_ENERGY: Objective

class Segment(_message.Message):
    __slots__ = ("start", "end", "consumes", "produces", "relays", "weight_bytes", "flops", "sha256")
    START_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    CONSUMES_FIELD_NUMBER: _ClassVar[int]
    PRODUCES_FIELD_NUMBER: _ClassVar[int]
    RELAYS_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_BYTES_FIELD_NUMBER: _ClassVar[int]
    FLOPS_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    start: int
    end: int
    consumes: _containers.RepeatedScalarFieldContainer[str]
    produces: _containers.RepeatedScalarFieldContainer[str]
    relays: _containers.RepeatedScalarFieldContainer[str]
    weight_bytes: int
    flops: int
    sha256: str
    def __init__(self, start: _Optional[int] = ..., end: _Optional[int] = ..., consumes: _Optional[_Iterable[str]] = ..., produces: _Optional[_Iterable[str]] = ..., relays: _Optional[_Iterable[str]] = ..., weight_bytes: _Optional[int] = ..., flops: _Optional[int] = ..., sha256: _Optional[str] = ...) -> None: ...

class Stage(_message.Message):
    __slots__ = ("segment", "devices", "compute_seconds", "measured", "variant", "codec")
    SEGMENT_FIELD_NUMBER: _ClassVar[int]
    DEVICES_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    MEASURED_FIELD_NUMBER: _ClassVar[int]
    VARIANT_FIELD_NUMBER: _ClassVar[int]
    CODEC_FIELD_NUMBER: _ClassVar[int]
    segment: Segment
    devices: _containers.RepeatedScalarFieldContainer[str]
    compute_seconds: float
    measured: bool
    variant: str
    codec: str
    def __init__(self, segment: _Optional[_Union[Segment, _Mapping]] = ..., devices: _Optional[_Iterable[str]] = ..., compute_seconds: _Optional[float] = ..., measured: bool = ..., variant: _Optional[str] = ..., codec: _Optional[str] = ...) -> None: ...

class Limits(_message.Message):
    __slots__ = ("only", "excluded", "head", "replicas", "codecs", "answer_change")
    ONLY_FIELD_NUMBER: _ClassVar[int]
    EXCLUDED_FIELD_NUMBER: _ClassVar[int]
    HEAD_FIELD_NUMBER: _ClassVar[int]
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    CODECS_FIELD_NUMBER: _ClassVar[int]
    ANSWER_CHANGE_FIELD_NUMBER: _ClassVar[int]
    only: _containers.RepeatedScalarFieldContainer[str]
    excluded: _containers.RepeatedScalarFieldContainer[str]
    head: str
    replicas: int
    codecs: _containers.RepeatedScalarFieldContainer[str]
    answer_change: float
    def __init__(self, only: _Optional[_Iterable[str]] = ..., excluded: _Optional[_Iterable[str]] = ..., head: _Optional[str] = ..., replicas: _Optional[int] = ..., codecs: _Optional[_Iterable[str]] = ..., answer_change: _Optional[float] = ...) -> None: ...

class LinkBreakdown(_message.Message):
    __slots__ = ("bytes_per_second", "latency_seconds", "transfer_seconds", "period_seconds", "measured")
    BYTES_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    LATENCY_SECONDS_FIELD_NUMBER: _ClassVar[int]
    TRANSFER_SECONDS_FIELD_NUMBER: _ClassVar[int]
    PERIOD_SECONDS_FIELD_NUMBER: _ClassVar[int]
    MEASURED_FIELD_NUMBER: _ClassVar[int]
    bytes_per_second: float
    latency_seconds: float
    transfer_seconds: float
    period_seconds: float
    measured: bool
    def __init__(self, bytes_per_second: _Optional[float] = ..., latency_seconds: _Optional[float] = ..., transfer_seconds: _Optional[float] = ..., period_seconds: _Optional[float] = ..., measured: bool = ...) -> None: ...

class StageBreakdown(_message.Message):
    __slots__ = ("handling_seconds", "period_seconds", "bytes_in", "bytes_out", "memory_bytes", "memory_available_bytes", "link", "memory_measured")
    HANDLING_SECONDS_FIELD_NUMBER: _ClassVar[int]
    PERIOD_SECONDS_FIELD_NUMBER: _ClassVar[int]
    BYTES_IN_FIELD_NUMBER: _ClassVar[int]
    BYTES_OUT_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    MEMORY_AVAILABLE_BYTES_FIELD_NUMBER: _ClassVar[int]
    LINK_FIELD_NUMBER: _ClassVar[int]
    MEMORY_MEASURED_FIELD_NUMBER: _ClassVar[int]
    handling_seconds: float
    period_seconds: float
    bytes_in: int
    bytes_out: int
    memory_bytes: int
    memory_available_bytes: int
    link: LinkBreakdown
    memory_measured: bool
    def __init__(self, handling_seconds: _Optional[float] = ..., period_seconds: _Optional[float] = ..., bytes_in: _Optional[int] = ..., bytes_out: _Optional[int] = ..., memory_bytes: _Optional[int] = ..., memory_available_bytes: _Optional[int] = ..., link: _Optional[_Union[LinkBreakdown, _Mapping]] = ..., memory_measured: bool = ...) -> None: ...

class Bottleneck(_message.Message):
    __slots__ = ("stage", "is_link", "period_seconds")
    STAGE_FIELD_NUMBER: _ClassVar[int]
    IS_LINK_FIELD_NUMBER: _ClassVar[int]
    PERIOD_SECONDS_FIELD_NUMBER: _ClassVar[int]
    stage: int
    is_link: bool
    period_seconds: float
    def __init__(self, stage: _Optional[int] = ..., is_link: bool = ..., period_seconds: _Optional[float] = ...) -> None: ...

class Explanation(_message.Message):
    __slots__ = ("stages", "bottleneck", "improvements")
    STAGES_FIELD_NUMBER: _ClassVar[int]
    BOTTLENECK_FIELD_NUMBER: _ClassVar[int]
    IMPROVEMENTS_FIELD_NUMBER: _ClassVar[int]
    stages: _containers.RepeatedCompositeFieldContainer[StageBreakdown]
    bottleneck: Bottleneck
    improvements: _containers.RepeatedCompositeFieldContainer[Alternative]
    def __init__(self, stages: _Optional[_Iterable[_Union[StageBreakdown, _Mapping]]] = ..., bottleneck: _Optional[_Union[Bottleneck, _Mapping]] = ..., improvements: _Optional[_Iterable[_Union[Alternative, _Mapping]]] = ...) -> None: ...

class Prediction(_message.Message):
    __slots__ = ("throughput_per_s", "latency_s")
    THROUGHPUT_PER_S_FIELD_NUMBER: _ClassVar[int]
    LATENCY_S_FIELD_NUMBER: _ClassVar[int]
    throughput_per_s: float
    latency_s: float
    def __init__(self, throughput_per_s: _Optional[float] = ..., latency_s: _Optional[float] = ...) -> None: ...

class Alternative(_message.Message):
    __slots__ = ("name", "prediction", "reason")
    NAME_FIELD_NUMBER: _ClassVar[int]
    PREDICTION_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    name: str
    prediction: Prediction
    reason: str
    def __init__(self, name: _Optional[str] = ..., prediction: _Optional[_Union[Prediction, _Mapping]] = ..., reason: _Optional[str] = ...) -> None: ...

class Plan(_message.Message):
    __slots__ = ("model_sha256", "objective", "forced", "stages", "predicted", "bound_throughput_per_s", "certificate", "alternatives", "window", "limits", "explanation", "variant")
    MODEL_SHA256_FIELD_NUMBER: _ClassVar[int]
    OBJECTIVE_FIELD_NUMBER: _ClassVar[int]
    FORCED_FIELD_NUMBER: _ClassVar[int]
    STAGES_FIELD_NUMBER: _ClassVar[int]
    PREDICTED_FIELD_NUMBER: _ClassVar[int]
    BOUND_THROUGHPUT_PER_S_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    ALTERNATIVES_FIELD_NUMBER: _ClassVar[int]
    WINDOW_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    EXPLANATION_FIELD_NUMBER: _ClassVar[int]
    VARIANT_FIELD_NUMBER: _ClassVar[int]
    model_sha256: str
    objective: Objective
    forced: bool
    stages: _containers.RepeatedCompositeFieldContainer[Stage]
    predicted: Prediction
    bound_throughput_per_s: float
    certificate: str
    alternatives: _containers.RepeatedCompositeFieldContainer[Alternative]
    window: int
    limits: Limits
    explanation: Explanation
    variant: str
    def __init__(self, model_sha256: _Optional[str] = ..., objective: _Optional[_Union[Objective, str]] = ..., forced: bool = ..., stages: _Optional[_Iterable[_Union[Stage, _Mapping]]] = ..., predicted: _Optional[_Union[Prediction, _Mapping]] = ..., bound_throughput_per_s: _Optional[float] = ..., certificate: _Optional[str] = ..., alternatives: _Optional[_Iterable[_Union[Alternative, _Mapping]]] = ..., window: _Optional[int] = ..., limits: _Optional[_Union[Limits, _Mapping]] = ..., explanation: _Optional[_Union[Explanation, _Mapping]] = ..., variant: _Optional[str] = ...) -> None: ...

class Boundary(_message.Message):
    __slots__ = ("tensors",)
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    tensors: _containers.RepeatedCompositeFieldContainer[_tensor_pb2.TensorSpec]
    def __init__(self, tensors: _Optional[_Iterable[_Union[_tensor_pb2.TensorSpec, _Mapping]]] = ...) -> None: ...

class Deployment(_message.Message):
    __slots__ = ("name", "term", "generation", "plan", "inputs", "outputs", "boundaries", "addresses", "standbys", "cause")
    class AddressesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    TERM_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    PLAN_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    BOUNDARIES_FIELD_NUMBER: _ClassVar[int]
    ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    STANDBYS_FIELD_NUMBER: _ClassVar[int]
    CAUSE_FIELD_NUMBER: _ClassVar[int]
    name: str
    term: int
    generation: int
    plan: Plan
    inputs: _containers.RepeatedCompositeFieldContainer[_tensor_pb2.TensorSpec]
    outputs: _containers.RepeatedCompositeFieldContainer[_tensor_pb2.TensorSpec]
    boundaries: _containers.RepeatedCompositeFieldContainer[Boundary]
    addresses: _containers.ScalarMap[str, str]
    standbys: _containers.RepeatedCompositeFieldContainer[Standbys]
    cause: str
    def __init__(self, name: _Optional[str] = ..., term: _Optional[int] = ..., generation: _Optional[int] = ..., plan: _Optional[_Union[Plan, _Mapping]] = ..., inputs: _Optional[_Iterable[_Union[_tensor_pb2.TensorSpec, _Mapping]]] = ..., outputs: _Optional[_Iterable[_Union[_tensor_pb2.TensorSpec, _Mapping]]] = ..., boundaries: _Optional[_Iterable[_Union[Boundary, _Mapping]]] = ..., addresses: _Optional[_Mapping[str, str]] = ..., standbys: _Optional[_Iterable[_Union[Standbys, _Mapping]]] = ..., cause: _Optional[str] = ...) -> None: ...

class Standbys(_message.Message):
    __slots__ = ("node_ids",)
    NODE_IDS_FIELD_NUMBER: _ClassVar[int]
    node_ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, node_ids: _Optional[_Iterable[str]] = ...) -> None: ...
