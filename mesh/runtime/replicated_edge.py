"""The way into a stage, on one device or on several: frames go to the replica that is expected to finish first.

`make_edge` gives an `EdgeSender` where the stage is on one device and a `ReplicatedEdge` where it is on several. Both
look the same to their owner, a stage or a client's path. A `ReplicatedEdge` holds one `EdgeSender` per replica and
opens each stream on all of them, because any frame may go to any of them; `mesh.control.dispatch` decides to which.

    send ──dispatch──► at most MAX_WAITING_FRAMES ──task──► EdgeSender, credits ──► replica

Each replica has a task that writes to it, so that one which takes nothing stalls nobody else: what it may hold up is
what waits for it here and what its credits allow. A replica that is lost, or closes a stream, ends that stream on all:
its sender sends again what is unanswered, over a generation without the replica (`mesh.runtime.repairing`).
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from mesh.control.dispatch import Dispatch
from mesh.core.frame import Frame
from mesh.core.messages import OpenEdge, OpenStream
from mesh.core.plan import Deployment
from mesh.errors import MeshError
from mesh.runtime.edge_sender import EdgeSender, Link, Spawn, ignore_closed, ignore_draining
from mesh.runtime.supervise import together

MAX_WAITING_FRAMES = 2
"""Per replica, between the choice and the wire: one is being written or waits for credit, the next is at hand."""


@dataclass(slots=True)
class _Lane:
    edge: EdgeSender
    waiting: deque[Frame] = field(default_factory=deque)
    """Handed to this replica; the first is being sent."""
    wake: asyncio.Event = field(default_factory=asyncio.Event)


class ReplicatedEdge:
    """`edges` lead to the replicas of one stage, each of which is expected to take `seconds_per_frame`."""

    def __init__(
        self,
        edges: Sequence[EdgeSender],
        seconds_per_frame: float,
        spawn: Spawn,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._lanes = [_Lane(edge) for edge in edges]
        self._dispatch = Dispatch(len(edges), seconds_per_frame, now())
        self._spawn = spawn
        self._now = now
        self._streams: set[int] = set()
        self._room = asyncio.Event()
        self._is_writing = False
        self._is_closed = False
        self.on_stream_closed: Callable[[int, MeshError | None], None] = ignore_closed
        self.on_draining: Callable[[], None] = ignore_draining
        for number, edge in enumerate(edges):
            edge.on_stream_closed = self._closed_by
            edge.on_draining = self._told_of_draining
            edge.on_credited = partial(self._credited, number)
            edge.on_lost = partial(self._dispatch.lost, number)

    @property
    def sent_bytes(self) -> Mapping[str, int]:
        """By device."""
        return {device: count for lane in self._lanes for device, count in lane.edge.sent_bytes.items()}

    async def open_stream(self, info: OpenStream) -> None:
        """Open a stream to all replicas; raises what any of them, or any stage after them, says against it."""
        if not self._is_writing:
            self._is_writing = True
            for number, lane in enumerate(self._lanes):
                self._spawn(self._write(number, lane), f"edge to replica {number}: write")
        self._streams.add(info.stream)
        try:
            await together(lane.edge.open_stream(info) for lane in self._lanes)
        except BaseException:
            self.close_stream(info.stream, None)
            raise

    async def send(self, frames: Sequence[Frame]) -> None:
        """Hand each of some frames of open streams to a replica, waiting until there is one with room.

        Those whose stream was closed meanwhile are left out: `on_stream_closed` has told of it.
        """
        for frame in frames:
            await self._hand(frame)

    async def _hand(self, frame: Frame) -> None:
        while frame.stream in self._streams:
            now = self._now()
            free = [number for number, lane in enumerate(self._lanes) if len(lane.waiting) < MAX_WAITING_FRAMES]
            chosen = self._dispatch.choose(free, now)
            if chosen is not None:
                self._dispatch.handed(chosen, frame.payload_bytes, now)
                lane = self._lanes[chosen]
                lane.waiting.append(frame)
                lane.wake.set()
                return
            self._room.clear()
            await self._room.wait()

    async def _write(self, number: int, lane: _Lane) -> None:
        while not self._is_closed:
            await lane.wake.wait()
            lane.wake.clear()
            while lane.waiting:
                frame = lane.waiting[0]
                if not await lane.edge.send((frame,)):
                    self._dispatch.withdrawn(number, frame.payload_bytes)
                lane.waiting.popleft()
                self._room.set()

    def close_stream(self, stream: int, error: MeshError | None) -> None:
        """End a stream from this side."""
        self._streams.discard(stream)
        for lane in self._lanes:
            lane.edge.close_stream(stream, error)
        self._room.set()

    async def close(self) -> None:
        """Hang up. Streams that are still open are closed on the other side by that."""
        self._is_closed = True
        self._streams.clear()
        self._room.set()
        for lane in self._lanes:
            lane.wake.set()
            await lane.edge.close()

    # What the edges tell --------------------------------------------------------------------------

    def _credited(self, number: int, size_bytes: int) -> None:
        self._dispatch.credited(number, size_bytes, self._now())

    def _closed_by(self, stream: int, error: MeshError | None) -> None:
        if stream not in self._streams:
            return  # another replica was first
        self.close_stream(stream, error)
        self.on_stream_closed(stream, error)

    def _told_of_draining(self) -> None:
        self.on_draining()


def make_edge(
    deployment: Deployment,
    stage: int,
    dial: Callable[[str], Link],
    spawn: Spawn,
    now: Callable[[], float] = time.monotonic,
) -> EdgeSender | ReplicatedEdge:
    """The way into `stage` of `deployment`. `dial` opens an edge to the node at an address."""
    its = deployment.plan.stages[stage]
    edges = [
        EdgeSender(
            partial(dial, deployment.addresses[device]),
            OpenEdge(deployment.name, deployment.fence, stage),
            f"node {device[:8]} at {deployment.addresses[device]}",
            spawn,
            now,
            deployment.addresses[device],
            deployment.plan.codec_into(stage),
            device,
        )
        for device in its.devices
    ]
    return edges[0] if len(edges) == 1 else ReplicatedEdge(edges, its.compute_seconds, spawn, now)
