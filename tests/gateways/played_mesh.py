"""A mesh that a test plays: deployments by name, and streams that answer with a function of the test's."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field, replace

from mesh.core.frame import Hop, Outcome
from mesh.core.plan import Deployment, Fence, PlanOptions
from mesh.core.report import DeploymentReport, NodeView
from mesh.core.tensor import Tensor, TensorSpec
from mesh.errors import DeploymentNotFound, MeshError
from mesh.runtime.fleet import Answered
from mesh.runtime.frame_stream import Answer, StreamOptions
from mesh.runtime.supervise import Supervisor
from tests.runtime.fake_models import FIRST, chain, make_deployment

Compute = Callable[[Sequence[Tensor]], Sequence[Tensor] | MeshError | None]
"""Outputs from inputs; an error for a frame that failed, None for one whose answer is lost."""

HOPS = (Hop(0, 100, 1000), Hop(1, 200, 2000))


def deployment_of(
    name: str, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], fence: Fence = FIRST
) -> Deployment:
    made = make_deployment(chain(1), {"0" * 32: "127.0.0.1:1"}, name=name, fence=fence)  # type: ignore[dict-item]
    return replace(made, inputs=tuple(inputs), outputs=tuple(outputs))


@dataclass
class PlayedStream:
    """Answers each frame with `compute`, or never where that gives None; while `gate` is closed, answers wait."""

    deployment: Deployment
    compute: Compute
    gate: asyncio.Event
    sent: int = 0
    traceparents: list[str] = field(default_factory=list)
    answered: asyncio.Queue[Answer | MeshError | None] = field(default_factory=asyncio.Queue)
    ends_with_its_stages: asyncio.Event = field(default_factory=asyncio.Event)

    async def send(self, tensors: Sequence[Tensor], on_numbered: Callable[[int], None], traceparent: str = "") -> int:
        self.traceparents.append(traceparent)
        sequence = self.sent
        self.sent += 1
        on_numbered(sequence)
        found = self.compute(tensors)
        if found is None:
            return sequence
        if isinstance(found, MeshError):
            self.answered.put_nowait(Answer(sequence, Outcome.FAILED, error=found))
        else:
            self.answered.put_nowait(Answer(sequence, Outcome.OK, tuple(found), hops=HOPS))
        return sequence

    async def answers(self) -> AsyncIterator[Answer]:
        while True:
            answer = await self.answered.get()
            if answer is None:
                return
            if isinstance(answer, MeshError):
                raise answer
            await self.gate.wait()
            yield answer

    def finish(self) -> None:
        self.answered.put_nowait(None)

    def break_off(self, error: MeshError) -> None:
        self.answered.put_nowait(error)


@dataclass
class PlayedMesh:
    tasks: Supervisor
    compute: Compute = lambda tensors: tensors
    deployments: dict[str, Deployment] = field(default_factory=dict)
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    streams: list[PlayedStream] = field(default_factory=list)
    open_streams: int = 0
    uploads: list[bytes] = field(default_factory=list)
    nodes: list[NodeView] = field(default_factory=list)
    states: dict[str, str] = field(default_factory=dict)
    answering: list[Answered] = field(default_factory=list)
    looks: int = 0

    def __post_init__(self) -> None:
        self.gate.set()

    def put(self, name: str, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> None:
        self.deployments[name] = deployment_of(name, inputs, outputs)

    @property
    def coordinator(self) -> PlayedMesh:
        return self

    @property
    def directory(self) -> PlayedMesh:
        return self

    @contextlib.asynccontextmanager
    async def open_stream(self, deployment: Deployment, options: StreamOptions) -> AsyncIterator[PlayedStream]:
        assert not options.is_ordered, "requests are independent"
        stream = PlayedStream(deployment, self.compute, self.gate)
        self.streams.append(stream)
        self.open_streams += 1
        try:
            yield stream
        finally:
            self.open_streams -= 1

    async def list_nodes(self) -> list[NodeView]:
        return self.nodes

    async def look(self) -> list[Answered]:
        self.looks += 1
        return self.answering

    async def resolve(self, name: str) -> Deployment:
        if name not in self.deployments:
            raise DeploymentNotFound(f"there is no deployment {name!r}")
        return self.deployments[name]

    async def status(self, name: str = "") -> list[DeploymentReport]:
        return [
            DeploymentReport(deployment, self.states.get(known, "active"), "", (), ())
            for known, deployment in self.deployments.items()
        ]

    async def deploy(
        self, model: bytes, name: str, options: PlanOptions, progress: Callable[[str], None]
    ) -> Deployment:
        self.uploads.append(model)
        await self.gate.wait()
        self.deployments[name] = deployment_of(name, (), ())
        return self.deployments[name]

    async def undeploy(self, name: str) -> None:
        del self.deployments[(await self.resolve(name)).name]

    async def plan(self, model: bytes, options: PlanOptions, progress: Callable[[str], None]) -> None:
        raise AssertionError("a gateway does not plan")
