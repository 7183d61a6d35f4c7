"""What nodes and coordinators tell of running deployments."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from mesh.core.fleet import Capabilities
from mesh.core.ids import NodeId
from mesh.core.plan import Deployment


@dataclass(frozen=True, slots=True)
class StageReport:
    stage: int
    frames: int
    compute_seconds: float
    """Engine time per frame, exponentially weighted."""
    throughput_per_s: float
    dropped: int
    failed: int
    device: NodeId | None = None
    """Which of the stage's devices tells this; None where it was not told."""
    waiting_seconds: float = 0.0
    """From a frame's arrival to its computing, weighted likewise."""
    leaving_seconds: float = 0.0
    """From computed to handed over to what comes next, weighted likewise: long where that or the way there is slow."""
    sent_bytes: Mapping[str, int] = field(default_factory=dict)
    """Payload of frames that left, by the device that they went to; "" are clients, which take answers."""
    peak_bytes: int = 0
    """Resident growth of its engine by loading and its first runs, all copies together; 0 where it is not known."""
    load_seconds: float = 0.0
    """That its engine took to load the segment; 0 where it is not known."""


@dataclass(frozen=True, slots=True)
class Happening:
    """Something worth telling a person, with the unix time in seconds at which it happened."""

    time: float
    text: str


@dataclass(frozen=True, slots=True)
class DeploymentReport:
    """One generation on one node, or, from a coordinator, on all of them.

    `state` is the label of a deployment state ("ready"); for a coordinator the least advanced one.
    """

    deployment: Deployment
    state: str
    reason: str
    stages: tuple[StageReport, ...]
    happenings: tuple[Happening, ...]
    is_leaving: bool = False
    """True where it drains because its node goes down, and is to go on elsewhere."""


@dataclass(frozen=True, slots=True)
class NodeView:
    """A node as a coordinator sees it: its last word, and whether it still answers."""

    capabilities: Capabilities
    address: str
    is_lost: bool = False


@dataclass(frozen=True, slots=True)
class MeasuredModel:
    run_seconds: float
    """Median over `runs`, one frame."""
    runs: int


@dataclass(frozen=True, slots=True)
class Echo:
    """What a node says of bytes that it was sent."""

    received_bytes: int
    process_seconds: float
    """CPU time that its process has taken since it began."""


@dataclass(frozen=True, slots=True)
class KernelTime:
    """What one kernel of the optimised model took in one run."""

    name: str
    """As the runtime calls it: after a node, or after the tensor that it makes."""
    seconds: float


@dataclass(frozen=True, slots=True)
class ModelProfile:
    """How the time of a model is spread, on one device. What is empty could not be had there."""

    kernels: tuple[KernelTime, ...] = ()
    """In running order."""
    part_ratios: tuple[float, ...] = ()
    """Time of each part over that of the whole, run in turns."""
    peak_bytes: int = 0
    """Resident growth by loading and running the whole; 0 where it is not known."""
    part_peak_bytes: tuple[int, ...] = ()
    """Likewise of each part; empty where it is not known."""
