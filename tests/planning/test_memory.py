"""What segments need in memory: measured ones what they took, others in proportion, and plans by both."""

from __future__ import annotations

import dataclasses
import math
import random

import pytest

from mesh.core.costs import Costs, DeviceCosts
from mesh.core.fleet import Handling, Link
from mesh.core.memory import ESTIMATED, MeasuredGrowth, MemoryModel
from mesh.core.plan import FLOAT, Plan
from mesh.errors import UsageError
from mesh.planning.exact import plan
from mesh.planning.explain import describe, explain
from mesh.planning.memory import (
    FRAMES_HELD,
    RUNTIME_BYTES,
    fit_memory,
    memory_from,
    most_memory_bytes,
    of_variant,
    segment_memory_bytes,
    stage_memory_bytes,
)
from mesh.planning.problem import Infeasible, Problem
from mesh.planning.space import Space, Variant
from mesh.planning.validate import problems
from tests.planning.instances import PLENTY, chain_graph, node_ids, random_graph
from tests.planning.space_instances import random_instance

GRAPH = chain_graph([10**6] * 8)
END = len(GRAPH.groups)


def growth(start: int, end: int, memory: MemoryModel = ESTIMATED) -> int:
    frames = FRAMES_HELD * (GRAPH.cut_at[start].bytes + GRAPH.cut_at[end].bytes)
    return segment_memory_bytes(GRAPH, start, end, memory) - RUNTIME_BYTES - frames


def board_of(memory_bytes: int, memory: MemoryModel, boards: int = 1) -> Problem:
    devices = node_ids(boards)
    known = DeviceCosts(
        tuple(0.01 * i for i in range(END + 1)), memory_bytes, True, Handling(1e-4, 0.0, True), memory=memory
    )
    links = {(one, other): Link(1e-4, 1e8) for one in devices for other in devices if one != other}
    return Problem(GRAPH, Costs(dict.fromkeys(devices, known), links), devices)


def test_a_measured_segment_needs_what_it_took_and_others_in_proportion() -> None:
    estimates = {ends: growth(*ends) for ends in ((0, END), (0, 4), (4, END), (2, 5))}
    whole = 3 * estimates[0, END]
    memory = fit_memory(GRAPH, [MeasuredGrowth(0, END, whole)])
    assert growth(0, END, memory) == whole
    assert growth(2, 5, memory) == pytest.approx(3 * estimates[2, 5], abs=1)
    part = 3 * estimates[0, 4] + 1000
    memory = fit_memory(GRAPH, [MeasuredGrowth(0, END, whole + 1000), MeasuredGrowth(0, 4, part)])
    assert growth(0, 4, memory) == part and growth(0, END, memory) == whole + 1000
    assert growth(2, 5, memory) == pytest.approx(3 * estimates[2, 5] + 1000, abs=2), "a process of its own costs 1000"
    falling = fit_memory(GRAPH, [MeasuredGrowth(0, END, whole), MeasuredGrowth(0, 4, 2 * whole)])
    assert falling.factor == pytest.approx(3), "no line: then as the largest"
    memory = fit_memory(GRAPH, [MeasuredGrowth(0, END, whole), MeasuredGrowth(0, 4, part)])
    assert memory.knows(0, 4) and not memory.knows(2, 5)
    assert growth(0, 4, memory.unmeasured()) >= part and not memory.unmeasured().known


def test_of_a_segment_that_was_measured_twice_the_later_counts_and_nonsense_is_passed_over() -> None:
    twice = [MeasuredGrowth(0, END, 7_000_000), MeasuredGrowth(0, END, 9_000_000)]
    assert fit_memory(GRAPH, twice).known == (MeasuredGrowth(0, END, 9_000_000),)
    nonsense = [MeasuredGrowth(3, 3, 1), MeasuredGrowth(0, END + 1, 1), MeasuredGrowth(0, END, 0)]
    assert fit_memory(GRAPH, nonsense) == ESTIMATED
    for figures in ({"factor": math.nan}, {"factor": -1.0}, {"constant_bytes": -1}):
        with pytest.raises(UsageError, match="memory"):
            MemoryModel(**figures)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="memory"):
        MemoryModel(known=(MeasuredGrowth(0, END, 0),))


def test_no_measured_segment_is_expected_to_take_less_and_none_needs_more_than_the_most() -> None:
    for seed in range(200):
        rng = random.Random(seed)
        graph = random_graph(rng)
        positions = [cut.position for cut in graph.cuts]
        chosen = [sorted(rng.sample(positions, 2)) for _ in range(rng.randint(1, 5))]
        measured = [MeasuredGrowth(start, end, rng.randint(1, 10**8)) for start, end in chosen]
        memory = fit_memory(graph, measured)
        for each in memory.known:
            alone = segment_memory_bytes(graph, each.start, each.end, memory.unmeasured())
            assert segment_memory_bytes(graph, each.start, each.end, memory) <= alone, seed
        for index, start in enumerate(positions):
            needs = memory_from(graph, start, positions[index + 1 :], memory)
            assert max(needs, default=0) <= most_memory_bytes(graph, memory), seed


def test_what_was_measured_beyond_any_line_counts_among_the_most() -> None:
    beyond = MemoryModel(known=(MeasuredGrowth(0, 4, 10**12),))
    assert most_memory_bytes(GRAPH, beyond) >= segment_memory_bytes(GRAPH, 0, 4, beyond) > 10**12


def test_a_board_is_turned_away_and_taken_by_what_was_measured() -> None:
    room = segment_memory_bytes(GRAPH, 0, END)
    assert isinstance(plan(board_of(room, ESTIMATED)), Plan)
    more = fit_memory(GRAPH, [MeasuredGrowth(0, END, growth(0, END) + 1)])
    assert isinstance(plan(board_of(room, more)), Infeasible)
    less = fit_memory(GRAPH, [MeasuredGrowth(0, END, growth(0, END) // 2)])
    assert isinstance(plan(board_of(room - 1, ESTIMATED)), Infeasible)
    assert isinstance(plan(board_of(room - 1, less)), Plan)


def test_the_validator_refuses_what_measured_memory_forbids() -> None:
    problem = board_of(PLENTY, ESTIMATED)
    answer = plan(problem)
    assert isinstance(answer, Plan)
    (device,) = problem.devices
    room = {device: segment_memory_bytes(GRAPH, 0, END)}
    more = {device: fit_memory(GRAPH, [MeasuredGrowth(0, END, growth(0, END) + 1)])}
    assert problems(answer, GRAPH, problem.devices, room) == ()
    (complaint,) = problems(answer, GRAPH, problem.devices, room, memory=more)
    assert "of memory, the stage needs" in complaint


def test_what_was_measured_of_the_model_is_only_the_scale_of_its_variants() -> None:
    memory = fit_memory(GRAPH, [MeasuredGrowth(0, END, 3 * growth(0, END)), MeasuredGrowth(0, 4, growth(0, 4) + 1)])
    assert of_variant(memory, FLOAT).knows(0, END) and not of_variant(memory, "int8").knows(0, END)
    half = Variant("half", {}, weight_bytes={name: size // 2 for name, size in GRAPH.weight_bytes.items()})
    problem = board_of(PLENTY, memory)
    (device,) = problem.devices
    space = Space(variants=(half,))
    need = stage_memory_bytes(GRAPH, 0, END, device, problem.costs, space, "half")
    assert need < stage_memory_bytes(GRAPH, 0, END, device, problem.costs, space)


def test_plans_by_measured_memory_pass_the_validator() -> None:
    feasible = measured = 0
    for seed in range(150):
        problem = random_instance(seed).problem
        answer = plan(problem)
        if isinstance(answer, Infeasible):
            continue
        feasible += 1
        known = {device: problem.costs.device(device) for device in problem.devices}
        measured += any(each.memory != ESTIMATED for each in known.values())
        have = {device: each.memory_bytes for device, each in known.items()}
        taken = {device: each.memory for device, each in known.items()}
        assert problems(answer, problem.graph, problem.devices, have, problem.space, taken) == (), seed
    assert feasible > 50 and measured > 20


def test_devices_with_other_measured_memory_are_not_planned_as_equal() -> None:
    problem = board_of(segment_memory_bytes(GRAPH, 0, END), ESTIMATED, boards=2)
    one, other = problem.devices
    grown = fit_memory(GRAPH, [MeasuredGrowth(0, END, growth(0, END) + 1)])
    known = dataclasses.replace(problem.costs.device(one), memory=grown)
    costs = Costs({one: known, other: problem.costs.device(other)}, problem.costs.links)
    answer = plan(dataclasses.replace(problem, costs=costs, stages=1))
    assert isinstance(answer, Plan) and answer.devices == (other,)


@pytest.mark.parametrize("ends", [(0, END), (0, 3)])
def test_the_explanation_says_whether_memory_was_measured(ends: tuple[int, int]) -> None:
    memory = fit_memory(GRAPH, [MeasuredGrowth(*ends, 9_000_000)])
    problem = dataclasses.replace(board_of(PLENTY, memory), stages=1)
    answer = plan(problem)
    assert isinstance(answer, Plan)
    (stage,) = explain(problem, answer).stages
    assert stage.memory_measured == (ends == (0, END))
    text = describe(dataclasses.replace(answer, explanation=explain(problem, answer)), problem.name_of)
    assert f"MB ({'measured' if stage.memory_measured else 'estimated'})" in text
