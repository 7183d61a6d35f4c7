"""Which replica of a stage gets the next frame: the one that is expected to finish it first. Sans I/O.

One `Dispatch` belongs to one edge into a replicated stage (`mesh.runtime.replicated_edge`), so it knows what is
outstanding *on that edge*, not what others send to the same replicas. It need not: a replica that others keep busy
gives its credits back more slowly, and looks as slow as it is. Devices of a replicated stage return the credit of each
frame when they have computed it, which is all that is learned from.

A replica is expected to finish one more frame after

    pace x (outstanding + 1) - what has passed of the first of them

where its pace is the mean time that it took per frame, or the time since it last finished one, where that is longer:
a replica that stands still looks slower and slower, and gets nothing more while others go on. One that was not measured
yet is taken to be as fast as the fastest that was, or as the plan expects where none was; and so is, for one frame, one
that was slow and has been left out since.

Mutable; owned by one edge. `now` is handed in, in seconds of any monotonic clock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from dataclasses import dataclass, field

NEWEST_WEIGHT = 0.2
"""Of a new measurement in the mean at least: the last five or so frames count, so that a board that throttles is
noticed within a few frames."""

RETRY_AFTER_S = 1.0
RETRY_AFTER_FRAMES = 20
"""A replica that got no frame for the longer of these two (in frames: of its own time per frame) is taken to be as fast
as the fastest, for one frame. An ordered stream may have to wait for that one: at most a twentieth of its time."""


@dataclass(slots=True)
class _Replica:
    seconds: float
    """Mean per frame."""
    moved_at: float
    """When it last finished a frame."""
    outstanding: deque[tuple[int, float]] = field(default_factory=deque)
    """(bytes, when it was handed over) of each frame that is not finished, oldest first."""
    spare_bytes: int = 0
    """Credited, and less than the oldest outstanding frame."""
    samples: int = 0
    chosen: int = 0
    """The number of the latest choice that fell on it."""


class Dispatch:
    """`seconds_per_frame` is what the plan expects of each of `replicas`, until they are measured."""

    def __init__(self, replicas: int, seconds_per_frame: float, now: float) -> None:
        self._replicas = [_Replica(seconds_per_frame, now) for _ in range(replicas)]
        self._choices = 0

    def outstanding(self, replica: int) -> int:
        """Frames that `replica` was handed and has not finished."""
        return len(self._replicas[replica].outstanding)

    def seconds_per_frame(self, replica: int) -> float:
        """What it takes per frame, as far as is known."""
        its = self._replicas[replica]
        return its.seconds if its.samples else self._least_seconds(its)

    def _least_seconds(self, its: _Replica) -> float:
        return min((each.seconds for each in self._replicas if each.samples), default=its.seconds)

    def expected_seconds(self, replica: int, now: float) -> float:
        """Until it would have finished a frame that it were handed now."""
        its = self._replicas[replica]
        seconds = self.seconds_per_frame(replica)
        if not its.outstanding:
            is_left_out = now - its.moved_at > max(RETRY_AFTER_S, RETRY_AFTER_FRAMES * seconds)
            return self._least_seconds(its) if is_left_out else seconds
        waited = max(0.0, now - max(its.moved_at, its.outstanding[0][1]))
        pace = max(seconds, waited)
        return pace * (len(its.outstanding) + 1) - min(waited, seconds)

    def choose(self, free: Collection[int], now: float) -> int | None:
        """Of the replicas in `free` the one of least expected finish; of equals, the least recently chosen."""
        if not free:
            return None
        replicas = self._replicas
        return min(
            free, key=lambda each: (self.expected_seconds(each, now), self.outstanding(each), replicas[each].chosen)
        )

    def handed(self, replica: int, size_bytes: int, now: float) -> None:
        """`replica` was given a frame. One without bytes needs no computing, and is never credited."""
        its = self._replicas[replica]
        self._choices += 1
        its.chosen = self._choices
        if size_bytes:
            its.outstanding.append((size_bytes, now))

    def withdrawn(self, replica: int, size_bytes: int) -> None:
        """A frame of that size that it was handed did not leave."""
        outstanding = self._replicas[replica].outstanding
        for position in range(len(outstanding) - 1, -1, -1):
            if outstanding[position][0] == size_bytes:
                del outstanding[position]
                return

    def credited(self, replica: int, size_bytes: int, now: float) -> None:
        """`replica` says that it is done with so many bytes: those of one frame or of several."""
        its = self._replicas[replica]
        its.spare_bytes += size_bytes
        finished, began_at = 0, now
        while its.outstanding and its.outstanding[0][0] <= its.spare_bytes:
            size, handed_at = its.outstanding.popleft()
            its.spare_bytes -= size
            began_at = min(began_at, handed_at)
            finished += 1
        if not its.outstanding:
            its.spare_bytes = 0
        if finished:
            self._learn(its, max(0.0, now - max(began_at, its.moved_at)) / finished)
            its.moved_at = now

    def lost(self, replica: int) -> None:
        """The connection to it is gone, and with it all that it was handed."""
        its = self._replicas[replica]
        its.outstanding.clear()
        its.spare_bytes = 0

    @staticmethod
    def _learn(its: _Replica, seconds: float) -> None:
        its.samples += 1
        weight = max(NEWEST_WEIGHT, 1 / its.samples)  # the first says more than the plan
        its.seconds += weight * (seconds - its.seconds)
