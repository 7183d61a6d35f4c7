"""Counts the answers of a measured stream: throughput, latencies, and what each stage did. Pure.

A `Meter` is fed with every answer by whoever reads them (`mesh.runtime.frame_source` in a node,
`nodes.bench_commands` at a client), which owns it. Answers of the warm-up do not count, and time
counts from one answer to another: half a frame at either edge would be much of a short measurement.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from mesh.core.frame import Hop
from mesh.core.measurement import SourceReport, StageFigures

MAX_LATENCIES = 4096
"""Kept of one measurement: enough for a 99th percentile, and few enough for one small message."""


class Meter:
    """`begins_at` and `ends_at` by the caller's monotonic clock, seconds."""

    def __init__(self, begins_at: float, ends_at: float) -> None:
        self._begins_at = begins_at
        self._ends_at = ends_at
        self._first_at: float | None = None
        self._last_at = begins_at
        self._stride = 1
        self._latencies_us: list[int] = []
        self._stages: dict[int, list[float]] = {}
        self.answered = 0

    def add(self, now: float, latency_s: float, hops: Sequence[Hop]) -> None:
        if not self._begins_at <= now <= self._ends_at:
            return
        if self._first_at is None:
            self._first_at = self._last_at = now
            return
        self._last_at = now
        if self.answered % self._stride == 0:
            self._keep(round(latency_s * 1e6))
        self.answered += 1
        for hop in hops:
            sums = self._stages.setdefault(hop.stage, [0.0, 0.0])
            sums[0] += hop.compute_us
            sums[1] += hop.queue_us

    def _keep(self, latency_us: int) -> None:
        if len(self._latencies_us) == MAX_LATENCIES:
            # Every second one stands for two from now on.
            self._latencies_us = self._latencies_us[::2]
            self._stride *= 2
        self._latencies_us.append(latency_us)

    def report(self, cpu_seconds: float) -> SourceReport:
        """Of at least two answers; `answered` is 0 where there were fewer."""
        frames = max(1, self.answered)
        figures = tuple(
            StageFigures(stage, compute_us / 1e6 / frames, queue_us / 1e6 / frames)
            for stage, (compute_us, queue_us) in sorted(self._stages.items())
        )
        seconds = self._last_at - self._first_at if self._first_at is not None else 0.0
        return SourceReport(self.answered, seconds, tuple(self._latencies_us), figures, cpu_seconds)


def percentile(values: Sequence[float], share: float) -> float:
    """Nearest-rank percentile, `share` in 0..1; 0 of nothing."""
    if not values:
        return 0.0
    ordered = sorted(values)
    return ordered[max(0, min(len(ordered), math.ceil(share * len(ordered))) - 1)]


def merge_reports(reports: Sequence[SourceReport]) -> SourceReport:
    """Of sources that ran at the same time: rates add up, stages are averaged by their frames."""
    if len(reports) == 1:
        return reports[0]
    longest_s = max((report.seconds for report in reports), default=0.0)
    rate_per_s = sum(report.throughput_per_s for report in reports)
    stages: dict[int, list[float]] = {}
    for report in reports:
        for figures in report.stages:
            sums = stages.setdefault(figures.stage, [0.0, 0.0, 0.0])
            sums[0] += report.answered
            sums[1] += report.answered * figures.compute_seconds
            sums[2] += report.answered * figures.queue_seconds
    merged = tuple(
        StageFigures(stage, compute / max(1.0, count), queue / max(1.0, count))
        for stage, (count, compute, queue) in sorted(stages.items())
    )
    latencies = tuple(latency for report in reports for latency in report.latencies_us)
    cpu_seconds = sum(report.cpu_seconds for report in reports)
    return SourceReport(round(rate_per_s * longest_s), longest_s, latencies, merged, cpu_seconds)
