"""`mesh trace`: what happens to each frame on every node of a deployment, as one timeline.

Nodes record in clocks of their own; the offsets are estimated from round trips, and their error is told. ONNX Runtime's
own profile is merged: a running session has none, so each segment runs once more under the profiler afterwards, and its
kernels are fitted into the time that each frame was computed in.
`nodes.measuring_commands` declares the command.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mesh.client.mesh_client import Mesh
from mesh.client.sinks.storage import storage_error
from mesh.control.timeline import Event, TimedPart, TimedProcess, TimedSpan, latest_end, make_timeline
from mesh.core.ids import NodeId
from mesh.core.measurement import SourceRequest
from mesh.core.plan import Deployment
from mesh.core.report import KernelTime
from mesh.errors import UsageError
from mesh.runtime.frame_stream import Answer, StreamOptions
from mesh.runtime.measure_deployment import (
    TRACE_MARGIN_S,
    ProfiledStage,
    RecordedStage,
    profile_stages,
    run_sources,
    trace_deployment,
)
from mesh.runtime.stage_trace import MAX_TRACE_SECONDS
from nodes.bench_commands import WARM_UP_S, WARM_UP_SHARE, run_client_source
from nodes.measuring_commands import TraceDriver
from nodes.output import print_json

MAX_SECONDS = (MAX_TRACE_SECONDS - TRACE_MARGIN_S) / (1 + WARM_UP_SHARE) - WARM_UP_S
"""Warm-up and margin come on top, and must fit into what nodes record."""

MAX_KERNEL_EVENTS = 20_000
"""Per device, about 3 MB of the file: hundreds of frames of an ordinary model, more than anybody looks into."""


def check_trace(seconds: float, out: Path) -> None:
    """Raises `UsageError` for what makes no sense."""
    if not 0 < seconds <= MAX_SECONDS:
        raise UsageError(f"--seconds {seconds:g} is outside 0..{MAX_SECONDS:g}")
    if out.is_dir() or not out.absolute().parent.is_dir():
        raise UsageError(f"--out {out} cannot be a file", hint="name a file in a folder that exists")


async def show_trace(
    connection: Mesh, name: str, source: TraceDriver, request: SourceRequest, out: Path, kernels: bool, as_json: bool
) -> None:
    answers: list[TimedSpan] = []

    def note(answer: Answer, now: float) -> None:
        sent_at = now - (answer.latency_s or 0.0)
        answers.append(TimedSpan("client", f"frame {answer.sequence}", sent_at, now, None, answer.sequence))

    async with connection as mesh:
        model = await mesh.model(name)
        names = {view.capabilities.node_id: view.capabilities.name for view in await mesh.nodes()}
        deployment = model.deployment

        async def drive() -> None:
            if source is TraceDriver.CLIENT:
                options = StreamOptions(is_ordered=False, window=request.window or None)
                async with mesh.open_stream(deployment, options) as stream:
                    await run_client_source(mesh, stream, request, note)
            elif source is TraceDriver.NODE:
                await run_sources(deployment, mesh.client, request)

        seconds = request.warm_up_seconds + request.seconds
        stages, _ = await trace_deployment(deployment, mesh.client, seconds, drive)
        profiles = await profile_stages(deployment, mesh.client) if kernels else []
    document = trace_document(deployment, names, stages, answers, profiles)
    await asyncio.to_thread(write_document, out, document)
    tell(out, document, as_json)


def stage_spans(recorded: RecordedStage, kernels: Sequence[KernelTime] = ()) -> list[TimedSpan]:
    """Every frame three times: waiting, computed, on its way out; by our clock. The first ones with their kernels."""
    spans: list[TimedSpan] = []
    parts = tuple(TimedPart(kernel.name, kernel.seconds) for kernel in kernels)
    detailed = MAX_KERNEL_EVENTS // len(parts) if parts else 0
    for place, span in enumerate(recorded.spans):
        moments = [
            recorded.offset.to_ours(moment)
            for moment in (span.received, span.engine_started, span.engine_ended, span.sent)
        ]
        for row, started, ended in (("waiting", 0, 1), ("compute", 1, 2), ("sending", 2, 3)):
            name = f"{row} {span.sequence}"
            at = (moments[started], moments[ended])
            inside = parts if row == "compute" and place < detailed else ()
            spans.append(TimedSpan(row, name, *at, span.stream, span.sequence, span.traceparent, inside))
    return spans


def trace_document(
    deployment: Deployment,
    names: Mapping[NodeId, str],
    stages: Sequence[RecordedStage],
    answers: Sequence[TimedSpan],
    profiles: Sequence[ProfiledStage] = (),
) -> dict[str, Any]:
    """A Chrome trace; `otherData` says how well the clocks are known."""
    processes = [TimedProcess("client", tuple(answers))] if answers else []
    clocks = []
    profiled = {(each.stage, each.device): each for each in profiles}
    for recorded in stages:
        device = names.get(recorded.device, recorded.device[:8])
        label = f"stage {recorded.stage} on {device}"
        profile = profiled.get((recorded.stage, recorded.device))
        kernels = profile.kernels if profile is not None else ()
        processes.append(TimedProcess(label, tuple(stage_spans(recorded, kernels))))
        clocks.append(
            {
                "stage": recorded.stage,
                "device": device,
                "frames": len(recorded.spans),
                "offset_ms": recorded.offset.seconds * 1e3,
                "error_ms": recorded.offset.error_s * 1e3,
                "kernels": len(kernels),
                "no_kernels_because": profile.reason if profile is not None else "not asked for",
            }
        )
    events: list[Event] = make_timeline(processes)
    return {
        "traceEvents": events,
        "displayTimeUnit": "ms",
        "otherData": {"deployment": str(deployment.name), "generation": str(deployment.fence), "clocks": clocks},
    }


def write_document(path: Path, document: Mapping[str, Any]) -> None:
    """All or nothing: under another name first. Raises `StorageError`s that say what to do."""
    partial = path.with_name(f".{path.name[:100]}.{os.getpid()}.partial")
    try:
        partial.write_text(json.dumps(document, allow_nan=False))
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise storage_error(error, str(path)) from None


def tell(out: Path, document: Mapping[str, Any], as_json: bool) -> None:
    clocks = document["otherData"]["clocks"]
    seconds = latest_end(document["traceEvents"])
    if as_json:
        events = sum(event["ph"] == "X" for event in document["traceEvents"])
        print_json({"out": str(out), "events": events, "seconds": seconds, "clocks": clocks})
        return
    for clock in clocks:
        told = f"{clock['frames']} frames, clock known to {clock['error_ms']:.3f} ms"
        kernels = f"{clock['kernels']} kernels" if clock["kernels"] else f"no kernels: {clock['no_kernels_because']}"
        print(f"stage {clock['stage']} on {clock['device']}: {told}, {kernels}")
    print(f"{seconds:.2f} s in {out}; open it at https://ui.perfetto.dev or chrome://tracing")
