"""The figures that the cost store keeps, each checked as it is made: a store from a file holds nothing else.

Every figure has the wall time at which it was taken. Values only; `mesh.storage.cost_store` keeps them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from mesh.core.fleet import Handling, Link
from mesh.errors import UsageError

MAX_GROUPS = 100_000
"""Of one model; above it a profile is not kept (2 MB)."""
MAX_PEAK_BYTES = 1 << 48
"""More than any device has: a figure above it is a mistake."""
MAX_SECONDS = 86_400.0
"""A run of a day is no measurement."""


@dataclass(frozen=True, slots=True)
class ModelCost:
    """One model on one device type. Raises `UsageError` for figures that are no sensible number."""

    group_seconds: tuple[float, ...]
    """Of every operator group in the order of the `Graph`."""
    at: float
    """Unix time."""
    measured: bool = True
    gflops: float = 0.0
    """What the probe of the measured device said; 0 where it is not known."""
    run_seconds: float = 0.0
    """Of one call; with the groups it is the time of the whole model."""
    cut_seconds: float = 0.0
    """What each end of a segment that is not an end of the model adds."""
    is_profiled: bool = True
    """False where only the whole was timed, and groups are given their share by operations."""

    def __post_init__(self) -> None:
        if not 0 < len(self.group_seconds) <= MAX_GROUPS:
            raise UsageError(f"group_seconds has {len(self.group_seconds)} entries, outside 1..{MAX_GROUPS}")
        for seconds in self.group_seconds:
            check(seconds, "group_seconds", 0.0, MAX_SECONDS)
        if not self.seconds > 0:
            raise UsageError("group_seconds add up to 0")
        check(self.at, "at", 0.0, math.inf)
        check(self.run_seconds, "run_seconds", 0.0, MAX_SECONDS)
        check(self.cut_seconds, "cut_seconds", 0.0, MAX_SECONDS)
        check(self.gflops, "gflops", 0.0, math.inf)

    @property
    def seconds(self) -> float:
        return self.run_seconds + math.fsum(self.group_seconds)


@dataclass(frozen=True, slots=True)
class SegmentCost:
    """One loaded segment on one device type. Raises `UsageError` as `ModelCost` does."""

    model_sha256: str
    start: int
    end: int
    """Groups `[start, end)` of that model."""
    seconds: float
    """Per frame."""
    at: float
    measured: bool = True

    def __post_init__(self) -> None:
        _check_groups(self.start, self.end)
        check(self.seconds, "seconds", 1e-9, MAX_SECONDS)
        check(self.at, "at", 0.0, math.inf)


@dataclass(frozen=True, slots=True)
class MemoryCost:
    """Resident growth by loading and running a segment, or the whole, on one device type; what has none is estimated.

    Raises `UsageError` as `ModelCost` does.
    """

    model_sha256: str
    start: int
    end: int
    peak_bytes: int
    at: float

    def __post_init__(self) -> None:
        _check_groups(self.start, self.end)
        check(self.peak_bytes, "peak_bytes", 1, MAX_PEAK_BYTES)
        check(self.at, "at", 0.0, math.inf)


@dataclass(frozen=True, slots=True)
class LinkCost:
    latency_seconds: float
    bytes_per_second: float
    at: float
    sending_message_seconds: float = 0.0
    """CPU time of the source per message and, below, per byte; of the target likewise. All 0 where not measured."""
    sending_byte_seconds: float = 0.0
    receiving_message_seconds: float = 0.0
    receiving_byte_seconds: float = 0.0

    def __post_init__(self) -> None:
        for name in ("sending_message", "sending_byte", "receiving_message", "receiving_byte"):
            check(getattr(self, f"{name}_seconds"), f"{name}_seconds", 0.0, MAX_SECONDS)
        check(self.latency_seconds, "latency_seconds", 0.0, MAX_SECONDS)
        check(self.bytes_per_second, "bytes_per_second", 1e-3, 1e15)
        check(self.at, "at", 0.0, math.inf)

    def as_link(self) -> Link:
        sending = Handling(self.sending_message_seconds, self.sending_byte_seconds, measured=True)
        receiving = Handling(self.receiving_message_seconds, self.receiving_byte_seconds, measured=True)
        if sending.message_seconds == 0 or receiving.message_seconds == 0:
            return Link(self.latency_seconds, self.bytes_per_second)
        return Link(self.latency_seconds, self.bytes_per_second, sending=sending, receiving=receiving)


def check(value: float, name: str, least: float, most: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise UsageError(f"{name} is {value!r}, outside {least:g}..{most:g}")
    if not math.isfinite(value):
        raise UsageError(f"{name} is {value!r}, which is not finite")


def _check_groups(start: int, end: int) -> None:
    if not 0 <= start < end <= MAX_GROUPS:
        raise UsageError(f"segment [{start}, {end}) holds no operator group")
