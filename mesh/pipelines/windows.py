"""Samples as they come to the windows that a model takes, with a rule for gaps. Pure: times come from the caller.

Words as in stream processing: a *tumbling* window begins where the one before ended, a *hopping* one every `hop`
samples, a *sliding* one ends with each message, a *count* one is tumbling over however many samples came, whatever
their times. All but the last follow event time: samples that are missing between two messages are a gap, and samples
that were there already are passed over. However samples are spread over messages, the windows are the same.

One `Windower` per source, owned by the runner.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

import numpy as np

from mesh.arrays import Array
from mesh.errors import SourceUnreadable

MAX_GAP_WINDOWS = 4
"""A gap that is longer than so many windows is not filled: nothing of either side would be left in them."""

MAX_WINDOWS_AT_ONCE = 10_000
"""That one message completes. Each is an inference, so that this is half a minute's work for a small mesh."""

TOLERANCE_SAMPLES = 0.5
"""Clocks of sensors wander; less than half a sample is no gap."""


class WindowKind(enum.Enum):
    TUMBLING = "tumbling"
    HOPPING = "hopping"
    SLIDING = "sliding"
    COUNT = "count"


class GapPolicy(enum.Enum):
    RESET = "reset"
    """Begin anew after it."""
    PAD = "pad"
    """Zeros in its place."""
    INTERPOLATE = "interpolate"
    """A straight line in its place."""


@dataclass(frozen=True, slots=True)
class WindowRule:
    """`size` and `hop` in samples; `rate_hz` is None where samples have no times."""

    kind: WindowKind
    size: int
    hop: int
    rate_hz: float | None = None
    gap: GapPolicy = GapPolicy.RESET


@dataclass(slots=True)
class WindowCounters:
    gaps: int = 0
    filled: int = 0
    """Samples that were made up in gaps."""
    passed_over: int = 0
    """Samples that came again, or too late, or were left over before a gap."""


class Windower:
    """`push` in the order of arrival."""

    def __init__(self, rule: WindowRule, channels: int) -> None:
        self._rule = rule
        self._held: Array = np.empty((0, channels), np.float32)
        self._next_time: float | None = None
        """When the sample after the newest one is due."""
        self._skip = 0
        """Samples that lie between two windows, where `hop` is more than `size`."""
        self._seen = 0
        """How many of those that are held, from the oldest on, were in a window."""
        self.newest = 0
        """Samples that the last push added, with those that filled a gap before them."""
        self.counters = WindowCounters()

    @property
    def unseen(self) -> int:
        """How many samples that are held, from the newest on, no window has had."""
        return len(self._held) - self._seen

    def push(self, samples: Array, first_time_s: float | None = None) -> list[Array]:
        """Windows of `size` x channels that these samples complete, oldest first.

        `samples`: float32, n x channels; `first_time_s`: the time of the first, None where it follows on. Windows may
        share their memory, and are not to be written to. Raises `SourceUnreadable`, and begins anew, where these
        samples would complete more than `MAX_WINDOWS_AT_ONCE`.
        """
        fresh = self._follow_on(samples, first_time_s)
        self.newest = len(fresh)
        self._held = np.concatenate([self._held, fresh])
        windows = self._slide(len(fresh)) if self._rule.kind is WindowKind.SLIDING else self._cut()
        self._held = self._held.copy()  # a slice would hold all of a large message for the sake of its last samples
        return windows

    def _follow_on(self, samples: Array, first_time_s: float | None) -> Array:
        """What of `samples` is new, after what fills a gap before them."""
        rate_hz = self._rule.rate_hz
        if rate_hz is None or first_time_s is None or self._rule.kind is WindowKind.COUNT or not len(samples):
            return samples
        missing = 0.0 if self._next_time is None else (first_time_s - self._next_time) * rate_hz
        if missing < -TOLERANCE_SAMPLES:
            known = min(len(samples), round(-missing))
            self.counters.passed_over += known
            samples, first_time_s = samples[known:], first_time_s + known / rate_hz
            if not len(samples):
                return samples  # all of it was here already
        self._next_time = first_time_s + len(samples) / rate_hz
        return self._bridge(samples, round(missing)) if missing > TOLERANCE_SAMPLES else samples

    def _bridge(self, samples: Array, missing: int) -> Array:
        """`samples` with what belongs before them; what is held is given up where the gap is not to be filled."""
        self.counters.gaps += 1
        policy = self._rule.gap
        if policy is GapPolicy.RESET or missing > MAX_GAP_WINDOWS * self._rule.size or not len(self._held):
            self.counters.passed_over += len(self._held)
            self._held = self._held[:0]
            self._skip = self._seen = 0
            return samples
        self.counters.filled += missing
        if policy is GapPolicy.PAD:
            bridge = np.zeros((missing, samples.shape[1]), np.float32)
        else:
            share = (np.arange(1, missing + 1, dtype=np.float32) / (missing + 1))[:, None]
            bridge = self._held[-1] * (1 - share) + samples[0] * share
        return np.concatenate([bridge, samples]).astype(np.float32, copy=False)

    def _cut(self) -> list[Array]:
        size, hop = self._rule.size, self._rule.hop
        count = (len(self._held) - self._skip - size) // hop + 1
        if count > MAX_WINDOWS_AT_ONCE:
            self._held, self._skip, self._seen, self._next_time = self._held[:0], 0, 0, None
            raise SourceUnreadable(
                f"the message completes {count} windows, more than {MAX_WINDOWS_AT_ONCE}",
                hint="publish smaller messages, or make hop larger",
            )
        windows: list[Array] = []
        while True:
            skipped = min(self._skip, len(self._held))
            self._held, self._skip = self._held[skipped:], self._skip - skipped
            self._seen = max(0, self._seen - skipped)
            if self._skip or len(self._held) < size:
                return windows
            windows.append(self._held[:size])
            dropped = min(hop, len(self._held))
            self._held, self._skip = self._held[dropped:], hop - dropped
            self._seen = size - min(hop, size)

    def _slide(self, fresh: int) -> list[Array]:
        """The newest `size` samples, once for each message that brought any."""
        passed = max(0, len(self._held) - self._rule.size)
        self._held, self._seen = self._held[passed:], max(0, self._seen - passed)
        if not fresh or len(self._held) < self._rule.size:
            return []
        self._seen = len(self._held)
        return [self._held]
