"""Verdicts on running plans: a made-up fleet reports what its true costs give, whatever the planner was told."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.core.costs import Costs
from mesh.core.fleet import Link
from mesh.core.ids import NodeId
from mesh.core.plan import Objective, Plan
from mesh.core.report import StageReport
from mesh.planning.comparators import plan_single
from mesh.planning.exact import plan as solve
from mesh.planning.predict import with_costs
from mesh.planning.problem import Problem
from mesh.planning.verifying import (
    LOOKS,
    MARGIN,
    PAUSE_S,
    CorrectCosts,
    Keep,
    Replan,
    RollBack,
    Verdict,
    Watched,
    correct,
    verify,
    watch,
)
from tests.planning.instances import chain_graph
from tests.planning.test_replanning import equal_boards

MANY = 1000
"""Frames between two looks."""


def scaled(costs: Costs, factors: Mapping[NodeId, float]) -> Costs:
    devices = {
        node: replace(known, prefix_seconds=tuple(s * factors.get(node, 1.0) for s in known.prefix_seconds))
        for node, known in costs.devices.items()
    }
    return replace(costs, devices=devices)


def best(problem: Problem) -> Plan:
    found = solve(problem)
    assert isinstance(found, Plan)
    return found


def reports_of(
    plan: Plan,
    truth: Costs,
    look: int,
    rate: float,
    *,
    noise: Callable[[], float] = lambda: 1.0,
    leaving: float = 0.0,
    frames: int = MANY,
) -> list[StageReport]:
    return [
        StageReport(
            index,
            look * frames,
            truth.compute(device, stage.segment.start, stage.segment.end).seconds * noise(),
            rate,
            0,
            0,
            device,
            leaving_seconds=leaving,
        )
        for index, stage in enumerate(plan.stages)
        for device in stage.devices
    ]


def run(
    problem: Problem,
    plan: Plan,
    truth: Costs,
    *,
    load: float = 1.0,
    looks: int = LOOKS + 2,
    noise: Callable[[], float] = lambda: 1.0,
    pause_s: float = math.inf,
    frames: int = MANY,
) -> Verdict:
    """The first verdict that is not to keep the plan, at `load` times what the plan really makes."""
    watched = Watched()
    rate = load * with_costs(plan, problem.graph, truth).predicted.throughput_per_s
    for look in range(1, looks + 1):
        told = reports_of(plan, truth, look, rate, noise=noise, frames=frames)
        watched = watch(watched, problem, plan, told)
        verdict = verify(watched, problem, plan, {}, pause_s)
        if not isinstance(verdict, Keep):
            return verdict
    return Keep()


def three_times_too_fast(problem: Problem) -> tuple[Problem, NodeId]:
    """The problem with a profile that praises one device, and that device."""
    device = problem.devices[1]
    return replace(problem, costs=scaled(problem.costs, {device: 1 / 3})), device


@pytest.mark.parametrize("load", [1.0, 0.3, 0.01])
def test_a_device_three_times_slower_than_its_profile_is_noticed_and_planned_around(load: float) -> None:
    real = equal_boards(3)
    told, device = three_times_too_fast(real)
    verdict = run(told, best(told), real.costs, load=load)
    assert isinstance(verdict, Replan)
    assert verdict.factors[device] == pytest.approx(3.0, rel=0.05)
    assert "3.00 times the" in verdict.reason
    assert verdict.improved.plan.predicted.throughput_per_s == pytest.approx(
        best(real).predicted.throughput_per_s, rel=0.11
    )


def test_one_device_that_was_praised_is_left_for_another() -> None:
    real = replace(equal_boards(2), stages=None)
    slow_links = {pair: Link(0.5, 1e3, True) for pair in real.costs.links}  # no split pays
    real = replace(real, costs=replace(scaled(real.costs, {real.devices[1]: 2.0}), links=slow_links))
    told = replace(real, costs=scaled(real.costs, {real.devices[1]: 1 / 3}))
    plan = best(told)
    assert plan.devices == (real.devices[1],)
    verdict = run(told, plan, real.costs)
    assert isinstance(verdict, RollBack)
    assert verdict.improved.plan.devices == (real.devices[0],)


@given(st.integers(0, 10**6), st.floats(0.01, 1.0), st.sampled_from([Objective.THROUGHPUT, Objective.LATENCY]))
@settings(max_examples=40, deadline=None)
def test_a_plan_that_does_what_was_predicted_is_kept(seed: int, load: float, objective: Objective) -> None:
    rng = random.Random(seed)
    problem = replace(equal_boards(rng.randint(1, 4)), objective=objective)
    problem = replace(problem, costs=scaled(problem.costs, {d: rng.uniform(0.5, 4) for d in problem.devices}))
    noise = lambda: rng.uniform(0.95, 1.05)  # noqa: E731
    assert isinstance(run(problem, best(problem), problem.costs, load=load, looks=20, noise=noise), Keep)


@given(st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_whatever_the_profiles_said_it_ends_near_the_best(seed: int) -> None:
    rng = random.Random(seed)
    real = equal_boards(rng.randint(2, 4), groups=12)
    real = replace(real, costs=scaled(real.costs, {d: rng.choice((1.0, 2.0, 4.0)) for d in real.devices}))
    told = replace(real, costs=scaled(real.costs, {d: rng.choice((1.0, 1.0, 1 / 3, 3.0)) for d in real.devices}))
    plan = best(told)
    changes = 0
    for _ in range(8):
        verdict = run(told, plan, real.costs)
        if isinstance(verdict, Keep):
            break
        assert isinstance(verdict, CorrectCosts)
        told = replace(told, costs=verdict.costs)
        if isinstance(verdict, Replan | RollBack):
            plan = verdict.improved.plan
            changes += 1
    else:
        pytest.fail("it never settles")
    # What runs is as fast as believed, and nothing that is believed of the others promises much more.
    period = 1 / with_costs(plan, real.graph, real.costs).predicted.throughput_per_s
    believed = 1 / best(told).predicted.throughput_per_s
    assert period <= believed * 1.1 / (1 - MARGIN) * 1.01
    assert changes <= 4


@pytest.mark.parametrize("factor", [1.5, 2.0, 3.0, 10.0])
def test_a_step_is_noticed_while_the_mean_of_the_stage_still_climbs(factor: float) -> None:
    problem = equal_boards(3)
    plan = best(problem)
    device = plan.stages[1].devices[0]
    watched, seen = Watched(), 1.0
    for look in range(1, 20):
        seen += (factor - seen) * (0.5 if look > 5 else 0)  # a mean over frames follows the step
        truth = scaled(problem.costs, {device: seen})
        rate = with_costs(plan, problem.graph, truth).predicted.throughput_per_s
        watched = watch(watched, problem, plan, reports_of(plan, truth, look, rate))
        verdict = verify(watched, problem, plan, {}, math.inf)
        if not isinstance(verdict, Keep):
            break
    assert isinstance(verdict, CorrectCosts)
    assert look <= 5 + 2 * LOOKS
    assert verdict.factors[device] > 1 + (factor - 1) / 2
    assert not isinstance(verdict, RollBack), verdict.reason


def test_a_device_that_varies_by_itself_is_not_slow() -> None:
    rng = random.Random(1)
    problem = equal_boards(3)
    noise = lambda: rng.choice((0.6, 1.0, 1.4))  # noqa: E731
    assert isinstance(run(problem, best(problem), problem.costs, looks=40, noise=noise), Keep)


def test_few_frames_say_nothing() -> None:
    real = equal_boards(3)
    told, _ = three_times_too_fast(real)
    assert isinstance(run(told, best(told), real.costs, frames=3, looks=8), Keep)


def test_a_plan_that_has_just_replaced_another_gets_its_time() -> None:
    real = equal_boards(3)
    told, _ = three_times_too_fast(real)
    assert isinstance(run(told, best(told), real.costs, pause_s=PAUSE_S - 1), Keep)
    assert isinstance(run(told, best(told), real.costs, pause_s=PAUSE_S), Replan)


def test_a_forced_plan_is_only_told_of() -> None:
    real = equal_boards(3)
    told, device = three_times_too_fast(real)
    verdict = run(told, replace(best(told), forced=True), real.costs)
    assert type(verdict) is CorrectCosts
    assert "forced" in verdict.reason
    assert verdict.factors[device] == pytest.approx(3.0)


def test_an_error_that_changes_nothing_is_only_corrected() -> None:
    problem = equal_boards(3)
    truth = scaled(problem.costs, dict.fromkeys(problem.devices, 1.2))
    verdict = run(problem, best(problem), truth)
    assert type(verdict) is CorrectCosts
    assert "the plan stays" in verdict.reason


def test_a_plan_that_loses_for_no_known_reason_goes_back_to_one_device() -> None:
    problem = equal_boards(2)
    plan = best(problem)
    alone = plan_single(problem)
    assert isinstance(alone, Plan)
    watched = Watched()
    for look in range(1, LOOKS + 2):
        assert isinstance(verify(watched, problem, plan, {}, math.inf), Keep)
        rate = alone.predicted.throughput_per_s * 0.7
        told = reports_of(plan, problem.costs, look, rate, leaving=0.9 / rate)  # held up on the way, not computing
        watched = watch(watched, problem, plan, told)
    verdict = verify(watched, problem, plan, {}, math.inf)
    assert isinstance(verdict, RollBack)
    assert len(verdict.improved.plan.devices) == 1
    assert "alone" in verdict.reason


def test_a_device_that_is_mostly_idle_is_not_taken_to_be_fast() -> None:
    problem = equal_boards(2)
    truth = scaled(problem.costs, dict.fromkeys(problem.devices, 1 / 3))
    assert isinstance(run(problem, best(problem), truth, load=0.3), Keep)
    busy = run(problem, best(problem), truth, load=1.0)
    assert isinstance(busy, CorrectCosts)
    assert busy.factors[problem.devices[0]] == pytest.approx(1 / 3)


def test_a_slow_source_is_no_slow_plan() -> None:
    problem = equal_boards(2)
    plan = best(problem)
    watched = Watched()
    for look in range(1, 20):
        watched = watch(watched, problem, plan, reports_of(plan, problem.costs, look, 1.0, leaving=1e-3))
        assert isinstance(verify(watched, problem, plan, {}, math.inf), Keep)


def test_devices_not_in_use_share_what_all_in_use_have_in_common() -> None:
    graph = chain_graph([1] * 4)
    problem = equal_boards(3, groups=4)
    assert len(graph.groups) == 4
    first, second, third = problem.devices
    costs = correct(problem.costs, problem.devices, {first: 1.2, second: 3.0})
    whole = [costs.device(d).whole_model_seconds / 0.004 for d in (first, second, third)]
    assert whole == pytest.approx([1.2, 3.0, 1.2])
    calls = {node: replace(known, run_seconds=0.01, cut_seconds=0.001) for node, known in problem.costs.devices.items()}
    slower = correct(replace(problem.costs, devices=calls), problem.devices, {first: 3.0}).device(first)
    assert slower.seconds(1, 3) == pytest.approx(3 * calls[first].seconds(1, 3))
    assert correct(problem.costs, problem.devices, {first: 0.5}).device(third).whole_model_seconds == 0.004
