"""The sink port: where the answers of a sensor stream go.

A sink is opened for a model's outputs (`mesh.client.sinks.open_sink`) and written by one thread at a time, in the order
in which answers are taken. What cannot be written is found at opening where possible. Every record arrives, whatever
its outcome: a sink shows a missing answer as missing, never as zeros. Whoever opened it ends it, by `close` (all that
was written stands, also after an interrupt) or by `discard` (what is unfinished goes away).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TextIO

from mesh.client.resource_url import ResourceUrl
from mesh.core.frame import Outcome
from mesh.core.tensor import Tensor, TensorSpec
from mesh.errors import MeshError, TensorMismatch


@dataclass(frozen=True, slots=True)
class SinkRecord:
    """What became of one frame. `tensors` follow the model's outputs where it is OK and are empty otherwise."""

    sequence: int
    outcome: Outcome
    tensors: tuple[Tensor, ...] = ()
    origin: str = ""
    """`SourceFrame.origin` of the frame."""
    latency_s: float | None = None
    """Seconds from sending the frame to taking its answer; None where there was no answer."""
    error: MeshError | None = None


class Sink(Protocol):
    def write(self, record: SinkRecord) -> None:
        """Take one record; raises `StorageError`s, or `TensorMismatch` for tensors that are not the model's outputs."""
        ...

    def close(self) -> None:
        """Finish: what was written is complete on disk afterwards. A second call does nothing.

        Raises `StorageError`s.
        """
        ...

    def discard(self) -> None:
        """Give up: remove what is unfinished and keep what stands already. Does nothing after `close`."""
        ...


@dataclass(frozen=True, slots=True)
class SinkRequest:
    """What a factory gets: the parsed URL, whose option keys are known ones, and what the model answers."""

    url: ResourceUrl
    outputs: tuple[TensorSpec, ...]
    stdout: TextIO | None


SinkFactory = Callable[[SinkRequest], Sink]


def check_record(record: SinkRecord, outputs: tuple[TensorSpec, ...]) -> None:
    """Raise `TensorMismatch` unless an OK record carries what `outputs` says."""
    if record.outcome is not Outcome.OK:
        return
    if len(record.tensors) != len(outputs):
        raise TensorMismatch(
            f"answer {record.sequence} has {len(record.tensors)} tensors, the model has {len(outputs)} outputs"
        )
    for spec, tensor in zip(outputs, record.tensors, strict=True):
        spec.check(tensor.dtype, tensor.shape)
