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


@dataclass(frozen=True, slots=True)
class Link:
    """One direction between two devices, as measured end to end."""

    latency_seconds: float
    """Half of the round trip of an empty message."""
    bytes_per_second: float
    measured: bool = True
