from mesh.v1 import plan_pb2 as _plan_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class NodeState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    NODE_STATE_UNSPECIFIED: _ClassVar[NodeState]
    NODE_STATE_MEASURING: _ClassVar[NodeState]
    NODE_STATE_READY: _ClassVar[NodeState]
    NODE_STATE_DRAINING: _ClassVar[NodeState]

class DeploymentState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DEPLOYMENT_STATE_UNSPECIFIED: _ClassVar[DeploymentState]
    DEPLOYMENT_STATE_PREPARING: _ClassVar[DeploymentState]
    DEPLOYMENT_STATE_LOADING: _ClassVar[DeploymentState]
    DEPLOYMENT_STATE_READY: _ClassVar[DeploymentState]
    DEPLOYMENT_STATE_ACTIVE: _ClassVar[DeploymentState]
    DEPLOYMENT_STATE_DRAINING: _ClassVar[DeploymentState]
    DEPLOYMENT_STATE_GONE: _ClassVar[DeploymentState]
    DEPLOYMENT_STATE_FAILED: _ClassVar[DeploymentState]
NODE_STATE_UNSPECIFIED: NodeState
NODE_STATE_MEASURING: NodeState
NODE_STATE_READY: NodeState
NODE_STATE_DRAINING: NodeState
DEPLOYMENT_STATE_UNSPECIFIED: DeploymentState
DEPLOYMENT_STATE_PREPARING: DeploymentState
DEPLOYMENT_STATE_LOADING: DeploymentState
DEPLOYMENT_STATE_READY: DeploymentState
DEPLOYMENT_STATE_ACTIVE: DeploymentState
DEPLOYMENT_STATE_DRAINING: DeploymentState
DEPLOYMENT_STATE_GONE: DeploymentState
DEPLOYMENT_STATE_FAILED: DeploymentState

class Provider(_message.Message):
    __slots__ = ("name", "usable", "detail")
    NAME_FIELD_NUMBER: _ClassVar[int]
    USABLE_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    name: str
    usable: bool
    detail: str
    def __init__(self, name: _Optional[str] = ..., usable: bool = ..., detail: _Optional[str] = ...) -> None: ...

class CodecSpeed(_message.Message):
    __slots__ = ("name", "encode_byte_seconds", "decode_byte_seconds")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ENCODE_BYTE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    DECODE_BYTE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    name: str
    encode_byte_seconds: float
    decode_byte_seconds: float
    def __init__(self, name: _Optional[str] = ..., encode_byte_seconds: _Optional[float] = ..., decode_byte_seconds: _Optional[float] = ...) -> None: ...

class Capabilities(_message.Message):
    __slots__ = ("node_id", "name", "arch", "cores", "memory_bytes", "memory_available_bytes", "disk_available_bytes", "providers", "runtime_version", "gflops", "memory_gb_per_s", "state", "software_version", "hardware", "mode", "codecs", "watts_busy", "watts_idle", "governor")
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    ARCH_FIELD_NUMBER: _ClassVar[int]
    CORES_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    MEMORY_AVAILABLE_BYTES_FIELD_NUMBER: _ClassVar[int]
    DISK_AVAILABLE_BYTES_FIELD_NUMBER: _ClassVar[int]
    PROVIDERS_FIELD_NUMBER: _ClassVar[int]
    RUNTIME_VERSION_FIELD_NUMBER: _ClassVar[int]
    GFLOPS_FIELD_NUMBER: _ClassVar[int]
    MEMORY_GB_PER_S_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    SOFTWARE_VERSION_FIELD_NUMBER: _ClassVar[int]
    HARDWARE_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    CODECS_FIELD_NUMBER: _ClassVar[int]
    WATTS_BUSY_FIELD_NUMBER: _ClassVar[int]
    WATTS_IDLE_FIELD_NUMBER: _ClassVar[int]
    GOVERNOR_FIELD_NUMBER: _ClassVar[int]
    node_id: str
    name: str
    arch: str
    cores: float
    memory_bytes: int
    memory_available_bytes: int
    disk_available_bytes: int
    providers: _containers.RepeatedCompositeFieldContainer[Provider]
    runtime_version: str
    gflops: float
    memory_gb_per_s: float
    state: NodeState
    software_version: str
    hardware: str
    mode: str
    codecs: _containers.RepeatedCompositeFieldContainer[CodecSpeed]
    watts_busy: float
    watts_idle: float
    governor: str
    def __init__(self, node_id: _Optional[str] = ..., name: _Optional[str] = ..., arch: _Optional[str] = ..., cores: _Optional[float] = ..., memory_bytes: _Optional[int] = ..., memory_available_bytes: _Optional[int] = ..., disk_available_bytes: _Optional[int] = ..., providers: _Optional[_Iterable[_Union[Provider, _Mapping]]] = ..., runtime_version: _Optional[str] = ..., gflops: _Optional[float] = ..., memory_gb_per_s: _Optional[float] = ..., state: _Optional[_Union[NodeState, str]] = ..., software_version: _Optional[str] = ..., hardware: _Optional[str] = ..., mode: _Optional[str] = ..., codecs: _Optional[_Iterable[_Union[CodecSpeed, _Mapping]]] = ..., watts_busy: _Optional[float] = ..., watts_idle: _Optional[float] = ..., governor: _Optional[str] = ...) -> None: ...

class GetCapabilitiesRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetCapabilitiesResponse(_message.Message):
    __slots__ = ("capabilities", "introduced")
    CAPABILITIES_FIELD_NUMBER: _ClassVar[int]
    INTRODUCED_FIELD_NUMBER: _ClassVar[int]
    capabilities: Capabilities
    introduced: _containers.RepeatedCompositeFieldContainer[IntroducedPeer]
    def __init__(self, capabilities: _Optional[_Union[Capabilities, _Mapping]] = ..., introduced: _Optional[_Iterable[_Union[IntroducedPeer, _Mapping]]] = ...) -> None: ...

class IntroducedPeer(_message.Message):
    __slots__ = ("node_id", "name", "address")
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    node_id: str
    name: str
    address: str
    def __init__(self, node_id: _Optional[str] = ..., name: _Optional[str] = ..., address: _Optional[str] = ...) -> None: ...

class IntroduceRequest(_message.Message):
    __slots__ = ("node_id", "name", "port")
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    PORT_FIELD_NUMBER: _ClassVar[int]
    node_id: str
    name: str
    port: int
    def __init__(self, node_id: _Optional[str] = ..., name: _Optional[str] = ..., port: _Optional[int] = ...) -> None: ...

class IntroduceResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StageStatus(_message.Message):
    __slots__ = ("stage", "frames", "compute_seconds", "throughput_per_s", "dropped", "failed", "node_id", "waiting_seconds", "leaving_seconds", "sent_bytes", "peak_bytes", "load_seconds")
    class SentBytesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    STAGE_FIELD_NUMBER: _ClassVar[int]
    FRAMES_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    THROUGHPUT_PER_S_FIELD_NUMBER: _ClassVar[int]
    DROPPED_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    WAITING_SECONDS_FIELD_NUMBER: _ClassVar[int]
    LEAVING_SECONDS_FIELD_NUMBER: _ClassVar[int]
    SENT_BYTES_FIELD_NUMBER: _ClassVar[int]
    PEAK_BYTES_FIELD_NUMBER: _ClassVar[int]
    LOAD_SECONDS_FIELD_NUMBER: _ClassVar[int]
    stage: int
    frames: int
    compute_seconds: float
    throughput_per_s: float
    dropped: int
    failed: int
    node_id: str
    waiting_seconds: float
    leaving_seconds: float
    sent_bytes: _containers.ScalarMap[str, int]
    peak_bytes: int
    load_seconds: float
    def __init__(self, stage: _Optional[int] = ..., frames: _Optional[int] = ..., compute_seconds: _Optional[float] = ..., throughput_per_s: _Optional[float] = ..., dropped: _Optional[int] = ..., failed: _Optional[int] = ..., node_id: _Optional[str] = ..., waiting_seconds: _Optional[float] = ..., leaving_seconds: _Optional[float] = ..., sent_bytes: _Optional[_Mapping[str, int]] = ..., peak_bytes: _Optional[int] = ..., load_seconds: _Optional[float] = ...) -> None: ...

class DeploymentStatus(_message.Message):
    __slots__ = ("deployment", "state", "reason", "stages", "events", "leaving")
    DEPLOYMENT_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    STAGES_FIELD_NUMBER: _ClassVar[int]
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    LEAVING_FIELD_NUMBER: _ClassVar[int]
    deployment: _plan_pb2.Deployment
    state: DeploymentState
    reason: str
    stages: _containers.RepeatedCompositeFieldContainer[StageStatus]
    events: _containers.RepeatedCompositeFieldContainer[Event]
    leaving: bool
    def __init__(self, deployment: _Optional[_Union[_plan_pb2.Deployment, _Mapping]] = ..., state: _Optional[_Union[DeploymentState, str]] = ..., reason: _Optional[str] = ..., stages: _Optional[_Iterable[_Union[StageStatus, _Mapping]]] = ..., events: _Optional[_Iterable[_Union[Event, _Mapping]]] = ..., leaving: bool = ...) -> None: ...

class Event(_message.Message):
    __slots__ = ("time", "text")
    TIME_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    time: float
    text: str
    def __init__(self, time: _Optional[float] = ..., text: _Optional[str] = ...) -> None: ...

class ListDeploymentsRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class ListDeploymentsResponse(_message.Message):
    __slots__ = ("deployments", "highest_term")
    DEPLOYMENTS_FIELD_NUMBER: _ClassVar[int]
    HIGHEST_TERM_FIELD_NUMBER: _ClassVar[int]
    deployments: _containers.RepeatedCompositeFieldContainer[DeploymentStatus]
    highest_term: int
    def __init__(self, deployments: _Optional[_Iterable[_Union[DeploymentStatus, _Mapping]]] = ..., highest_term: _Optional[int] = ...) -> None: ...

class PrepareRequest(_message.Message):
    __slots__ = ("deployment",)
    DEPLOYMENT_FIELD_NUMBER: _ClassVar[int]
    deployment: _plan_pb2.Deployment
    def __init__(self, deployment: _Optional[_Union[_plan_pb2.Deployment, _Mapping]] = ...) -> None: ...

class PrepareResponse(_message.Message):
    __slots__ = ("load_seconds",)
    LOAD_SECONDS_FIELD_NUMBER: _ClassVar[int]
    load_seconds: float
    def __init__(self, load_seconds: _Optional[float] = ...) -> None: ...

class ActivateRequest(_message.Message):
    __slots__ = ("name", "term", "generation")
    NAME_FIELD_NUMBER: _ClassVar[int]
    TERM_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    name: str
    term: int
    generation: int
    def __init__(self, name: _Optional[str] = ..., term: _Optional[int] = ..., generation: _Optional[int] = ...) -> None: ...

class ActivateResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DrainRequest(_message.Message):
    __slots__ = ("name", "term", "generation")
    NAME_FIELD_NUMBER: _ClassVar[int]
    TERM_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    name: str
    term: int
    generation: int
    def __init__(self, name: _Optional[str] = ..., term: _Optional[int] = ..., generation: _Optional[int] = ...) -> None: ...

class DrainResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class MeasureLinkRequest(_message.Message):
    __slots__ = ("address",)
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    address: str
    def __init__(self, address: _Optional[str] = ...) -> None: ...

class MeasureLinkResponse(_message.Message):
    __slots__ = ("latency_seconds", "bytes_per_second", "sending", "receiving")
    LATENCY_SECONDS_FIELD_NUMBER: _ClassVar[int]
    BYTES_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    SENDING_FIELD_NUMBER: _ClassVar[int]
    RECEIVING_FIELD_NUMBER: _ClassVar[int]
    latency_seconds: float
    bytes_per_second: float
    sending: Handling
    receiving: Handling
    def __init__(self, latency_seconds: _Optional[float] = ..., bytes_per_second: _Optional[float] = ..., sending: _Optional[_Union[Handling, _Mapping]] = ..., receiving: _Optional[_Union[Handling, _Mapping]] = ...) -> None: ...

class Handling(_message.Message):
    __slots__ = ("message_seconds", "byte_seconds")
    MESSAGE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    BYTE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    message_seconds: float
    byte_seconds: float
    def __init__(self, message_seconds: _Optional[float] = ..., byte_seconds: _Optional[float] = ...) -> None: ...

class EchoRequest(_message.Message):
    __slots__ = ("payload",)
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    payload: bytes
    def __init__(self, payload: _Optional[bytes] = ...) -> None: ...

class EchoResponse(_message.Message):
    __slots__ = ("received_bytes", "process_seconds")
    RECEIVED_BYTES_FIELD_NUMBER: _ClassVar[int]
    PROCESS_SECONDS_FIELD_NUMBER: _ClassVar[int]
    received_bytes: int
    process_seconds: float
    def __init__(self, received_bytes: _Optional[int] = ..., process_seconds: _Optional[float] = ...) -> None: ...

class MeasureModelRequest(_message.Message):
    __slots__ = ("sha256", "budget_seconds")
    SHA256_FIELD_NUMBER: _ClassVar[int]
    BUDGET_SECONDS_FIELD_NUMBER: _ClassVar[int]
    sha256: str
    budget_seconds: float
    def __init__(self, sha256: _Optional[str] = ..., budget_seconds: _Optional[float] = ...) -> None: ...

class MeasureModelResponse(_message.Message):
    __slots__ = ("run_seconds", "runs")
    RUN_SECONDS_FIELD_NUMBER: _ClassVar[int]
    RUNS_FIELD_NUMBER: _ClassVar[int]
    run_seconds: float
    runs: int
    def __init__(self, run_seconds: _Optional[float] = ..., runs: _Optional[int] = ...) -> None: ...

class ProfileModelRequest(_message.Message):
    __slots__ = ("sha256", "parts", "budget_seconds")
    SHA256_FIELD_NUMBER: _ClassVar[int]
    PARTS_FIELD_NUMBER: _ClassVar[int]
    BUDGET_SECONDS_FIELD_NUMBER: _ClassVar[int]
    sha256: str
    parts: _containers.RepeatedScalarFieldContainer[str]
    budget_seconds: float
    def __init__(self, sha256: _Optional[str] = ..., parts: _Optional[_Iterable[str]] = ..., budget_seconds: _Optional[float] = ...) -> None: ...

class KernelTime(_message.Message):
    __slots__ = ("name", "seconds")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    name: str
    seconds: float
    def __init__(self, name: _Optional[str] = ..., seconds: _Optional[float] = ...) -> None: ...

class ProfileModelResponse(_message.Message):
    __slots__ = ("kernels", "part_ratios", "peak_bytes", "part_peak_bytes")
    KERNELS_FIELD_NUMBER: _ClassVar[int]
    PART_RATIOS_FIELD_NUMBER: _ClassVar[int]
    PEAK_BYTES_FIELD_NUMBER: _ClassVar[int]
    PART_PEAK_BYTES_FIELD_NUMBER: _ClassVar[int]
    kernels: _containers.RepeatedCompositeFieldContainer[KernelTime]
    part_ratios: _containers.RepeatedScalarFieldContainer[float]
    peak_bytes: int
    part_peak_bytes: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, kernels: _Optional[_Iterable[_Union[KernelTime, _Mapping]]] = ..., part_ratios: _Optional[_Iterable[float]] = ..., peak_bytes: _Optional[int] = ..., part_peak_bytes: _Optional[_Iterable[int]] = ...) -> None: ...

class RunSourceRequest(_message.Message):
    __slots__ = ("name", "term", "generation", "seconds", "warm_up_seconds", "window", "rate_per_s")
    NAME_FIELD_NUMBER: _ClassVar[int]
    TERM_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    WARM_UP_SECONDS_FIELD_NUMBER: _ClassVar[int]
    WINDOW_FIELD_NUMBER: _ClassVar[int]
    RATE_PER_S_FIELD_NUMBER: _ClassVar[int]
    name: str
    term: int
    generation: int
    seconds: float
    warm_up_seconds: float
    window: int
    rate_per_s: float
    def __init__(self, name: _Optional[str] = ..., term: _Optional[int] = ..., generation: _Optional[int] = ..., seconds: _Optional[float] = ..., warm_up_seconds: _Optional[float] = ..., window: _Optional[int] = ..., rate_per_s: _Optional[float] = ...) -> None: ...

class StageFigures(_message.Message):
    __slots__ = ("stage", "compute_seconds", "queue_seconds")
    STAGE_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    QUEUE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    stage: int
    compute_seconds: float
    queue_seconds: float
    def __init__(self, stage: _Optional[int] = ..., compute_seconds: _Optional[float] = ..., queue_seconds: _Optional[float] = ...) -> None: ...

class RunSourceResponse(_message.Message):
    __slots__ = ("answered", "seconds", "latencies_us", "stages", "cpu_seconds")
    ANSWERED_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    LATENCIES_US_FIELD_NUMBER: _ClassVar[int]
    STAGES_FIELD_NUMBER: _ClassVar[int]
    CPU_SECONDS_FIELD_NUMBER: _ClassVar[int]
    answered: int
    seconds: float
    latencies_us: _containers.RepeatedScalarFieldContainer[int]
    stages: _containers.RepeatedCompositeFieldContainer[StageFigures]
    cpu_seconds: float
    def __init__(self, answered: _Optional[int] = ..., seconds: _Optional[float] = ..., latencies_us: _Optional[_Iterable[int]] = ..., stages: _Optional[_Iterable[_Union[StageFigures, _Mapping]]] = ..., cpu_seconds: _Optional[float] = ...) -> None: ...

class ReadClockRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ReadClockResponse(_message.Message):
    __slots__ = ("monotonic_seconds", "unix_seconds")
    MONOTONIC_SECONDS_FIELD_NUMBER: _ClassVar[int]
    UNIX_SECONDS_FIELD_NUMBER: _ClassVar[int]
    monotonic_seconds: float
    unix_seconds: float
    def __init__(self, monotonic_seconds: _Optional[float] = ..., unix_seconds: _Optional[float] = ...) -> None: ...

class ReadEnergyRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ReadEnergyResponse(_message.Message):
    __slots__ = ("monotonic_seconds", "processor_seconds", "joules", "source")
    MONOTONIC_SECONDS_FIELD_NUMBER: _ClassVar[int]
    PROCESSOR_SECONDS_FIELD_NUMBER: _ClassVar[int]
    JOULES_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    monotonic_seconds: float
    processor_seconds: float
    joules: float
    source: str
    def __init__(self, monotonic_seconds: _Optional[float] = ..., processor_seconds: _Optional[float] = ..., joules: _Optional[float] = ..., source: _Optional[str] = ...) -> None: ...

class TraceStageRequest(_message.Message):
    __slots__ = ("name", "term", "generation", "seconds", "stage")
    NAME_FIELD_NUMBER: _ClassVar[int]
    TERM_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    name: str
    term: int
    generation: int
    seconds: float
    stage: int
    def __init__(self, name: _Optional[str] = ..., term: _Optional[int] = ..., generation: _Optional[int] = ..., seconds: _Optional[float] = ..., stage: _Optional[int] = ...) -> None: ...

class StageSpan(_message.Message):
    __slots__ = ("stream", "sequence", "received", "engine_started", "engine_ended", "sent", "traceparent")
    STREAM_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    RECEIVED_FIELD_NUMBER: _ClassVar[int]
    ENGINE_STARTED_FIELD_NUMBER: _ClassVar[int]
    ENGINE_ENDED_FIELD_NUMBER: _ClassVar[int]
    SENT_FIELD_NUMBER: _ClassVar[int]
    TRACEPARENT_FIELD_NUMBER: _ClassVar[int]
    stream: int
    sequence: int
    received: float
    engine_started: float
    engine_ended: float
    sent: float
    traceparent: str
    def __init__(self, stream: _Optional[int] = ..., sequence: _Optional[int] = ..., received: _Optional[float] = ..., engine_started: _Optional[float] = ..., engine_ended: _Optional[float] = ..., sent: _Optional[float] = ..., traceparent: _Optional[str] = ...) -> None: ...

class TraceStageResponse(_message.Message):
    __slots__ = ("stage", "spans")
    STAGE_FIELD_NUMBER: _ClassVar[int]
    SPANS_FIELD_NUMBER: _ClassVar[int]
    stage: int
    spans: _containers.RepeatedCompositeFieldContainer[StageSpan]
    def __init__(self, stage: _Optional[int] = ..., spans: _Optional[_Iterable[_Union[StageSpan, _Mapping]]] = ...) -> None: ...

class HasContentRequest(_message.Message):
    __slots__ = ("sha256",)
    SHA256_FIELD_NUMBER: _ClassVar[int]
    sha256: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, sha256: _Optional[_Iterable[str]] = ...) -> None: ...

class HasContentResponse(_message.Message):
    __slots__ = ("sha256",)
    SHA256_FIELD_NUMBER: _ClassVar[int]
    sha256: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, sha256: _Optional[_Iterable[str]] = ...) -> None: ...

class PutContentRequest(_message.Message):
    __slots__ = ("sha256", "total_bytes", "unpacked_bytes", "chunk")
    SHA256_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    UNPACKED_BYTES_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    sha256: str
    total_bytes: int
    unpacked_bytes: int
    chunk: bytes
    def __init__(self, sha256: _Optional[str] = ..., total_bytes: _Optional[int] = ..., unpacked_bytes: _Optional[int] = ..., chunk: _Optional[bytes] = ...) -> None: ...

class PutContentResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class FetchContentRequest(_message.Message):
    __slots__ = ("sha256", "addresses")
    SHA256_FIELD_NUMBER: _ClassVar[int]
    ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    sha256: _containers.RepeatedScalarFieldContainer[str]
    addresses: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, sha256: _Optional[_Iterable[str]] = ..., addresses: _Optional[_Iterable[str]] = ...) -> None: ...

class FetchContentResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetContentRequest(_message.Message):
    __slots__ = ("sha256", "accepts_packed")
    SHA256_FIELD_NUMBER: _ClassVar[int]
    ACCEPTS_PACKED_FIELD_NUMBER: _ClassVar[int]
    sha256: str
    accepts_packed: bool
    def __init__(self, sha256: _Optional[str] = ..., accepts_packed: bool = ...) -> None: ...

class GetContentResponse(_message.Message):
    __slots__ = ("total_bytes", "unpacked_bytes", "chunk")
    TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    UNPACKED_BYTES_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    total_bytes: int
    unpacked_bytes: int
    chunk: bytes
    def __init__(self, total_bytes: _Optional[int] = ..., unpacked_bytes: _Optional[int] = ..., chunk: _Optional[bytes] = ...) -> None: ...
