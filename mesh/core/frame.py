"""Frames and answers: what flows through a deployed plan."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from mesh.core.tensor import Tensor
from mesh.errors import MeshError


class StreamClass(enum.Enum):
    """LOSSLESS: every frame is answered, in order, and the source is slowed. LIVE: newest wins, deadlines bind."""

    LOSSLESS = 1
    LIVE = 2


class Outcome(enum.Enum):
    """What became of a frame. Everything but OK says so explicitly; there is no silence."""

    OK = 1
    LATE = 2
    """Its budget was spent before the answer was there."""
    FAILED = 3
    """A stage could not compute it."""
    DROPPED = 4
    """Superseded by a newer frame of a live stream."""
    UNKNOWN = 5
    """Its fate cannot be known: a node was lost while it was on its way."""


@dataclass(frozen=True, slots=True)
class Hop:
    """What one stage did to a frame, for latency tables and traces."""

    stage: int
    queue_us: int
    compute_us: int


@dataclass(slots=True)
class Frame:
    """One item of a stream between two stages. `tensors` follow the order of the boundary's specs."""

    stream: int
    sequence: int
    term: int
    generation: int
    tensors: tuple[Tensor, ...]
    budget_us: int = 0
    """Remaining time to the answer in microseconds; 0 means none was given. Relative, so clocks need not agree."""
    outcome: Outcome = Outcome.OK
    error: MeshError | None = None
    """Present unless the outcome is OK."""
    traceparent: str = ""
    """W3C trace context, carried untouched."""
    hops: tuple[Hop, ...] = field(default=())

    @property
    def payload_bytes(self) -> int:
        total = 0
        for tensor in self.tensors:  # no generator: asked for several times per frame
            total += len(tensor.data)
        return total
