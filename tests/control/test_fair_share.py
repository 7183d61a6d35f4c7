"""Which flow runs next: equal time for those who always want, nothing saved up by those who did not."""

from __future__ import annotations

import heapq

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.control.fair_share import FairShare, Grant


def run_busy(costs: dict[str, float], slots: int, seconds: float) -> dict[str, float]:
    """Compute time of flows that always wait, each with any number of runs at once."""
    share, used = FairShare(slots), dict.fromkeys(costs, 0.0)
    running: list[tuple[float, int, Grant]] = []
    now, number = 0.0, 0
    while now < seconds:
        while (grant := share.grant(costs)) is not None:
            number += 1
            heapq.heappush(running, (now + costs[grant.flow], number, grant))
        now, _, ended = heapq.heappop(running)
        share.settle(ended, costs[ended.flow])
        used[ended.flow] += costs[ended.flow]
    return used


@pytest.mark.parametrize("slots", [1, 2, 4])
def test_costs_of_one_to_ten_get_equal_time(slots: int) -> None:
    used = run_busy({"light": 0.01, "heavy": 0.1}, slots, 20.0)
    assert used["light"] == pytest.approx(used["heavy"], rel=0.1)


@given(st.dictionaries(st.text("abcdef", min_size=1), st.floats(0.01, 1.0), min_size=2, max_size=5), st.integers(1, 3))
def test_always_busy_flows_differ_by_a_few_runs_at_most(costs: dict[str, float], slots: int) -> None:
    used = run_busy(costs, slots, 50.0)
    assert max(used.values()) - min(used.values()) <= (2 + 2 * slots) * max(costs.values())


@given(st.lists(st.floats(0.01, 0.2), min_size=40, max_size=200))
def test_costs_that_vary_are_corrected_after_each_run(costs: list[float]) -> None:
    share, used = FairShare(1), {"steady": 0.0, "varying": 0.0}
    for cost in costs:
        grant = share.grant(used)
        assert grant is not None
        seconds = 0.1 if grant.flow == "steady" else cost
        share.settle(grant, seconds)
        used[grant.flow] += seconds
        assert abs(used["steady"] - used["varying"]) <= 0.2 + 1e-9


def test_time_is_not_saved_up_while_idle() -> None:
    share = FairShare(1)
    for _ in range(100):
        grant = share.grant(["busy"])
        assert grant is not None
        share.settle(grant, 1.0)
    order = []
    for _ in range(10):
        grant = share.grant(["busy", "back"])
        assert grant is not None
        order.append(grant.flow)
        share.settle(grant, 1.0)
    assert order.count("busy") >= 4


def test_a_slot_is_lent_once_and_given_back_once() -> None:
    share = FairShare(1)
    grant = share.grant(["a"])
    assert grant is not None
    assert share.grant(["b"]) is None
    share.free_slot(grant)
    share.free_slot(grant)
    share.settle(grant, 1.0)
    assert share.free_slots == 1
    assert share.grant([]) is None
