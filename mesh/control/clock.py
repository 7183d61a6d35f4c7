"""How far a remote clock is from ours, from round trips. Pure.

One round trip says that the remote reading was taken somewhere between sending and receiving, so the
middle is off by half the round trip at most; the shortest one says it best (Cristian's algorithm, the
heart of NTP's clock filter). Both clocks are monotonic clocks of seconds with origins of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RoundTrip:
    sent: float
    """Our clock, before asking."""
    remote: float
    """Their clock, while answering."""
    received: float
    """Our clock, with the answer."""

    @property
    def seconds(self) -> float:
        return self.received - self.sent


@dataclass(frozen=True, slots=True)
class ClockOffset:
    """`remote = ours + seconds`, give or take `error_s`."""

    seconds: float
    error_s: float

    def to_ours(self, remote: float) -> float:
        return remote - self.seconds


def estimate_offset(round_trips: Sequence[RoundTrip]) -> ClockOffset:
    """From the shortest of at least one round trip; the error is half of it. Raises `ValueError` without any."""
    best = min(round_trips, key=lambda trip: trip.seconds)
    return ClockOffset(best.remote - (best.sent + best.received) / 2, best.seconds / 2)
