"""What a gateway has counted for each model, in the terms of the protocol's statistics extension.

Durations are summed in nanoseconds. A pipeline's waiting and computing are the sums over its stages; what is left of
a request's time is its way between them, half of it told as input and half as output. Owned by the `inference` gateway.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field

from mesh.core.frame import Hop

NANOSECONDS_PER_S = 1_000_000_000
NANOSECONDS_PER_US = 1_000

BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper ends: from what one hop takes to what nobody waits for."""

DURATIONS = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output")
"""Fields of `ModelStatistics` that the protocol has under the same names."""


@dataclass(slots=True)
class Duration:
    count: int = 0
    nanoseconds: int = 0

    def add(self, nanoseconds: int) -> None:
        self.count += 1
        self.nanoseconds += nanoseconds


@dataclass(slots=True)
class ModelStatistics:
    """Of one model since the gateway started."""

    success: Duration = field(default_factory=Duration)
    fail: Duration = field(default_factory=Duration)
    queue: Duration = field(default_factory=Duration)
    compute_input: Duration = field(default_factory=Duration)
    compute_infer: Duration = field(default_factory=Duration)
    compute_output: Duration = field(default_factory=Duration)
    last_inference_ms: int = 0
    """Unix time in milliseconds of the last request that was answered; 0 for none."""
    failures: Counter[str] = field(default_factory=Counter)
    """By the code of the error."""
    slots: list[int] = field(default_factory=lambda: [0] * (len(BUCKETS_S) + 1))
    """How many answered requests took how long: up to each of `BUCKETS_S`, and longer."""

    def count_success(self, seconds: float, hops: tuple[Hop, ...], unix_s: float) -> None:
        total = round(seconds * NANOSECONDS_PER_S)
        queue = sum(hop.queue_us for hop in hops) * NANOSECONDS_PER_US
        compute = sum(hop.compute_us for hop in hops) * NANOSECONDS_PER_US
        moved = max(0, total - queue - compute)
        self.success.add(total)
        self.slots[bisect_left(BUCKETS_S, seconds)] += 1
        self.queue.add(queue)
        self.compute_infer.add(compute)
        self.compute_input.add(moved // 2)
        self.compute_output.add(moved - moved // 2)
        self.last_inference_ms = round(unix_s * 1000)

    def count_failure(self, seconds: float, code: str) -> None:
        self.fail.add(round(seconds * NANOSECONDS_PER_S))
        self.failures[code] += 1
