"""Measures a running deployment from outside: sources in its head nodes, and traces of all its stages.

Used by the command line. Everything here ends with its caller: one failure cancels the rest.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from mesh.control.clock import ClockOffset, RoundTrip, estimate_offset
from mesh.control.deployments import key_of
from mesh.control.measuring import merge_reports
from mesh.core.ids import NodeId
from mesh.core.measurement import SourceReport, SourceRequest, StageSpan
from mesh.core.plan import Deployment
from mesh.core.report import KernelTime
from mesh.errors import MeshError, UsageError
from mesh.wire.channel import NodeClient

CLOCK_ROUNDS = 15
"""Round trips per estimate of a clock: the shortest of them decides."""

TRACE_MARGIN_S = 1.0
"""Recording goes on for so long beyond what is driven: the stream opens, and its last frames leave."""

KERNEL_BUDGET_S = 1.0
"""For the runs under the profiler; starting it and loading the segment come on top."""

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class RecordedStage:
    """What one device recorded, in its own clock, and how that clock relates to ours."""

    device: NodeId
    stage: int
    offset: ClockOffset
    spans: tuple[StageSpan, ...]


async def run_together(works: Sequence[Coroutine[Any, Any, Result]]) -> list[Result]:
    """The results in order; the first failure cancels the others and is raised as itself."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(work) for work in works]
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return [task.result() for task in tasks]


async def run_sources(
    deployment: Deployment, client: Callable[[str], NodeClient], request: SourceRequest
) -> SourceReport:
    """One source in each node that holds the first stage, all at the same time. Raises what any of them says."""
    heads = deployment.plan.stages[0].devices
    clients = [client(deployment.addresses[head]) for head in heads]
    return merge_reports(await run_together([each.run_source(key_of(deployment), request) for each in clients]))


async def read_offset(client: NodeClient) -> ClockOffset:
    """How far the monotonic clock of a node is from ours."""
    trips: list[RoundTrip] = []
    for _ in range(CLOCK_ROUNDS):
        sent = time.monotonic()
        remote = await client.read_clock()
        trips.append(RoundTrip(sent, remote, time.monotonic()))
    return estimate_offset(trips)


async def trace_deployment(
    deployment: Deployment,
    client: Callable[[str], NodeClient],
    seconds: float,
    drive: Callable[[], Coroutine[Any, Any, Result]],
) -> tuple[list[RecordedStage], Result]:
    """Record all stages on all their devices while `drive`, which takes about `seconds`, runs."""
    places = [
        (index, device, client(deployment.addresses[device]))
        for index, stage in enumerate(deployment.plan.stages)
        for device in stage.devices
    ]
    offsets = await run_together([read_offset(each) for _, _, each in places])
    has_begun = asyncio.Semaphore(0)
    recorded: list[list[StageSpan]] = [[] for _ in places]
    driven: list[Result] = []

    async def record(place: int) -> None:
        stage, _, node = places[place]
        async for trace in node.trace_stage(key_of(deployment), stage, seconds + TRACE_MARGIN_S):
            if not trace.spans:
                has_begun.release()
            recorded[place].extend(trace.spans)

    async def drive_when_all_record() -> None:
        for _ in places:
            await has_begun.acquire()
        driven.append(await drive())

    await run_together([*(record(place) for place in range(len(places))), drive_when_all_record()])
    stages = [
        RecordedStage(device, index, offset, tuple(spans))
        for (index, device, _), offset, spans in zip(places, offsets, recorded, strict=True)
    ]
    return stages, driven[0]


@dataclass(frozen=True, slots=True)
class ProfiledStage:
    """What the runtime's own profiler says of a segment on one device; without kernels, why."""

    device: NodeId
    stage: int
    kernels: tuple[KernelTime, ...]
    reason: str = ""


async def profile_stages(deployment: Deployment, client: Callable[[str], NodeClient]) -> list[ProfiledStage]:
    """Every stage on every device of it, in runs beside those that are traced: what runs has no profiler.

    A device that cannot (no memory for it, an engine without a profiler) says so and keeps nobody from the rest.
    """

    async def profile(stage: int, device: NodeId) -> ProfiledStage:
        sha256 = deployment.plan.stages[stage].segment.sha256
        if sha256 is None:
            raise UsageError(f"stage {stage} of {deployment.name!r} names no content", hint="it was never deployed")
        try:
            told = await client(deployment.addresses[device]).profile_model(sha256, (), KERNEL_BUDGET_S)
        except MeshError as error:
            return ProfiledStage(device, stage, (), error.message)
        return ProfiledStage(device, stage, told.kernels, "" if told.kernels else "its engine has no profiler")

    places = [(index, device) for index, stage in enumerate(deployment.plan.stages) for device in stage.devices]
    return await run_together([profile(*place) for place in places])
