"""A plan's words name everything that was weighed; its breakdown adds up to its prediction; what would help, helps."""

from __future__ import annotations

import pytest

from mesh.core.costs import Costs, DeviceCosts, Handling
from mesh.core.fleet import Link
from mesh.core.plan import Limits, Objective, Plan, PlanOptions
from mesh.errors import UsageError
from mesh.planning.exact import plan
from mesh.planning.explain import MoreFleet, describe, explain
from mesh.planning.problem import Problem, check_options, make_problem
from mesh.planning.space import Space
from tests.planning.instances import PLENTY, chain_graph, node_ids, random_problem


def some_answers(objective: Objective, count: int = 30) -> list[tuple[Plan, Problem]]:
    found = [(plan(problem), problem) for problem in (random_problem(seed, objective) for seed in range(count))]
    return [(answer, problem) for answer, problem in found if isinstance(answer, Plan)]


def test_everything_is_named() -> None:
    for answer, _ in some_answers(Objective.THROUGHPUT):
        lines = describe(answer, lambda device: f"board-{int(device, 16)}").splitlines()
        assert lines[0].startswith(f"{len(answer.stages)} stage")
        assert ("forced" in lines[0]) == answer.forced
        for index, stage in enumerate(answer.stages):
            assert f"board-{int(stage.devices[0], 16)}" in lines[1 + index]
            assert ("(measured)" in lines[1 + index]) == stage.measured
        assert answer.certificate in lines[1 + len(answer.stages)]
        for alternative in answer.alternatives:
            assert any(alternative.name in line and alternative.reason in line for line in lines)


@pytest.mark.parametrize("objective", [Objective.THROUGHPUT, Objective.LATENCY])
def test_the_breakdown_is_the_prediction(objective: Objective) -> None:
    for answer, problem in some_answers(objective):
        told = explain(problem, answer)
        assert told.bottleneck.period_seconds == pytest.approx(1 / answer.predicted.throughput_per_s)
        parts = [part.period_seconds for part in told.stages]
        links = [part.link for part in told.stages[:-1]]
        assert told.stages[-1].link is None
        transfers = [link.transfer_seconds for link in links if link is not None]
        assert sum(parts) + sum(transfers) == pytest.approx(answer.predicted.latency_s)
        assert all(part.memory_bytes <= part.memory_available_bytes for part in told.stages)


def test_one_more_board_never_hurts_and_says_what_it_gives() -> None:
    helped = 0
    for answer, problem in some_answers(Objective.THROUGHPUT, 60):
        if problem.stages is not None:
            continue
        for improvement in explain(problem, answer).improvements:
            assert improvement.prediction is not None
            ratio = improvement.prediction.throughput_per_s / answer.predicted.throughput_per_s
            assert ratio > 1 - 1e-9
            assert ("would not help" in improvement.reason) == (ratio < 1.01)
            helped += ratio >= 1.01
    assert helped > 5


FAST = Link(1e-4, 1e8)


def three_boards(weak: float, link: Link = FAST) -> Problem:
    """Two equal boards of 80 ms for the model and one that takes `weak` times as long."""
    graph = chain_graph([10**6] * 8)
    devices = node_ids(3)
    known = {
        device: DeviceCosts(tuple(0.01 * factor * i for i in range(9)), PLENTY, True, Handling(1e-4, 0.0, True))
        for device, factor in zip(devices, (1.0, 1.0, weak), strict=True)
    }
    links = {(a, b): link for a in devices for b in devices if a != b}
    names = dict(zip(devices, ("n1", "n2", "n3"), strict=True))
    return Problem(graph, Costs(known, links), devices, names=names)


def test_a_weak_board_is_left_out_and_the_plan_says_why() -> None:
    answer = plan(three_boards(weak=20.0))
    assert isinstance(answer, Plan)
    assert len(answer.devices) == 2
    (idle,) = [each for each in answer.alternatives if each.name == "with n3"]
    assert idle.reason.startswith("n3 would make it slower: n3 would take 200 ms per frame")
    assert idle.prediction is not None
    assert idle.prediction.throughput_per_s < answer.predicted.throughput_per_s


def test_a_board_behind_a_slow_link_is_left_out_for_its_link() -> None:
    problem = three_boards(weak=1.0, link=Link(1e-4, 1e4))
    answer = plan(problem)
    assert isinstance(answer, Plan)
    assert len(answer.stages) == 1
    (idle,) = [each for each in answer.alternatives if each.name.startswith("with n")]
    assert "would make it slower: the link from" in idle.reason
    assert "so with" in idle.reason, "the third board is as good as the second"
    faster = MoreFleet("wires", three_boards(weak=1.0))
    _, wires = explain(problem, answer, [faster]).improvements
    assert "times the throughput, on 3 devices" in wires.reason


def test_copies_are_told_of_even_where_they_are_not_allowed() -> None:
    problem = three_boards(weak=20.0)
    answer = plan(problem)
    assert isinstance(answer, Plan)
    (copies,) = [each for each in answer.alternatives if each.name.startswith("copies on")]
    assert copies.name == "copies on n1, n2, n3"
    assert copies.reason.startswith("at most 1 device may share a stage; throughput")
    allowed = plan(
        Problem(problem.graph, problem.costs, problem.devices, space=Space(max_replicas=3), names=problem.names)
    )
    assert isinstance(allowed, Plan)
    assert not any(each.name == copies.name for each in allowed.alternatives)
    assert allowed.limits.replicas == 3


# --- what whoever asks may say ----------------------------------------------------------------------

A, B, C = node_ids(3)
FORCED = plan(three_boards(weak=1.0))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (PlanOptions(limits=Limits(head=A, excluded=(A,))), "n1 is excluded and shall run the first stage"),
        (PlanOptions(limits=Limits(head=A, only=(B, C))), "n1 shall run the first stage and is not among"),
        (PlanOptions(limits=Limits(only=(A, B), excluded=(B, A))), "every device that may be used is excluded"),
        (PlanOptions(limits=Limits(replicas=0)), "replicas is 0"),
        (PlanOptions(limits=Limits(replicas=65)), "replicas is 65"),
        (PlanOptions(stages=2, limits=Limits(replicas=2)), "one device per stage"),
        (PlanOptions(forced=FORCED, stages=2), "carried out as it is"),  # type: ignore[arg-type]
        (PlanOptions(forced=FORCED, limits=Limits(excluded=(A,))), "carried out as it is"),  # type: ignore[arg-type]
    ],
)
def test_wishes_that_contradict_each_other(options: PlanOptions, said: str) -> None:
    problem = three_boards(weak=1.0)
    with pytest.raises(UsageError, match=said) as refused:
        check_options(options, problem.names)
    if "replicas is" not in said:
        assert refused.value.hint or "every device" in said
    with pytest.raises(UsageError, match=said):
        make_problem(problem.graph, problem.costs, options, problem.names)


def test_limits_are_kept_and_stay_with_the_plan() -> None:
    known = three_boards(weak=1.0)
    limits = Limits(only=(A, B, C), excluded=(B,), head=C)
    answer = plan(make_problem(known.graph, known.costs, PlanOptions(limits=limits), known.names))
    assert isinstance(answer, Plan)
    assert [stage.devices for stage in answer.stages] == [(C,), (A,)]
    assert answer.limits == limits
