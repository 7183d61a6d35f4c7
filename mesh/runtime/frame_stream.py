"""A stream of frames as its client sees it: frames in at the head, answers out at the tail.

The client opens `Results` at the tail, then an edge at the head; the opening travels through every
stage, so a stream that is open has a whole path. A frame counts against the stream's window until
the mesh has answered it and the consumer has taken that answer, which is what bounds memory in the
mesh. A frame that is late here still counts until the mesh has let go of it.

Every frame gets exactly one answer. What the mesh cannot answer is answered here: `late` at its
deadline, `dropped` when a live frame is superseded before it left, `unknown` when the stream broke.
After a break, answers that had arrived come first, then the unknown ones, then the error.

Owned by one task of the client; its own tasks belong to the supervisor that is handed in.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

from mesh.control.flow import FrameWindow, Reorder
from mesh.control.timing import DIAL_TIMEOUT_S, HEARTBEAT_INTERVAL_S, Liveness
from mesh.core.frame import Frame, Hop, Outcome, StreamClass
from mesh.core.messages import (
    Acknowledge,
    CloseStream,
    Draining,
    Heartbeat,
    OpenEdge,
    OpenResults,
    OpenStream,
    ResultsAccepted,
)
from mesh.core.plan import Deployment
from mesh.core.tensor import Tensor
from mesh.errors import MeshError, NodeLost, Overloaded, ProtocolViolation, Refused, TensorMismatch, Timeout
from mesh.runtime.edge_sender import EdgeSender, Link
from mesh.runtime.supervise import Supervisor
from mesh.wire.channel import NodeClient

DEADLINE_CHECK_S = 0.01
"""How finely deadlines of live frames are judged: well below the period of a 30 Hz camera."""


@dataclass(frozen=True, slots=True)
class StreamOptions:
    stream_class: StreamClass = StreamClass.LOSSLESS
    is_ordered: bool = True
    window: int | None = None
    """Frames in flight; None takes what the plan says."""
    deadline_s: float | None = None
    """Per frame, from sending to answer; None for no limit."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of one frame. `tensors` follow the model's outputs where it is OK, and are empty otherwise."""

    sequence: int
    outcome: Outcome
    tensors: tuple[Tensor, ...] = ()
    error: MeshError | None = None
    latency_s: float | None = None
    """From sending to arrival; None where the mesh did not answer."""
    hops: tuple[Hop, ...] = ()


@dataclass(slots=True)
class _Pending:
    sent_at: float
    deadline_at: float | None


class FrameStream:
    """`await open()`, then `send` and iterate `answers()`; `close` in any case."""

    def __init__(
        self,
        deployment: Deployment,
        options: StreamOptions,
        client: Callable[[str], NodeClient],
        tasks: Supervisor,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.deployment = deployment
        self._options = options
        self._tasks = tasks
        self._now = now
        self._stream = secrets.randbits(63)
        self._window = FrameWindow(options.window or max(1, deployment.plan.window))
        self._next_sequence = 0
        self._pending: dict[int, _Pending] = {}
        self._given_up: set[int] = set()
        """Answered here as late, and still somewhere in the mesh."""
        self._reorder: Reorder[Answer] | None = None
        if options.is_ordered:
            # Dropped and late answers are made here and add to what the window holds.
            self._reorder = Reorder(1 << 20)
        self._ready: deque[Answer] = deque()
        self._changed = asyncio.Event()
        self._room = asyncio.Event()
        self._sending = asyncio.Lock()
        self._waiting: Frame | None = None
        self._is_finished = False
        self._error: MeshError | None = None
        self._taken = 0
        self._own: list[asyncio.Task[None]] = []
        self._tail = client(deployment.addresses[deployment.tail])
        head_address = deployment.addresses[deployment.head]
        self._edge = EdgeSender(
            lambda: client(head_address).open_edge(),
            OpenEdge(deployment.name, deployment.fence, 0),
            f"node {deployment.head[:8]} at {head_address}",
            self._spawn,
            now,
        )
        self._edge.on_stream_closed = self._closed_by_head
        self._results: Link | None = None
        self._liveness = Liveness(now())

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        self._own.append(self._tasks.spawn(work, name))
        self._own = [task for task in self._own if not task.done()]

    # Opening and closing --------------------------------------------------------------------------

    async def open(self) -> None:
        """Connect to tail and head; raises what any stage says against it, `NodeLost` or `Timeout`."""
        await self._open_results()
        info = OpenStream(
            self._stream, self._options.stream_class, self._options.is_ordered, self._window.size, traceparent=""
        )
        await self._edge.open_stream(info)
        if self._options.deadline_s is not None:
            self._spawn(self._watch_deadlines(), "stream: deadlines")
        if self._options.stream_class is StreamClass.LIVE:
            self._spawn(self._send_waiting(), "stream: send the newest")

    async def _open_results(self) -> None:
        tail = self.deployment.tail
        peer = f"node {tail[:8]} at {self.deployment.addresses[tail]}"
        link = self._tail.open_results(self.deployment.outputs)
        self._results = link
        opening = OpenResults(self.deployment.name, self.deployment.fence, self._stream, 0, self._window.size)
        try:
            async with asyncio.timeout(DIAL_TIMEOUT_S):
                await link.send(opening)
                accepted = await link.receive()
        except TimeoutError:
            raise NodeLost(f"{peer} did not answer within {DIAL_TIMEOUT_S:g} s") from None
        if not isinstance(accepted, ResultsAccepted):
            raise ProtocolViolation(f"{peer} answered with {type(accepted).__name__}")
        self._liveness.heard(self._now())
        self._spawn(self._read_answers(link, peer), "stream: answers")
        self._spawn(self._beat(link, peer), "stream: heartbeat")

    async def close(self) -> None:
        """Hang up; frames in flight are abandoned."""
        self._fail(Refused("the stream was closed by its own client"))
        self._edge.close_stream(self._stream, None)
        await self._edge.close()
        if self._results is not None:
            self._results.cancel()
        for task in self._own:
            task.cancel()
        await asyncio.gather(*self._own, return_exceptions=True)

    def _fail(self, error: MeshError) -> None:
        if self._error is None:
            self._error = error
        self._changed.set()
        self._room.set()

    def _closed_by_head(self, stream: int, error: MeshError | None) -> None:
        self._fail(error or NodeLost("the head of the deployment closed the stream"))

    # Sending --------------------------------------------------------------------------------------

    async def send(self, tensors: Sequence[Tensor], on_numbered: Callable[[int], None] | None = None) -> int:
        """Send one frame, in the order of the model's inputs; returns its sequence number.

        `on_numbered` is told that number before the frame leaves, and so before its answer can come.

        A lossless stream waits for room in the window. A live one never waits: while the window is full
        the newest frame waits in place of the one that waited before it, which is answered `dropped`.
        Raises `TensorMismatch` for a frame that does not fit the model, and the error that broke the stream.
        """
        self._check(tensors)
        if self._options.stream_class is StreamClass.LIVE:
            return self._send_newest(tuple(tensors), on_numbered)
        async with self._sending:
            while not self._window.is_open and self._error is None:
                self._room.clear()
                await self._room.wait()
            if self._error is not None:
                raise self._error
            frame = self._number(tuple(tensors))
            if on_numbered is not None:
                on_numbered(frame.sequence)
            self._window.enter(frame.sequence)
            await self._edge.send(frame)
            return frame.sequence

    def _check(self, tensors: Sequence[Tensor]) -> None:
        inputs = self.deployment.inputs
        if len(tensors) != len(inputs):
            raise TensorMismatch(f"a frame of {len(tensors)} tensors for a model with {len(inputs)} inputs")
        for spec, tensor in zip(inputs, tensors, strict=True):
            spec.check(tensor.dtype, tensor.shape)
            tensor.check_bytes(spec.name)

    def _number(self, tensors: tuple[Tensor, ...]) -> Frame:
        if self._is_finished:
            raise Refused("the stream was finished; no more frames can be sent")
        sequence = self._next_sequence
        self._next_sequence += 1
        now = self._now()
        limit_s = self._options.deadline_s
        self._pending[sequence] = _Pending(now, now + limit_s if limit_s is not None else None)
        fence = self.deployment.fence
        budget_us = max(1, int(limit_s * 1e6)) if limit_s is not None else 0
        return Frame(self._stream, sequence, fence.term, fence.generation, tensors, budget_us)

    def _send_newest(self, tensors: tuple[Tensor, ...], on_numbered: Callable[[int], None] | None) -> int:
        if self._error is not None:
            raise self._error
        frame = self._number(tensors)
        if on_numbered is not None:
            on_numbered(frame.sequence)
        superseded, self._waiting = self._waiting, frame
        if superseded is not None:
            self._settle(
                Answer(
                    superseded.sequence,
                    Outcome.DROPPED,
                    error=Overloaded("superseded by a newer frame before it left the client"),
                )
            )
        self._room.set()
        return frame.sequence

    async def _send_waiting(self) -> None:
        while self._error is None:
            await self._room.wait()
            self._room.clear()
            while self._waiting is not None and self._window.is_open and self._error is None:
                frame, self._waiting = self._waiting, None
                if frame.sequence not in self._pending:
                    continue  # its deadline passed while it waited
                self._window.enter(frame.sequence)
                deadline_at = self._pending[frame.sequence].deadline_at
                if deadline_at is not None:  # part of its time passed while it waited
                    frame.budget_us = max(1, int((deadline_at - self._now()) * 1e6))
                await self._edge.send(frame)

    def finish(self) -> None:
        """No more frames will be sent; `answers` ends after the last answer."""
        self._is_finished = True
        self._changed.set()

    def abandon(self, error: MeshError) -> None:
        """The source failed with `error`: nothing more is sent, and `answers` ends with it."""
        self._fail(error)

    # Answers --------------------------------------------------------------------------------------

    async def answers(self) -> AsyncIterator[Answer]:
        """Every frame's answer, in order unless the stream is unordered; see the module for what a break gives."""
        while True:
            while self._ready:
                answer = self._ready.popleft()
                self._took(answer.sequence)
                yield answer
            if self._is_finished and not self._pending:
                self._edge.close_stream(self._stream, None)
                return  # everything is answered: what broke since then harms nobody
            if self._error is not None:
                break
            self._changed.clear()
            await self._changed.wait()
        for answer in self._unknown_answers(self._error):
            yield answer
        raise self._error

    def _unknown_answers(self, error: MeshError) -> list[Answer]:
        held = list(self._reorder.drain()) if self._reorder is not None else []
        unknown = [Answer(sequence, Outcome.UNKNOWN, error=error) for sequence in self._pending]
        self._pending.clear()
        return sorted([*held, *unknown], key=lambda answer: answer.sequence)

    def _took(self, sequence: int) -> None:
        if sequence in self._window and sequence not in self._given_up:
            self._window.answered(sequence)
            self._room.set()
        self._taken += 1
        if self._results is not None and self._error is None and self._taken % max(1, self._window.size) == 0:
            self._spawn(self._acknowledge(self._results, sequence), "stream: acknowledge")

    async def _acknowledge(self, link: Link, sequence: int) -> None:
        try:
            await link.send(Acknowledge(sequence))
        except MeshError as error:
            self._fail(error)

    def _settle(self, answer: Answer) -> None:
        self._pending.pop(answer.sequence, None)
        if self._reorder is not None:
            self._ready.extend(self._reorder.push(answer.sequence, answer))
        else:
            self._ready.append(answer)
        self._changed.set()

    async def _read_answers(self, link: Link, peer: str) -> None:
        try:
            while (message := await link.receive()) is not None:
                self._liveness.heard(self._now())
                match message:
                    case Frame():
                        self._take_frame(message)
                    case CloseStream(_, error):
                        self._fail(error or NodeLost(f"{peer} ended the stream"))
                        return
                    case Heartbeat() | Draining():
                        pass
                    case _:
                        raise ProtocolViolation(f"{peer} sent {type(message).__name__} among answers")
            self._fail(NodeLost(f"{peer} closed the connection"))
        except MeshError as error:
            self._fail(error)

    def _take_frame(self, frame: Frame) -> None:
        pending = self._pending.get(frame.sequence)
        if pending is None:
            if frame.sequence in self._given_up:  # answered here already, as late
                self._given_up.remove(frame.sequence)
                self._window.answered(frame.sequence)
                self._room.set()
            return
        latency_s = self._now() - pending.sent_at
        self._settle(Answer(frame.sequence, frame.outcome, frame.tensors, frame.error, latency_s, frame.hops))

    async def _beat(self, link: Link, peer: str) -> None:
        while self._error is None:
            await asyncio.sleep(HEARTBEAT_INTERVAL_S)
            if self._liveness.is_lost(self._now()):
                self._fail(NodeLost(f"{peer} has gone silent"))
                return
            try:
                await link.send(Heartbeat())
            except MeshError as error:
                self._fail(error)

    async def _watch_deadlines(self) -> None:
        while self._error is None:
            await asyncio.sleep(DEADLINE_CHECK_S)
            now = self._now()
            late = [s for s, pending in self._pending.items() if (pending.deadline_at or now) < now]
            for sequence in late:
                if sequence in self._window:
                    self._given_up.add(sequence)
                if self._waiting is not None and self._waiting.sequence == sequence:
                    self._waiting = None
                limit_s = self._options.deadline_s or 0.0
                self._settle(Answer(sequence, Outcome.LATE, error=Timeout(f"no answer within {limit_s:g} s")))
