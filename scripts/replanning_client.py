"""The client of scripts/check_replanning: one lossless stream of made-up frames, audited.

`python scripts/replanning_client.py NAME RATE_HZ ADDRESS...` (rate 0: as fast as they are taken): JSON documents, one a
line, on standard output, until standard input ends; then what is owed is waited for, and the totals are told. The same
few inputs come again and again, and each must get the answer that it got first, whoever computes it.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any

import numpy as np

from mesh.client.mesh_client import Mesh
from mesh.control.repair import repair
from mesh.core.frame import Outcome
from mesh.core.ids import NodeId
from mesh.core.plan import Deployment
from mesh.core.tensor import DType, Tensor, TensorSpec
from mesh.errors import MeshError
from mesh.runtime.frame_stream import FrameStream, StreamOptions

INPUTS = 4
TOLERANCE = 1e-4
TOLD_GAP_S = 0.5


def tell(kind: str, **more: Any) -> None:
    print(json.dumps({"kind": kind, "at": time.time(), **more}), flush=True)


def make_input(spec: TensorSpec, number: int) -> Tensor:
    shape = tuple(dim if isinstance(dim, int) else 1 for dim in spec.shape or ())
    assert spec.dtype is DType.FLOAT32, "the check streams models of float inputs"
    values = np.random.default_rng(number).standard_normal(shape).astype(np.float32)
    return Tensor.from_bytes(spec.dtype, shape, values.tobytes(), spec.name)


def time_repair(deployment: Deployment, lost: NodeId) -> float:
    """Seconds until a repaired plan is known, once the loss is."""
    began = time.perf_counter()
    repair(deployment, {lost})
    return time.perf_counter() - began


async def feed(
    stream: FrameStream, inputs: list[list[Tensor]], rate_per_s: float, stop: asyncio.Event, sent: list[int]
) -> None:
    due_at = time.monotonic()
    while not stop.is_set():
        if rate_per_s:
            due_at = max(due_at + 1 / rate_per_s, time.monotonic())
            await asyncio.sleep(due_at - time.monotonic())
        await stream.send(inputs[sent[0] % INPUTS])
        sent[0] += 1
    stream.finish()


async def run(name: str, rate_per_s: float, addresses: list[str]) -> None:
    stop, sent = asyncio.Event(), [0]
    totals: dict[str, Any] = {"ok": 0, "failed": 0, "out_of_order": 0, "wrong": 0, "longest_gap_s": 0.0, "error": ""}
    first: dict[int, np.ndarray[Any, Any]] = {}
    async with Mesh(mdns=False, peers=addresses) as mesh:
        deployment = (await mesh.model(name)).deployment
        inputs = [[make_input(spec, 10 * n + i) for i, spec in enumerate(deployment.inputs)] for n in range(INPUTS)]
        async with mesh.open_stream(deployment, StreamOptions()) as stream:
            feeding = asyncio.ensure_future(feed(stream, inputs, rate_per_s, stop, sent))
            stopping = asyncio.ensure_future(asyncio.to_thread(sys.stdin.read))
            stopping.add_done_callback(lambda _: stop.set())
            tell("begun", repair_seconds=max(time_repair(deployment, node) for node in deployment.plan.devices))
            heard_at, due = time.monotonic(), 0
            try:
                async for answer in stream.answers():
                    now = time.monotonic()
                    gap, heard_at = now - heard_at, now
                    if gap > TOLD_GAP_S:
                        tell("gap", seconds=gap)
                    totals["longest_gap_s"] = max(totals["longest_gap_s"], gap)
                    totals["out_of_order"] += answer.sequence != due
                    due = answer.sequence + 1
                    if answer.outcome is not Outcome.OK:
                        totals["failed"] += 1
                        continue
                    totals["ok"] += 1
                    values = np.frombuffer(answer.tensors[0].data, np.float32)
                    known = first.setdefault(answer.sequence % INPUTS, values.copy())
                    totals["wrong"] += not np.allclose(values, known, atol=TOLERANCE)
                await feeding
            except MeshError as error:
                totals["error"] = f"{type(error).__name__}: {error}"
            feeding.cancel()
            await asyncio.gather(feeding, return_exceptions=True)
    tell("end", sent=sent[0], **totals)


if __name__ == "__main__":
    asyncio.run(run(sys.argv[1], float(sys.argv[2]), sys.argv[3:]))
