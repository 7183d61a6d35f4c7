"""What a gateway means, whatever protocol it speaks: infer, describe, count, load and unload models of a mesh.

The translations (`oip_grpc`, `oip_rest`) turn their messages into these calls, and the `MeshError`s that these raise
into their protocol's statuses. Requests are independent: any number of callers share one unordered stream per model
(`model_calls`). What is accepted at once is bounded in number and in bytes; what is above that is refused as
`Overloaded`, at once and never silently.

One per gateway; owns the statistics, and the models of the repository folder if one was named.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence

from mesh.core.ids import NAME_PATTERN
from mesh.core.plan import Deployment, PlanOptions
from mesh.core.tensor import Tensor
from mesh.errors import DeploymentNotFound, MeshError, Overloaded, Refused, TensorMismatch, Timeout, UsageError
from mesh.gateways.contract import MODEL_VERSION, InferenceAnswer, InferenceRequest, MeshPort, RepositoryEntry
from mesh.gateways.model_calls import ModelCalls
from mesh.gateways.repository import ModelRepository
from mesh.gateways.statistics import ModelStatistics

MAX_REQUESTS_AT_ONCE = 256
"""Waiting or running in one gateway. Far more than a mesh runs at once; a caller above it does better to slow down."""

MAX_BYTES_AT_ONCE = 256 << 20
"""Of their tensors, together: a gateway runs on a small device too. One request may be larger if it is alone."""

DEFAULT_TIMEOUT_S = 60.0
"""For a request whose caller set no limit: nobody waits longer for an answer, and every call has a deadline."""

MAX_COUNTED_MODELS = 1024
"""Statistics are kept for so many; only models that were found are counted."""

_STATES = {"active": "READY", "draining": "UNLOADING", "failed": "UNAVAILABLE", "gone": "UNAVAILABLE"}
"""Of a deployment, in the protocol's words; what is not here is on its way up."""


class InferenceGateway:
    """All methods may be called at once by any number of callers."""

    def __init__(
        self,
        mesh: MeshPort,
        repository: ModelRepository,
        now: Callable[[], float] = time.monotonic,
        unix_now: Callable[[], float] = time.time,
    ) -> None:
        self._mesh = mesh
        self._repository = repository
        self._calls = ModelCalls(mesh, now)
        self._now = now
        self._unix_now = unix_now
        self._statistics: dict[str, ModelStatistics] = {}
        self._requests = 0
        self._bytes = 0
        self._changing: set[str] = set()
        """Models that are being loaded or unloaded."""

    # Inference ------------------------------------------------------------------------------------

    async def infer(self, request: InferenceRequest) -> InferenceAnswer:
        """The model's answer to one request.

        Raises `DeploymentNotFound`, `TensorMismatch` for what does not fit the model, `Overloaded`, `Timeout`, and what
        the mesh says of a frame that it could not compute.
        """
        began = self._now()
        with self._room_for(request):
            async with self._deadline(request.timeout_s):
                deployment = await self._find(request.model, request.version)
                try:
                    tensors = _in_order(request.inputs, deployment)
                    wanted = _wanted(request.outputs, deployment)
                    answer = await self._calls.run(request.model, tensors, request.traceparent)
                except (MeshError, asyncio.CancelledError) as error:
                    code = error.code if isinstance(error, MeshError) else Timeout.code
                    self._counters(request.model).count_failure(self._now() - began, code)
                    raise
        seconds = self._now() - began
        self._counters(request.model).count_success(seconds, answer.hops, self._unix_now())
        outputs = tuple((deployment.outputs[index], answer.tensors[index]) for index in wanted)
        return InferenceAnswer(deployment, outputs, answer.hops, seconds)

    @contextlib.contextmanager
    def _room_for(self, request: InferenceRequest) -> Iterator[None]:
        size = sum(len(tensor.data) for tensor in request.inputs.values())
        if self._requests >= MAX_REQUESTS_AT_ONCE:
            raise Overloaded(
                f"{self._requests} requests are waiting here already", hint="send fewer at once, or try again later"
            )
        if self._requests and self._bytes + size > MAX_BYTES_AT_ONCE:
            raise Overloaded(
                f"requests of {self._bytes >> 20} MiB are waiting here already",
                hint="send fewer at once, or try again later",
            )
        self._requests += 1
        self._bytes += size
        try:
            yield
        finally:
            self._requests -= 1
            self._bytes -= size

    @contextlib.asynccontextmanager
    async def _deadline(self, timeout_s: float | None) -> AsyncIterator[None]:
        limit_s = DEFAULT_TIMEOUT_S if timeout_s is None else timeout_s
        try:
            async with asyncio.timeout(limit_s):
                yield
        except TimeoutError:
            raise Timeout(f"the mesh did not answer within {limit_s:.3g} s") from None

    # Models ---------------------------------------------------------------------------------------

    async def describe(self, name: str, version: str) -> Deployment:
        """What is deployed under `name`; raises `DeploymentNotFound`."""
        async with self._deadline(None):
            return await self._find(name, version)

    async def is_ready(self, name: str, version: str) -> bool:
        """Whether `name` is deployed and a stream to it can be opened now."""
        try:
            await self.describe(name, version)
        except MeshError:
            return False
        return True

    async def is_mesh_ready(self) -> bool:
        """Whether any node answers."""
        return any(not view.is_lost for view in await self._mesh.directory.list_nodes())

    async def index(self) -> list[RepositoryEntry]:
        """Every model that is deployed, and those of the repository folder that are not."""
        entries: dict[str, RepositoryEntry] = {
            report.deployment.name: RepositoryEntry(
                report.deployment.name, _STATES.get(report.state, "LOADING"), report.reason
            )
            for report in await self._mesh.directory.status()
        }
        entries |= {name: RepositoryEntry(name, "LOADING") for name in self._changing}
        for name in await asyncio.to_thread(self._repository.names):
            entries.setdefault(name, RepositoryEntry(name, "UNAVAILABLE", "unloaded"))
        return [entries[name] for name in sorted(entries)]

    @property
    def requests_in_flight(self) -> int:
        return self._requests

    @property
    def counted(self) -> Mapping[str, ModelStatistics]:
        """By model."""
        return self._statistics

    async def statistics(self, name: str, version: str) -> dict[str, ModelStatistics]:
        """By model; of `name` alone where it is not empty, which then must be deployed."""
        if name:
            await self.describe(name, version)
            return {name: self._counters(name)}
        return dict(sorted(self._statistics.items()))

    # The repository -------------------------------------------------------------------------------

    async def load(self, name: str, files: Mapping[str, bytes]) -> None:
        """Deploy a model from `files` (path below the model's folder to bytes), or else from the repository folder.

        Raises `Refused` where this gateway may not, `NotFound` where there is no such model, and what is wrong with it.
        """
        self._repository.check_allowed()
        _check_name(name)
        async with self._change(name):
            data = await asyncio.to_thread(self._repository.read, name, files)
            await self._mesh.coordinator.deploy(data, name, PlanOptions(), _be_quiet)
            self._calls.forget(name)

    async def unload(self, name: str) -> None:
        """Remove a model; it counts as done where there is none."""
        self._repository.check_allowed()
        _check_name(name)
        async with self._change(name):
            with contextlib.suppress(DeploymentNotFound):
                await self._mesh.coordinator.undeploy(name)
            self._calls.forget(name)

    @contextlib.asynccontextmanager
    async def _change(self, name: str) -> AsyncIterator[None]:
        if name in self._changing:
            raise Refused(f"model {name!r} is being loaded or unloaded already", hint="try again when that is done")
        self._changing.add(name)
        try:
            yield
        finally:
            self._changing.discard(name)

    # ----------------------------------------------------------------------------------------------

    async def _find(self, name: str, version: str) -> Deployment:
        if not NAME_PATTERN.fullmatch(name):
            raise DeploymentNotFound(f"there is no model {name[:80]!r}", hint="the repository index lists those here")
        if version not in ("", MODEL_VERSION):
            raise DeploymentNotFound(f"model {name!r} has no version {version[:40]!r}, only {MODEL_VERSION}")
        return self._calls.deployment(name) or await self._calls.open(name)

    def _counters(self, name: str) -> ModelStatistics:
        if name not in self._statistics and len(self._statistics) >= MAX_COUNTED_MODELS:
            del self._statistics[next(iter(self._statistics))]
        return self._statistics.setdefault(name, ModelStatistics())


def _in_order(inputs: Mapping[str, Tensor], deployment: Deployment) -> list[Tensor]:
    names = [spec.name for spec in deployment.inputs]
    unknown = sorted(inputs.keys() - set(names))
    missing = [name for name in names if name not in inputs]
    if unknown or missing:
        told = [f"unknown inputs {unknown}" if unknown else "", f"missing inputs {missing}" if missing else ""]
        raise TensorMismatch(f"{' and '.join(filter(None, told))}; the inputs of {deployment.name!r} are {names}")
    for spec in deployment.inputs:
        spec.check(inputs[spec.name].dtype, inputs[spec.name].shape)
    return [inputs[name] for name in names]


def _wanted(outputs: Sequence[str], deployment: Deployment) -> list[int]:
    """Places of `outputs` among those of the model."""
    names = [spec.name for spec in deployment.outputs]
    unknown = [name for name in outputs if name not in names]
    if unknown:
        raise TensorMismatch(f"unknown outputs {unknown}; those of {deployment.name!r} are {names}")
    return [names.index(name) for name in outputs or names]


def _check_name(name: str) -> None:
    if not NAME_PATTERN.fullmatch(name):
        raise UsageError(
            f"{name[:80]!r} cannot name a model here",
            hint="use 1 to 63 characters of a-z, 0-9 and '-', beginning and ending with a letter or digit",
        )


def _be_quiet(line: str) -> None:
    """A caller by protocol cannot be told of progress."""
