"""One pipeline at work: a sensor's message in, what the model says of it out.

Sources of one pipeline are independent; a source's messages must come one after the other, because windows follow on.
The model is asked through a gateway's meaning, which bounds and times requests and outlives lost nodes. Made and owned
by `mesh pipeline run`; tasks and transport are its caller's.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from mesh.arrays import to_array
from mesh.core.plan import Deployment
from mesh.core.tensor import Tensor
from mesh.errors import MeshError
from mesh.gateways.contract import MODEL_VERSION, InferenceAnswer, InferenceRequest
from mesh.gateways.inference import InferenceGateway
from mesh.pipelines.judging import Told, check_output, judge
from mesh.pipelines.pipeline_file import Pipeline
from mesh.pipelines.preparing import Preparer

Parameters = ParamSpec("Parameters")
Value = TypeVar("Value")

MAX_SOURCES = 1024
"""Whose windows are held at once; the one that was silent for longest begins anew."""

MAX_HELD_BYTES = 256 << 20
"""Of the windows of one pipeline: fewer sources where those are long."""

LARGE_BYTES = 32 << 10
"""Messages and windows from this size on are prepared in a thread: unpacking a picture takes milliseconds."""


class PipelineRunner:
    def __init__(
        self, pipeline: Pipeline, gateway: InferenceGateway, unix_now: Callable[[], float] = time.time
    ) -> None:
        self.pipeline = pipeline
        self._gateway = gateway
        self._unix_now = unix_now
        self._preparers: OrderedDict[str, tuple[Deployment, Preparer]] = OrderedDict()

    async def check(self) -> Deployment:
        """The model, if this pipeline fits it; raises what is wrong."""
        deployment = await self._gateway.describe(self.pipeline.model, "")
        await asyncio.to_thread(Preparer(self.pipeline, deployment.inputs).check_window)
        check_output(self.pipeline.output, deployment.outputs)
        return deployment

    async def process(
        self, source: str, payload: bytes, message_id: str, traceparent: str = ""
    ) -> list[Told | MeshError]:
        """What the model says of the frames that this message completes, oldest first.

        The last one may be an error: why the frames from there on have no result.

        Raises `SourceUnreadable` for a message that is broken, `TensorMismatch` where pipeline and model do not fit,
        and what asking the model raises.
        """
        received_at = self._unix_now()
        deployment = await self._gateway.describe(self.pipeline.model, "")
        preparer = self._preparer(source, deployment)
        parts = await _maybe_in_thread(len(payload), preparer.push, payload, received_at, message_id)
        results: list[Told | MeshError] = []
        for number, part in enumerate(parts):
            identifier = message_id if len(parts) == 1 else f"{message_id}.{number}"
            try:
                size = len(part) if isinstance(part, bytes) else part.nbytes
                frame = await _maybe_in_thread(size, preparer.frame, part)
                answer = await self._ask(deployment.inputs[0].name, frame, traceparent)
                results.append(self._tell(source, identifier, received_at, frame, answer))
            except MeshError as error:
                if not results:
                    raise
                left = len(parts) - number  # what fails once mostly fails again, after as long a wait
                told = f"{left} of the message's {len(parts)} windows have no result: {error.message}"
                return [*results, type(error)(told, hint=error.hint)]
        return results

    def holds(self, source: str, message_id: str) -> bool:
        """Whether a sample of that message waits for its first window: killed now, it would be lost."""
        known = self._preparers.get(source)
        return known is not None and known[1].holds(message_id)

    def _preparer(self, source: str, deployment: Deployment) -> Preparer:
        """That of `source`; made anew where the model now takes other tensors."""
        known = self._preparers.get(source)
        if known is not None and known[0].inputs == deployment.inputs:
            self._preparers.move_to_end(source)
            return known[1]
        preparer = Preparer(self.pipeline, deployment.inputs)
        self._preparers[source] = (deployment, preparer)
        most = min(MAX_SOURCES, max(1, MAX_HELD_BYTES // max(1, preparer.window_bytes)))
        while len(self._preparers) > most:
            self._preparers.popitem(last=False)
        return preparer

    async def _ask(self, name: str, frame: Tensor, traceparent: str) -> InferenceAnswer:
        request = InferenceRequest(
            self.pipeline.model, "", {name: frame}, timeout_s=self.pipeline.timeout_s, traceparent=traceparent
        )
        return await self._gateway.infer(request)

    def _tell(self, source: str, identifier: str, received_at: float, frame: Tensor, answer: InferenceAnswer) -> Told:
        outputs = {spec.name: to_array(tensor, spec.name) for spec, tensor in answer.outputs}
        queue_s = sum(hop.queue_us for hop in answer.hops) / 1e6
        compute_s = sum(hop.compute_us for hop in answer.hops) / 1e6
        now = self._unix_now()
        return {
            "id": identifier,
            "pipeline": self.pipeline.name,
            "source": source,
            "ts_capture": received_at,
            "ts_result": now,
            "latency_ms": {
                "queue": round(queue_s * 1e3, 3),
                "compute": round(compute_s * 1e3, 3),
                "transfer": round(max(0.0, answer.seconds - queue_s - compute_s) * 1e3, 3),
                "total": round((now - received_at) * 1e3, 3),
            },
            "model": answer.deployment.name,
            "version": MODEL_VERSION,
            "plan": str(answer.deployment.fence),
            "nodes": [device[:8] for device in answer.deployment.plan.devices],
            **judge(self.pipeline.output, outputs, _picture_size(frame)),
        }


async def _maybe_in_thread(
    size: int, work: Callable[Parameters, Value], *arguments: Parameters.args, **named: Parameters.kwargs
) -> Value:
    if size >= LARGE_BYTES:
        return await asyncio.to_thread(work, *arguments, **named)
    return work(*arguments, **named)


def _picture_size(frame: Tensor) -> tuple[int, int] | None:
    """Height and width of a picture that is a frame; None for anything else."""
    if len(frame.shape) != 4:
        return None
    _, first, second, third = frame.shape
    return (second, third) if first in (1, 3) else (first, second)


def write_result(result: Told) -> bytes:
    """As one line of JSON."""
    return json.dumps(result, separators=(",", ":"), allow_nan=False).encode()
