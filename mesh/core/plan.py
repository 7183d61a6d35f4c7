"""What the planner decides: segments on devices in running order, and what it expects of them.

A `Plan` is about one model on one fleet; it knows nothing of names, terms or addresses. A
`Deployment` is a plan put in force: named, fenced by (term, generation), and addressed.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass

from mesh.core.coding import CODECS as CODECS
from mesh.core.coding import RAW as RAW
from mesh.core.ids import DeploymentName, NodeId, Sha256
from mesh.core.tensor import TensorSpec


class Objective(enum.Enum):
    THROUGHPUT = "throughput"
    LATENCY = "latency"
    MEMORY = "memory"
    ENERGY = "energy"


DEFAULT_ANSWER_CHANGE = 0.1
"""Where lossy codecs are allowed and nothing is said: 20 dB, what quantised variants are held to without labels."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Which devices a plan may use and how; a plan that replaces it later keeps to them as well."""

    only: tuple[NodeId, ...] = ()
    """Use only these; empty for all."""
    excluded: tuple[NodeId, ...] = ()
    """Use none of these, not even as stand-bys."""
    head: NodeId | None = None
    """Runs the first stage because frames are made there and need not be received; None for any device."""
    replicas: int = 1
    """Most devices that share the frames of one stage."""
    codecs: tuple[str, ...] = ()
    """That may be used between two stages besides raw tensors; whoever allows a lossy one permits answers to change."""
    answer_change: float = DEFAULT_ANSWER_CHANGE
    """By so much at most: root mean square of the change over that of what tells answers apart, for each output."""

    def allows(self, device: NodeId) -> bool:
        return device not in self.excluded and (not self.only or device in self.only)


NO_LIMITS = Limits()

FLOAT = "float"
"""The variant that is the model as it was given."""


@dataclass(frozen=True, slots=True)
class PlanOptions:
    """What whoever asks for a plan may say about it."""

    objective: Objective = Objective.THROUGHPUT
    stages: int | None = None
    """Exactly so many stages; None lets the planner choose."""
    forced: Plan | None = None
    """Carry out this plan as it is."""
    limits: Limits = NO_LIMITS
    explain: bool = False
    """Work out what the plan's parts cost and what would help; takes two more searches or so."""
    measure: bool = False
    """Measure again what is known from before."""
    variant: str = FLOAT
    """Which variant the model is that is planned; told on to the plan."""


@dataclass(frozen=True, slots=True)
class Segment:
    """Groups `[start, end)` of a model as a model of its own.

    `consumes` and `produces` are its ONNX inputs and outputs. `relays` are tensors that are live on
    both sides and which the stage passes on untouched. A frame that enters the stage carries the
    tensors of the cut at `start`, one that leaves carries those of the cut at `end`, in cut order.
    """

    start: int
    end: int
    consumes: tuple[str, ...]
    produces: tuple[str, ...]
    relays: tuple[str, ...]
    weight_bytes: int
    flops: int
    sha256: Sha256 | None = None
    """Of the segment's file; None until it has been extracted."""


@dataclass(frozen=True, slots=True)
class Stage:
    segment: Segment
    devices: tuple[NodeId, ...]
    """One device; more are replicas of the stage."""
    compute_seconds: float
    """Expected busy time per frame on the slowest of `devices`."""
    measured: bool = False
    """True where `compute_seconds` was measured on the device rather than estimated."""
    variant: str = FLOAT
    codec: str = RAW
    """How the tensors that leave the stage for the next one are written on the wire."""


@dataclass(frozen=True, slots=True)
class Prediction:
    throughput_per_s: float
    latency_s: float


@dataclass(frozen=True, slots=True)
class Alternative:
    """A plan that was considered and not chosen, with the reason in words."""

    name: str
    prediction: Prediction | None
    """None where it is infeasible."""
    reason: str


@dataclass(frozen=True, slots=True)
class LinkBreakdown:
    """Of the slowest link between the devices of one stage and those of the next."""

    bytes_per_second: float
    latency_seconds: float
    transfer_seconds: float
    """Of one frame, from its first byte sent to its last byte received."""
    period_seconds: float
    """Between two frames that all links between the two stages sustain together."""
    measured: bool


@dataclass(frozen=True, slots=True)
class StageBreakdown:
    """What one stage of a plan takes per frame, and what it needs."""

    handling_seconds: float
    """CPU time for receiving and sending, on the slowest of its devices."""
    period_seconds: float
    """Between two frames that its devices sustain together."""
    bytes_in: int
    bytes_out: int
    memory_bytes: int
    """That it needs on the device that has the least room to spare."""
    memory_available_bytes: int
    """That this device has."""
    link: LinkBreakdown | None
    """To the next stage; None for the last."""
    memory_measured: bool = False
    """Whether what loading and running it takes was measured on such devices; estimated otherwise."""


@dataclass(frozen=True, slots=True)
class Bottleneck:
    """What sets the pace of a plan."""

    stage: int
    is_link: bool
    """The link from this stage to the next, rather than the stage itself."""
    period_seconds: float


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a plan is as fast as it is, and what would make it faster."""

    stages: tuple[StageBreakdown, ...]
    bottleneck: Bottleneck
    improvements: tuple[Alternative, ...]
    """Plans on a fleet with something more: another board, wires in place of radio."""


@dataclass(frozen=True, slots=True)
class Plan:
    model_sha256: Sha256
    objective: Objective
    forced: bool
    stages: tuple[Stage, ...]
    predicted: Prediction
    bound_throughput_per_s: float
    """No plan in the searched space can be predicted faster than this."""
    certificate: str
    """How `bound_throughput_per_s` is known, in words."""
    alternatives: tuple[Alternative, ...]
    window: int
    """Frames in flight per stream that keep every stage busy."""
    limits: Limits = NO_LIMITS
    """Under which it was made."""
    explanation: Explanation | None = None
    """Where it was asked for. It is about the plan as it was made: one that is put in force has none."""
    variant: str = FLOAT
    """Which variant the planned model is, as whoever asked for the plan called it."""

    def variant_of(self, stage: Stage) -> str:
        """What `stage` runs: a variant that the planner chose for it, or else the model that was planned."""
        return self.variant if stage.variant == FLOAT else stage.variant

    @property
    def devices(self) -> tuple[NodeId, ...]:
        return tuple(dict.fromkeys(device for stage in self.stages for device in stage.devices))

    def codec_into(self, stage: int) -> str:
        """In which frames enter a stage; clients send raw tensors."""
        return self.stages[stage - 1].codec if stage else RAW

    def codecs_at(self, stage: int) -> frozenset[str]:
        """That a device of a stage must speak: of the edges into it and out of it; consumers take raw tensors."""
        leaving = self.stages[stage].codec if stage + 1 < len(self.stages) else RAW
        return frozenset({self.codec_into(stage), leaving})


@dataclass(frozen=True, slots=True, order=True)
class Fence:
    """Orders plans for one name; nodes store the highest and refuse lower."""

    term: int
    generation: int

    def __str__(self) -> str:
        return f"{self.term}.{self.generation}"


@dataclass(frozen=True, slots=True)
class Deployment:
    """A plan in force: everything a node or a client needs, complete in itself.

    Every node that holds a part of it stores the whole of it, so that any one of them can tell a
    client where the head and the tail are, and a coordinator can rebuild its view from the nodes.
    """

    name: DeploymentName
    fence: Fence
    plan: Plan
    inputs: tuple[TensorSpec, ...]
    """The model's inputs, in the order in which a frame carries them."""
    outputs: tuple[TensorSpec, ...]
    boundaries: tuple[tuple[TensorSpec, ...], ...]
    """Specs that cross each stage boundary: entry `i` enters stage `i`, the last entry leaves the tail."""
    addresses: Mapping[NodeId, str]
    """Where each device of the plan, and each stand-by, listens, "host:port"."""
    standbys: tuple[tuple[NodeId, ...], ...] = ()
    """Who may take over each stage, in order of preference; empty where nobody may."""
    cause: str = ""
    """Why this generation replaced the one before it, in words; empty where somebody deployed it."""

    @property
    def answer_bytes(self) -> int | None:
        """Of one answer's tensors; None where the model does not say."""
        sizes = [spec.nominal_bytes() if spec.is_fixed else None for spec in self.outputs]
        return None if None in sizes else sum(size or 0 for size in sizes)

    @property
    def head(self) -> NodeId:
        return self.plan.stages[0].devices[0]

    @property
    def tail(self) -> NodeId:
        return self.plan.stages[-1].devices[0]
