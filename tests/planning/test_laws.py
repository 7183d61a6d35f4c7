"""Laws that every planner must keep, on random problems with every option switched on."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Callable
from unittest import mock

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mesh.core.costs import Costs, DeviceCosts
from mesh.core.fleet import Handling, Link
from mesh.core.plan import Objective, Plan
from mesh.planning import exact
from mesh.planning.problem import Problem
from mesh.planning.space import Nic, Space
from mesh.planning.steady import simulate_period
from tests.planning.planner_checks import Tally, check_seed, price
from tests.planning.space_instances import random_instance

CLOSE = 1e-9
SEEDS = st.integers(10_000, 1_000_000)
OBJECTIVES = st.sampled_from(list(Objective))
law = settings(max_examples=40, deadline=None, derandomize=True, database=None)


def make_problem(seed: int, objective: Objective = Objective.THROUGHPUT) -> Problem:
    return dataclasses.replace(random_instance(seed).problem, objective=objective)


def cost_of(problem: Problem) -> float:
    """The objective of the best plan; infinite where there is none."""
    answer = exact.plan(problem)
    return price(problem, answer) if isinstance(answer, Plan) else math.inf


def with_devices(problem: Problem, change: Callable[[DeviceCosts], DeviceCosts]) -> Costs:
    return Costs({node: change(known) for node, known in problem.costs.devices.items()}, problem.costs.links)


@pytest.mark.parametrize("first", range(0, 250, 50))
def test_agrees_with_the_oracle_with_every_option(first: int) -> None:
    tally = Tally()
    complaints = [complaint for seed in range(first, first + 50) for complaint in check_seed(seed, tally)]
    assert complaints == []
    assert 0 < tally.infeasible < tally.verdicts / 2, "the instances must contain both kinds"
    assert tally.beam_best > 0.9 * tally.beam_plans
    assert tally.beam_missed <= 2


@law
@given(SEEDS, OBJECTIVES)
def test_another_device_never_hurts(seed: int, objective: Objective) -> None:
    problem = dataclasses.replace(make_problem(seed, objective), stages=None)
    fewer = dataclasses.replace(problem, devices=problem.devices[:-1])
    assume(problem.devices[-1] not in (problem.head, problem.tail))
    assert cost_of(problem) <= cost_of(fewer) * (1 + CLOSE)


@law
@given(SEEDS, OBJECTIVES)
def test_more_memory_never_hurts(seed: int, objective: Objective) -> None:
    problem = make_problem(seed, objective)
    roomy = with_devices(problem, lambda known: dataclasses.replace(known, memory_bytes=2 * known.memory_bytes))
    assert cost_of(dataclasses.replace(problem, costs=roomy)) <= cost_of(problem) * (1 + CLOSE)


@law
@given(SEEDS, OBJECTIVES)
def test_more_bandwidth_never_hurts(seed: int, objective: Objective) -> None:
    problem = make_problem(seed, objective)
    links = {
        pair: Link(link.latency_seconds / 2, link.bytes_per_second * 2) for pair, link in problem.costs.links.items()
    }
    nics = {node: Nic(nic.up * 2, nic.down * 2) for node, nic in problem.space.nics.items()}
    space = dataclasses.replace(problem.space, nics=nics)
    wide = dataclasses.replace(problem, costs=Costs(problem.costs.devices, links), space=space)
    assert cost_of(wide) <= cost_of(problem) * (1 + CLOSE)


@law
@given(SEEDS, OBJECTIVES)
def test_every_option_more_never_hurts(seed: int, objective: Objective) -> None:
    problem = make_problem(seed, objective)
    plain = dataclasses.replace(problem, space=Space(nics=problem.space.nics, watts=problem.space.watts))
    assert cost_of(problem) <= cost_of(plain) * (1 + CLOSE)


@law
@given(SEEDS, OBJECTIVES)
def test_fewer_cuts_never_help(seed: int, objective: Objective) -> None:
    problem = dataclasses.replace(make_problem(seed, objective), stages=None, max_tensors=None)
    assume(len(problem.graph.cuts) > 2)
    merged = dataclasses.replace(problem.graph, cuts=(*problem.graph.cuts[:1], *problem.graph.cuts[2:]))
    assume(memory_unchanged(problem))  # live tensors inside a segment are known at cuts only
    assert cost_of(problem) <= cost_of(dataclasses.replace(problem, graph=merged)) * (1 + CLOSE)


def memory_unchanged(problem: Problem) -> bool:
    return min(known.memory_bytes for known in problem.costs.devices.values()) >= 1 << 40


@law
@given(SEEDS, OBJECTIVES)
def test_times_scale(seed: int, objective: Objective) -> None:
    problem = make_problem(seed, objective)
    space = problem.space

    def slow(prefix: tuple[float, ...]) -> tuple[float, ...]:
        return tuple(4 * seconds for seconds in prefix)

    def slow_device(known: DeviceCosts) -> DeviceCosts:
        its = known.handling
        sent = None if its.sent_byte_seconds is None else 4 * its.sent_byte_seconds
        handling = Handling(4 * its.message_seconds, 4 * its.byte_seconds, True, sent)
        return dataclasses.replace(known, prefix_seconds=slow(known.prefix_seconds), handling=handling)

    links = {
        pair: Link(4 * link.latency_seconds, link.bytes_per_second / 4) for pair, link in problem.costs.links.items()
    }
    slower = dataclasses.replace(
        problem,
        costs=Costs(with_devices(problem, slow_device).devices, links),
        space=dataclasses.replace(
            space,
            nics={node: Nic(nic.up / 4, nic.down / 4) for node, nic in space.nics.items()},
            variants=tuple(
                dataclasses.replace(v, prefix_seconds={node: slow(p) for node, p in v.prefix_seconds.items()})
                for v in space.variants
            ),
            codecs=tuple(
                dataclasses.replace(
                    c,
                    byte_seconds={node: 4 * s for node, s in c.byte_seconds.items()},
                    read_byte_seconds={node: 4 * s for node, s in c.read_byte_seconds.items()},
                )
                for c in space.codecs
            ),
        ),
    )
    factor = 1 if objective is Objective.MEMORY else 4
    assert cost_of(slower) == pytest.approx(factor * cost_of(problem), rel=CLOSE)


@law
@given(SEEDS, OBJECTIVES, st.randoms(use_true_random=False))
def test_the_order_of_devices_does_not_matter(seed: int, objective: Objective, rng: random.Random) -> None:
    problem = make_problem(seed, objective)
    devices = list(problem.devices)
    rng.shuffle(devices)
    assert cost_of(dataclasses.replace(problem, devices=tuple(devices))) == pytest.approx(cost_of(problem), rel=CLOSE)


@law
@given(SEEDS, OBJECTIVES)
def test_counting_equal_devices_changes_nothing(seed: int, objective: Objective) -> None:
    problem = make_problem(seed, objective)
    problem = dataclasses.replace(problem, space=dataclasses.replace(problem.space, max_replicas=1))
    counted = cost_of(problem)
    with mock.patch.object(exact, "group_devices", lambda asked: tuple((d,) for d in asked.usable_devices)):
        assert cost_of(problem) == pytest.approx(counted, rel=CLOSE)


@law
@given(SEEDS)
def test_a_simulated_run_has_the_predicted_period(seed: int) -> None:
    problem = make_problem(seed)
    answer = exact.plan(problem)
    assume(isinstance(answer, Plan))
    assert isinstance(answer, Plan)
    shared = any(len(stage.devices) > 1 for stage in answer.stages)
    window = answer.window + 8 if shared else answer.window  # replicas that take turns deliver in bursts
    period = simulate_period(problem.graph, answer.stages, problem.costs, window, problem.space)
    assert period * answer.predicted.throughput_per_s == pytest.approx(1, rel=0.01)
