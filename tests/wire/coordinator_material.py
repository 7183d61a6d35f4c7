"""A coordinator that does as it is told, and values that are good enough to travel."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass, field

from mesh.core.fleet import Capabilities, NodeState, Provider
from mesh.core.ids import DeploymentName, NodeId, Sha256
from mesh.core.plan import Deployment, Fence, Objective, Plan, PlanOptions, Prediction, Segment, Stage
from mesh.core.report import DeploymentReport, Happening, NodeView, StageReport
from mesh.core.tensor import DType, TensorSpec
from mesh.errors import DeploymentNotFound
from mesh.wire.convert_coordinator import CoordinatorIdentity
from mesh.wire.coordinator_client import CoordinatorClient
from mesh.wire.coordinator_server import CoordinatorServer

NODE = NodeId("0123456789abcdef" * 2)
IDENTITY = CoordinatorIdentity(NodeId("f" * 32), "hall", "0.1.0")
SEGMENT = Segment(0, 3, ("x",), ("y",), (), 100, 2000, Sha256("a" * 64))
PLAN = Plan(
    model_sha256=Sha256("b" * 64),
    objective=Objective.LATENCY,
    forced=True,
    stages=(Stage(SEGMENT, (NODE,), 0.004, measured=True),),
    predicted=Prediction(250.0, 0.004),
    bound_throughput_per_s=250.0,
    certificate="the only plan there is",
    alternatives=(),
    window=2,
)
SPEC = TensorSpec("x", DType.FLOAT32, ("batch", 3))
DEPLOYMENT = Deployment(
    DeploymentName("kws"), Fence(2, 7), PLAN, (SPEC,), (SPEC,), ((SPEC,), (SPEC,)), {NODE: "10.0.0.7:50071"}
)
REPORT = DeploymentReport(
    DEPLOYMENT, "active", "", (StageReport(0, 12, 0.004, 250.0, 1, 2),), (Happening(1e9, "it is active"),)
)
VIEW = NodeView(
    Capabilities(
        NODE, "pi-hall", "aarch64", 4.0, 1 << 30, 1 << 29, 1 << 31, (Provider("CPUExecutionProvider", True),),
        "1.22", 12.5, 3.5, NodeState.READY, "0.1.0",
    ),
    "10.0.0.7:50071",
)  # fmt: skip


@dataclass
class FakeHandlers:
    """Remembers what it was asked; `tells` and then `result` or `error` is what long work gives."""

    views: Sequence[NodeView] = (VIEW,)
    tells: Sequence[str] = ("one", "two")
    error: Exception | None = None
    hangs: bool = False
    asked: list[tuple[str, object]] = field(default_factory=list)
    begun: asyncio.Event = field(default_factory=asyncio.Event)
    undone: asyncio.Event = field(default_factory=asyncio.Event)

    def identity(self) -> CoordinatorIdentity:
        return IDENTITY

    async def list_nodes(self) -> Sequence[NodeView]:
        if self.error is not None:
            raise self.error
        return self.views

    async def plan(self, model: bytes, options: PlanOptions) -> AsyncGenerator[str | Plan, None]:
        self.asked.append(("plan", (model, options)))
        for line in self.tells:
            yield line
        if self.error is not None:
            raise self.error
        yield PLAN

    async def deploy(self, model: bytes, name: str, options: PlanOptions) -> AsyncGenerator[str | Deployment, None]:
        self.asked.append(("deploy", (model, name, options)))
        try:
            for line in self.tells:
                yield line
            self.begun.set()
            if self.hangs:
                await asyncio.Event().wait()
            if self.error is not None:
                raise self.error
            yield DEPLOYMENT
        finally:
            self.undone.set()

    async def status(self, name: str) -> Sequence[DeploymentReport]:
        if name not in ("", "kws"):
            raise DeploymentNotFound(f"there is no deployment {name!r}", hint="there are: kws")
        return [REPORT]

    async def undeploy(self, name: str) -> None:
        await self.status(name)
        self.asked.append(("undeploy", name))


@contextlib.asynccontextmanager
async def serving(handlers: FakeHandlers) -> AsyncIterator[str]:
    """The address at which `handlers` answer on the loopback interface."""
    server = CoordinatorServer(handlers)
    address = await server.start("127.0.0.1:0")
    try:
        yield address
    finally:
        await server.stop(0)


@contextlib.asynccontextmanager
async def asking(address: str) -> AsyncIterator[CoordinatorClient]:
    client = CoordinatorClient(address)
    try:
        yield client
    finally:
        await client.close()
