"""What gateways need of the mesh, and the values that their translations exchange with `inference`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from mesh.core.frame import Hop
from mesh.core.plan import Deployment
from mesh.core.tensor import Tensor, TensorSpec
from mesh.runtime.coordinator import CoordinatorPort
from mesh.runtime.fleet import Answered
from mesh.runtime.frame_stream import FrameStream, StreamOptions
from mesh.runtime.supervise import Supervisor

MODEL_VERSION = "1"
"""The only one that a model has here: a model that is deployed again replaces the one before it."""

_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")


def trace_context(header: str | None) -> str:
    """`header` if it is a `traceparent` (W3C Trace Context, section 3.2); a broken one counts as none, as it says."""
    return header if header is not None and _TRACEPARENT.fullmatch(header) else ""


class Directory(CoordinatorPort, Protocol):
    async def look(self) -> list[Answered]:
        """Each node that answers, with what it tells of its stages."""
        ...


class MeshPort(Protocol):
    """A connection to the mesh that somebody else opened and closes; `mesh.client.mesh_client.Mesh` is one."""

    tasks: Supervisor

    @property
    def coordinator(self) -> CoordinatorPort:
        """Who plans: asked to load and unload."""
        ...

    @property
    def directory(self) -> Directory:
        """What the nodes themselves tell of deployments: needs no coordinator."""
        ...

    def open_stream(
        self, deployment: Deployment, options: StreamOptions
    ) -> AbstractAsyncContextManager[FrameStream]: ...


@dataclass(frozen=True, slots=True)
class InferenceRequest:
    model: str
    version: str
    """Empty for the newest."""
    inputs: Mapping[str, Tensor]
    outputs: tuple[str, ...] = ()
    """Which are wanted, in this order; empty for all."""
    timeout_s: float | None = None
    """None where the caller set none; `inference` has a limit of its own."""
    traceparent: str = ""
    """W3C trace context that came with the request; see `trace_context`."""


@dataclass(frozen=True, slots=True)
class InferenceAnswer:
    deployment: Deployment
    outputs: tuple[tuple[TensorSpec, Tensor], ...]
    hops: tuple[Hop, ...] = ()
    seconds: float = 0.0
    """From the request's arrival to its answer."""


@dataclass(frozen=True, slots=True)
class RepositoryEntry:
    """One model of the repository index. `state`: READY, LOADING, UNLOADING or UNAVAILABLE."""

    name: str
    state: str
    reason: str = ""
