"""What a stage keeps: a frame on its way through it, the streams that are open on it, and what it has counted."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from mesh.core.frame import Frame, Hop, Outcome
from mesh.core.messages import OpenStream
from mesh.core.tensor import Tensor
from mesh.errors import MeshError
from mesh.runtime.stage_ports import Upstream

EWMA_WEIGHT = 0.1
"""Of the newest time in a running mean: the last ten or so frames count."""


@dataclass(slots=True)
class Item:
    frame: Frame
    upstream: Upstream
    is_live: bool
    received_at: float
    deadline_at: float | None
    size_bytes: int


@dataclass(slots=True)
class Slot:
    item: Item
    result: Frame | None = None
    decided_at: float = 0.0

    def decide(self, result: Frame, now: float) -> None:
        self.result = result
        self.decided_at = now
        self.item.frame = result  # what entered is freed now: its credit has been given back


@dataclass(slots=True)
class OpenedStream:
    info: OpenStream
    upstreams: list[Upstream]
    """Over each of these its frames may come: one per replica of the stage before this one."""
    whole: asyncio.Future[None]
    """Done when every stage after this one has accepted the stream."""
    ended: list[Upstream] = field(default_factory=list)
    """Those that have nothing more to send, in an orderly way."""
    held: int = 0
    """Frames in the inbox and the slots."""

    def may_end(self, upstream: Upstream) -> bool:
        """Whether `upstream` opened it and has not ended it."""
        return any(each is upstream for each in self.upstreams)

    def is_known(self, upstream: Upstream) -> bool:
        """Whether frames may come over `upstream`; some may still be on their way when it has ended the stream."""
        return self.may_end(upstream) or any(each is upstream for each in self.ended)

    def leave(self, upstream: Upstream) -> None:
        self.upstreams = [each for each in self.upstreams if each is not upstream]


@dataclass(slots=True)
class StageStatistics:
    frames: int = 0
    compute_seconds: float = 0.0
    """Exponentially weighted mean."""
    dropped: int = 0
    failed: int = 0
    discarded: int = 0
    """Frames whose stream was closed while they were under way."""
    waiting_seconds: float = 0.0
    """Between arriving and being computed; exponentially weighted, as the next."""
    leaving_seconds: float = 0.0
    """Between being computed and having left."""
    answer_bytes: int = 0
    """Payload that went to clients, at the tail."""

    def count(self, compute_seconds: float, waiting_seconds: float) -> None:
        """One more frame was computed."""
        self.frames += 1
        weight = EWMA_WEIGHT if self.frames > 1 else 1.0
        self.compute_seconds += weight * (compute_seconds - self.compute_seconds)
        self.waiting_seconds += weight * (waiting_seconds - self.waiting_seconds)

    def count_left(self, leaving_seconds: float) -> None:
        self.leaving_seconds += EWMA_WEIGHT * (leaving_seconds - self.leaving_seconds)


def tell_closed(upstreams: Sequence[Upstream], stream: int, error: MeshError | None) -> None:
    for upstream in upstreams:
        upstream.close_stream(stream, error)


def is_superseded(old: Item, new: Item) -> bool:
    return old.is_live and old.frame.stream == new.frame.stream and old.frame.outcome is Outcome.OK


def follow_up(
    frame: Frame,
    tensors: tuple[Tensor, ...],
    budget_us: int,
    outcome: Outcome,
    error: MeshError | None,
    hop: Hop | None = None,
) -> Frame:
    """What a stage makes of `frame`; `hop` where it has computed it."""
    hops = frame.hops if hop is None else (*frame.hops, hop)
    return Frame(
        frame.stream,
        frame.sequence,
        frame.term,
        frame.generation,
        tensors,
        budget_us,
        outcome,
        error,
        frame.traceparent,
        hops,
    )
