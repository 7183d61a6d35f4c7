"""`mesh demo`: several daemons on this machine, a real model cut across them, a sensor's stream. Offline."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mesh.client.mesh_client import Mesh, Model, read_model_file
from mesh.client.sources import RateSchedule
from mesh.core.frame import Outcome
from mesh.core.ids import NodeId
from mesh.core.plan import PlanOptions
from mesh.errors import RunFailed
from nodes.local_mesh import LOOPBACK, LocalNode, VanishingFolder, local_nodes, vanishing_folder
from nodes.output import is_watched, print_json, run_async, say
from nodes.sensor import Tally, make_schedule

if TYPE_CHECKING:
    from rich.table import Table

DATA = Path(__file__).parent / "demo_data"
DEPLOYMENT = "digits"

DISCOVERY_TIMEOUT_S = 8.0
"""For all daemons to be found by mDNS before their addresses are used as seeds instead."""

DISCOVERY_POLL_S = 0.2

MAX_STAGES = 3
"""The digits model is small: more parts than that compute next to nothing each."""

REFRESHES_PER_S = 8


def run_demo(nodes: int, rate_hz: float | None, as_json: bool) -> None:
    """Run the demo; raises `MeshError` where any part of it fails."""
    schedule = make_schedule(rate_hz)
    with vanishing_folder("infermesh-demo-") as folder:
        document = run_async(_demo(folder, nodes, schedule, as_json))
    if as_json:
        print_json(document)


async def _demo(folder: VanishingFolder, count: int, schedule: RateSchedule | None, as_json: bool) -> dict[str, Any]:
    say(f"starting {count} node daemons on this machine")
    async with local_nodes(count, folder, extra=("--threads", "1")) as nodes:
        for node in nodes:
            say(f"  {node.name} ({node.node_id[:8]}) listens on {node.address}")
        async with _connect(nodes) as found:
            return await _use(found, nodes, schedule, as_json)


@contextlib.asynccontextmanager
async def _connect(nodes: list[LocalNode]) -> AsyncIterator[Mesh]:
    """By mDNS on loopback; where that carries no multicast, by seeds, saying so."""
    only = frozenset(node.node_id for node in nodes)
    async with Mesh(interfaces=[LOOPBACK], only=only) as mesh:
        began = time.monotonic()
        while time.monotonic() - began < DISCOVERY_TIMEOUT_S:
            found = [view for view in await mesh.nodes() if not view.is_lost]
            if len(found) == len(nodes):
                say(f"found {len(found)} nodes by mDNS in {time.monotonic() - began:.1f} s")
                yield mesh
                return
            await asyncio.sleep(DISCOVERY_POLL_S)
    say(f"mDNS found {len(found)} of {len(nodes)} nodes: multicast does not work on loopback here, using seeds")
    async with Mesh(mdns=False, peers=[node.address for node in nodes], only=only) as mesh:
        yield mesh


async def _use(mesh: Mesh, nodes: list[LocalNode], schedule: RateSchedule | None, as_json: bool) -> dict[str, Any]:
    path = DATA / "digits.onnx"
    stages = min(MAX_STAGES, len(nodes))
    say(f"deploying {path.name}, forced onto {stages} stages to show the split")
    data = await asyncio.to_thread(read_model_file, path)
    deployment = await mesh.coordinator.deploy(
        data, DEPLOYMENT, PlanOptions(stages=stages), lambda line: say(f"  {line}")
    )
    names = {node.node_id: node.name for node in nodes}
    for index, stage in enumerate(deployment.plan.stages):
        segment, where = stage.segment, "|".join(names[device] for device in stage.devices)
        say(
            f"  stage {index} on {where}: operator groups {segment.start} to {segment.end}, "
            f"{segment.weight_bytes / 1024:.0f} KiB of weights"
        )
    model = await mesh.model(DEPLOYMENT)
    document = await _stream(mesh, model, names, schedule, as_json)
    await mesh.undeploy(DEPLOYMENT)
    return {"nodes": len(nodes), "stages": len(deployment.plan.stages), **document}


async def _stream(
    mesh: Mesh, model: Model, names: Mapping[NodeId, str], schedule: RateSchedule | None, as_json: bool
) -> dict[str, Any]:
    import numpy as np

    with np.load(DATA / "digits_test.npz", allow_pickle=False) as archive:
        images, labels = archive["image"], archive["label"]
    expected = await asyncio.to_thread(_compute_locally, images)
    tally = Tally()
    correct, largest = 0, 0.0

    async def frames() -> AsyncIterator[Any]:
        for number, image in enumerate(images):
            if schedule is not None:
                await asyncio.sleep(max(0.0, schedule.due(number, tally.began) - time.monotonic()))
            tally.sent += 1
            yield image

    say(f"streaming {len(images)} images of handwritten digits")
    tally.began = tally.ended = time.monotonic()
    with _live_table(model, names, as_json) as show:
        async for result in model.stream(frames()):
            tally.add(result, time.monotonic())
            if result.outcome is not Outcome.OK:
                raise result.error or RunFailed(f"image {result.sequence} was answered {result.outcome.name.lower()}")
            scores = result["scores"]
            correct += int(scores.argmax()) == int(labels[result.sequence])
            largest = max(largest, float(np.abs(scores - expected[result.sequence]).max()))
            show(tally, correct)
    if sum(tally.outcomes.values()) != len(images):
        raise RunFailed(f"{sum(tally.outcomes.values())} of {len(images)} images were answered")
    allowed = 1e-5 * float(np.abs(expected).max()) + 1e-6
    if largest > allowed:
        raise RunFailed(f"answers differ from local ONNX Runtime by {largest:.3g}, allowed {allowed:.3g}")
    summary = tally.document()
    say(
        f"{len(images)} images answered, {correct / len(images):.1%} right, largest difference from local "
        f"ONNX Runtime {largest:.2g}\n{summary['throughput_per_s']:.0f} images/s, latency p50 "
        f"{summary['latency_ms']['p50']:.1f} ms, p99 {summary['latency_ms']['p99']:.1f} ms"
    )
    return {
        "frames": len(images),
        "accuracy": correct / len(images),
        "max_abs_diff": largest,
        "throughput_per_s": summary["throughput_per_s"],
        "latency_ms": summary["latency_ms"],
    }


def _compute_locally(images: Any) -> Any:
    """What one ONNX Runtime session makes of the same images, in this process."""
    import numpy as np

    from mesh.arrays import from_array, to_array
    from mesh.engines import make_engine
    from mesh.engines.contract import LoadOptions

    session = make_engine().load((DATA / "digits.onnx").read_bytes(), LoadOptions())
    return np.stack([to_array(session.run([from_array(image)])[0]) for image in images])


@contextlib.contextmanager
def _live_table(model: Model, names: Mapping[NodeId, str], as_json: bool) -> Iterator[Any]:
    """A table on a terminal that is renewed as answers come; nothing where nobody watches."""
    if as_json or not is_watched():
        yield lambda tally, correct: None
        return
    from rich.console import Console
    from rich.live import Live

    with Live(console=Console(stderr=True), refresh_per_second=REFRESHES_PER_S) as live:
        last = 0.0

        def show(tally: Tally, correct: int) -> None:
            nonlocal last
            now = time.monotonic()
            if now - last >= 1 / REFRESHES_PER_S or tally.sent == sum(tally.outcomes.values()):
                last = now
                live.update(_make_table(model, names, tally, correct))

        yield show


def _make_table(model: Model, names: Mapping[NodeId, str], tally: Tally, correct: int) -> Table:
    from rich.table import Table

    answered = sum(tally.outcomes.values())
    way = " → ".join("|".join(names[device] for device in stage.devices) for stage in model.deployment.plan.stages)
    table = Table(title=f"sensor → {way} → answers")
    for header in ("images", "right", "per second", "latency p50", "latency p99"):
        table.add_column(header, justify="right")
    table.add_row(
        str(answered),
        f"{correct / max(answered, 1):.1%}",
        f"{tally.throughput_per_s:.0f}",
        f"{tally.percentile_ms(0.5):.1f} ms",
        f"{tally.percentile_ms(0.99):.1f} ms",
    )
    return table
