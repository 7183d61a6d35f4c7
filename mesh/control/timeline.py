"""One timeline over all nodes of a deployment, in the format that chrome://tracing and Perfetto read. Pure.

Complete ("X") events in microseconds; a device is a process of the timeline, and what happens there at
the same time lies on lanes (its threads): frames that wait, frames that are computed, frames on their way out.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

Event = dict[str, Any]

PART_CATEGORY = "kernel"


@dataclass(frozen=True, slots=True)
class TimedPart:
    """A part of a span as it was timed elsewhere: its share of the span is known, its moment is not."""

    name: str
    seconds: float


@dataclass(frozen=True, slots=True)
class TimedSpan:
    """What was done to one frame, by the common clock in seconds."""

    row: str
    """What kind of thing it is; spans of one row that overlap get lanes of their own."""
    name: str
    started: float
    ended: float
    stream: int | None
    sequence: int
    traceparent: str = ""
    parts: tuple[TimedPart, ...] = ()
    """One after the other, fitted into the span, whatever they took where they were timed."""


@dataclass(frozen=True, slots=True)
class TimedProcess:
    """A device, or the client."""

    name: str
    spans: tuple[TimedSpan, ...]


def assign_lanes(intervals: Sequence[tuple[float, float]]) -> list[int]:
    """A lane for each interval, so that none overlap on one lane, with as few lanes as there can be."""
    lanes = [0] * len(intervals)
    free: list[int] = []
    busy: list[tuple[float, int]] = []
    for index in sorted(range(len(intervals)), key=lambda each: intervals[each]):
        started, ended = intervals[index]
        while busy and busy[0][0] <= started:
            heapq.heappush(free, heapq.heappop(busy)[1])
        lane = heapq.heappop(free) if free else len(busy)
        lanes[index] = lane
        heapq.heappush(busy, (ended, lane))
    return lanes


def make_timeline(processes: Sequence[TimedProcess]) -> list[Event]:
    """Events that begin at 0: names of processes and lanes first, then spans in order of time."""
    origin = min((span.started for process in processes for span in process.spans), default=0.0)
    names: list[Event] = []
    events: list[Event] = []
    for pid, process in enumerate(processes):
        names.append(_name("process_name", pid, 0, process.name))
        first_lane = 0
        for row in dict.fromkeys(span.row for span in process.spans):
            spans = [span for span in process.spans if span.row == row]
            lanes = assign_lanes([(span.started, span.ended) for span in spans])
            names.extend(_name("thread_name", pid, first_lane + lane, row) for lane in sorted(set(lanes)))
            for span, lane in zip(spans, lanes, strict=True):
                events.append(_event(span, pid, first_lane + lane, origin))
                events.extend(_part_events(span, pid, first_lane + lane, origin))
            first_lane += max(lanes) + 1
    return [*names, *sorted(events, key=lambda event: float(event["ts"]))]


def latest_end(events: Iterable[Event]) -> float:
    """Seconds from the beginning of a timeline to its end."""
    return max((event["ts"] + event["dur"] for event in events if event["ph"] == "X"), default=0.0) / 1e6


def _name(kind: str, pid: int, tid: int, name: str) -> Event:
    return {"ph": "M", "name": kind, "pid": pid, "tid": tid, "args": {"name": name}}


def _part_events(span: TimedSpan, pid: int, tid: int, origin: float) -> Iterator[Event]:
    """On the span's own lane, where viewers show them below it."""
    total = sum(part.seconds for part in span.parts)
    if total <= 0:
        return
    started, ended = _interval(span, origin)
    done, at = 0.0, started
    for part in span.parts:
        done += part.seconds
        until = started + round(min(1.0, done / total) * (ended - started))
        yield {
            "ph": "X",
            "name": part.name,
            "cat": PART_CATEGORY,
            "pid": pid,
            "tid": tid,
            "ts": _microseconds(at),
            "dur": _microseconds(until - at),
            "args": {"profiled_us": round(part.seconds * 1e6, 3)},
        }
        at = until


def _interval(span: TimedSpan, origin: float) -> tuple[int, int]:
    """Nanoseconds since `origin`; a span that ends before it begins takes no time.

    Viewers count whole ones, and leave out what overlaps on a lane by one of them: so ends are rounded, not lengths.
    """
    started = round((span.started - origin) * 1e9)
    return started, max(started, round((span.ended - origin) * 1e9))


def _microseconds(nanoseconds: int) -> float:
    """As a number that gives `nanoseconds` again, whether its reader rounds or cuts off."""
    value = nanoseconds / 1000
    return value if int(value * 1000) == nanoseconds else math.nextafter(value, math.inf)


def _event(span: TimedSpan, pid: int, tid: int, origin: float) -> Event:
    started, ended = _interval(span, origin)
    told: dict[str, Any] = {"sequence": span.sequence}
    if span.stream is not None:
        told["stream"] = f"{span.stream:016x}"
    if span.traceparent:
        told["traceparent"] = span.traceparent
    return {
        "ph": "X",
        "name": span.name,
        "cat": span.row,
        "pid": pid,
        "tid": tid,
        "ts": _microseconds(started),
        "dur": _microseconds(ended - started),
        "args": told,
    }
