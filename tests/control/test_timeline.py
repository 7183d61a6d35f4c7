"""Timelines: no overlap on a lane, no lane too many, times from zero, the format that viewers read."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.control.timeline import TimedPart, TimedProcess, TimedSpan, assign_lanes, latest_end, make_timeline

INTERVAL = st.tuples(st.integers(0, 30), st.integers(1, 10)).map(lambda pair: (pair[0], pair[0] + pair[1]))


@settings(deadline=None, max_examples=100)
@given(st.lists(INTERVAL, max_size=30))
def test_lanes_are_free_of_overlap_and_as_few_as_can_be(intervals: list[tuple[int, int]]) -> None:
    lanes = assign_lanes(intervals)
    for lane in set(lanes):
        mine = sorted(interval for interval, its in zip(intervals, lanes, strict=True) if its == lane)
        assert all(before[1] <= after[0] for before, after in itertools.pairwise(mine))
    depth = max((sum(a <= moment < b for a, b in intervals) for moment in range(40)), default=0)
    assert (max(lanes) + 1 if lanes else 0) == depth


def test_events() -> None:
    client = TimedProcess("client", (TimedSpan("client", "frame 0", 5.0, 5.5, None, 0),))
    stage = TimedProcess(
        "stage 0 on a",
        (
            TimedSpan("compute", "compute 1", 5.2, 5.3, 10, 1),
            TimedSpan("compute", "compute 0", 5.1, 5.2, 10, 0),
            TimedSpan("waiting", "waiting 1", 5.1, 5.25, 10, 1),
            TimedSpan("waiting", "waiting 0", 5.1, 5.15, 10, 0),
        ),
    )
    events = make_timeline([client, stage])
    names = {(each["pid"], each["tid"], each["name"]): each["args"]["name"] for each in events if each["ph"] == "M"}
    assert names == {
        (0, 0, "process_name"): "client",
        (0, 0, "thread_name"): "client",
        (1, 0, "process_name"): "stage 0 on a",
        (1, 0, "thread_name"): "compute",
        (1, 1, "thread_name"): "waiting",
        (1, 2, "thread_name"): "waiting",
    }
    spans = [each for each in events if each["ph"] == "X"]
    assert [each["ts"] for each in spans] == sorted(each["ts"] for each in spans)
    assert spans[0] == {
        "ph": "X", "name": "frame 0", "cat": "client", "pid": 0, "tid": 0, "ts": 0.0, "dur": 500000.0,
        "args": {"sequence": 0},
    }  # fmt: skip
    assert {each["args"].get("stream") for each in spans[1:]} == {"000000000000000a"}
    assert latest_end(events) == 0.5
    assert make_timeline([]) == []


def test_parts_fill_their_span_in_order_on_its_lane() -> None:
    parts = (TimedPart("conv", 0.3), TimedPart("nothing", 0.0), TimedPart("relu", 0.1))
    spans = (
        TimedSpan("waiting", "waiting 0", 1.0, 2.0, 10, 0),
        TimedSpan("compute", "compute 0", 2.0, 2.8, 10, 0, parts=parts),
        TimedSpan("compute", "compute 1", 2.8, 3.0, 10, 1),
    )
    events = make_timeline([TimedProcess("stage 0 on a", spans)])
    inside = [each for each in events if each.get("cat") == "kernel"]
    assert [(each["name"], each["tid"], each["ts"], each["dur"]) for each in inside] == [
        ("conv", 1, 1_000_000.0, 600_000.0),
        ("nothing", 1, 1_600_000.0, 0.0),
        ("relu", 1, 1_600_000.0, 200_000.0),
    ]
    assert [each["args"]["profiled_us"] for each in inside] == [300_000.0, 0.0, 100_000.0]
    assert [each["name"] for each in events if each["ph"] == "X"][1] == "compute 0"  # before its parts: they nest


def test_parts_without_time_are_left_out() -> None:
    span = TimedSpan("compute", "compute 0", 2.0, 2.8, 10, 0, parts=(TimedPart("conv", 0.0),))
    assert [each.get("cat") for each in make_timeline([TimedProcess("a", (span,))]) if each["ph"] == "X"] == ["compute"]


KERNELS = st.lists(st.floats(1e-9, 1e-3), min_size=1, max_size=6)
SPANS = st.lists(st.tuples(st.floats(0.0, 2.0), st.floats(1e-7, 1e-2), KERNELS), min_size=1, max_size=8)


@pytest.mark.parametrize("read", [int, round])
@settings(deadline=None, max_examples=100)
@given(drawn=SPANS)
def test_spans_and_their_parts_nest_in_whole_nanoseconds(
    read: Callable[[float], int], drawn: list[tuple[float, float, list[float]]]
) -> None:
    """Viewers leave out what overlaps on a lane without nesting, be it by a nanosecond."""
    origin = 86_400.0  # of a monotonic clock
    spans = []
    for at, took, kernels in drawn:
        parts = tuple(TimedPart("kernel", seconds) for seconds in kernels)
        spans.append(TimedSpan("compute", "compute", origin + at, origin + at + took, 1, 0, parts=parts))
    ends = dict[int, list[int]]()
    """By lane, of what is open; the innermost last."""
    for event in make_timeline([TimedProcess("a", tuple(spans))]):
        if event["ph"] == "X":
            started = read(event["ts"] * 1000)
            ended = started + read(event["dur"] * 1000)
            around = ends.setdefault(event["tid"], [])
            while around and around[-1] <= started:
                around.pop()
            assert not around or ended <= around[-1]
            around.append(ended)
