"""A source of frames inside the head node: loads a deployment without a client, so that only the mesh is measured.

    FrameSource ──offer──► Stage 0 ──► ... ──► tail ──results link──► FrameSource

The frames are made once and sent again and again, into the stage and without gRPC; their answers come
over an ordinary results link from each device of the tail, or straight from the stage where this node is the
tail too. An answer makes room for the next frame. Where the head is on several devices, each has a source of its
own. `NodeService` makes one source per request and counts them.
"""

from __future__ import annotations

import array
import asyncio
import math
import random
import secrets
import time
from collections.abc import Callable, Coroutine
from typing import Any

from mesh.control.flow import FrameWindow
from mesh.control.measuring import Meter
from mesh.core.frame import Frame, Outcome, StreamClass
from mesh.core.measurement import SourceReport, SourceRequest
from mesh.core.messages import OpenStream
from mesh.core.tensor import DType, Tensor, TensorSpec, blank_tensor
from mesh.errors import MeshError, NodeLost, Refused, RunFailed, Timeout, UsageError
from mesh.runtime.results_link import ResultsEvents, ResultsLink
from mesh.runtime.stage import MAX_QUEUED_FRAMES, Stage
from mesh.wire.channel import NodeClient

MAX_SOURCE_SECONDS = 600.0
"""Ten minutes: long enough to see a board throttle; a caller who forgot about it is not computed for any longer."""

SEED = 7
"""The same made-up frames everywhere and every time."""


def made_up_tensor(spec: TensorSpec) -> Tensor:
    """Random numbers in 0..1 for floats, zeros for everything else (indices of any table), symbolic dimensions at 1.

    Raises `ModelUnsupported` where the rank is unknown.
    """
    blank = blank_tensor(spec)
    if spec.dtype is not DType.FLOAT32:
        return blank
    draw = random.Random(SEED)  # noqa: S311 - not for secrets
    values = array.array("f", (draw.random() for _ in range(blank.element_count)))
    return Tensor.from_bytes(spec.dtype, blank.shape, values.tobytes(), spec.name)


def check_request(request: SourceRequest) -> None:
    """Raises `UsageError` for times, windows and rates out of bounds."""
    seconds = request.seconds + request.warm_up_seconds
    if not (math.isfinite(seconds) and 0 < request.seconds <= seconds <= MAX_SOURCE_SECONDS):
        raise UsageError(f"a source of {seconds:g} s, warm-up included, is outside 0..{MAX_SOURCE_SECONDS:g}")
    if not 0 <= request.window <= MAX_QUEUED_FRAMES:
        raise UsageError(f"a window of {request.window} frames is outside 1..{MAX_QUEUED_FRAMES}")
    if not (math.isfinite(request.rate_per_s) and request.rate_per_s >= 0):
        raise UsageError(f"a rate of {request.rate_per_s} frames per second makes no sense")


class FrameSource:
    """An `Upstream` to the head stage, and a `Sink` where it is the tail too. `run` once."""

    def __init__(
        self,
        stage: Stage,
        request: SourceRequest,
        client: Callable[[str], NodeClient],
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        if stage.index != 0:
            raise Refused(f"a source belongs to the head of {stage.deployment.name!r}; this node has {stage.index}")
        check_request(request)
        self._stage = stage
        self._deployment = stage.deployment
        self._request = request
        self._client = client
        self._now = now
        self._stream = secrets.randbits(63)
        self._tensors = tuple(made_up_tensor(spec) for spec in stage.deployment.inputs)
        window = request.window or max(1, stage.deployment.plan.window)
        self._window = FrameWindow(window, stage.deployment.answer_bytes)
        self._sent_at: dict[int, float] = {}
        self._next_sequence = 0
        self._interval_s = 1 / request.rate_per_s if request.rate_per_s else 0.0
        self._due_at = 0.0
        self._meter = Meter(0.0, 0.0)
        self._over = asyncio.Event()
        self._error: MeshError | None = None
        self._links: list[ResultsLink] = []
        self._taken = 0

    # Upstream and sink, as stages see it ----------------------------------------------------------

    def consumed(self, size_bytes: int) -> None:
        """Nothing to give back: the window bounds what is under way, and all frames share their bytes."""

    def close_stream(self, stream: int, error: MeshError | None) -> None:
        self._fail(error or NodeLost(f"deployment {self._deployment.name!r} closed the stream of its source"))

    def deliver(self, frame: Frame) -> None:
        self._take(frame)

    def tell_draining(self) -> None:
        """It ends by itself within its seconds, and is closed where that takes longer than draining may."""

    def close(self, error: MeshError | None) -> None:
        self.close_stream(self._stream, error)

    # ----------------------------------------------------------------------------------------------

    async def run(self) -> SourceReport:
        """Send for as long as was asked; raises what broke the stream, or what a frame failed with."""
        report: SourceReport | None = None
        async with asyncio.TaskGroup() as group:
            works: set[asyncio.Task[None]] = set()
            try:
                await self._open(group, works)
                report = await self._measure(group, works)
            except MeshError as error:
                self._fail(error)
            finally:
                self._over.set()
                self._stage.close_stream(self._stream, self, None)
                if self._is_tail:
                    self._stage.detach_sink(self._stream, None)
                for link in self._links:
                    link.cancel()
                for work in list(works):
                    work.cancel()
        if self._error is not None:
            raise self._error
        assert report is not None  # noqa: S101 - there is an error otherwise
        return report

    @property
    def _is_tail(self) -> bool:
        return len(self._deployment.plan.stages) == 1

    async def _open(self, group: asyncio.TaskGroup, works: set[asyncio.Task[None]]) -> None:
        def spawn(work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
            task = group.create_task(work, name=name)
            works.add(task)
            task.add_done_callback(works.discard)
            return task

        if self._is_tail:
            self._stage.attach_sink(self._stream, self)
        else:
            told = ResultsEvents(self._answered, self.tell_draining, self._fail)
            for device in self._deployment.plan.stages[-1].devices:
                link = ResultsLink(self._deployment, device, self._client, spawn, self._now, told)
                self._links.append(link)
                await link.open(self._stream, 0, self._window.size)
        await self._stage.open_stream(
            OpenStream(self._stream, StreamClass.LOSSLESS, False, self._window.size, traceparent=""), self
        )

    async def _measure(self, group: asyncio.TaskGroup, works: set[asyncio.Task[None]]) -> SourceReport:
        began = self._due_at = self._now()
        begins_at = began + self._request.warm_up_seconds
        ends_at = begins_at + self._request.seconds
        self._meter = Meter(begins_at, ends_at)
        if self._interval_s:
            works.add(group.create_task(self._pace()))
        else:
            self._fill()
        await self._wait_until(begins_at)
        cpu_seconds = time.process_time()
        await self._wait_until(ends_at)
        report = self._meter.report(time.process_time() - cpu_seconds)
        if not report.answered and self._error is None:
            raise Timeout(f"fewer than two answers came within {self._request.seconds:g} s", hint="measure for longer")
        return report

    async def _wait_until(self, moment: float) -> None:
        """Until then, or until the stream is broken."""
        try:
            async with asyncio.timeout(max(0.0, moment - self._now())):
                await self._over.wait()
        except TimeoutError:
            return

    def _fail(self, error: MeshError) -> None:
        if self._error is None and not self._over.is_set():
            self._error = error
        self._over.set()

    # Frames ---------------------------------------------------------------------------------------

    def _fill(self) -> None:
        while self._window.is_open and not self._over.is_set():
            self._send()

    def _send(self) -> None:
        sequence = self._next_sequence
        self._next_sequence += 1
        self._window.enter(sequence)
        self._sent_at[sequence] = self._now()
        fence = self._deployment.fence
        self._stage.offer(Frame(self._stream, sequence, fence.term, fence.generation, self._tensors), self)

    async def _pace(self) -> None:
        """A frame at each due time for which there is room; without room the frame is left out, as a camera would."""
        while True:
            await asyncio.sleep(max(0.0, self._due_at - self._now()))
            self._due_at = max(self._due_at + self._interval_s, self._now() - self._interval_s)
            if self._window.is_open and not self._over.is_set():
                self._send()

    def _answered(self, frame: Frame) -> None:
        """From a results link: once per window the tail hears below which number all are answered."""
        self._take(frame)
        self._taken += 1
        if self._taken % self._window.size == 0:
            taken_through = next(iter(self._sent_at), self._next_sequence) - 1
            for link in self._links:
                link.acknowledge(taken_through)

    def _take(self, frame: Frame) -> None:
        sent_at = self._sent_at.pop(frame.sequence, None)
        if sent_at is None or self._over.is_set():
            return
        if frame.outcome is not Outcome.OK:
            said = f"frame {frame.sequence} was answered {frame.outcome.name.lower()}"
            self._fail(frame.error or RunFailed(said))
            return
        now = self._now()
        self._window.learn(frame.payload_bytes)
        self._window.answered(frame.sequence)
        self._meter.add(now, now - sent_at, frame.hops)
        if not self._interval_s:
            self._fill()
