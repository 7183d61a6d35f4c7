"""The source port: where the frames of a sensor stream come from.

A source is opened for a model's inputs (`mesh.client.sources.open_source`) and makes frames that fit them, in input
order, as bytes. It is synchronous: the runtime pulls `frames()` on a thread of its own and decides when (`--rate`), so
a source knows no clock. Whoever opened it closes it. What can be checked is checked at opening; what shows up only
while reading (a damaged file, a pipe that ends inside a frame) is raised by the iterator.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import BinaryIO, Protocol

from mesh.client.resource_url import ResourceUrl
from mesh.core.tensor import Tensor, TensorSpec
from mesh.errors import TensorMismatch


@dataclass(frozen=True, slots=True)
class SourceFrame:
    """One frame: `tensors` follow the model's inputs, `origin` says in words where it came from ("a.npz[3]")."""

    tensors: tuple[Tensor, ...]
    origin: str


class Source(Protocol):
    @property
    def frame_count(self) -> int | None:
        """How many frames it will give; None where that is unknown or endless."""
        ...

    @property
    def natural_rate_hz(self) -> float | None:
        """Frames per second of the thing itself (windows per second of audio); None where it has none."""
        ...

    def frames(self) -> Iterator[SourceFrame]:
        """The frames, once. Blocks between frames; raises `MeshError`s for what cannot be read."""
        ...

    def close(self) -> None:
        """End the iteration at its next frame; safe from any thread, and more than once."""
        ...


@dataclass(frozen=True, slots=True)
class SourceRequest:
    """What a factory gets: the parsed URL, whose option keys are known ones, and what the model wants."""

    url: ResourceUrl
    inputs: tuple[TensorSpec, ...]
    stdin: BinaryIO | None


SourceFactory = Callable[[SourceRequest], Source]


class IteratorSource:
    """A source over a generator function; what every factory here returns.

    The generator owns its files (`with`) and is closed on the iterating thread, so that `close` only has to raise a
    flag. `frames` may be called once.
    """

    def __init__(
        self,
        produce: Callable[[], Generator[SourceFrame, None, None]],
        *,
        frame_count: int | None,
        natural_rate_hz: float | None = None,
    ) -> None:
        self._produce = produce
        self._closed = threading.Event()
        self._started = False
        self.frame_count = frame_count
        self.natural_rate_hz = natural_rate_hz

    def frames(self) -> Iterator[SourceFrame]:
        if self._started:
            raise RuntimeError("the frames of a source can be read once")
        self._started = True
        return self._iterate()

    def _iterate(self) -> Iterator[SourceFrame]:
        if self._closed.is_set():
            return
        with closing(self._produce()) as produced:
            for frame in produced:
                if self._closed.is_set():
                    return
                yield frame
                if self._closed.is_set():
                    return

    def close(self) -> None:
        self._closed.set()


def single_input(request: SourceRequest, what: str) -> TensorSpec:
    """The model's only input; raises `TensorMismatch` where it has several, which `what` cannot feed."""
    if len(request.inputs) != 1:
        names = ", ".join(repr(spec.name) for spec in request.inputs)
        raise TensorMismatch(
            f"{request.url.text!r}: the model has {len(request.inputs)} inputs ({names}), {what} feeds one",
            hint="use an .npz file with one array per input",
        )
    return request.inputs[0]


def nominal_shape(spec: TensorSpec, what: str) -> tuple[int, ...]:
    """The shape of `spec` with symbolic dimensions at 1; raises `TensorMismatch` where the rank is unknown."""
    if spec.shape is None:
        raise TensorMismatch(
            f"input {spec.name!r}: the model does not say its shape, so {what} cannot fit it",
            hint="use an .npz file, which brings its shapes along",
        )
    return tuple(dim if isinstance(dim, int) else 1 for dim in spec.shape)


def check_inputs(inputs: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
    """`inputs` as a tuple; raises `TensorMismatch` if there is nothing to feed."""
    if not inputs:
        raise TensorMismatch("the model has no inputs, so there is nothing that a source could feed")
    return tuple(inputs)
