"""The beam where the optimum is known, and its bound where it is not."""

from __future__ import annotations

import dataclasses
import random
import re

import pytest

from mesh.core.costs import Costs
from mesh.core.plan import Objective, Plan
from mesh.planning import exact
from mesh.planning.exact import plan, plan_by_beam
from mesh.planning.problem import Infeasible, Problem
from mesh.planning.validate import problems
from tests.planning.instances import chain_graph, node_ids, random_costs, random_graph


def chain_problem(seed: int, devices: int, groups: int, memory_limits: bool) -> Problem:
    rng = random.Random(seed)
    graph = chain_graph(
        [rng.randint(10**8, 10**9) for _ in range(groups)],
        [rng.randint(10**4, 10**6) for _ in range(groups + 1)],
        [rng.randint(10**6, 10**7) for _ in range(groups)],
    )
    nodes = node_ids(devices)
    return Problem(graph, random_costs(rng, graph, nodes, memory_limits), nodes)


@pytest.mark.parametrize("seed", range(6))
def test_close_to_the_optimum_and_never_beyond_its_bound(seed: int) -> None:
    problem = chain_problem(seed, 7, 25, memory_limits=seed % 2 == 0)
    best, guided = plan(problem), plan_by_beam(problem)
    assert isinstance(best, Plan) and isinstance(guided, Plan)
    assert guided.predicted.throughput_per_s <= best.predicted.throughput_per_s * (1 + 1e-9)
    assert guided.predicted.throughput_per_s >= best.predicted.throughput_per_s * 0.95
    assert guided.bound_throughput_per_s >= best.predicted.throughput_per_s * (1 - 1e-9)


@pytest.mark.parametrize("objective", list(Objective)[:3])
def test_large_fleets_of_different_devices_say_how_far_from_the_best_they_are(objective: Objective) -> None:
    problem = dataclasses.replace(chain_problem(1, 18, 40, memory_limits=True), objective=objective)
    answer = plan(problem)
    assert isinstance(answer, Plan)
    assert answer.certificate.startswith("beam over 41 cuts x 18 devices, order of groups fixed")
    memory = {device: problem.costs.device(device).memory_bytes for device in problem.devices}
    assert problems(answer, problem.graph, problem.devices, memory) == ()
    if objective is Objective.THROUGHPUT:
        gap = re.search(r"at most (\S+) % from the best", answer.certificate)
        worst = answer.bound_throughput_per_s / answer.predicted.throughput_per_s - 1
        assert (float(gap[1]) / 100 if gap else 0.0) == pytest.approx(worst, rel=0.05, abs=1e-6)
        assert worst < 0.2
        assert answer.alternatives


def test_a_search_that_is_limited_by_the_beam_is_as_good_as_a_full_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(4):
        problem = chain_problem(seed, 6, 20, memory_limits=True)
        best = plan(problem)
        monkeypatch.setattr(exact, "MAX_STEPS", 0)
        limited = plan(problem)
        monkeypatch.undo()
        assert isinstance(best, Plan) and isinstance(limited, Plan)
        assert limited.predicted.throughput_per_s == pytest.approx(best.predicted.throughput_per_s, rel=1e-9)
        assert limited.certificate.split(",")[0].split()[0] in ("exact", "beam")


def test_pins_and_forced_stages_hold_beyond_the_exact_size() -> None:
    problem = chain_problem(2, 18, 30, memory_limits=False)
    head, tail = problem.devices[3], problem.devices[11]
    answer = plan(dataclasses.replace(problem, head=head, tail=tail, stages=4))
    assert isinstance(answer, Plan)
    assert (answer.devices[0], answer.devices[-1], len(answer.stages)) == (head, tail, 4)


def test_a_model_that_cannot_fit_is_refused_with_proof() -> None:
    problem = chain_problem(3, 18, 30, memory_limits=False)
    small = {node: dataclasses.replace(known, memory_bytes=1 << 20) for node, known in problem.costs.devices.items()}
    answer = plan(dataclasses.replace(problem, costs=Costs(small, problem.costs.links)))
    assert isinstance(answer, Infeasible)
    assert "the whole model needs" in answer.reasons[0]
    assert "cannot be separated" in answer.reasons[1]


def test_random_graphs_have_a_plan_of_every_kind() -> None:
    rng = random.Random(5)
    graph = random_graph(rng, most_groups=12)
    nodes = node_ids(4)
    problem = Problem(graph, random_costs(rng, graph, nodes, memory_limits=False), nodes)
    for objective in list(Objective)[:3]:
        assert isinstance(plan_by_beam(dataclasses.replace(problem, objective=objective)), Plan)
