"""What any segment takes, from parts that were timed."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.core.profile import TimedPart, fit_segments, refine

GROUPS = [1.0, 3.0, 2.0, 2.0]


@settings(max_examples=40, deadline=None)
@given(st.floats(0, 0.5), st.floats(0, 0.5))
def test_parts_made_of_a_call_and_of_cuts_are_explained_exactly(run: float, cut: float) -> None:
    shares = [1.0, 5.0, 2.0]

    def true(start: int, end: int) -> float:
        ends = (start > 0) + (end < 3)
        return run + sum(shares[start:end]) * (8 - run) / 8 + ends * cut

    times = fit_segments(shares, [TimedPart(s, e, true(s, e)) for s, e in ((0, 1), (1, 2), (2, 3), (0, 2), (1, 3))])
    assert times.whole_seconds == pytest.approx(8.0)
    for start, end in ((0, 1), (1, 2), (2, 3), (0, 2), (1, 3), (0, 3)):
        assert times.seconds(start, end) == pytest.approx(true(start, end), rel=1e-6)


def test_parts_faster_than_their_share_make_no_negative_price() -> None:
    times = fit_segments(GROUPS, [TimedPart(0, 2, 3.0), TimedPart(2, 4, 3.0)])
    assert (times.run_seconds, times.cut_seconds) == (0, 0) and times.group_seconds == tuple(GROUPS)
    assert fit_segments(GROUPS, []).group_seconds == tuple(GROUPS)
    assert fit_segments(GROUPS, [TimedPart(0, 4, 9.0), TimedPart(0, 2, 0.0)]).whole_seconds == 8.0


def test_a_model_that_computes_next_to_nothing_keeps_some_of_its_time_for_its_groups() -> None:
    times = fit_segments([1e-6, 1e-6], [TimedPart(0, 1, 5e-6), TimedPart(1, 2, 5e-6)])
    assert min(times.group_seconds) > 0 and times.whole_seconds == pytest.approx(2e-6)


def test_measured_parts_hold_exactly_and_the_rest_follows_them() -> None:
    refined = refine([1.0, 3.0, 2.0, 2.0], [TimedPart(0, 2, 8.0)])
    assert refined == pytest.approx([2.0, 6.0, 4.0, 4.0])
    assert refine([1.0, 3.0], []) == [1.0, 3.0]


def test_of_overlapping_parts_the_later_one_counts() -> None:
    refined = refine([1.0, 1.0, 1.0], [TimedPart(0, 2, 4.0), TimedPart(1, 3, 6.0)])
    assert sum(refined[1:]) == pytest.approx(6.0) and refined[0] == pytest.approx(2.0)


def test_parts_outside_the_groups_are_passed_over_and_empty_ones_are_shared_evenly() -> None:
    assert refine([1.0, 1.0], [TimedPart(1, 5, 4.0), TimedPart(-1, 1, 4.0)]) == [1.0, 1.0]
    assert refine([0.0, 0.0, 1.0], [TimedPart(0, 2, 4.0)])[:2] == [2.0, 2.0]
