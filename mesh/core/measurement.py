"""What measuring a running deployment asks for and answers: sources inside nodes, and traces of stages."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EnergyReading:
    """What a device has taken since some moment, at one moment of its own clock."""

    monotonic_seconds: float
    processor_seconds: float
    """Of the daemon and its engines."""
    joules: float | None = None
    """Of all of the device; None where it has no meter."""
    source: str = ""
    """What the meter is called."""


@dataclass(frozen=True, slots=True)
class SourceRequest:
    """Frames made inside the head node of a deployment."""

    seconds: float
    """Measured, after the warm-up."""
    warm_up_seconds: float = 0.5
    window: int = 0
    """Frames in flight; 0 takes what the plan says."""
    rate_per_s: float = 0.0
    """Frames per second at most; 0 for as many as are taken."""


@dataclass(frozen=True, slots=True)
class StageFigures:
    """What one stage did to the measured frames, on average."""

    stage: int
    compute_seconds: float
    queue_seconds: float


@dataclass(frozen=True, slots=True)
class SourceReport:
    """What came of one source."""

    answered: int
    """In `seconds`, which count from the first answer after the warm-up; that one is not among them."""
    seconds: float
    latencies_us: tuple[int, ...]
    """Of every answer, or of an even choice among them."""
    stages: tuple[StageFigures, ...]
    cpu_seconds: float
    """Of the whole process that held the source, in the measured time."""

    @property
    def throughput_per_s(self) -> float:
        return self.answered / self.seconds if self.seconds > 0 else 0.0


@dataclass(frozen=True, slots=True)
class StageSpan:
    """One frame at one stage, in seconds of the node's monotonic clock."""

    stream: int
    sequence: int
    received: float
    engine_started: float
    engine_ended: float
    sent: float
    traceparent: str = ""
    """W3C trace context that came with the frame; empty where none did."""


@dataclass(frozen=True, slots=True)
class StageTrace:
    """Spans of one stage; none in the first message of a trace, which says that recording has begun."""

    stage: int
    spans: tuple[StageSpan, ...]
