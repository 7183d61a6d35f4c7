"""Both sides of a stage, played: who sends into it and who takes its answers."""

from __future__ import annotations

from dataclasses import dataclass, field

from mesh.core.frame import Frame
from mesh.errors import MeshError


@dataclass
class Sender:
    """An `Upstream` that notes what it is told."""

    consumed_bytes: int = 0
    closed: dict[int, MeshError | None] = field(default_factory=dict)
    is_told: bool = False

    def consumed(self, size_bytes: int) -> None:
        self.consumed_bytes += size_bytes

    def tell_draining(self) -> None:
        self.is_told = True

    def close_stream(self, stream: int, error: MeshError | None) -> None:
        self.closed[stream] = error


@dataclass
class Consumer:
    """A `Sink` that keeps what it gets."""

    frames: list[Frame] = field(default_factory=list)
    end: list[MeshError | None] = field(default_factory=list)
    is_told: bool = False

    def deliver(self, frame: Frame) -> None:
        self.frames.append(frame)

    def tell_draining(self) -> None:
        self.is_told = True

    def close(self, error: MeshError | None) -> None:
        self.end.append(error)
