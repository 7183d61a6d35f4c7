"""What a stage talks to on both of its sides: implemented by edges, consumers and sources, known to the stage."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from mesh.core.frame import Frame
from mesh.core.messages import OpenStream
from mesh.errors import MeshError


class Upstream(Protocol):
    """Whoever sends frames into this stage."""

    def consumed(self, size_bytes: int) -> None: ...

    def tell_draining(self) -> None: ...

    def close_stream(self, stream: int, error: MeshError | None) -> None: ...


class Sink(Protocol):
    """A consumer's results link at the tail."""

    def deliver(self, frame: Frame) -> None: ...

    def tell_draining(self) -> None: ...

    def close(self, error: MeshError | None) -> None: ...


class Downstream(Protocol):
    """The way to the stage after this one, on however many devices that is."""

    on_stream_closed: Callable[[int, MeshError | None], None]
    on_draining: Callable[[], None]

    @property
    def sent_bytes(self) -> Mapping[str, int]:
        """By device."""
        ...

    async def open_stream(self, info: OpenStream) -> None: ...

    async def send(self, frames: Sequence[Frame]) -> object: ...

    def close_stream(self, stream: int, error: MeshError | None) -> None: ...

    async def close(self) -> None: ...
