"""What a node answers: the meaning of NodeService, ContentService and StreamService, in core terms.

`mesh.wire.server` calls these methods and translates; nothing here knows gRPC. Raising a `MeshError`
refuses the call with that error.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from dataclasses import replace
from pathlib import Path

from mesh.control.deployments import DeploymentState, Key
from mesh.control.introductions import Introductions
from mesh.core.fleet import Capabilities, Link, NodeState, Peer
from mesh.core.ids import DeploymentName, NodeId, Sha256, check_name, check_sha256
from mesh.core.measurement import EnergyReading, SourceReport, SourceRequest, StageTrace
from mesh.core.messages import OpenEdge, OpenResults
from mesh.core.plan import Deployment, Fence
from mesh.core.report import DeploymentReport, Echo, MeasuredModel, ModelProfile
from mesh.engines import DEFAULT_ENGINE
from mesh.engines.contract import Engine, LoadOptions
from mesh.engines.profile_process import profile_model
from mesh.errors import (
    DeploymentNotFound,
    MeshError,
    Overloaded,
    ProtocolViolation,
    Refused,
    StaleGeneration,
    UsageError,
)
from mesh.hardware.energy_meter import PowerReader
from mesh.hardware.limits import read_limits
from mesh.packing import Piece, is_available, pack_piece
from mesh.runtime.content_fetch import store_content
from mesh.runtime.deployment_driver import DeploymentDriver, Fetch
from mesh.runtime.edge_receiver import EdgeReceiver, ResultsSender, ServerLink
from mesh.runtime.frame_source import FrameSource
from mesh.runtime.measure import MEMORY_FACTOR, measure_link, measure_model
from mesh.runtime.stage import Stage
from mesh.runtime.stage_trace import trace_stage
from mesh.storage.content import ContentStore
from mesh.wire.channel import NodeClient

MAX_MEASURE_SECONDS = 10.0
"""Longest time that one request may keep the engine busy."""

MAX_PROFILED_PARTS = 16
"""Of one model in one request; each takes a part of the budget."""

MAX_SOURCES = 4
"""Made-up streams at the same time: each keeps the device as busy as it can be."""

MAX_CONTENT_QUERY = 1024
"""Digests per HasContent call."""

READ_BYTES = 1 << 20


class NodeService:
    """Owned by the node's runtime; `capabilities` gives the latest."""

    def __init__(
        self,
        capabilities: Callable[[], Capabilities],
        driver: DeploymentDriver,
        content: ContentStore,
        engine: Engine,
        options: LoadOptions,
        client: Callable[[str], NodeClient],
        fetch: Fetch,
    ) -> None:
        self._capabilities = capabilities
        self._driver = driver
        self._content = content
        self._engine = engine
        self._options = options
        self._client = client
        self._fetch = fetch
        self._measuring = asyncio.Lock()
        self._introductions = Introductions()
        self._sources = 0
        self._power = PowerReader()

    # Control --------------------------------------------------------------------------------------

    async def get_capabilities(self) -> Capabilities:
        return self._capabilities()

    async def introduced(self) -> Sequence[Peer]:
        return self._introductions.known(time.monotonic())

    async def introduce(self, node_id: NodeId, name: str, address: str) -> None:
        """Another node makes itself known; whoever asks for our capabilities hears of it."""
        self._introductions.add(node_id, name, address, time.monotonic())

    async def list_deployments(self, name: str) -> tuple[Sequence[DeploymentReport], int]:
        """Reports of everything here, and the highest term ever seen."""
        return self._driver.reports(name), self._driver.state.highest_term

    async def prepare(self, deployment: Deployment) -> float:
        if self._capabilities().state is NodeState.DRAINING:
            raise Refused("this node is shutting down")
        return await self._driver.prepare(deployment)

    async def activate(self, name: DeploymentName, fence: Fence) -> None:
        await self._driver.activate(Key(name, fence))

    async def drain(self, name: DeploymentName, fence: Fence) -> None:
        await self._driver.drain(Key(name, fence))

    async def measure_link(self, address: str) -> Link:
        return await measure_link(self._client(address).echo, time.process_time)

    async def echo(self, payload: bytes) -> Echo:
        return Echo(len(payload), time.process_time())

    async def measure_model(self, sha256: str, budget_seconds: float) -> MeasuredModel:
        digest = check_sha256(sha256)
        _check_budget(budget_seconds)
        async with self._measuring:  # two at once would measure each other
            path = await asyncio.to_thread(self._content.path, digest)
            await self._check_memory(path)
            period_s = (await asyncio.to_thread(read_limits)).quota_period_seconds
            return await measure_model(self._engine, path, self._options, budget_seconds, period_s)

    async def profile_model(self, sha256: str, parts: Sequence[str], budget_seconds: float) -> ModelProfile:
        """Empty where the engine has no profiler."""
        digests = [check_sha256(digest) for digest in (sha256, *parts)]
        if len(parts) > MAX_PROFILED_PARTS:
            raise UsageError(f"{len(parts)} parts to profile, the limit is {MAX_PROFILED_PARTS}")
        _check_budget(budget_seconds)
        if self._engine.name != DEFAULT_ENGINE:
            return ModelProfile()
        async with self._measuring:
            paths = [await asyncio.to_thread(self._content.path, digest) for digest in digests]
            await self._check_memory(paths[0], *paths[1:])
            stop = threading.Event()
            try:
                found = await asyncio.to_thread(profile_model, paths[0], paths[1:], self._options, budget_seconds, stop)
            finally:
                stop.set()
        runs = self._options.runs  # each on a session of its own
        peaks = tuple(runs * peak for peak in found.part_peak_bytes)
        return replace(found, peak_bytes=runs * found.peak_bytes, part_peak_bytes=peaks)

    async def _check_memory(self, whole: Path, *parts: Path) -> None:
        """For the whole, and for the largest of `parts` beside it."""
        sizes = [(await asyncio.to_thread(path.stat)).st_size for path in (whole, *parts)]
        needed = int((sizes[0] + max(sizes[1:], default=0)) * MEMORY_FACTOR)
        available = self._capabilities().memory_available_bytes
        if needed > available:
            raise Overloaded(f"the model needs about {needed >> 20} MiB of memory, {available >> 20} MiB are free")

    async def run_source(self, name: DeploymentName, fence: Fence, request: SourceRequest) -> SourceReport:
        """Measure a deployment whose head is here with frames that are made here."""
        if self._sources >= MAX_SOURCES:
            raise Overloaded(f"{MAX_SOURCES} sources run on this node, its limit", hint="try again when they are done")
        self._sources += 1
        try:
            return await FrameSource(self._find_stage(OpenEdge(name, fence, 0)), request, self._client).run()
        finally:
            self._sources -= 1

    async def read_clocks(self) -> tuple[float, float]:
        return time.monotonic(), time.time()

    async def read_energy(self) -> EnergyReading:
        """In a thread: it reads files."""
        return await asyncio.to_thread(self._power.read)

    def trace_stage(
        self, name: DeploymentName, fence: Fence, stage: int, seconds: float
    ) -> AsyncGenerator[StageTrace, None]:
        """Record what a stage here does to each frame; see `mesh.runtime.stage_trace`."""
        return trace_stage(self._find_stage(OpenEdge(name, fence, stage)), seconds)

    # Content --------------------------------------------------------------------------------------

    async def has_content(self, digests: Sequence[str]) -> list[Sha256]:
        if len(digests) > MAX_CONTENT_QUERY:
            raise ProtocolViolation(f"{len(digests)} digests in one query, the limit is {MAX_CONTENT_QUERY}")
        return [digest for digest in map(check_sha256, digests) if self._content.has(digest)]

    async def put_content(self, sha256: str, total_bytes: int, chunks: AsyncIterator[bytes]) -> None:
        await store_content(self._content, check_sha256(sha256), total_bytes, chunks)

    async def get_content(self, sha256: str, may_pack: bool) -> AsyncIterator[tuple[int, Piece]]:
        is_packed = may_pack and is_available()
        digest = check_sha256(sha256)
        await asyncio.to_thread(self._content.pin, digest)
        try:
            path = self._content.path(digest)
            total = (await asyncio.to_thread(path.stat)).st_size
            with await asyncio.to_thread(path.open, "rb") as file:
                while chunk := await asyncio.to_thread(file.read, READ_BYTES):
                    yield total, await asyncio.to_thread(pack_piece, chunk) if is_packed else Piece(chunk)
        finally:
            self._content.unpin(digest)

    async def fetch_content(self, digests: Sequence[str], addresses: Sequence[str]) -> None:
        if max(len(digests), len(addresses)) > MAX_CONTENT_QUERY:
            raise ProtocolViolation(f"{len(digests)} digests from {len(addresses)} nodes, above {MAX_CONTENT_QUERY}")
        await self._fetch([check_sha256(digest) for digest in digests], addresses)

    # Streams --------------------------------------------------------------------------------------

    async def serve_edge(self, link: ServerLink, peer: str) -> None:
        await EdgeReceiver(link, peer, self._find_stage).serve()

    async def serve_results(self, link: ServerLink, peer: str) -> None:
        await ResultsSender(link, peer, self._find_stage).serve()

    def _find_stage(self, opening: OpenEdge | OpenResults) -> Stage:
        """The active stage that `opening` is about; refuses by name and generation."""
        name = DeploymentName(check_name(opening.deployment, "deployment"))
        key = Key(name, opening.fence)
        record = self._driver.state.records.get(key)
        if record is None or record.state not in (DeploymentState.ACTIVE, DeploymentState.DRAINING):
            raise self._why_not(key)
        stages = self._driver.stages(key)
        if not stages:
            raise Refused(f"deployment {key} is being removed")
        wanted = opening.stage if isinstance(opening, OpenEdge) else len(record.deployment.plan.stages) - 1
        for stage in stages:
            if stage.index == wanted:
                return stage
        here = " and ".join(str(stage.index) for stage in stages)
        raise Refused(f"stage {wanted} of deployment {key} is not on this node, stage {here} is")

    def _why_not(self, key: Key) -> MeshError:
        highest = self._driver.state.fences.get(key.name)
        if highest is not None and key.fence < highest:
            return StaleGeneration(f"generation {key.fence} of {key.name!r} was replaced by {highest}")
        record = self._driver.state.records.get(key)
        if record is not None:
            return Refused(f"deployment {key} is {record.state.value} on this node, not active")
        return DeploymentNotFound(f"deployment {key.name!r} is not on this node")


def _check_budget(budget_seconds: float) -> None:
    if not (math.isfinite(budget_seconds) and 0 < budget_seconds <= MAX_MEASURE_SECONDS):
        raise UsageError(f"a measuring budget of {budget_seconds} s is outside 0..{MAX_MEASURE_SECONDS:g}")
