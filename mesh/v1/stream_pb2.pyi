from mesh.v1 import tensor_pb2 as _tensor_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Outcome(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    OUTCOME_UNSPECIFIED: _ClassVar[Outcome]
    OUTCOME_OK: _ClassVar[Outcome]
    OUTCOME_LATE: _ClassVar[Outcome]
    OUTCOME_FAILED: _ClassVar[Outcome]
    OUTCOME_DROPPED: _ClassVar[Outcome]
    OUTCOME_UNKNOWN: _ClassVar[Outcome]

class Codec(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CODEC_UNSPECIFIED: _ClassVar[Codec]
    CODEC_RAW: _ClassVar[Codec]
    CODEC_FLOAT16: _ClassVar[Codec]
    CODEC_INT8: _ClassVar[Codec]
    CODEC_RAW_ZSTD: _ClassVar[Codec]
    CODEC_FLOAT16_ZSTD: _ClassVar[Codec]
    CODEC_INT8_ZSTD: _ClassVar[Codec]

class StreamClass(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    STREAM_CLASS_UNSPECIFIED: _ClassVar[StreamClass]
    STREAM_CLASS_LOSSLESS: _ClassVar[StreamClass]
    STREAM_CLASS_LIVE: _ClassVar[StreamClass]
OUTCOME_UNSPECIFIED: Outcome
OUTCOME_OK: Outcome
OUTCOME_LATE: Outcome
OUTCOME_FAILED: Outcome
OUTCOME_DROPPED: Outcome
OUTCOME_UNKNOWN: Outcome
CODEC_UNSPECIFIED: Codec
CODEC_RAW: Codec
CODEC_FLOAT16: Codec
CODEC_INT8: Codec
CODEC_RAW_ZSTD: Codec
CODEC_FLOAT16_ZSTD: Codec
CODEC_INT8_ZSTD: Codec
STREAM_CLASS_UNSPECIFIED: StreamClass
STREAM_CLASS_LOSSLESS: StreamClass
STREAM_CLASS_LIVE: StreamClass

class TensorHeader(_message.Message):
    __slots__ = ("dimensions", "codec", "byte_length", "scale", "zero_point")
    DIMENSIONS_FIELD_NUMBER: _ClassVar[int]
    CODEC_FIELD_NUMBER: _ClassVar[int]
    BYTE_LENGTH_FIELD_NUMBER: _ClassVar[int]
    SCALE_FIELD_NUMBER: _ClassVar[int]
    ZERO_POINT_FIELD_NUMBER: _ClassVar[int]
    dimensions: _containers.RepeatedScalarFieldContainer[int]
    codec: Codec
    byte_length: int
    scale: float
    zero_point: int
    def __init__(self, dimensions: _Optional[_Iterable[int]] = ..., codec: _Optional[_Union[Codec, str]] = ..., byte_length: _Optional[int] = ..., scale: _Optional[float] = ..., zero_point: _Optional[int] = ...) -> None: ...

class Hop(_message.Message):
    __slots__ = ("stage", "queue_us", "compute_us")
    STAGE_FIELD_NUMBER: _ClassVar[int]
    QUEUE_US_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_US_FIELD_NUMBER: _ClassVar[int]
    stage: int
    queue_us: int
    compute_us: int
    def __init__(self, stage: _Optional[int] = ..., queue_us: _Optional[int] = ..., compute_us: _Optional[int] = ...) -> None: ...

class Frame(_message.Message):
    __slots__ = ("stream", "sequence", "term", "generation", "budget_us", "outcome", "error", "tensors", "traceparent", "hops", "chunk_offset", "chunk_total", "padding", "payload")
    STREAM_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    TERM_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    BUDGET_US_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    TRACEPARENT_FIELD_NUMBER: _ClassVar[int]
    HOPS_FIELD_NUMBER: _ClassVar[int]
    CHUNK_OFFSET_FIELD_NUMBER: _ClassVar[int]
    CHUNK_TOTAL_FIELD_NUMBER: _ClassVar[int]
    PADDING_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    stream: int
    sequence: int
    term: int
    generation: int
    budget_us: int
    outcome: Outcome
    error: _tensor_pb2.Error
    tensors: _containers.RepeatedCompositeFieldContainer[TensorHeader]
    traceparent: str
    hops: _containers.RepeatedCompositeFieldContainer[Hop]
    chunk_offset: int
    chunk_total: int
    padding: bytes
    payload: bytes
    def __init__(self, stream: _Optional[int] = ..., sequence: _Optional[int] = ..., term: _Optional[int] = ..., generation: _Optional[int] = ..., budget_us: _Optional[int] = ..., outcome: _Optional[_Union[Outcome, str]] = ..., error: _Optional[_Union[_tensor_pb2.Error, _Mapping]] = ..., tensors: _Optional[_Iterable[_Union[TensorHeader, _Mapping]]] = ..., traceparent: _Optional[str] = ..., hops: _Optional[_Iterable[_Union[Hop, _Mapping]]] = ..., chunk_offset: _Optional[int] = ..., chunk_total: _Optional[int] = ..., padding: _Optional[bytes] = ..., payload: _Optional[bytes] = ...) -> None: ...

class OpenEdge(_message.Message):
    __slots__ = ("deployment", "term", "generation", "stage")
    DEPLOYMENT_FIELD_NUMBER: _ClassVar[int]
    TERM_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    deployment: str
    term: int
    generation: int
    stage: int
    def __init__(self, deployment: _Optional[str] = ..., term: _Optional[int] = ..., generation: _Optional[int] = ..., stage: _Optional[int] = ...) -> None: ...

class OpenStream(_message.Message):
    __slots__ = ("stream", "stream_class", "ordered", "window", "traceparent")
    STREAM_FIELD_NUMBER: _ClassVar[int]
    STREAM_CLASS_FIELD_NUMBER: _ClassVar[int]
    ORDERED_FIELD_NUMBER: _ClassVar[int]
    WINDOW_FIELD_NUMBER: _ClassVar[int]
    TRACEPARENT_FIELD_NUMBER: _ClassVar[int]
    stream: int
    stream_class: StreamClass
    ordered: bool
    window: int
    traceparent: str
    def __init__(self, stream: _Optional[int] = ..., stream_class: _Optional[_Union[StreamClass, str]] = ..., ordered: bool = ..., window: _Optional[int] = ..., traceparent: _Optional[str] = ...) -> None: ...

class CloseStream(_message.Message):
    __slots__ = ("stream", "error")
    STREAM_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    stream: int
    error: _tensor_pb2.Error
    def __init__(self, stream: _Optional[int] = ..., error: _Optional[_Union[_tensor_pb2.Error, _Mapping]] = ...) -> None: ...

class Heartbeat(_message.Message):
    __slots__ = ("loop_lag_ms",)
    LOOP_LAG_MS_FIELD_NUMBER: _ClassVar[int]
    loop_lag_ms: int
    def __init__(self, loop_lag_ms: _Optional[int] = ...) -> None: ...

class EdgeRequest(_message.Message):
    __slots__ = ("open_edge", "open_stream", "frame", "close_stream", "heartbeat", "followers")
    OPEN_EDGE_FIELD_NUMBER: _ClassVar[int]
    OPEN_STREAM_FIELD_NUMBER: _ClassVar[int]
    FRAME_FIELD_NUMBER: _ClassVar[int]
    CLOSE_STREAM_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    FOLLOWERS_FIELD_NUMBER: _ClassVar[int]
    open_edge: OpenEdge
    open_stream: OpenStream
    frame: Frame
    close_stream: CloseStream
    heartbeat: Heartbeat
    followers: _containers.RepeatedCompositeFieldContainer[Frame]
    def __init__(self, open_edge: _Optional[_Union[OpenEdge, _Mapping]] = ..., open_stream: _Optional[_Union[OpenStream, _Mapping]] = ..., frame: _Optional[_Union[Frame, _Mapping]] = ..., close_stream: _Optional[_Union[CloseStream, _Mapping]] = ..., heartbeat: _Optional[_Union[Heartbeat, _Mapping]] = ..., followers: _Optional[_Iterable[_Union[Frame, _Mapping]]] = ...) -> None: ...

class Draining(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class EdgeAccepted(_message.Message):
    __slots__ = ("credit_bytes",)
    CREDIT_BYTES_FIELD_NUMBER: _ClassVar[int]
    credit_bytes: int
    def __init__(self, credit_bytes: _Optional[int] = ...) -> None: ...

class StreamAccepted(_message.Message):
    __slots__ = ("stream",)
    STREAM_FIELD_NUMBER: _ClassVar[int]
    stream: int
    def __init__(self, stream: _Optional[int] = ...) -> None: ...

class Credit(_message.Message):
    __slots__ = ("bytes",)
    BYTES_FIELD_NUMBER: _ClassVar[int]
    bytes: int
    def __init__(self, bytes: _Optional[int] = ...) -> None: ...

class EdgeResponse(_message.Message):
    __slots__ = ("edge_accepted", "stream_accepted", "close_stream", "credit", "heartbeat", "draining")
    EDGE_ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    STREAM_ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    CLOSE_STREAM_FIELD_NUMBER: _ClassVar[int]
    CREDIT_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    edge_accepted: EdgeAccepted
    stream_accepted: StreamAccepted
    close_stream: CloseStream
    credit: Credit
    heartbeat: Heartbeat
    draining: Draining
    def __init__(self, edge_accepted: _Optional[_Union[EdgeAccepted, _Mapping]] = ..., stream_accepted: _Optional[_Union[StreamAccepted, _Mapping]] = ..., close_stream: _Optional[_Union[CloseStream, _Mapping]] = ..., credit: _Optional[_Union[Credit, _Mapping]] = ..., heartbeat: _Optional[_Union[Heartbeat, _Mapping]] = ..., draining: _Optional[_Union[Draining, _Mapping]] = ...) -> None: ...

class OpenResults(_message.Message):
    __slots__ = ("deployment", "term", "generation", "stream", "from_sequence", "window")
    DEPLOYMENT_FIELD_NUMBER: _ClassVar[int]
    TERM_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    STREAM_FIELD_NUMBER: _ClassVar[int]
    FROM_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    WINDOW_FIELD_NUMBER: _ClassVar[int]
    deployment: str
    term: int
    generation: int
    stream: int
    from_sequence: int
    window: int
    def __init__(self, deployment: _Optional[str] = ..., term: _Optional[int] = ..., generation: _Optional[int] = ..., stream: _Optional[int] = ..., from_sequence: _Optional[int] = ..., window: _Optional[int] = ...) -> None: ...

class Acknowledge(_message.Message):
    __slots__ = ("sequence",)
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    def __init__(self, sequence: _Optional[int] = ...) -> None: ...

class ResultsRequest(_message.Message):
    __slots__ = ("open", "acknowledge", "heartbeat")
    OPEN_FIELD_NUMBER: _ClassVar[int]
    ACKNOWLEDGE_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    open: OpenResults
    acknowledge: Acknowledge
    heartbeat: Heartbeat
    def __init__(self, open: _Optional[_Union[OpenResults, _Mapping]] = ..., acknowledge: _Optional[_Union[Acknowledge, _Mapping]] = ..., heartbeat: _Optional[_Union[Heartbeat, _Mapping]] = ...) -> None: ...

class ResultsAccepted(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ResultsResponse(_message.Message):
    __slots__ = ("accepted", "frame", "close_stream", "heartbeat", "draining", "followers")
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    FRAME_FIELD_NUMBER: _ClassVar[int]
    CLOSE_STREAM_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    FOLLOWERS_FIELD_NUMBER: _ClassVar[int]
    accepted: ResultsAccepted
    frame: Frame
    close_stream: CloseStream
    heartbeat: Heartbeat
    draining: Draining
    followers: _containers.RepeatedCompositeFieldContainer[Frame]
    def __init__(self, accepted: _Optional[_Union[ResultsAccepted, _Mapping]] = ..., frame: _Optional[_Union[Frame, _Mapping]] = ..., close_stream: _Optional[_Union[CloseStream, _Mapping]] = ..., heartbeat: _Optional[_Union[Heartbeat, _Mapping]] = ..., draining: _Optional[_Union[Draining, _Mapping]] = ..., followers: _Optional[_Iterable[_Union[Frame, _Mapping]]] = ...) -> None: ...
