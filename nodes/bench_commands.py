"""`mesh bench`: how fast a deployment is, measured with made-up frames, and held against what was predicted.

Frames come from sources inside the head nodes, so that nothing but the mesh is measured, or from this
process as a sensor would send them. `nodes.measuring_commands` declares the command.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mesh.client.mesh_client import Mesh
from mesh.control.energy import DevicePower, joules_per_frame
from mesh.control.measuring import Meter, percentile
from mesh.core.frame import Outcome
from mesh.core.ids import NodeId
from mesh.core.measurement import SourceReport, SourceRequest
from mesh.core.plan import Deployment
from mesh.errors import MeshError, RunFailed, Timeout, UsageError
from mesh.hardware.allocator import keep_freed_memory
from mesh.runtime.frame_source import MAX_SOURCE_SECONDS, check_request, made_up_tensor
from mesh.runtime.frame_stream import Answer, FrameStream, StreamOptions
from mesh.runtime.measure_deployment import run_sources
from mesh.runtime.measure_energy import measure_power
from nodes.measuring_commands import SourcePlace
from nodes.output import print_json
from nodes.render import format_table

WARM_UP_S = 0.5
WARM_UP_SHARE = 0.25
"""Of the measured time, at least: the pipeline fills and every stage has computed before anything counts."""

ANSWER_GRACE_S = 10.0
"""For the first answers of a client's stream, beyond the time that it measures."""


OnAnswer = Callable[[Answer, float], None]


def make_request(seconds: float, window: int, rate_hz: float) -> SourceRequest:
    """Raises `UsageError` for what makes no sense."""
    request = SourceRequest(seconds, max(WARM_UP_S, WARM_UP_SHARE * seconds), window, rate_hz)
    if not 0 < seconds <= MAX_SOURCE_SECONDS / (1 + WARM_UP_SHARE):
        raise UsageError(f"--seconds {seconds:g} is outside 0..{MAX_SOURCE_SECONDS / (1 + WARM_UP_SHARE):g}")
    check_request(request)
    return request


async def show_bench(connection: Mesh, name: str, source: SourcePlace, request: SourceRequest, as_json: bool) -> None:
    async with connection as mesh:
        model = await mesh.model(name)
        told = {view.capabilities.node_id: view.capabilities for view in await mesh.nodes()}
        names = {device: capabilities.name for device, capabilities in told.items()}
        deployment = model.deployment
        clients = {device: mesh.client(deployment.addresses[device]) for device in deployment.plan.devices}

        async def drive() -> SourceReport:
            if source is SourcePlace.NODE:
                return await run_sources(deployment, mesh.client, request)
            options = StreamOptions(is_ordered=False, window=request.window or None)
            async with mesh.open_stream(deployment, options) as stream:
                return await run_client_source(mesh, stream, request)

        report, powers = await measure_power(clients, told, request, drive)
    document = bench_document(deployment, names, report, source, request)
    document["energy"] = energy_document(powers, names, report.throughput_per_s)
    if as_json:
        print_json(document)
    else:
        print(bench_table(document))


async def run_client_source(
    mesh: Mesh, stream: FrameStream, request: SourceRequest, on_answer: OnAnswer = lambda answer, now: None
) -> SourceReport:
    """Send made-up frames from this process. Raises what broke the stream or what a frame failed with.

    `on_answer` is told of every answer and the monotonic time at which it came, those of the warm-up too.
    """
    keep_freed_memory()
    tensors = tuple(made_up_tensor(spec) for spec in stream.deployment.inputs)
    began = time.monotonic()
    begins_at = began + request.warm_up_seconds
    ends_at = begins_at + request.seconds
    meter = Meter(begins_at, ends_at)
    interval_s = 1 / request.rate_per_s if request.rate_per_s else 0.0

    async def feed() -> None:
        due_at = began
        try:
            while time.monotonic() < ends_at:
                await stream.send(tensors)
                due_at = max(due_at + interval_s, time.monotonic() - interval_s)
                if interval_s:
                    await asyncio.sleep(max(0.0, due_at - time.monotonic()))
            stream.finish()
        except MeshError as error:
            stream.abandon(error)

    feeding = mesh.tasks.spawn(feed(), "bench: feed")
    cpu_seconds = time.process_time()
    try:
        async with asyncio.timeout(ends_at - began + ANSWER_GRACE_S):
            async for answer in stream.answers():
                if answer.outcome is not Outcome.OK or answer.latency_s is None:
                    said = f"frame {answer.sequence} was answered {answer.outcome.name.lower()}"
                    raise answer.error or RunFailed(said)
                now = time.monotonic()
                meter.add(now, answer.latency_s, answer.hops)
                on_answer(answer, now)
    except TimeoutError:
        raise Timeout("the deployment stopped answering while it was measured") from None
    finally:
        feeding.cancel()
        await asyncio.gather(feeding, return_exceptions=True)
    report = meter.report(time.process_time() - cpu_seconds)
    if not report.answered:
        raise Timeout(f"fewer than two answers came within {request.seconds:g} s", hint="measure for longer")
    return report


def bench_document(
    deployment: Deployment,
    names: Mapping[NodeId, str],
    report: SourceReport,
    source: SourcePlace,
    request: SourceRequest,
) -> dict[str, Any]:
    plan = deployment.plan
    figures = {each.stage: each for each in report.stages}
    return {
        "name": deployment.name,
        "source": source.value,
        "throughput_per_s": report.throughput_per_s,
        "latency_ms": {
            "p50": percentile(report.latencies_us, 0.5) / 1e3,
            "p99": percentile(report.latencies_us, 0.99) / 1e3,
        },
        "predicted": {
            "throughput_per_s": plan.predicted.throughput_per_s,
            "latency_ms": plan.predicted.latency_s * 1e3,
        },
        "stages": [
            {
                "stage": index,
                "device": ", ".join(names.get(device, device[:8]) for device in stage.devices),
                "devices": list(stage.devices),
                "compute_ms": figures[index].compute_seconds * 1e3 if index in figures else 0.0,
                "queue_ms": figures[index].queue_seconds * 1e3 if index in figures else 0.0,
                "planned_compute_ms": stage.compute_seconds * 1e3,
            }
            for index, stage in enumerate(plan.stages)
        ],
        "frames": report.answered,
        "seconds": report.seconds,
        "warm_up_seconds": request.warm_up_seconds,
        "window": request.window or max(1, plan.window),
        "cpu_seconds": report.cpu_seconds,
        "generation": deployment.fence.generation,
    }


def energy_document(
    powers: Sequence[DevicePower], names: Mapping[NodeId, str], throughput_per_s: float
) -> dict[str, Any]:
    """Above idle; `joules_per_frame` is null unless it is known of every device."""
    return {
        "joules_per_frame": joules_per_frame(powers, throughput_per_s),
        "is_measured": all(power.is_measured for power in powers),
        "devices": [
            {
                "device": power.device,
                "name": names.get(power.device, power.device[:8]),
                "watts_above_idle": power.watts,
                "joules_per_frame": joules_per_frame([power], throughput_per_s),
                "source": power.source,
            }
            for power in powers
        ],
    }


def energy_line(document: Mapping[str, Any]) -> str:
    """What a frame takes; without figures, why there are none."""
    whole = document["joules_per_frame"]
    if whole is None:
        unknown = [each for each in document["devices"] if each["joules_per_frame"] is None]
        return f"energy: {'; '.join('{name} {source}'.format(**each) for each in unknown)}"
    about = "" if document["is_measured"] else "~"
    sources = "; ".join(dict.fromkeys(each["source"] for each in document["devices"]))
    return f"energy: {about}{whole * 1e3:.3g} mJ per frame above idle, {sources}"


def bench_table(document: Mapping[str, Any]) -> str:
    rows = [
        (
            str(stage["stage"]),
            stage["device"],
            f"{stage['compute_ms']:.2f} ms",
            f"{stage['planned_compute_ms']:.2f} ms",
            f"{stage['queue_ms']:.2f} ms",
        )
        for stage in document["stages"]
    ]
    predicted, latency = document["predicted"], document["latency_ms"]
    ratio = document["throughput_per_s"] / predicted["throughput_per_s"] if predicted["throughput_per_s"] else 0.0
    told = f"{ratio:.2f} of" if ratio else "nothing"
    return (
        f"{format_table(('STAGE', 'DEVICE', 'COMPUTE', 'PLANNED', 'QUEUE'), rows)}\n"
        f"{document['throughput_per_s']:.1f} frames/s, {told} the {predicted['throughput_per_s']:.1f} predicted; "
        f"latency p50 {latency['p50']:.2f} ms, p99 {latency['p99']:.2f} ms (window {document['window']}); "
        f"{document['frames']} frames in {document['seconds']:.1f} s from {document['source']}\n"
        f"{energy_line(document['energy'])}"
    )
