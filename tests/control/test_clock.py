"""Offsets of remote clocks: never further off than the error that is told with them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.control.clock import RoundTrip, estimate_offset

EPSILON_S = 1e-6
"""Rounding, at clocks of up to a million seconds."""

LEG_S = st.floats(0, 10)


@settings(deadline=None, max_examples=100)
@given(st.floats(-1e6, 1e6), st.lists(st.tuples(st.floats(0, 1e5), LEG_S, LEG_S), min_size=1, max_size=20))
def test_the_offset_is_within_half_of_the_shortest_round_trip(
    offset: float, legs: list[tuple[float, float, float]]
) -> None:
    trips = [RoundTrip(sent, sent + there + offset, sent + there + back) for sent, there, back in legs]
    found = estimate_offset(trips)
    shortest = min(there + back for _, there, back in legs)
    assert found.error_s <= shortest / 2 + EPSILON_S
    assert abs(found.seconds - offset) <= found.error_s + EPSILON_S


def test_even_legs_give_the_offset_itself() -> None:
    found = estimate_offset([RoundTrip(10, 17, 12), RoundTrip(20, 29, 30)])
    assert (found.seconds, found.error_s, found.to_ours(106)) == (6, 1, 100)


def test_without_a_round_trip_nothing_is_known() -> None:
    with pytest.raises(ValueError, match="empty"):
        estimate_offset([])
