"""Options beyond cuts and devices: what they cost, what is refused, and what a plan must not do with them."""

from __future__ import annotations

import dataclasses
import math

import pytest

from mesh.core.costs import Costs, DeviceCosts
from mesh.core.fleet import Handling, Link, Watts
from mesh.core.plan import Objective, Plan
from mesh.errors import UsageError
from mesh.planning.exact import plan
from mesh.planning.predict import energy_joules
from mesh.planning.problem import Infeasible, Problem
from mesh.planning.space import Codec, Nic, Space, Variant
from mesh.planning.validate import contradictions
from tests.planning.instances import PLENTY, chain_graph, node_ids

DEVICES = node_ids(3)
GRAPH = chain_graph([10**6] * 6, sizes=[1000, *[1_000_000] * 5, 1000], weights=[50_000_000] * 6)


def make_problem(space: Space, rate: float = 1e8, memory: int = PLENTY) -> Problem:
    known = DeviceCosts(tuple(i * 0.01 for i in range(7)), memory, True, Handling(0.0, 0.0, True))
    links = {(a, b): Link(0.0, rate) for a in DEVICES for b in DEVICES if a != b}
    return Problem(GRAPH, Costs(dict.fromkeys(DEVICES, known), links), DEVICES, space=space)


def planned(problem: Problem) -> Plan:
    answer = plan(problem)
    assert isinstance(answer, Plan), answer
    assert contradictions(answer, problem) == ()
    return answer


def test_a_codec_is_taken_where_it_saves_more_than_it_costs() -> None:
    half = Codec("half", 0.5, dict.fromkeys(DEVICES, 1e-10))
    slow_wire = planned(make_problem(Space(codecs=(half,)), rate=2.5e7))
    assert [stage.codec for stage in slow_wire.stages] == ["half", "half", "raw"]
    assert slow_wire.predicted.throughput_per_s == pytest.approx(1 / (0.02 + 2e-4))
    fast_wire = planned(make_problem(Space(codecs=(half,)), rate=1e9))
    assert {stage.codec for stage in fast_wire.stages} == {"raw"}


def test_a_codec_is_taken_only_at_cuts_where_it_may_be_and_by_what_it_makes_of_them() -> None:
    speaking = dict.fromkeys(DEVICES, 1e-10)
    first = planned(make_problem(Space(codecs=(Codec("half", 0.9, speaking, {1: 0.5}),)), rate=2.5e7))
    assert {stage.codec for stage in first.stages if stage.segment.end != 1} == {"raw"}
    everywhere = planned(make_problem(Space(codecs=(Codec("half", 0.5, speaking),)), rate=2.5e7))
    assert everywhere.predicted.throughput_per_s > first.predicted.throughput_per_s
    slow_reader = Codec("half", 0.5, speaking, read_byte_seconds=dict.fromkeys(DEVICES, 1.0))
    answer = planned(make_problem(Space(codecs=(slow_reader,)), rate=2.5e7))
    assert {stage.codec for stage in answer.stages} == {"raw"}


def test_a_codec_needs_both_ends_to_speak_it() -> None:
    alone = Codec("half", 0.5, {DEVICES[0]: 1e-10})
    answer = planned(make_problem(Space(codecs=(alone,)), rate=2.5e7))
    assert {stage.codec for stage in answer.stages} == {"raw"}


def test_a_variant_makes_a_model_fit_and_keeps_its_own_cuts() -> None:
    small = Variant(
        "int8",
        dict.fromkeys(DEVICES, tuple(i * 0.005 for i in range(7))),
        {name: nbytes // 4 for name, nbytes in GRAPH.weight_bytes.items()},
        frozenset({0, 3, 6}),
    )
    tight = 180_000_000
    assert isinstance(plan(dataclasses.replace(make_problem(Space(), memory=tight), devices=DEVICES[:1])), Infeasible)
    one = planned(dataclasses.replace(make_problem(Space(variants=(small,)), memory=2 * tight), devices=DEVICES[:1]))
    assert [stage.variant for stage in one.stages] == ["int8"]
    assert not one.stages[0].measured
    both = planned(make_problem(Space(variants=(small,)), rate=1e10))
    assert [stage.segment.end for stage in both.stages if stage.variant == "int8"] == [3, 6]


def test_replicas_are_chosen_only_where_allowed() -> None:
    graph = chain_graph([10**6] * 2)
    known = DeviceCosts((0.0, 0.01, 0.03), PLENTY, True, Handling(0.0, 0.0, True))
    links = {(a, b): Link(0.0, 1e9) for a in DEVICES for b in DEVICES if a != b}
    problem = Problem(graph, Costs(dict.fromkeys(DEVICES, known), links), DEVICES)
    assert all(len(stage.devices) == 1 for stage in planned(problem).stages)
    shared = planned(dataclasses.replace(problem, space=Space(max_replicas=2)))
    assert [len(stage.devices) for stage in shared.stages] == [1, 2]
    assert shared.predicted.throughput_per_s == pytest.approx(100)


def test_an_interface_limits_all_links_of_a_device_together() -> None:
    nics = dict.fromkeys(DEVICES, Nic(up=1e7, down=1e7))
    answer = planned(make_problem(Space(nics=nics), rate=1e9))
    assert len(answer.stages) == 1  # 1 MB takes 0.1 s at 10 MB/s, the whole model takes 0.06 s


def test_energy_prefers_few_devices_that_draw_little() -> None:
    thrifty, thirsty = Watts(4.0, 1.0), Watts(20.0, 10.0)
    problem = make_problem(Space(watts={DEVICES[0]: thirsty, DEVICES[1]: thrifty, DEVICES[2]: thirsty}))
    answer = planned(dataclasses.replace(problem, objective=Objective.ENERGY))
    assert answer.devices == (DEVICES[1],)
    assert energy_joules(GRAPH, answer.stages, problem.costs, problem.space) == pytest.approx(4.0 * 0.06)
    assert answer.certificate.endswith("; 0.24 J per frame")
    unknown = dataclasses.replace(problem, space=Space(watts={DEVICES[0]: thirsty}), objective=Objective.ENERGY)
    refused = plan(unknown)
    assert isinstance(refused, Infeasible) and "watts" in refused.reasons[0]


def test_only_trusted_devices_see_frames() -> None:
    problem = make_problem(Space(), rate=1e10)
    answer = planned(dataclasses.replace(problem, trusted=frozenset(DEVICES[1:])))
    assert set(answer.devices) == set(DEVICES[1:])
    nobody = dataclasses.replace(problem, trusted=frozenset())
    assert plan(nobody) == Infeasible(("no device is trusted",))
    pinned = plan(dataclasses.replace(problem, trusted=frozenset(DEVICES[1:]), head=DEVICES[0]))
    assert isinstance(pinned, Infeasible) and pinned.reasons[0].startswith("head: ")


def test_contradictions_are_named() -> None:
    half = Codec("half", 0.5, {DEVICES[0]: 0.0})
    problem = make_problem(Space(codecs=(half,)), rate=1e10)
    good = planned(problem)
    first, *rest = good.stages
    strict = dataclasses.replace(
        problem, excluded=frozenset(DEVICES[:1]), trusted=frozenset(), head=DEVICES[2], stages=2
    )
    found = "\n".join(contradictions(good, strict))
    for part in ("is excluded", "is not trusted", "the head is pinned", "2 stages are forced, the plan has 3"):
        assert part in found
    wrong = dataclasses.replace(first, devices=DEVICES[:2], variant="int4", codec="half")
    found = "\n".join(contradictions(dataclasses.replace(good, stages=(wrong, *rest)), problem))
    for part in ("has 2 replicas, 1 are allowed", "variant is 'int4'", "codec is 'half', which not all"):
        assert part in found


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: Space(max_replicas=0), "max_replicas is 0"),
        (lambda: Space(codecs=(Codec("raw", 1.0, {}),)), "codecs: names"),
        (lambda: Space(codecs=(Codec("zero", 0.0, {}),)), r"codecs\[zero\].bytes_factor"),
        (lambda: Space(codecs=(Codec("nan", math.nan, {}),)), r"codecs\[nan\].bytes_factor"),
        (lambda: Space(codecs=(Codec("c", 0.5, {DEVICES[0]: -1.0}),)), r"byte_seconds"),
        (lambda: Space(codecs=(Codec("c", 0.5, {}, {3: 0.0}),)), r"codecs\[c\].factors\[3\]"),
        (lambda: Space(variants=(Variant("v", {DEVICES[0]: (0.0, 2.0, 1.0)}),)), r"prefix_seconds\[0+\]\[2\]"),
        (lambda: Space(variants=(Variant("v", {DEVICES[0]: (0.0, math.nan)}),)), "prefix_seconds"),
        (lambda: Space(nics={DEVICES[0]: Nic(up=0.0)}), r"nics\[0+\].up"),
        (lambda: Space(watts={DEVICES[0]: Watts(1.0, 2.0)}), r"watts\[0+\].busy"),
        (lambda: make_problem(Space(variants=(Variant("v", {DEVICES[0]: (0.0, 1.0)}),))), "covers 1 groups"),
    ],
)
def test_figures_that_make_no_sense_are_refused(make: object, field: str) -> None:
    assert callable(make)
    with pytest.raises(UsageError, match=field):
        make()
