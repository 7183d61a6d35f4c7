"""Answers on their way to the consumer: order is restored, and what a live stream drops takes no memory.

Neighbouring frames that were dropped for the same reason are one run, however many they are, so that a
consumer that takes nothing costs no more than the frames that the mesh may hold.

Mutable; owned by one `mesh.control.client_stream.ClientStream`, which answers every frame once.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from mesh.core.frame import Hop, Outcome
from mesh.core.tensor import Tensor
from mesh.errors import MeshError, ProtocolViolation


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
class _Run:
    """Answers that differ only in their sequence, which goes from `first` to `last`."""

    answer: Answer
    first: int
    last: int


class AnswerQueue:
    """In order of sequence from 0, or (unordered) as they come."""

    def __init__(self, is_ordered: bool) -> None:
        self._is_ordered = is_ordered
        self._runs: dict[int, _Run] = {}
        """By the first sequence of each, in order of arrival."""
        self._taking: _Run | None = None
        self._dropped: _Run | None = None
        """The newest run of dropped frames that was not taken whole."""
        self._next = 0

    def __len__(self) -> int:
        """How much is kept: runs, not answers."""
        return len(self._runs) + (self._taking is not None)

    @property
    def has_next(self) -> bool:
        return self._taking is not None or (self._next in self._runs if self._is_ordered else bool(self._runs))

    def taken_through(self, first_unanswered: int) -> int:
        """Every answer up to and including this one was taken; `first_unanswered` is not here yet."""
        if self._is_ordered:
            return self._next - 1
        kept = [run.first for run in (self._taking, *self._runs.values()) if run is not None]
        return min([first_unanswered, *kept]) - 1

    def put(self, answer: Answer) -> None:
        """Raises `ProtocolViolation` for a sequence that is here or (in order) was taken already."""
        sequence = answer.sequence
        if sequence in self._runs or (self._is_ordered and sequence < self._next):
            raise ProtocolViolation(f"frame {sequence} was answered twice")
        self._runs[sequence] = _Run(answer, sequence, sequence)

    def put_dropped(self, sequence: int, error: MeshError) -> None:
        """The frame never left. Such frames come here in order of their sequence."""
        run = self._dropped
        if run is not None and run.last == sequence - 1 and run.answer.error is error:
            run.last = sequence
        else:
            self.put(Answer(sequence, Outcome.DROPPED, error=error))
            self._dropped = self._runs[sequence]

    def take(self) -> Answer | None:
        """The next answer; None where it has not come."""
        if not self.has_next:
            return None
        if self._taking is None:
            self._taking = self._runs.pop(self._next if self._is_ordered else next(iter(self._runs)))
        run = self._taking
        sequence = run.first
        run.first += 1
        if run.first > run.last:
            self._taking = None
            if run is self._dropped:
                self._dropped = None
        self._next = sequence + 1
        return run.answer if run.answer.sequence == sequence else replace(run.answer, sequence=sequence)
