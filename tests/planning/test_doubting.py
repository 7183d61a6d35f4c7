"""Links of a running plan that turn out slower than measured: which are doubted, and what follows."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mesh.core.plan import Plan
from mesh.core.report import StageReport
from mesh.planning.doubting import judge_links, links_in_doubt, links_to_prove
from mesh.planning.exact import plan as solve
from mesh.planning.problem import Problem
from mesh.planning.verifying import LOOKS, CorrectCosts, Keep, Replan, RollBack, Watched, watch
from tests.planning.test_replanning import equal_boards
from tests.planning.test_verifying import reports_of


def running(problem: Problem) -> Plan:
    found = solve(problem)
    assert isinstance(found, Plan)
    assert len(found.stages) > 1
    return found


def look(problem: Problem, plan: Plan, share: float, looks: int = LOOKS) -> tuple[Watched, list[StageReport]]:
    """What is seen of a plan that makes `share` of its prediction while every stage is as fast as its costs."""
    watched, told = Watched(), list[StageReport]()
    for number in range(1, looks + 2):  # the first look only counts
        told = reports_of(plan, problem.costs, number, share * plan.predicted.throughput_per_s)
        watched = watch(watched, problem, plan, told)
    return watched, told


def test_links_of_a_plan_that_stays_short_are_doubted() -> None:
    problem = equal_boards(3)
    plan = running(problem)
    found = links_in_doubt(*look_at(problem, plan, 0.5))
    pairs = [(a.devices[0], b.devices[0]) for a, b in zip(plan.stages, plan.stages[1:], strict=False)]
    assert list(found) == pairs
    for (_, after), taken in zip(zip(plan.stages, plan.stages[1:], strict=False), found.values(), strict=True):
        nbytes = problem.graph.cut_at[after.segment.start].bytes
        assert taken == pytest.approx(0.5 * plan.predicted.throughput_per_s * nbytes)
    assert links_in_doubt(*look_at(problem, plan, 0.95)) == {}
    assert links_in_doubt(*look_at(problem, plan, 0.5, LOOKS - 2)) == {}


def look_at(
    problem: Problem, plan: Plan, share: float, looks: int = LOOKS
) -> tuple[Watched, Problem, Plan, list[StageReport]]:
    watched, told = look(problem, plan, share, looks)
    return watched, problem, plan, told


def test_links_of_a_busy_device_are_not_measured() -> None:
    problem = equal_boards(3)
    plan = running(problem)
    watched, told = look(problem, plan, 0.5)
    busy = [replace(report, compute_seconds=1 / report.throughput_per_s) for report in told]
    assert links_in_doubt(watched, problem, plan, busy) == {}


def test_a_link_that_is_as_believed_changes_nothing() -> None:
    problem = equal_boards(3)
    plan = running(problem)
    watched, _ = look(problem, plan, 0.5)
    rates = {pair: 0.9 * link.bytes_per_second for pair, link in problem.costs.links.items()}
    assert isinstance(judge_links(watched, problem, plan, rates, {}), Keep)


def test_where_every_link_is_slow_one_device_is_left_after_all_are_measured() -> None:
    problem = equal_boards(3)
    plan = running(problem)
    watched, _ = look(problem, plan, 0.5)
    measured = dict.fromkeys(links_in_doubt(*look_at(problem, plan, 0.5)), 10.0)
    for _ in range(len(problem.costs.links) + 1):
        verdict = judge_links(watched, problem, plan, measured, {})
        assert isinstance(verdict, Replan | RollBack)
        to_measure = links_to_prove(verdict, measured)
        if not to_measure:
            break
        measured.update(dict.fromkeys(to_measure, 10.0))
    assert isinstance(verdict, RollBack)
    assert len(verdict.improved.plan.devices) == 1
    assert "MB/s" in verdict.reason
    assert all(verdict.costs.link(*pair).bytes_per_second == 10.0 for pair in measured)


def test_a_forced_plan_stays_whatever_its_links_carry() -> None:
    problem = equal_boards(3)
    plan = replace(running(problem), forced=True)
    watched, _ = look(problem, plan, 0.5)
    measured = dict.fromkeys(links_in_doubt(*look_at(problem, plan, 0.5)), 10.0)
    verdict = judge_links(watched, problem, plan, measured, {})
    assert type(verdict) is CorrectCosts
    assert "forced" in verdict.reason
