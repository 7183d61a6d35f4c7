"""One stage of one deployment on this node: inbox, engine, and the way out.

    edge ──offer──► Inbox ──► engine thread ──► slots in order ──► next edge, or the consumers' sinks

Frames are taken from the inbox only when the engine has room, and byte credits go back to the edge
at that moment, so a slow engine or a stalled way out slows the sender and nothing piles up here.
Slots leave in the order in which frames were taken; frames that need no computing (an outcome that
another stage decided, a spent budget) keep their place in that order. Bytes are bounded by the edges'
credits, frames without bytes by the window of their stream: one that passes it is closed, alone.

The frames of one stream come over one edge from each replica of the stage before. The stream ends when all of them
say so, or at once where one of them is lost. A stage that is itself replicated returns credits when a frame is
computed instead of when it is taken: they tell its senders how fast it is.

The node's runtime makes a stage, spawns `run`, and owns it; everything here happens on its event loop.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence

from mesh.control.flow import Inbox
from mesh.control.timing import DRAIN_TIMEOUT_S
from mesh.core.frame import Frame, Hop, Outcome, StreamClass
from mesh.core.messages import OpenStream
from mesh.core.plan import Deployment
from mesh.errors import DeploymentNotFound, MeshError, Overloaded, ProtocolViolation, Refused, Timeout
from mesh.runtime.engine_pool import Completion, EngineLease
from mesh.runtime.stage_items import Item, OpenedStream, Slot, StageStatistics, follow_up, is_superseded, tell_closed
from mesh.runtime.stage_ports import Downstream, Sink, Upstream
from mesh.runtime.stage_wiring import wire_tensors

MAX_LEAVING = 2
"""Items that wait to leave besides those in the engine: one is being written, the next is at hand."""

MAX_SMALL_SLOTS = 16
MAX_SMALL_LEAVING_BYTES = 32 << 10
"""Small ones that wait to leave will share a message, so more of them may."""

MAX_STREAMS = 256
"""Open streams per stage."""

MAX_QUEUED_FRAMES = 4096
"""Sum of the windows of all streams of a stage; bounds its inbox and its sinks."""

RATE_SAMPLES = 64
"""Completions over which throughput is averaged."""

RATE_HORIZON_S = 5.0
"""Without a completion for so long, throughput is reported as zero."""


class Stage:
    """See the module. `downstream` is None at the tail."""

    def __init__(
        self,
        deployment: Deployment,
        index: int,
        engine: EngineLease,
        downstream: Downstream | None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.deployment = deployment
        self.index = index
        self.statistics = StageStatistics()
        self.recorder: Callable[[Frame, float, float], None] | None = None
        """Told of each frame that has left, when it came and when it left; None unless somebody traces."""
        self._downstream = downstream
        self._now = now
        self._streams: dict[int, OpenedStream] = {}
        self._sinks: dict[int, Sink] = {}
        self._inbox: Inbox[Item] = Inbox(MAX_QUEUED_FRAMES, is_superseded)
        self._slots: deque[Slot] = deque()
        self._submitted = 0
        self._wake = asyncio.Event()
        self._completed_at: deque[float] = deque(maxlen=RATE_SAMPLES)
        self._is_accepting = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._feeds, self._leaving = wire_tensors(deployment, index, engine)
        self.engine = engine
        self._may_open = len(deployment.plan.stages[index - 1].devices) if index else 1
        self._is_replicated = len(deployment.plan.stages[index].devices) > 1
        if downstream is not None:
            downstream.on_stream_closed = self._downstream_closed
            downstream.on_draining = self._tell_draining

    # Streams ------------------------------------------------------------------------------------

    def activate(self) -> None:
        self._is_accepting = True

    async def open_stream(self, info: OpenStream, upstream: Upstream) -> None:
        """Accept a stream here and at every stage after this one; raises what any of them says against it."""
        if not self._is_accepting:
            raise Refused(
                f"deployment {self.deployment.name!r} takes no new streams", hint="it is being replaced or removed"
            )
        known = self._streams.get(info.stream)
        if known is not None:
            await self._join_stream(known, info, upstream)
            return
        if len(self._streams) >= MAX_STREAMS:
            raise Overloaded(f"{MAX_STREAMS} streams are open on deployment {self.deployment.name!r}, its limit")
        if sum(opened.info.window for opened in self._streams.values()) + info.window > MAX_QUEUED_FRAMES:
            raise Overloaded(f"the windows of all streams would pass {MAX_QUEUED_FRAMES} frames")
        if self._downstream is None and info.stream not in self._sinks:
            raise ProtocolViolation(
                f"stream {info.stream:x} has no consumer", hint="open its results at the tail first"
            )
        opened = OpenedStream(info, [upstream], asyncio.get_running_loop().create_future())
        self._streams[info.stream] = opened
        self._idle.clear()
        try:
            if self._downstream is not None:
                await self._open_downstream(opened, self._downstream)
        except BaseException as error:
            refusal = error if isinstance(error, MeshError) else Refused(f"stream {info.stream:x} was given up")
            opened.whole.set_exception(refusal)
            opened.whole.exception()  # seen, where nobody else opens it
            raise
        opened.whole.set_result(None)

    async def _open_downstream(self, opened: OpenedStream, downstream: Downstream) -> None:
        stream = opened.info.stream
        try:
            await downstream.open_stream(opened.info)
        except BaseException:
            if self._streams.get(stream) is opened:
                self._forget(stream)
            raise
        if self._streams.get(stream) is not opened:
            downstream.close_stream(stream, None)
            raise Refused(f"stream {stream:x} was closed while it was being opened")

    async def _join_stream(self, opened: OpenedStream, info: OpenStream, upstream: Upstream) -> None:
        """Another replica of the stage before this one opens a stream that is open, or being opened, already."""
        if opened.is_known(upstream) or len(opened.upstreams) + len(opened.ended) >= self._may_open:
            raise ProtocolViolation(f"stream {info.stream:x} is open already")
        if info != opened.info:
            raise ProtocolViolation(f"stream {info.stream:x} is opened as two different streams")
        opened.upstreams.append(upstream)
        await asyncio.wait({opened.whole})  # which is not this one's to cancel
        opened.whole.result()
        if self._streams.get(info.stream) is not opened:
            raise Refused(f"stream {info.stream:x} was closed while it was being opened")

    def attach_sink(self, stream: int, sink: Sink) -> None:
        if self._downstream is not None:
            raise Refused(f"stage {self.index} is not the tail of deployment {self.deployment.name!r}")
        if not self._is_accepting:
            raise Refused(
                f"deployment {self.deployment.name!r} takes no new streams", hint="it is being replaced or removed"
            )
        if stream in self._sinks:
            raise ProtocolViolation(f"the results of stream {stream:x} are being read already")
        if len(self._sinks) >= MAX_STREAMS:
            raise Overloaded(f"{MAX_STREAMS} consumers are attached to deployment {self.deployment.name!r}, its limit")
        self._sinks[stream] = sink

    def detach_sink(self, stream: int, error: MeshError | None) -> None:
        """The consumer went away; whoever sends the stream is told."""
        self._sinks.pop(stream, None)
        opened = self._forget(stream)
        if opened is not None:
            tell_closed(opened.upstreams, stream, error)

    def close_stream(self, stream: int, upstream: Upstream, error: MeshError | None) -> None:
        """The sender ends a stream; stages after this one and the consumer are told once all its senders have ended it.

        With an `error` it ends at once, and the other senders are told too.
        """
        opened = self._streams.get(stream)
        if opened is None or not opened.may_end(upstream):
            return  # both ends may close at the same time
        opened.leave(upstream)
        if opened.upstreams and error is None:
            opened.ended.append(upstream)
            return
        self._end_stream(stream, error)
        tell_closed(opened.upstreams, stream, error)

    def _end_stream(self, stream: int, error: MeshError | None) -> None:
        self._forget(stream)
        if self._downstream is not None:
            self._downstream.close_stream(stream, error)
        sink = self._sinks.pop(stream, None)
        if sink is not None:
            sink.close(error)

    def _break_stream(self, stream: int, opened: OpenedStream, error: MeshError) -> None:
        """End a stream from here, towards both of its ends."""
        self._end_stream(stream, error)
        tell_closed(opened.upstreams, stream, error)

    def streams_of(self, upstream: Upstream) -> tuple[int, ...]:
        return tuple(stream for stream, opened in self._streams.items() if opened.may_end(upstream))

    def _downstream_closed(self, stream: int, error: MeshError | None) -> None:
        opened = self._forget(stream)
        if opened is not None:
            tell_closed(opened.upstreams, stream, error)

    def _forget(self, stream: int) -> OpenedStream | None:
        opened = self._streams.pop(stream, None)
        for item in self._inbox.remove(lambda item: item.frame.stream == stream):
            item.upstream.consumed(item.size_bytes)
            self.statistics.discarded += 1
        if not self._streams:
            self._idle.set()
        return opened

    # Frames -------------------------------------------------------------------------------------

    def offer(self, frame: Frame, upstream: Upstream) -> None:
        """Take a frame from an edge. Raises `ProtocolViolation` for a stream that this edge did not open."""
        opened = self._streams.get(frame.stream)
        size_bytes = frame.payload_bytes
        if opened is None:
            # Closed from the other side while the frame was on its way: normal, and nobody waits for it.
            upstream.consumed(size_bytes)
            self.statistics.discarded += 1
            return
        if upstream is not opened.upstreams[0] and not opened.is_known(upstream):
            raise ProtocolViolation(f"a frame of stream {frame.stream:x} came over another edge than its opening")
        if opened.held >= opened.info.window:
            # Not the edge's fault: another node's edge carries other streams as well.
            upstream.consumed(size_bytes)
            self.statistics.discarded += 1
            error = ProtocolViolation(f"more than the window of {opened.info.window} frames are at stage {self.index}")
            self._break_stream(frame.stream, opened, error)
            return
        opened.held += 1
        now = self._now()
        item = Item(
            frame,
            upstream,
            opened.info.stream_class is StreamClass.LIVE,
            now,
            now + frame.budget_us / 1e6 if frame.budget_us else None,
            size_bytes,
        )
        for old in self._inbox.put(item):
            self._settle(old, Outcome.DROPPED, Overloaded(f"superseded by a newer frame at stage {self.index}"))
            self.statistics.dropped += 1
        self._pump()

    def _settle(self, item: Item, outcome: Outcome, error: MeshError) -> None:
        item.upstream.consumed(item.size_bytes)
        slot = Slot(item)
        slot.decide(self._without_tensors(item, outcome, error), self._now())
        self._slots.append(slot)

    def _pump(self) -> None:
        while self._submitted < self.engine.depth and self._may_take():
            item = self._inbox.take()
            if item is None:
                break
            slot = Slot(item)
            self._slots.append(slot)
            is_returned = True
            if item.frame.outcome is not Outcome.OK:
                slot.decide(self._without_tensors(item, item.frame.outcome, item.frame.error), self._now())
            elif item.deadline_at is not None and self._now() >= item.deadline_at:
                error = Overloaded(f"its time was up before stage {self.index} could compute it")
                slot.decide(self._without_tensors(item, Outcome.LATE, error), self._now())
            else:
                self._submitted += 1
                feeds = [item.frame.tensors[position] for position in self._feeds]
                end_at = None if item.deadline_at is None else time.monotonic() + item.deadline_at - self._now()
                is_returned = not self._is_replicated
                self.engine.submit(slot, feeds, self._on_complete, end_at)
            if is_returned:
                item.upstream.consumed(item.size_bytes)
        if self._slots and self._slots[0].result is not None:
            self._wake.set()

    def _may_take(self) -> bool:
        """Whether there is room on the way out for one more."""
        if len(self._slots) < self.engine.depth + MAX_LEAVING:
            return True
        waiting_bytes = sum(slot.result.payload_bytes for slot in self._slots if slot.result is not None)
        return len(self._slots) < MAX_SMALL_SLOTS and waiting_bytes <= MAX_SMALL_LEAVING_BYTES

    def _without_tensors(self, item: Item, outcome: Outcome, error: MeshError | None) -> Frame:
        return follow_up(item.frame, (), self._remaining_us(item), outcome, error)

    def _remaining_us(self, item: Item) -> int:
        if item.deadline_at is None:
            return 0
        return max(1, int((item.deadline_at - self._now()) * 1e6))

    def _on_complete(self, completion: Completion) -> None:
        self._submitted -= 1
        slot: Slot = completion.token
        item = slot.item
        if self._is_replicated:
            item.upstream.consumed(item.size_bytes)
        statistics = self.statistics
        queue_us = max(0, int((completion.started_at - item.received_at) * 1e6))
        hop = Hop(self.index, queue_us, int(completion.compute_seconds * 1e6))
        if completion.error is not None:
            statistics.failed += 1
            outcome = Outcome.LATE if isinstance(completion.error, Timeout) else Outcome.FAILED
            slot.decide(self._without_tensors(item, outcome, completion.error), self._now())
        else:
            statistics.count(completion.compute_seconds, queue_us / 1e6)
            self._completed_at.append(self._now())
            frame = item.frame
            tensors = tuple(completion.outputs[at] if is_made else frame.tensors[at] for is_made, at in self._leaving)
            slot.decide(follow_up(frame, tensors, self._remaining_us(item), Outcome.OK, None, hop), self._now())
        self._pump()

    # Way out ------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Send what is done, in order, for as long as the stage exists."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while done := self._take_done():
                await self._let_go(done)
                for slot in done:
                    self.statistics.count_left(self._now() - slot.decided_at)
                    if self.recorder is not None:
                        self.recorder(slot.item.frame, slot.item.received_at, self._now())
                    self._slots.popleft()
                self._pump()

    def _take_done(self) -> list[Slot]:
        """Those at the front that have their results; they keep their places until they have left."""
        done: list[Slot] = []
        for slot in self._slots:
            if slot.result is None:
                break
            done.append(slot)
        return done

    async def _let_go(self, slots: Sequence[Slot]) -> None:
        leaving: list[Frame] = []
        for slot in slots:
            result = slot.item.frame
            opened = self._streams.get(result.stream)
            if opened is None:
                self.statistics.discarded += 1
                continue
            opened.held -= 1
            if self._downstream is None:
                self.statistics.answer_bytes += result.payload_bytes
                self._sinks[result.stream].deliver(result)
                continue
            result.budget_us = self._remaining_us(slot.item)  # it may have waited here behind others
            leaving.append(result)
        if self._downstream is not None and leaving:
            await self._downstream.send(leaving)

    @property
    def throughput_per_s(self) -> float:
        times = self._completed_at
        if len(times) < 2 or self._now() - times[-1] > RATE_HORIZON_S:
            return 0.0
        return (len(times) - 1) / max(times[-1] - times[0], 1e-9)

    @property
    def sent_bytes(self) -> Mapping[str, int]:
        """As `StageReport.sent_bytes`."""
        return {"": self.statistics.answer_bytes} if self._downstream is None else self._downstream.sent_bytes

    async def drain(self, grace_s: float = DRAIN_TIMEOUT_S) -> None:
        """Take no new streams, tell consumers, give open streams `grace_s` to end, then close them with an error."""
        self._is_accepting = False
        self._tell_draining()
        try:
            await asyncio.wait_for(self._idle.wait(), grace_s)
        except TimeoutError:
            error = DeploymentNotFound(f"deployment {self.deployment.name!r} was removed while this stream was open")
            for stream, opened in list(self._streams.items()):
                self._break_stream(stream, opened, error)
        for sink in list(self._sinks.values()):
            sink.close(DeploymentNotFound(f"deployment {self.deployment.name!r} was removed"))
        self._sinks.clear()

    def _tell_draining(self) -> None:
        """Clients hear of it at whichever end is nearer, wherever in the plan it is that drains."""
        upstreams = [upstream for opened in self._streams.values() for upstream in opened.upstreams]
        for upstream in {id(upstream): upstream for upstream in upstreams}.values():
            upstream.tell_draining()
        for sink in self._sinks.values():
            sink.tell_draining()

    async def close(self) -> None:
        """Free engine and edge; only after `drain`, or when the node goes down."""
        if self._downstream is not None:
            await self._downstream.close()
        await self.engine.release()
