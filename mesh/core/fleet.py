"""Devices, what they can do, and the links between them, as the rest of the system sees them."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

from mesh.core.ids import NodeId


class NodeState(enum.Enum):
    """What a node says of itself, and LOST, which others say of it."""

    MEASURING = "measuring"
    READY = "ready"
    DRAINING = "draining"
    LOST = "lost"


@dataclass(frozen=True, slots=True)
class Provider:
    """An ONNX Runtime execution provider and what trying it in a child process showed."""

    name: str
    usable: bool
    detail: str = ""
    """Why it is not usable, e.g. "illegal instruction"; empty otherwise."""


@dataclass(frozen=True, slots=True)
class CodecSpeed:
    """A codec that a node speaks (`mesh.core.coding`) and the CPU time that it takes per byte of the tensors."""

    name: str
    encode_byte_seconds: float
    decode_byte_seconds: float


@dataclass(frozen=True, slots=True)
class Watts:
    """Power that a device draws while all of it computes, and while it is idle but on."""

    busy: float
    idle: float


@dataclass(frozen=True, slots=True)
class Capabilities:
    """A node's answer to "what can you do": what the process *has*, not what the host has."""

    node_id: NodeId
    name: str
    arch: str
    cores: float
    """CPU share in cores: the least of affinity, cgroup quota and host."""
    memory_bytes: int
    """The least of cgroup limit and host memory."""
    memory_available_bytes: int
    disk_available_bytes: int
    """What the content store may still take."""
    providers: tuple[Provider, ...]
    runtime_version: str
    """ONNX Runtime's version; empty while unknown."""
    gflops: float
    """Measured single-precision GFLOP/s in an ONNX Runtime MatMul; 0 while measuring."""
    memory_gb_per_s: float
    """Measured copy bandwidth in 10^9 bytes per second; 0 while measuring."""
    state: NodeState
    software_version: str
    hardware: str = ""
    """What the board or its processor calls itself; empty where it does not say."""
    mode: str = ""
    """How its engines run: threads per run x runs at once, e.g. "4x1"."""
    codecs: tuple[CodecSpeed, ...] = ()
    """That it speaks besides raw tensors; empty while measuring."""
    watts: Watts | None = None
    """As its owner states them."""
    governor: str = ""
    """What decides its clock frequency now; empty where it does not tell."""

    @property
    def can_run(self) -> bool:
        return any(provider.usable for provider in self.providers)


@dataclass(frozen=True, slots=True)
class Peer:
    """Someone who may exist: what discovery found. Found is not alive."""

    node_id: NodeId | None
    """None for a static seed that has not answered yet."""
    name: str
    role: str
    """"node" or "coordinator"; "" for a seed that has not answered yet."""
    addresses: tuple[str, ...]
    """"host:port", best first."""
    source: str
    """Which discovery found it: "mdns", "static", "memory"."""
    properties: Mapping[str, str] = field(default_factory=dict)


MESSAGE_SECONDS = 150e-6
"""Estimated CPU time to send or to receive one message, without its bytes. With `BYTE_SECONDS` it
makes the 0.35 to 0.5 ms that a stage spent per frame of 150 to 400 KB on one desktop core."""

BYTE_SECONDS = 0.3e-9
"""Estimated CPU time per byte to send or to receive: about two copies at memory speed."""


@dataclass(frozen=True, slots=True)
class Handling:
    """CPU time that a message costs a device: serialising, copying, the event loop.

    Bytes that trickle in over a slow link wake the receiver for every few packets: there a byte that is received was
    measured to cost four times what one that is sent does.
    """

    message_seconds: float = MESSAGE_SECONDS
    """In or out."""
    byte_seconds: float = BYTE_SECONDS
    """Received; sent too, where `sent_byte_seconds` says nothing else."""
    measured: bool = False
    sent_byte_seconds: float | None = None

    def seconds(self, nbytes: int, *, sent: bool) -> float:
        per_byte = self.byte_seconds if not sent or self.sent_byte_seconds is None else self.sent_byte_seconds
        return self.message_seconds + per_byte * nbytes


@dataclass(frozen=True, slots=True)
class Link:
    """One direction between two devices, as measured end to end."""

    latency_seconds: float
    """Half of the round trip of an empty message."""
    bytes_per_second: float
    measured: bool = True
    sending: Handling | None = None
    """CPU time of the source, of however many cores it has; None where it was not measured."""
    receiving: Handling | None = None
    """CPU time of the target."""
