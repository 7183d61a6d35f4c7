"""Models of the fake engine, deployments of them, and an engine whose runs wait until a test lets them go."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import struct
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from mesh.core.ids import DeploymentName, NodeId, Sha256
from mesh.core.plan import Deployment, Fence, Objective, Plan, Prediction, Segment, Stage
from mesh.core.tensor import DType, Tensor, TensorSpec
from mesh.engines.contract import Engine, LoadOptions
from mesh.engines.fake import FakeEngine, FakeModel, FakeSession, Operation
from mesh.errors import RunFailed
from mesh.runtime.engine_pool import EngineLease, EnginePool

FIRST = Fence(1, 1)

LIMIT_S = 15.0
"""No condition that a test waits for may take longer."""


async def until(condition: Callable[[], bool], what: str = "the condition") -> None:
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come about within {LIMIT_S:g} s"
        await asyncio.sleep(0.002)


# Tensors ------------------------------------------------------------------------------------------


def spec(name: str) -> TensorSpec:
    return TensorSpec(name, DType.FLOAT32, ("n",))


def vector(*values: float) -> Tensor:
    return Tensor.from_bytes(DType.FLOAT32, (len(values),), struct.pack(f"<{len(values)}f", *values))


def zeros(size_bytes: int) -> Tensor:
    return Tensor.from_bytes(DType.FLOAT32, (size_bytes // 4,), bytes(size_bytes))


def values_of(tensors: Sequence[Tensor]) -> list[float]:
    (tensor,) = tensors
    return list(struct.unpack(f"<{len(tensor.data) // 4}f", tensor.data))


# Models and deployments ---------------------------------------------------------------------------


def add_one(source: str, target: str, failing_runs: tuple[int, ...] = (), delay_seconds: float = 0) -> FakeModel:
    return FakeModel(
        (spec(source),), (spec(target),), Operation.ADD, failing_runs=failing_runs, delay_seconds=delay_seconds
    )


def copy(source: str = "x", target: str = "y") -> FakeModel:
    return FakeModel((spec(source),), (spec(target),), Operation.IDENTITY)


def chain(count: int) -> list[FakeModel]:
    """`count` stages from x to y, each of which adds one."""
    names = ["x", *(f"t{index}" for index in range(1, count)), "y"]
    return [add_one(names[index], names[index + 1]) for index in range(count)]


class Loadable(Protocol):
    """What a deployment is made of: a `FakeModel`, or anything else that some engine loads."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]: ...

    @property
    def outputs(self) -> tuple[TensorSpec, ...]: ...

    def to_bytes(self) -> bytes: ...


def digest_of(model: Loadable) -> Sha256:
    return Sha256(hashlib.sha256(model.to_bytes()).hexdigest())


def make_deployment(
    models: Sequence[Loadable],
    addresses: Mapping[NodeId, str],
    *,
    boundaries: Sequence[Sequence[str]] | None = None,
    name: str = "chain",
    fence: Fence = FIRST,
    window: int = 4,
    answer_shape: tuple[int | str, ...] = ("n",),
) -> Deployment:
    """One stage per model and node, in the order of both. `boundaries` are the models' own where None.

    A client that does not know by `answer_shape` how large answers are begins with a few frames, whatever `window`.
    """
    names = boundaries or [
        *(tuple(each.name for each in model.inputs) for model in models),
        tuple(each.name for each in models[-1].outputs),
    ]
    stages = tuple(
        Stage(Segment(index, index + 1, (), (), (), 0, 0, digest_of(model)), (node,), 0.001)
        for index, (model, node) in enumerate(zip(models, addresses, strict=True))
    )
    plan = Plan(Sha256("0" * 64), Objective.THROUGHPUT, False, stages, Prediction(1.0, 1.0), 1.0, "made up", (), window)
    crossing = tuple(tuple(spec(each) for each in boundary) for boundary in names)
    outputs = tuple(replace(each, shape=answer_shape) for each in crossing[-1])
    return Deployment(DeploymentName(name), fence, plan, crossing[0], outputs, crossing, dict(addresses))


@contextlib.asynccontextmanager
async def lease_alone(engine: Engine, model: Loadable) -> AsyncIterator[EngineLease]:
    """An engine that nobody else uses; released by a stage that is closed, or at the end."""
    pool = EnginePool(engine)
    try:
        yield await pool.acquire(model.to_bytes(), digest_of(model), LoadOptions())
    finally:
        await pool.close()


# Engine -------------------------------------------------------------------------------------------


class Gate:
    """Lets runs through: all while open, else as many as were allowed."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._permits = 0
        self._is_open = True
        self.begun = 0
        """Runs that came to the gate."""

    def close(self) -> None:
        with self._condition:
            self._is_open = False
            self._permits = 0

    def open(self) -> None:
        with self._condition:
            self._is_open = True
            self._condition.notify_all()

    def allow(self, count: int = 1) -> None:
        with self._condition:
            self._permits += count
            self._condition.notify_all()

    def enter(self, is_ended: Callable[[], bool]) -> None:
        with self._condition:
            self.begun += 1
            self._condition.wait_for(lambda: self._is_open or self._permits > 0 or is_ended(), LIMIT_S)
            if is_ended():
                raise RunFailed("the run was terminated")
            self._permits -= not self._is_open

    def wake(self) -> None:
        with self._condition:
            self._condition.notify_all()


class GatedSession(FakeSession):
    def __init__(self, model: FakeModel, options: LoadOptions, gate: Gate) -> None:
        super().__init__(model, options)
        self._gate = gate
        self._is_ended = False

    def run(self, feeds: Sequence[Tensor]) -> list[Tensor]:
        self._gate.enter(lambda: self._is_ended)
        return super().run(feeds)

    def terminate(self) -> None:
        self._is_ended = True
        self._gate.wake()
        super().terminate()


class GatedEngine(FakeEngine):
    """The fake engine with a gate before every run, and one before loading."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = Gate()
        self.loading = Gate()

    def load(self, model: bytes | Path, options: LoadOptions) -> FakeSession:
        self.loading.enter(lambda: False)
        loaded = super().load(model, options)
        session = GatedSession(loaded.model, options, self.gate)
        self.sessions[-1] = session
        return session
