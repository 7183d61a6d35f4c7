"""Meters count what came in their time, and merging keeps the rates of sources that ran at once."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.control.measuring import MAX_LATENCIES, Meter, merge_reports, percentile
from mesh.core.frame import Hop
from mesh.core.measurement import SourceReport, StageFigures


def test_what_comes_outside_of_the_time_does_not_count() -> None:
    meter = Meter(10.0, 12.0)
    for now, latency_s in ((9.9, 9), (10.0, 9), (10.5, 0.1), (11.0, 0.3), (12.1, 9)):
        meter.add(now, latency_s, [Hop(0, 100, 2000), Hop(1, 300, 4000)])
    report = meter.report(cpu_seconds=0.5)
    assert (report.answered, report.seconds, report.throughput_per_s) == (2, 1.0, 2.0)
    assert report.latencies_us == (100_000, 300_000)
    assert report.stages == (StageFigures(0, 0.002, 0.0001), StageFigures(1, 0.004, 0.0003))
    assert report.cpu_seconds == 0.5


@pytest.mark.parametrize("count", [0, 1])
def test_one_answer_is_no_measurement(count: int) -> None:
    meter = Meter(0.0, 1.0)
    for _ in range(count):
        meter.add(0.5, 0.1, [])
    assert (meter.report(0).answered, meter.report(0).throughput_per_s) == (0, 0)


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 5 * MAX_LATENCIES))
def test_many_latencies_are_thinned_evenly(count: int) -> None:
    meter = Meter(0.0, 2.0)
    for index in range(count + 1):
        meter.add(1.0, index / 1e6, [])
    kept = meter.report(0).latencies_us
    strides = {after - before for before, after in itertools.pairwise(kept)}
    assert meter.answered == count
    assert min(count, MAX_LATENCIES) / 2 <= len(kept) <= MAX_LATENCIES
    assert len(strides) <= 1


@pytest.mark.parametrize(("share", "wanted"), [(0.5, 3), (0.99, 5), (0, 1), (1, 5)])
def test_percentiles_are_values_that_were_measured(share: float, wanted: float) -> None:
    assert percentile([5, 3, 1, 2, 4], share) == wanted
    assert percentile([], share) == 0


def test_sources_that_ran_at_once_add_up() -> None:
    slow = SourceReport(10, 1.0, (5,), (StageFigures(0, 1.0, 0.0),), 0.1)
    fast = SourceReport(60, 2.0, (1, 2), (StageFigures(0, 2.0, 0.7), StageFigures(1, 3.0, 0.0)), 0.2)
    both = merge_reports([slow, fast])
    assert both.throughput_per_s == pytest.approx(40)
    assert both.latencies_us == (5, 1, 2)
    assert both.stages[0].compute_seconds == pytest.approx(130 / 70)
    assert both.stages[1] == StageFigures(1, 3.0, 0.0)
    assert both.cpu_seconds == pytest.approx(0.3)
    assert merge_reports([slow]) is slow
