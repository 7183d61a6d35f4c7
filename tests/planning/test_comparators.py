"""The rules by hand: what each gives to whom, and that none beats the planner."""

from __future__ import annotations

import dataclasses

import pytest

from mesh.core.costs import Costs, DeviceCosts
from mesh.core.fleet import Handling, Link
from mesh.core.ids import NodeId
from mesh.core.plan import Objective, Plan
from mesh.errors import UsageError
from mesh.planning.contract import STRATEGIES, make_strategy
from mesh.planning.memory import RUNTIME_BYTES, WEIGHT_COPIES
from mesh.planning.problem import Infeasible, Problem
from mesh.planning.space import Space
from mesh.planning.validate import problems
from tests.planning.instances import PLENTY, chain_graph, node_ids, random_problem

GRAPH = chain_graph([10**6] * 12, weights=[1_000_000] * 12)
DEVICES = node_ids(3)


def make_problem(speeds: tuple[float, ...] = (1, 1, 1), memories: tuple[int, ...] = (PLENTY,) * 3) -> Problem:
    devices = {
        device: DeviceCosts(tuple(i * 0.01 / speed for i in range(13)), memory, True, Handling(0.0, 0.0, True))
        for device, speed, memory in zip(DEVICES, speeds, memories, strict=True)
    }
    links = {(a, b): Link(1e-5, 1e9) for a in DEVICES for b in DEVICES if a != b}
    return Problem(GRAPH, Costs(devices, links), DEVICES)


def split(name: str, problem: Problem) -> dict[NodeId, int]:
    answer = make_strategy(name)(problem)
    assert isinstance(answer, Plan), answer
    assert problems(answer, problem.graph, problem.devices) == ()
    return {stage.devices[0]: stage.segment.end - stage.segment.start for stage in answer.stages}


def test_rules_share_by_what_they_look_at() -> None:
    a, b, c = DEVICES
    speeds = make_problem(speeds=(3, 1, 2))
    assert split("uniform", speeds) == {a: 4, b: 4, c: 4}
    assert split("speed", speeds) == {a: 6, b: 2, c: 4}
    assert split("homogeneous", speeds) == {a: 4, b: 4, c: 4}
    assert split("exact", speeds) == {a: 6, b: 2, c: 4}
    assert split("single", speeds) == {a: 12}
    memories = make_problem(memories=(3 * PLENTY, PLENTY, 2 * PLENTY))
    assert split("memory", memories) == {a: 6, b: 2, c: 4}


def test_copies_add_up_what_devices_compute() -> None:
    equal = make_strategy("copies")(make_problem())
    assert isinstance(equal, Plan)
    assert equal.stages[0].devices == DEVICES
    assert equal.predicted.throughput_per_s == pytest.approx(3 / 0.12)
    mixed = make_strategy("copies")(make_problem(speeds=(1, 0.1, 1)))
    assert isinstance(mixed, Plan)
    assert set(mixed.stages[0].devices) == set(DEVICES)
    assert mixed.predicted.throughput_per_s == pytest.approx(2.1 / 0.12)


def test_the_planner_takes_copies_only_where_replicas_are_allowed() -> None:
    problem = make_problem(speeds=(1, 0.95, 1))
    far = Costs(problem.costs.devices, {pair: Link(1.0, 1e9) for pair in problem.costs.links})
    problem = dataclasses.replace(problem, costs=far)
    default = make_strategy("exact")(problem)
    assert isinstance(default, Plan)
    assert [stage.devices for stage in default.stages] == [(DEVICES[0],)]
    allowed = dataclasses.replace(problem, space=Space(max_replicas=3))
    for name in ("exact", "beam"):
        copied = make_strategy(name)(allowed)
        assert isinstance(copied, Plan)
        assert {device for stage in copied.stages for device in stage.devices} == set(DEVICES)
        assert len(copied.stages) == 1
        assert copied.predicted.throughput_per_s == pytest.approx(2.95 / 0.12)


def test_a_rule_whose_share_does_not_fit_has_no_plan() -> None:
    room = RUNTIME_BYTES + WEIGHT_COPIES * 3_000_000 + 100_000
    problem = make_problem(memories=(room, PLENTY, PLENTY))
    for name in ("uniform", "speed", "homogeneous"):
        answer = make_strategy(name)(problem)
        assert isinstance(answer, Infeasible)
        assert "its share needs" in answer.reasons[0]
    assert isinstance(make_strategy("exact")(problem), Plan)
    small = make_problem(memories=(room, room, room))
    for name in ("single", "copies"):
        assert make_strategy(name)(small) == Infeasible(("no device holds the whole model",))


def test_no_strategy_beats_the_planner_and_all_plans_are_valid() -> None:
    for seed in range(60):
        problem = dataclasses.replace(random_problem(seed, Objective.THROUGHPUT), stages=None, head=None, tail=None)
        best = make_strategy("exact")(problem)
        for name in STRATEGIES:
            answer = make_strategy(name)(problem)
            if not isinstance(answer, Plan):
                continue
            assert isinstance(best, Plan)
            memory = {device: problem.costs.device(device).memory_bytes for device in problem.devices}
            assert problems(answer, problem.graph, problem.usable_devices, memory) == (), (seed, name)
            if name != "copies":
                assert answer.predicted.throughput_per_s <= best.predicted.throughput_per_s * (1 + 1e-9), (seed, name)


def test_names() -> None:
    assert next(iter(STRATEGIES)) == "exact"
    with pytest.raises(UsageError, match="strategy 'best' is not known"):
        make_strategy("best")
