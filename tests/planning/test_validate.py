"""The validator finds each kind of fault in an otherwise good plan."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from mesh.core.ids import NodeId, Sha256
from mesh.core.plan import Objective, Plan, Prediction
from mesh.planning.exact import plan
from mesh.planning.problem import Problem
from mesh.planning.validate import problems
from tests.planning.instances import make_graph, node_ids, random_costs

GRAPH = make_graph(
    flops=[10**7] * 6,
    reads=[[0], [1], [2], [1, 3], [4], [5]],
    sizes=[100] * 7,
    weights=[[f"w{index}"] for index in range(6)],
    weight_bytes={f"w{index}": 1000 for index in range(6)},
    legal=[1, 2, 3, 4],
)
DEVICES = node_ids(3)


def good_plan() -> Plan:
    import random

    answer = plan(Problem(GRAPH, random_costs(random.Random(1), GRAPH, DEVICES, False), DEVICES, stages=3))
    assert isinstance(answer, Plan)
    return answer


def with_stage(changed: Plan, index: int, **fields: Any) -> Plan:
    stages = list(changed.stages)
    stages[index] = dataclasses.replace(stages[index], **fields)
    return dataclasses.replace(changed, stages=tuple(stages))


def with_segment(changed: Plan, index: int, **fields: Any) -> Plan:
    return with_stage(changed, index, segment=dataclasses.replace(changed.stages[index].segment, **fields))


def test_a_good_plan_has_no_problems() -> None:
    assert problems(good_plan(), GRAPH, DEVICES, dict.fromkeys(DEVICES, 1 << 40)) == ()


@pytest.mark.parametrize(
    ("spoil", "telling"),
    [
        (lambda p: dataclasses.replace(p, model_sha256=Sha256("00" * 32)), "the plan is for"),
        (lambda p: dataclasses.replace(p, stages=()), "has none"),
        (lambda p: dataclasses.replace(p, stages=p.stages[1:]), "the model begins at 0"),
        (lambda p: dataclasses.replace(p, stages=p.stages[:-1]), "the model ends at 6"),
        (lambda p: dataclasses.replace(p, stages=(p.stages[0], p.stages[2])), "the stage before it ends at"),
        (lambda p: with_segment(p, 2, end=5), "position 5 is not a legal cut"),
        (lambda p: with_segment(p, 0, end=0), "holds no operator group"),
        (lambda p: with_segment(p, 0, consumes=("other",)), "consumes"),
        (lambda p: with_segment(p, 1, produces=()), "produces"),
        (lambda p: with_segment(p, 1, relays=("stranger",)), "does not enter the stage"),
        (lambda p: with_segment(p, 0, weight_bytes=1), "weight_bytes is 1"),
        (lambda p: with_segment(p, 0, flops=1), "flops is 1"),
        (lambda p: with_stage(p, 0, devices=()), "devices is empty"),
        (lambda p: with_stage(p, 0, devices=p.stages[1].devices), "is used twice"),
        (lambda p: with_stage(p, 0, devices=(NodeId("f" * 32),)), "is not a known device"),
        (lambda p: with_stage(p, 0, compute_seconds=float("nan")), "compute_seconds is nan"),
        (
            lambda p: dataclasses.replace(p, predicted=Prediction(float("inf"), 1.0)),
            "predicted.throughput_per_s is inf",
        ),
        (lambda p: dataclasses.replace(p, predicted=Prediction(1.0, -1.0)), "predicted.latency_s is -1"),
        (lambda p: dataclasses.replace(p, bound_throughput_per_s=1e-9), "above bound"),
        (lambda p: dataclasses.replace(p, window=0), "window is 0"),
    ],
)
def test_each_fault_is_named(spoil: Callable[[Plan], Plan], telling: str) -> None:
    found = problems(spoil(good_plan()), GRAPH, DEVICES)
    assert any(telling in problem for problem in found), found


def test_memory_is_checked_where_it_is_known() -> None:
    answer = good_plan()
    found = problems(answer, GRAPH, DEVICES, {answer.stages[0].devices[0]: 1000})
    assert len(found) == 1 and "has 1000 bytes of memory" in found[0]


def test_objective_does_not_matter() -> None:
    assert problems(dataclasses.replace(good_plan(), objective=Objective.ENERGY), GRAPH) == ()
