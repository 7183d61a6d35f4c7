"""What is said on the data plane besides frames: the core form of protos/mesh/v1/stream.proto.

An edge carries `OpenEdge`, then streams and frames, downstream; `EdgeAccepted`, `StreamAccepted`,
`Credit`, `Draining` and `CloseStream` come back up. A results link carries `OpenResults` and acknowledgements
up, `ResultsAccepted`, answers, `Draining` and `CloseStream` down. `Heartbeat` goes both ways on both.
"""

from __future__ import annotations

from dataclasses import dataclass

from mesh.core.frame import Frame, StreamClass
from mesh.core.ids import DeploymentName
from mesh.core.plan import Fence
from mesh.errors import MeshError


@dataclass(frozen=True, slots=True)
class OpenEdge:
    deployment: DeploymentName
    fence: Fence
    stage: int
    """The stage that the frames of this edge enter."""


@dataclass(frozen=True, slots=True)
class EdgeAccepted:
    credit_bytes: int


@dataclass(frozen=True, slots=True)
class OpenStream:
    stream: int
    stream_class: StreamClass
    ordered: bool
    window: int
    traceparent: str = ""


@dataclass(frozen=True, slots=True)
class StreamAccepted:
    stream: int


@dataclass(frozen=True, slots=True)
class CloseStream:
    stream: int
    error: MeshError | None
    """None for an orderly end."""


@dataclass(frozen=True, slots=True)
class Credit:
    bytes: int


@dataclass(frozen=True, slots=True)
class Heartbeat:
    loop_lag_ms: int = 0


@dataclass(frozen=True, slots=True)
class OpenResults:
    deployment: DeploymentName
    fence: Fence
    stream: int
    from_sequence: int
    window: int


@dataclass(frozen=True, slots=True)
class ResultsAccepted:
    pass


@dataclass(frozen=True, slots=True)
class Draining:
    """The generation is being drained: what was sent is answered, new frames belong to the one that replaced it."""


@dataclass(frozen=True, slots=True)
class Acknowledge:
    sequence: int
    """Every answer up to and including this one was taken."""


EdgeDown = OpenEdge | OpenStream | Frame | CloseStream | Heartbeat
EdgeUp = EdgeAccepted | StreamAccepted | CloseStream | Credit | Draining | Heartbeat
ResultsUp = OpenResults | Acknowledge | Heartbeat
ResultsDown = ResultsAccepted | Frame | Draining | CloseStream | Heartbeat
Message = EdgeDown | EdgeUp | ResultsUp | ResultsDown
