"""What any segment takes, from parts that were timed."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.core.profile import TimedPart, TimedPiece, fit_segments, join_pieces, refine, steady_seconds

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


@settings(max_examples=40, deadline=None)
@given(st.floats(0, 0.2), st.floats(0, 0.2), st.lists(st.sampled_from([2, 3, 4]), min_size=2, max_size=4))
def test_pieces_are_joined_to_what_the_whole_would_take(run: float, cut: float, sizes: list[int]) -> None:
    groups = [1.0 + index % 3 for index in range(sum(sizes))]

    def true(start: int, end: int) -> float:
        return run + sum(groups[start:end]) + ((start > 0) + (end < len(groups))) * cut

    pieces, start = [], 0
    for size in sizes:
        end, middle = start + size, start + size // 2
        parts = tuple(TimedPart(s, e, true(s, e)) for s, e in ((start, middle), (middle, end)))
        # proportions only: a kernel profile runs at a pace of its own
        pieces.append(TimedPiece(start, true(start, end), tuple(7 * each for each in groups[start:end]), parts))
        start = end
    times = join_pieces(pieces)
    assert times.group_seconds == pytest.approx(groups, rel=1e-6)
    assert (times.run_seconds, times.cut_seconds) == (pytest.approx(run, abs=1e-6), pytest.approx(cut, abs=1e-6))


def test_a_piece_without_parts_takes_what_it_took() -> None:
    times = join_pieces([TimedPiece(0, 3.0, (1.0, 2.0)), TimedPiece(2, 8.0, (0.0, 1.0, 1.0))])
    assert times.group_seconds == (1.0, 2.0, 0.0, 4.0, 4.0) and (times.run_seconds, times.cut_seconds) == (0, 0)
    halves = (TimedPart(0, 1, 0.7), TimedPart(1, 2, 1.1))
    times = join_pieces([TimedPiece(0, 1.0, (1.0, 1.0), halves), TimedPiece(2, 0.1, (1.0,))])
    assert times.cut_seconds == pytest.approx(0.4) and times.run_seconds == pytest.approx(0, abs=1e-9)
    assert min(times.group_seconds) > 0, "however little a piece took"


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


def ends_under_a_quota(cpu_seconds: float, share: float, phase: float, rested: bool, runs: int) -> list[float]:
    """When runs end, in periods, for a process that may run at the beginning of each and is then stopped."""
    ends, now = [phase], phase
    left = share if rested else max(0.0, share - phase)
    for _ in range(runs):
        to_do = cpu_seconds
        while to_do > left:
            to_do -= left
            now, left = float(int(now + 1e-9) + 1), share
        now, left = now + to_do, left - to_do
        ends.append(now)
    return ends


@settings(max_examples=100, deadline=None)
@given(
    st.floats(0.002, 3.0),
    st.floats(0.05, 0.95),
    st.floats(0, 0.999),
    st.booleans(),
    st.sampled_from([0.01, 0.1]),
)
def test_under_a_quota_a_run_takes_what_it_takes_a_process_that_never_rests(
    cpu: float, share: float, phase: float, rested: bool, period_s: float
) -> None:
    """Whatever the phase, and however much of the first period ran at full speed; within a run of all."""
    ends = ends_under_a_quota(cpu, share, phase, rested, max(4, int(24 * share / cpu) + 2))
    found = steady_seconds([end * period_s for end in ends], period_s, 3)
    counted = (ends[-1] - ends[0] - 4) * share / cpu
    assert found == pytest.approx(cpu / share * period_s, rel=max(0.05, 1.2 / max(counted, 1)))


def test_a_burst_within_one_period_is_not_taken_for_the_pace() -> None:
    ends = ends_under_a_quota(0.01, 0.2, 0.0, True, 24 * 20)
    singles = sorted(after - before for before, after in pairwise(ends))
    assert singles[len(singles) // 2] == pytest.approx(0.01), "as most runs are"
    assert steady_seconds(ends, 1.0, 3) == pytest.approx(0.05, rel=0.01)
    assert steady_seconds([0.0, 0.5], 0.1, 3) == pytest.approx(0.5), "one run that is longer than a period"
