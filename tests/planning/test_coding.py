"""Codecs that no plan needs are not searched; those that a plan hardly gains by are taken back, the lossiest first."""

from __future__ import annotations

import dataclasses

import pytest

from mesh.core.coding import CODECS
from mesh.core.costs import Costs, DeviceCosts
from mesh.core.fleet import Handling, Link
from mesh.core.plan import Objective, Plan
from mesh.planning.coding import spare_codecs
from mesh.planning.document import plan_from_json, plan_to_json
from mesh.planning.exact import plan
from mesh.planning.predict import predict
from mesh.planning.problem import LEAST_GAIN, Problem
from mesh.planning.space import Codec, Space, without_beaten
from mesh.planning.validate import contradictions
from tests.planning.instances import PLENTY, chain_graph, node_ids

DEVICES = node_ids(3)
GRAPH = chain_graph([10**6] * 6, sizes=[1000, *[1_000_000] * 5, 1000], weights=[50_000_000] * 6)
FACTORS = {"zstd": 0.8, "fp16": 0.5, "fp16+zstd": 0.4, "int8": 0.25, "int8+zstd": 0.15}


def speaking(name: str, factor: float, seconds: float = 1e-10) -> Codec:
    return Codec(name, factor, dict.fromkeys(DEVICES, seconds))


def make_problem(rate: float, objective: Objective = Objective.THROUGHPUT, device_seconds: float = 0.01) -> Problem:
    known = DeviceCosts(tuple(i * device_seconds for i in range(7)), PLENTY, True, Handling(0.0, 0.0, True))
    links = {(a, b): Link(0.0, rate) for a in DEVICES for b in DEVICES if a != b}
    codecs = tuple(speaking(name, factor) for name, factor in FACTORS.items())
    costs = Costs(dict.fromkeys(DEVICES, known), links)
    return Problem(GRAPH, costs, DEVICES, objective, space=Space(codecs=codecs), codecs=tuple(FACTORS))


def planned(problem: Problem) -> Plan:
    answer = plan(problem)
    assert isinstance(answer, Plan), answer
    return answer


@pytest.mark.parametrize(
    ("rate", "used"),
    [
        (1e9, {"raw"}),
        (4.2e7, {"zstd"}),
        (2.6e7, {"fp16"}),
        (2.1e7, {"fp16+zstd"}),
        (1.3e7, {"int8"}),
        (7e6, {"int8+zstd"}),
    ],
)
def test_no_more_is_lost_than_the_link_asks_for(rate: float, used: set[str]) -> None:
    problem = make_problem(rate)
    found = planned(problem)
    spared = spare_codecs(found, problem)
    assert {stage.codec for stage in spared.stages[:-1]} == used
    assert spared.predicted == predict(GRAPH, spared.stages, problem.costs, problem.space)
    assert spared.predicted.throughput_per_s >= (1 - LEAST_GAIN) * found.predicted.throughput_per_s
    assert contradictions(spared, problem) == ()
    assert spared.bound_throughput_per_s >= spared.predicted.throughput_per_s


def test_latency_asks_for_more() -> None:
    problem = make_problem(1.3e7, Objective.LATENCY, device_seconds=0.1)
    # Alone is best here, so two stages are forced.
    forced = dataclasses.replace(problem, stages=2)
    found = spare_codecs(planned(forced), forced)
    assert found.stages[0].codec != "raw"
    assert spare_codecs(found, dataclasses.replace(forced, objective=Objective.MEMORY)) is found


def test_a_codec_that_another_one_beats_everywhere_is_left_out() -> None:
    names = [codec.name for codec in without_beaten([speaking(name, factor) for name, factor in FACTORS.items()])]
    assert names == ["int8+zstd"]
    quick = speaking("int8", 0.25, 1e-11)
    assert without_beaten([quick, speaking("int8+zstd", 0.15)]) == (quick, speaking("int8+zstd", 0.15))
    one, other = speaking("int8", 0.25), speaking("int8+zstd", 0.25)
    assert without_beaten([one, other]) in ((one,), (other,))
    alone = Codec("zstd", 0.8, {DEVICES[0]: 1e-10, "f" * 32: 1e-10})  # type: ignore[dict-item]
    assert without_beaten([alone, speaking("int8", 0.25)]) == (alone, speaking("int8", 0.25))
    somewhere = Codec("fp16", 0.5, dict.fromkeys(DEVICES, 1e-10), {2: 0.2, 3: 0.6})
    elsewhere = Codec("int8", 0.5, dict.fromkeys(DEVICES, 1e-10), {2: 0.25, 3: 0.25})
    assert without_beaten([somewhere, elsewhere]) == (somewhere, elsewhere)
    nowhere = dataclasses.replace(somewhere, factors={3: 0.6})
    assert without_beaten([nowhere, elsewhere]) == (elsewhere,)


def test_what_was_allowed_goes_with_the_plan() -> None:
    problem = dataclasses.replace(make_problem(1.3e7), answer_change=0.05)
    found = planned(problem)
    assert (found.limits.codecs, found.limits.answer_change) == (CODECS[1:], 0.05)
    assert plan_from_json(plan_to_json(found), GRAPH) == found
