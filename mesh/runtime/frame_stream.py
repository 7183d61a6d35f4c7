"""A stream of frames as its client sees it: frames in at the head, answers out at the tail.

`mesh.control.client_stream` decides what is sent, answered and held; this performs it over one
`StreamPath`, or for a moment two. A frame counts against the stream's window until the mesh has answered
it and the consumer has taken that answer, which is what bounds memory in the mesh. Every frame gets
exactly one answer. What the mesh cannot answer is answered here: `late` at its deadline, `dropped` when a
live frame is superseded before it left, `unknown` when its fate cannot be known.

A path that is lost because a node is gone or another generation is in force is replaced, where the stream
was given a way to recover: that is asked for the deployment now in force until a path opens there, and the
frames that are held are sent again. A generation that drains is replaced before it is gone. Where there is
no other path the stream is broken: answers that had arrived come first, then the unknown ones, then the error.

Owned by one task of the client; its own tasks belong to the supervisor that is handed in.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from mesh.control.answer_queue import Answer
from mesh.control.client_stream import ClientStream, StreamOptions
from mesh.control.stream_counters import StreamCounters
from mesh.control.timing import RECOVERY_LIMIT_S, RECOVERY_PAUSE_S
from mesh.core.frame import Frame, StreamClass
from mesh.core.plan import Deployment
from mesh.core.tensor import Tensor
from mesh.errors import (
    DeploymentNotFound,
    MeshError,
    NodeLost,
    Overloaded,
    Refused,
    StaleGeneration,
    TensorMismatch,
    Timeout,
)
from mesh.runtime.edge_sender import StreamNode
from mesh.runtime.stream_path import PathEvents, StreamPath
from mesh.runtime.supervise import Supervisor

if TYPE_CHECKING:
    from mesh.runtime.own_node import OwnNode

__all__ = ["Answer", "FrameStream", "Recover", "StreamOptions"]

DEADLINE_CHECK_S = 0.01
"""How finely deadlines of live frames are judged at most: well below the period of a 30 Hz camera."""

Recover = Callable[[Deployment, MeshError | None], Awaitable[Deployment]]
"""Given the deployment that a stream used and what broke it, returns the one that is in force now; None asks
whether a newer one is there, because the old one drains. Raises why there is none."""


class FrameStream:
    """`await open()`, then `send` and iterate `answers()`; `close` in any case.

    `deployment` is the one that frames go to now. Without `recover` a lost path breaks the stream. `own_node` is the
    node in whose process this is, if there is one.
    """

    def __init__(
        self,
        deployment: Deployment,
        options: StreamOptions,
        client: Callable[[str], StreamNode],
        tasks: Supervisor,
        recover: Recover | None = None,
        now: Callable[[], float] = time.monotonic,
        own_node: OwnNode | None = None,
    ) -> None:
        self.deployment = deployment
        self._options = options
        self._client = client
        self._own_node = own_node
        self._tasks = tasks
        self._recover = recover
        self._now = now
        window = options.window or max(1, deployment.plan.window)
        self._control = ClientStream(options, window, deployment.answer_bytes)
        self._paths: dict[int, StreamPath] = {}
        self._lost: MeshError | None = None
        """Why there is no path; None while there is one."""
        self._seeking: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()
        """For who takes answers."""
        self._room = asyncio.Event()
        """For who sends."""
        self._due = asyncio.Event()
        """For what writes frames."""
        self._sending = asyncio.Lock()
        self.ends_with_its_stages = asyncio.Event()
        """Set while the stages drain and no other generation is known: the stream goes on until they are gone."""
        self._taken = 0
        self._own: list[asyncio.Task[None]] = []

    @property
    def counters(self) -> StreamCounters:
        """Duplicates, replays, recoveries and gaps until now."""
        return self._control.counters

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        self._own = [task for task in self._own if not task.done()]
        task = self._tasks.spawn(work, name)
        self._own.append(task)
        return task

    # Opening and closing --------------------------------------------------------------------------

    async def open(self) -> None:
        """Connect to tail and head; raises what any stage says against it, `NodeLost` or `Timeout`.

        A deployment that was replaced, or has lost a node, is recovered like one that is lost later.
        """
        try:
            await self._open_path(self.deployment)
        except MeshError as error:
            if self._recover is None or not _is_recoverable(error):
                raise
            self._lost = error
            await self._seek(self._recover)
            if self._control.error is not None:
                raise self._control.error from None
        if self._options.deadline_s is not None:
            self._spawn(self._watch_deadlines(self._options.deadline_s), "stream: deadlines")

    async def close(self) -> None:
        """Hang up; frames in flight are abandoned."""
        self._control.break_off(Refused("the stream was closed by its own client"), self._now())
        self._wake()
        paths = list(self._paths.values())
        self._paths.clear()
        for path in paths:
            await path.close()
        for task in self._own:
            task.cancel()
        await asyncio.gather(*self._own, return_exceptions=True)

    def _fail(self, error: MeshError) -> None:
        """The stream is broken for good, unless everything was answered before."""
        self._control.break_off(error, self._now())
        if self._control.error is not None:
            for path in self._paths.values():
                self._spawn(path.close(), "stream: hang up")
            self._paths.clear()
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._room.set()
        self._due.set()

    def _wake_if_there_is_room(self) -> None:
        """A place may have been freed: wake only who can use it, because waking costs a turn of the loop per frame."""
        if self._control.may_offer:
            self._room.set()
        if self._options.stream_class is StreamClass.LIVE:
            self._due.set()

    # Paths ----------------------------------------------------------------------------------------

    async def _open_path(self, deployment: Deployment) -> None:
        before, control, options = self.deployment, self._control, self._options
        if (deployment.inputs, deployment.outputs) != (before.inputs, before.outputs):
            raise TensorMismatch(f"deployment {deployment.name!r} {deployment.fence} takes or gives other tensors")
        if deployment.fence < before.fence:
            raise StaleGeneration(f"generation {deployment.fence} of {deployment.name!r} is older than {before.fence}")
        path = StreamPath(
            deployment,
            options.stream_class,
            options.is_ordered,
            control.window,
            self._client if self._own_node is None else self._own_node.instead_of(self._client, deployment),
            self._tasks,
            self._now,
        )
        try:
            await path.open(control.first_unanswered)
            if control.error is not None:
                raise control.error
            number = control.open_path(deployment.fence, path.stream)
        except BaseException:
            await path.close()
            raise
        self.deployment = deployment
        self._lost = None
        self.ends_with_its_stages.clear()
        self._paths[number] = path
        path.listen(PathEvents(partial(self._answered, number), self._drains, partial(self._path_lost, number, path)))
        self._spawn(self._send_due(number, path), "stream: send")
        self._hang_up_retired()
        self._wake()

    def _answered(self, number: int, frame: Frame) -> None:
        self._control.answer(number, frame, self._now())
        self._hang_up_retired()
        self._changed.set()
        self._wake_if_there_is_room()

    def _hang_up_retired(self) -> None:
        if len(self._paths) > 1:
            for number in self._control.take_retired():
                self._spawn(self._paths.pop(number).end(), "stream: hang up what was replaced")

    def _drains(self) -> None:
        if self._recover is not None:
            self._start_seeking(self._recover)

    def _path_lost(self, number: int, path: StreamPath, error: MeshError) -> None:
        self._control.lose_path(number, error)
        if self._paths.pop(number, None) is not None:
            self._spawn(path.close(), "stream: hang up")
        if self._control.current_path is None and self._control.error is None:
            if self._recover is None or not _is_recoverable(error) or self._control.is_answered:
                self._fail(error)
            else:
                self._lost = error
                self._start_seeking(self._recover)
        self._wake()

    def _start_seeking(self, recover: Recover) -> None:
        if self._seeking is None or self._seeking.done():
            self._seeking = self._spawn(self._seek(recover), "stream: seek another path")

    async def _seek(self, recover: Recover) -> None:
        """Open a path on the deployment in force. Where there is no path and none can be had, the stream breaks."""
        began_at, lost, failure = self._now(), self._lost, self._lost
        while self._control.error is None:
            if lost is None and self._lost is not None:  # the path that drains was closed before there was another
                began_at, failure = self._now(), self._lost
            lost = self._lost
            try:
                left_s = began_at + RECOVERY_LIMIT_S - self._now()
                if left_s <= 0:
                    raise TimeoutError  # a timeout of nothing does not stop what need not wait
                async with asyncio.timeout(left_s):
                    deployment = await recover(self.deployment, failure)
            except (MeshError, TimeoutError) as refusal:
                if lost is not None:
                    self._fail(_unrecovered(lost, refusal, failure))
                    return
                if self._lost is None:
                    self.ends_with_its_stages.set()
                    return  # nothing newer is known, and the path that drains goes on until it is closed
                continue
            if self._lost is None and deployment.fence <= self.deployment.fence:
                self.ends_with_its_stages.set()
                return
            try:
                await self._open_path(deployment)
                return
            except MeshError as error:
                if self._lost is not None and not (_is_recoverable(error) or isinstance(error, Overloaded)):
                    self._fail(_unrecovered(self._lost, error, None))
                    return
                failure = error
            await asyncio.sleep(RECOVERY_PAUSE_S)

    # Sending --------------------------------------------------------------------------------------

    async def send(
        self, tensors: Sequence[Tensor], on_numbered: Callable[[int], None] | None = None, traceparent: str = ""
    ) -> int:
        """Send one frame, in the order of the model's inputs; returns its sequence number.

        `on_numbered` is told that number before the frame leaves, and so before its answer can come. The
        tensors' bytes must not change until the frame is answered: a lossless frame may be sent again. `traceparent`
        (W3C Trace Context) goes with the frame through every stage.

        A lossless stream waits for room in the window, and for a path while it recovers. A live one never
        waits: while it cannot be sent the newest frame waits in place of the one that waited before it, which
        is answered `dropped`. Raises `TensorMismatch` for a frame that does not fit the model, and the error
        that broke the stream.
        """
        self._check(tensors)
        control = self._control
        async with self._sending:
            while not control.may_offer and control.error is None and not control.is_finished:
                self._room.clear()
                await self._room.wait()
            sequence = control.offer(tuple(tensors), self._now(), traceparent)
            if on_numbered is not None:
                on_numbered(sequence)
            self._due.set()
            if self._options.stream_class is StreamClass.LIVE:
                self._changed.set()  # it may have superseded one
            return sequence

    def _check(self, tensors: Sequence[Tensor]) -> None:
        inputs = self.deployment.inputs
        if len(tensors) != len(inputs):
            raise TensorMismatch(f"a frame of {len(tensors)} tensors for a model with {len(inputs)} inputs")
        for spec, tensor in zip(inputs, tensors, strict=True):
            spec.check(tensor.dtype, tensor.shape)
            tensor.check_bytes(spec.name)

    async def _send_due(self, number: int, path: StreamPath) -> None:
        """Write what is due for as long as this is the path for it."""
        while self._control.current_path == number:
            due = self._control.next_frame(self._now())
            if due is not None:
                self._wake_if_there_is_room()
                await path.send(due[1])
            else:
                if self._control.may_offer:  # what was queued may have been answered meanwhile
                    self._room.set()
                self._due.clear()
                await self._due.wait()

    def finish(self) -> None:
        """No more frames will be sent; `answers` ends after the last answer."""
        self._control.finish()
        self._wake()

    def abandon(self, error: MeshError) -> None:
        """The source failed with `error`: nothing more is sent, and `answers` ends with it."""
        self._fail(error)

    # Answers --------------------------------------------------------------------------------------

    async def answers(self) -> AsyncIterator[Answer]:
        """Every frame's answer, in order unless the stream is unordered; see the module for what a break gives."""
        control = self._control
        while True:
            while (answer := control.take()) is not None:
                self._took()
                yield answer
            if control.is_over:
                for path in self._paths.values():
                    path.close_stream()
                return  # everything is answered: what broke since then harms nobody
            if control.error is not None:
                raise control.error
            self._changed.clear()
            await self._changed.wait()

    def _took(self) -> None:
        self._taken += 1
        self._wake_if_there_is_room()
        path = self._paths.get(self._control.current_path or 0)
        if path is not None and self._taken % self._control.window == 0:
            path.acknowledge(self._control.taken_through)

    async def _watch_deadlines(self, limit_s: float) -> None:
        while self._control.error is None:
            due_at = self._control.next_deadline_at
            # With nothing unanswered, whatever is offered meanwhile has all of its time before it.
            left_s = limit_s if due_at is None else due_at - self._now()
            await asyncio.sleep(max(DEADLINE_CHECK_S, left_s))
            self._control.tick(self._now())
            self._hang_up_retired()
            self._wake()


def _is_recoverable(error: MeshError) -> bool:
    """Whether another generation, or the same one again, may do better; a plain `Refused` is one that drains."""
    return isinstance(error, NodeLost | StaleGeneration | DeploymentNotFound | Timeout) or type(error) is Refused


def _unrecovered(lost: MeshError, refusal: MeshError | TimeoutError, failure: MeshError | None) -> MeshError:
    """What broke the stream, and why it was not mended."""
    if isinstance(refusal, MeshError):
        if lost.message in refusal.message or isinstance(refusal, DeploymentNotFound):
            return refusal  # it says both already
        return NodeLost(f"{lost.message}; no other path was found: {refusal.message}", hint=refusal.hint)
    last = f": {failure.message}" if failure is not None and failure is not lost else ""
    return NodeLost(f"{lost.message}; no other path was found within {RECOVERY_LIMIT_S:g} s{last}")
