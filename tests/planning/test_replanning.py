"""Improved plans against brute force, and what a loss costs."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.core.costs import Costs, DeviceCosts
from mesh.core.fleet import Handling, Link
from mesh.core.graph import Graph
from mesh.core.ids import NodeId
from mesh.core.plan import Objective, Plan, Stage
from mesh.core.segments import segment_between
from mesh.planning.exact import plan as solve
from mesh.planning.predict import make_stage
from mesh.planning.problem import Problem
from mesh.planning.replanning import Improved, improve, moved_bytes, period_in_force
from mesh.planning.validate import contradictions, problems
from tests.planning.instances import PLENTY, chain_graph, node_ids, random_problem
from tests.planning.oracle import Choice, every_plan

SLACK = 0.1


def weights_of(graph: Graph, start: int, end: int) -> set[str]:
    return {name for group in graph.groups[start:end] for name in group.weights}


def moved_by(graph: Graph, stages: Choice, holdings: dict[NodeId, set[str]]) -> int:
    moved = 0
    for device, start, end in stages:
        missing = weights_of(graph, start, end) - holdings.get(device, set())
        moved += sum(graph.weight_bytes[name] for name in missing)
    return moved


def random_holdings(rng: random.Random, problem: Problem) -> dict[NodeId, set[str]]:
    names = sorted(problem.graph.weight_bytes)
    return {d: set(rng.sample(names, rng.randint(0, len(names)))) for d in problem.devices if rng.random() < 0.8}


def improved(problem: Problem, current: tuple[Stage, ...], holdings: dict[NodeId, set[str]]) -> Improved:
    found = improve(problem, current, holdings, SLACK)
    assert found is not None
    return found


@given(st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_no_plan_within_the_slack_moves_fewer_bytes(seed: int) -> None:
    problem = replace(random_problem(seed, Objective.THROUGHPUT), stages=None)
    rng = random.Random(seed + 1)
    holdings = random_holdings(rng, problem)
    candidates = every_plan(problem)
    found = improve(problem, (), holdings, SLACK)
    if not candidates:
        assert found is None
        return
    assert found is not None
    least = min(judged.period for judged in candidates)
    limit = least * (1 + SLACK)
    assert 1 / found.plan.predicted.throughput_per_s <= limit * (1 + 1e-6)
    assert 1 / found.optimum.predicted.throughput_per_s == pytest.approx(least)
    fewest = min(moved_by(problem.graph, j.stages, holdings) for j in candidates if j.period <= limit)
    assert found.moved_bytes == fewest
    memory = {device: costs.memory_bytes for device, costs in problem.costs.devices.items()}
    assert problems(found.plan, problem.graph, problem.devices, memory) == ()
    assert contradictions(found.plan, problem) == ()


@given(st.integers(0, 10**6), st.sampled_from([Objective.THROUGHPUT, Objective.LATENCY, Objective.MEMORY]))
@settings(max_examples=40, deadline=None)
def test_the_best_plan_stays_where_it_is(seed: int, objective: Objective) -> None:
    problem = replace(random_problem(seed, objective), stages=None)
    best = solve(problem)
    if not isinstance(best, Plan):
        assert improve(problem, (), {}) is None
        return
    holdings = {d: weights_of(problem.graph, s.segment.start, s.segment.end) for s in best.stages for d in s.devices}
    found = improved(problem, best.stages, holdings)
    assert found.moved_bytes == 0
    assert [(s.segment, s.devices) for s in found.plan.stages] == [(s.segment, s.devices) for s in best.stages]


def equal_boards(count: int, groups: int = 24) -> Problem:
    """Boards that are all alike, with a model of equal parts whose messages cost next to nothing."""
    graph = chain_graph([10**6] * groups, weights=[100_000] * groups)
    devices = node_ids(count)
    seconds = tuple(0.001 * index for index in range(groups + 1))
    known = {d: DeviceCosts(seconds, PLENTY, True, Handling(1e-6, 1e-12, True)) for d in devices}
    links = {(a, b): Link(1e-6, 1e9, True) for a in devices for b in devices if a != b}
    return Problem(graph, Costs(known, links), devices)


@pytest.mark.parametrize("lost", [1, 2])
def test_losing_an_inner_board_of_four_moves_at_most_two_fifths(lost: int) -> None:
    problem = equal_boards(4)
    before = solve(problem)
    assert isinstance(before, Plan)
    assert len(before.stages) == 4
    gone = before.stages[lost].devices[0]
    left = replace(problem, excluded=frozenset({gone}))
    graph = problem.graph
    holdings = {s.devices[0]: weights_of(graph, s.segment.start, s.segment.end) for s in before.stages}
    del holdings[gone]
    found = improved(left, before.stages, holdings)
    assert gone not in found.plan.devices
    assert found.moved_bytes <= 0.4 * graph.total_weight_bytes
    assert found.moved_bytes <= moved_bytes(graph, found.optimum.stages, holdings)


def test_stages_that_share_a_device_share_its_time() -> None:
    problem = equal_boards(2)
    first, second = problem.devices
    parts = [segment_between(problem.graph, start, start + 8) for start in (0, 8, 16)]
    stages = [make_stage(part, (who,), problem.costs) for part, who in zip(parts, (first, second, first), strict=True)]
    assert period_in_force(problem, stages) == pytest.approx(0.016, rel=1e-2)
    assert period_in_force(replace(problem, excluded=frozenset({second})), stages) == math.inf


def test_replicas_of_a_stage_share_its_frames() -> None:
    problem = equal_boards(2)
    whole = segment_between(problem.graph, 0, 24)
    assert period_in_force(problem, [make_stage(whole, problem.devices, problem.costs)]) == pytest.approx(
        0.012, rel=1e-2
    )
