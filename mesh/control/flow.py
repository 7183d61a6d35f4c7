"""Flow control of the data plane, sans I/O: windows, credits, and newest-wins.

Two mechanisms, because either alone fails: an end-to-end window of frames per stream (`FrameWindow`,
kept by the client) bounds what one slow consumer can hold in the mesh; byte credits per edge
(`SendWindow` and `ReceiveWindow`) bound memory on each device. HTTP/2's own windows let a writer run
5 MiB ahead and cannot be relied upon for either.

These objects are mutable; each has one owner, named by the class that makes it. Breaking a rule
raises `ProtocolViolation` and leaves the object as it was.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

from mesh.errors import ProtocolViolation

Item = TypeVar("Item")

MAX_CREDIT_BYTES = 1 << 31
"""No edge may be granted more: a larger number is a broken or hostile peer."""


MAX_UNREAD_BYTES = 64 << 20
"""Answers that wait for one consumer: one that does not read may not fill the memory of a small device, whatever its
window. Clients that know how large answers are keep fewer frames in flight. One answer may be larger."""

FRAMES_OF_UNKNOWN_ANSWERS = 4
"""In flight until the first answer tells how large it is: enough to fill a few stages, and room for 16 MiB each."""


CREDIT_SHARE = 4
"""Credits go back a quarter of the limit at a time: a message per frame is a write and a wake-up at both ends.
Where less than that is outstanding the next frame may go whatever its size, so that nobody waits for a credit which is
still too small to be sent; what a receiver holds is bounded by the limit, or by a quarter of it and one frame."""


def _has_room(outstanding_bytes: int, size_bytes: int, limit_bytes: int) -> bool:
    return outstanding_bytes * CREDIT_SHARE < limit_bytes or outstanding_bytes + size_bytes <= limit_bytes


class SendWindow:
    """Byte credits as the sender of an edge sees them."""

    def __init__(self, limit_bytes: int) -> None:
        if not 0 < limit_bytes <= MAX_CREDIT_BYTES:
            raise ProtocolViolation(f"an edge credit of {limit_bytes} bytes is outside 1..{MAX_CREDIT_BYTES}")
        self.limit_bytes = limit_bytes
        self.outstanding_bytes = 0

    def may_send(self, size_bytes: int) -> bool:
        return _has_room(self.outstanding_bytes, size_bytes, self.limit_bytes)

    def sent(self, size_bytes: int) -> None:
        if not self.may_send(size_bytes):
            raise ProtocolViolation(f"{size_bytes} bytes do not fit the edge credit of {self.limit_bytes}")
        self.outstanding_bytes += size_bytes

    def credited(self, size_bytes: int) -> None:
        if not 0 < size_bytes <= self.outstanding_bytes:
            raise ProtocolViolation(f"a credit of {size_bytes} bytes for {self.outstanding_bytes} outstanding")
        self.outstanding_bytes -= size_bytes


class ReceiveWindow:
    """Byte credits as the receiver of an edge sees them; returns them in batches."""

    def __init__(self, limit_bytes: int, is_prompt: bool = False) -> None:
        """`is_prompt` returns the credit of every frame at once, for senders that learn from it."""
        self.limit_bytes = limit_bytes
        self._is_prompt = is_prompt
        self.held_bytes = 0
        """Received and not yet consumed."""
        self._owed_bytes = 0

    def received(self, size_bytes: int) -> None:
        outstanding = self.held_bytes + self._owed_bytes
        if not _has_room(outstanding, size_bytes, self.limit_bytes):
            raise ProtocolViolation(
                f"the peer sent {size_bytes} bytes with {outstanding} outstanding of a credit of {self.limit_bytes}"
            )
        self.held_bytes += size_bytes

    def consumed(self, size_bytes: int) -> int:
        """Give back `size_bytes`; returns the credit to send now, 0 to wait for more."""
        if size_bytes > self.held_bytes:
            raise ProtocolViolation(f"{size_bytes} bytes consumed of {self.held_bytes} held")
        self.held_bytes -= size_bytes
        self._owed_bytes += size_bytes
        if self._is_prompt or self._owed_bytes * CREDIT_SHARE >= self.limit_bytes:
            credit, self._owed_bytes = self._owed_bytes, 0
            return credit
        return 0


class FrameWindow:
    """Frames of one stream that were sent and are not yet taken as answers by the consumer."""

    def __init__(self, size: int, answer_bytes: int | None = 0) -> None:
        """`size` frames, and no more than answers of `answer_bytes` fit into `MAX_UNREAD_BYTES`, though always one.

        None where only an answer will tell: until then as many as `FRAMES_OF_UNKNOWN_ANSWERS`.
        """
        if size < 1:
            raise ProtocolViolation(f"a window of {size} frames cannot move")
        self.size = size
        self.room = size
        """Frames at most; fewer than `size` where answers are large."""
        self._answer_bytes = 0
        if answer_bytes is None:
            self.room = min(size, FRAMES_OF_UNKNOWN_ANSWERS)
        else:
            self.learn(answer_bytes)
        self._unanswered: set[int] = set()

    def learn(self, answer_bytes: int) -> None:
        """An answer is so large; the largest one counts."""
        if answer_bytes > self._answer_bytes or not self._answer_bytes:
            self._answer_bytes = answer_bytes
            self.room = max(1, min(self.size, MAX_UNREAD_BYTES // max(1, answer_bytes)))

    def __len__(self) -> int:
        return len(self._unanswered)

    def __contains__(self, sequence: object) -> bool:
        return sequence in self._unanswered

    @property
    def is_open(self) -> bool:
        return len(self._unanswered) < self.room

    @property
    def unanswered(self) -> tuple[int, ...]:
        return tuple(sorted(self._unanswered))

    def enter(self, sequence: int) -> None:
        """Frame `sequence` is in flight from now on."""
        if not self.is_open:
            raise ProtocolViolation(f"the window of {self.room} frames is full")
        if sequence in self._unanswered:
            raise ProtocolViolation(f"frame {sequence} is in flight already")
        self._unanswered.add(sequence)

    def answered(self, sequence: int) -> None:
        if sequence not in self._unanswered:
            raise ProtocolViolation(f"an answer to frame {sequence}, which is not in flight")
        self._unanswered.remove(sequence)


class Inbox(Generic[Item]):
    """The queue before a stage's engine: first in, first out; of a live stream only the newest frame waits.

    Its length is bounded by the edges' byte credits and by `capacity` items.
    """

    def __init__(self, capacity: int, is_superseded_by: Callable[[Item, Item], bool]) -> None:
        """`is_superseded_by(old, new)` says whether `new` makes waiting for `old` pointless."""
        self.capacity = capacity
        self._is_superseded_by = is_superseded_by
        self._items: deque[Item] = deque()

    def __len__(self) -> int:
        return len(self._items)

    def put(self, item: Item) -> list[Item]:
        """Add one; returns those that it superseded, oldest first. Raises when full."""
        superseded = [old for old in self._items if self._is_superseded_by(old, item)]
        if len(self._items) - len(superseded) >= self.capacity:
            raise ProtocolViolation(f"more than {self.capacity} frames wait for one stage")
        for old in superseded:
            self._items.remove(old)
        self._items.append(item)
        return superseded

    def take(self) -> Item | None:
        return self._items.popleft() if self._items else None

    def remove(self, matches: Callable[[Item], bool]) -> list[Item]:
        """Take out every item that `matches`, oldest first."""
        removed = [item for item in self._items if matches(item)]
        for item in removed:
            self._items.remove(item)
        return removed
