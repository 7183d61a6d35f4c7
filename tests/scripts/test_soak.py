"""The verdict of the long run: what grows is found, what only comes and goes with the plans is not."""

from __future__ import annotations

import pytest

from scripts.soak import ROUND_S, SWAP_EVERY_S, TOLERANCES, Sampled, judge_growth, rise

MINUTES = 15
SECONDS = [float(second) for second in range(MINUTES * 60)]


def at_work(second: float) -> bool:
    return second % ROUND_S < SWAP_EVERY_S


@pytest.mark.parametrize("leaked_per_minute", [0.0, 0.2, 3.0])
def test_a_leak_shows_through_engines_that_come_and_go(leaked_per_minute: float) -> None:
    values = [90 + 55 * at_work(second) + leaked_per_minute * second / 60 for second in SECONDS]
    assert rise(SECONDS, values) == pytest.approx(leaked_per_minute * MINUTES / 2, abs=0.5)


def test_a_rise_that_ends_in_the_first_half_is_no_leak() -> None:
    assert rise(SECONDS, [min(second, 400.0) for second in SECONDS]) == 0


def test_growth_is_told_by_name() -> None:
    def sampled(name: str, leaked: float) -> Sampled:
        row = {"rss_mib": 90.0, "tree_rss_mib": 90.0, "threads": 12.0, "children": 1.0}
        grown = [{"second": second, **row, "descriptors": 30 + leaked * second / 60} for second in SECONDS]
        return Sampled(name, 1, grown)

    (failure,) = judge_growth([sampled("good", 0), sampled("bad", 1)])
    assert failure.startswith("bad: descriptors rises by 7.")
    assert TOLERANCES["descriptors"] < 7
