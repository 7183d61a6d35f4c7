from mesh.v1 import node_pb2 as _node_pb2
from mesh.v1 import plan_pb2 as _plan_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class GetIdentityRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetIdentityResponse(_message.Message):
    __slots__ = ("node_id", "name", "software_version")
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    SOFTWARE_VERSION_FIELD_NUMBER: _ClassVar[int]
    node_id: str
    name: str
    software_version: str
    def __init__(self, node_id: _Optional[str] = ..., name: _Optional[str] = ..., software_version: _Optional[str] = ...) -> None: ...

class NodeView(_message.Message):
    __slots__ = ("capabilities", "address", "lost")
    CAPABILITIES_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    LOST_FIELD_NUMBER: _ClassVar[int]
    capabilities: _node_pb2.Capabilities
    address: str
    lost: bool
    def __init__(self, capabilities: _Optional[_Union[_node_pb2.Capabilities, _Mapping]] = ..., address: _Optional[str] = ..., lost: bool = ...) -> None: ...

class ListNodesRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListNodesResponse(_message.Message):
    __slots__ = ("nodes",)
    NODES_FIELD_NUMBER: _ClassVar[int]
    nodes: _containers.RepeatedCompositeFieldContainer[NodeView]
    def __init__(self, nodes: _Optional[_Iterable[_Union[NodeView, _Mapping]]] = ...) -> None: ...

class PlanOptions(_message.Message):
    __slots__ = ("objective", "stages", "forced", "limits", "explain", "measure", "variant")
    OBJECTIVE_FIELD_NUMBER: _ClassVar[int]
    STAGES_FIELD_NUMBER: _ClassVar[int]
    FORCED_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    EXPLAIN_FIELD_NUMBER: _ClassVar[int]
    MEASURE_FIELD_NUMBER: _ClassVar[int]
    VARIANT_FIELD_NUMBER: _ClassVar[int]
    objective: _plan_pb2.Objective
    stages: int
    forced: _plan_pb2.Plan
    limits: _plan_pb2.Limits
    explain: bool
    measure: bool
    variant: str
    def __init__(self, objective: _Optional[_Union[_plan_pb2.Objective, str]] = ..., stages: _Optional[int] = ..., forced: _Optional[_Union[_plan_pb2.Plan, _Mapping]] = ..., limits: _Optional[_Union[_plan_pb2.Limits, _Mapping]] = ..., explain: bool = ..., measure: bool = ..., variant: _Optional[str] = ...) -> None: ...

class PlanModelRequest(_message.Message):
    __slots__ = ("options", "model_bytes", "chunk")
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    MODEL_BYTES_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    options: PlanOptions
    model_bytes: int
    chunk: bytes
    def __init__(self, options: _Optional[_Union[PlanOptions, _Mapping]] = ..., model_bytes: _Optional[int] = ..., chunk: _Optional[bytes] = ...) -> None: ...

class PlanModelResponse(_message.Message):
    __slots__ = ("progress", "plan")
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    PLAN_FIELD_NUMBER: _ClassVar[int]
    progress: str
    plan: _plan_pb2.Plan
    def __init__(self, progress: _Optional[str] = ..., plan: _Optional[_Union[_plan_pb2.Plan, _Mapping]] = ...) -> None: ...

class DeployRequest(_message.Message):
    __slots__ = ("options", "model_bytes", "name", "chunk")
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    MODEL_BYTES_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    options: PlanOptions
    model_bytes: int
    name: str
    chunk: bytes
    def __init__(self, options: _Optional[_Union[PlanOptions, _Mapping]] = ..., model_bytes: _Optional[int] = ..., name: _Optional[str] = ..., chunk: _Optional[bytes] = ...) -> None: ...

class DeployResponse(_message.Message):
    __slots__ = ("progress", "deployment")
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    DEPLOYMENT_FIELD_NUMBER: _ClassVar[int]
    progress: str
    deployment: _plan_pb2.Deployment
    def __init__(self, progress: _Optional[str] = ..., deployment: _Optional[_Union[_plan_pb2.Deployment, _Mapping]] = ...) -> None: ...

class DeploymentView(_message.Message):
    __slots__ = ("deployment", "state", "reason", "stages", "events")
    DEPLOYMENT_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    STAGES_FIELD_NUMBER: _ClassVar[int]
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    deployment: _plan_pb2.Deployment
    state: _node_pb2.DeploymentState
    reason: str
    stages: _containers.RepeatedCompositeFieldContainer[_node_pb2.StageStatus]
    events: _containers.RepeatedCompositeFieldContainer[_node_pb2.Event]
    def __init__(self, deployment: _Optional[_Union[_plan_pb2.Deployment, _Mapping]] = ..., state: _Optional[_Union[_node_pb2.DeploymentState, str]] = ..., reason: _Optional[str] = ..., stages: _Optional[_Iterable[_Union[_node_pb2.StageStatus, _Mapping]]] = ..., events: _Optional[_Iterable[_Union[_node_pb2.Event, _Mapping]]] = ...) -> None: ...

class GetStatusRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class GetStatusResponse(_message.Message):
    __slots__ = ("deployments",)
    DEPLOYMENTS_FIELD_NUMBER: _ClassVar[int]
    deployments: _containers.RepeatedCompositeFieldContainer[DeploymentView]
    def __init__(self, deployments: _Optional[_Iterable[_Union[DeploymentView, _Mapping]]] = ...) -> None: ...

class UndeployRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class UndeployResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
