"""The mesh as a backend in onnx's sense: real daemons on loopback, real deployments, frames over the real wire.

`LoopbackMesh` runs the daemons and a client on an event loop in a thread of its own; `prepare` puts a model in
force on them and returns what can be run. Planning and its measurements are left out, because a plan is given:
everything after that is what `mesh deploy` does. Threads may prepare and run at the same time.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import itertools
import threading
from collections.abc import Coroutine, Mapping, Sequence
from types import TracebackType
from typing import Any, TypeVar

import ml_dtypes
import numpy as np
from onnx.backend.base import BackendRep

from mesh.arrays import from_array, to_array
from mesh.client.mesh_client import Mesh
from mesh.control.deployments import key_of
from mesh.core.frame import Outcome
from mesh.core.graph import Graph
from mesh.core.ids import DeploymentName
from mesh.core.plan import Deployment, Fence, Objective, Plan, Prediction, Stage
from mesh.core.segments import segment_between
from mesh.core.tensor import DType
from mesh.errors import RunFailed
from mesh.model.read import SourceModel
from mesh.runtime.deploying import Planned, activate
from mesh.runtime.fleet import Answered
from mesh.runtime.frame_stream import StreamOptions
from nodes.local_mesh import local_nodes, vanishing_folder

NODES = 3
CALL_LIMIT_S = 120.0
"""Any one step of a case; the light networks take seconds on a busy machine."""

Value = TypeVar("Value")


class LoopbackMesh:
    """`with LoopbackMesh() as mesh:`"""

    def __init__(self, nodes: int = NODES) -> None:
        self._count = nodes
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop = asyncio.Event()
        self._started: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name="loopback mesh")
        self._turns = itertools.count()
        self._generations: dict[str, itertools.count[int]] = {}

    def __enter__(self) -> LoopbackMesh:
        self._thread.start()
        try:
            self._started.result()
        except BaseException:
            self._thread.join()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        try:
            with vanishing_folder("infermesh-conformance-") as folder:
                async with local_nodes(self._count, folder, "conformance", ("--threads", "1")) as nodes:
                    peers = [node.address for node in nodes]
                    async with Mesh(peers=peers, mdns=False) as self._mesh:
                        fleet = self._mesh._located.fleet
                        self._nodes: list[Answered] = await fleet.answered()
                        assert len(self._nodes) == self._count, "not every daemon answers"
                        self._started.set_result(None)
                        await self._stop.wait()
        except BaseException as error:
            if not self._started.done():
                self._started.set_exception(error)
            raise

    def _call(self, work: Coroutine[Any, Any, Value]) -> Value:
        assert self._loop is not None
        return asyncio.run_coroutine_threadsafe(asyncio.wait_for(work, CALL_LIMIT_S), self._loop).result()

    def prepare(
        self, model: SourceModel, graph: Graph, cuts: Sequence[int] = (), feeds: Mapping[str, Any] | None = None
    ) -> Prepared:
        """Put `model` in force, cut at the positions `cuts`, each stage on another daemon; `feeds` prove the cuts."""
        positions = [0, *cuts, len(graph.groups)]
        first = next(self._turns)
        ids = [node.view.capabilities.node_id for node in self._nodes]
        stages = tuple(
            Stage(segment_between(graph, start, end), (ids[(first + index) % len(ids)],), 1e-3)
            for index, (start, end) in enumerate(itertools.pairwise(positions))
        )
        plan = Plan(
            model_sha256=model.sha256,
            objective=Objective.THROUGHPUT,
            forced=True,
            stages=stages,
            predicted=Prediction(1.0, 1.0),
            bound_throughput_per_s=1.0,
            certificate="given",
            alternatives=(),
            window=1,
        )
        # One name per thread: nodes keep a fence for every name that they have ever seen.
        name = f"conformance-{threading.current_thread().name.lower().replace('_', '-')}"
        fence = Fence(1, next(self._generations.setdefault(name, itertools.count(1))))
        planned = Planned(model, graph, plan)
        deployment = self._call(activate(self._nodes, planned, DeploymentName(name), fence, lambda line: None, feeds))
        return Prepared(self, deployment)

    async def _run(self, deployment: Deployment, feeds: Mapping[str, Any]) -> list[Any]:
        tensors = [from_array(np.asarray(feeds[spec.name]), spec.name, dtype=spec.dtype) for spec in deployment.inputs]
        async with self._mesh.open_stream(deployment, StreamOptions()) as stream:
            await stream.send(tensors)
            stream.finish()
            answers = [answer async for answer in stream.answers()]
        (answer,) = answers
        if answer.outcome is not Outcome.OK:
            raise answer.error or RunFailed(f"the frame was answered {answer.outcome.name.lower()}")
        outputs = zip(deployment.outputs, answer.tensors, strict=True)
        return [_with_ml_dtypes(to_array(tensor, spec.name), spec.dtype) for spec, tensor in outputs]

    async def _remove(self, deployment: Deployment) -> None:
        for node in self._nodes:
            if node.view.capabilities.node_id in deployment.plan.devices:
                await node.client.drain(key_of(deployment))


class Prepared(BackendRep):  # type: ignore[misc]
    """A deployed model; `close` removes it."""

    def __init__(self, mesh: LoopbackMesh, deployment: Deployment) -> None:
        super().__init__()
        self._mesh = mesh
        self.deployment = deployment

    def run(self, inputs: Any, **kwargs: Any) -> tuple[Any, ...]:
        """`inputs` by name, or in the model's order; outputs in the model's order."""
        names = [spec.name for spec in self.deployment.inputs]
        feeds = inputs if isinstance(inputs, Mapping) else dict(zip(names, inputs, strict=True))
        return tuple(self._mesh._call(self._mesh._run(self.deployment, feeds)))

    def close(self) -> None:
        self._mesh._call(self._mesh._remove(self.deployment))

    def __enter__(self) -> Prepared:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _with_ml_dtypes(array: Any, dtype: DType) -> Any:
    """Expected values of bfloat16 come in the type that the onnx package uses for them."""
    return array.view(ml_dtypes.bfloat16) if dtype is DType.BFLOAT16 else np.asarray(array)
