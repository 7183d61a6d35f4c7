"""The exact planner against an independent enumeration, and the laws that any planner must keep."""

from __future__ import annotations

import dataclasses
import random

import pytest

from mesh.core.costs import Costs, DeviceCosts
from mesh.core.fleet import Handling, Link
from mesh.core.ids import NodeId
from mesh.core.plan import Objective, Plan
from mesh.errors import UsageError
from mesh.planning.exact import plan
from mesh.planning.predict import predict, with_costs
from mesh.planning.problem import Infeasible, Problem
from mesh.planning.validate import problems
from tests.planning.instances import (
    PLENTY,
    chain_graph,
    node_ids,
    random_costs,
    random_graph,
    random_problem,
)
from tests.planning.oracle import every_plan
from tests.planning.test_replanning import equal_boards

INSTANCES = 600
BLOCK = 100
OBJECTIVES = (Objective.THROUGHPUT, Objective.LATENCY, Objective.MEMORY)
CLOSE = 1e-9


def make_costs(
    devices: tuple[NodeId, ...],
    prefixes: list[list[float]],
    latency: float = 1e-4,
    rate: float = 1e8,
    memory: int = PLENTY,
    handling: Handling | None = None,
) -> Costs:
    free = handling or Handling(0.0, 0.0, True)
    return Costs(
        {
            device: DeviceCosts(tuple(prefix), memory, True, free)
            for device, prefix in zip(devices, prefixes, strict=True)
        },
        {(a, b): Link(latency, rate) for a in devices for b in devices if a != b},
    )


def planned(problem: Problem) -> Plan:
    answer = plan(problem)
    assert isinstance(answer, Plan), answer
    return answer


@pytest.mark.parametrize("first", range(0, INSTANCES, BLOCK))
def test_agrees_with_enumeration(first: int) -> None:
    infeasible = 0
    for seed in range(first, first + BLOCK):
        base = random_problem(seed, Objective.THROUGHPUT)
        allowed = every_plan(base)
        if base.stages is not None:
            cuts = [c for c in base.graph.cuts[1:-1] if base.max_tensors is None or len(c.tensors) <= base.max_tensors]
            allowed = [judged for judged in allowed if len(judged.stages) == min(base.stages, len(cuts) + 1)]
        for objective in OBJECTIVES:
            answer = plan(dataclasses.replace(base, objective=objective))
            if not allowed:
                assert isinstance(answer, Infeasible), (seed, objective)
                assert answer.reasons and all(answer.reasons)
                infeasible += 1
                continue
            assert isinstance(answer, Plan), (seed, objective, answer)
            period, latency, count = (
                1 / answer.predicted.throughput_per_s,
                answer.predicted.latency_s,
                len(answer.stages),
            )
            if objective is Objective.LATENCY:
                least = min(judged.latency for judged in allowed)
                assert latency == pytest.approx(least, rel=CLOSE), seed
                assert count == min(len(j.stages) for j in allowed if j.latency <= least * (1 + CLOSE)), seed
            else:
                if objective is Objective.MEMORY:
                    pool = [j for j in allowed if len(j.stages) == min(len(other.stages) for other in allowed)]
                else:
                    pool = allowed
                least = min(judged.period for judged in pool)
                assert period == pytest.approx(least, rel=CLOSE), (seed, objective)
                fewest = min(len(j.stages) for j in pool if j.period <= least * (1 + CLOSE))
                assert count == fewest, (seed, objective)
                ties = [j for j in pool if j.period <= least * (1 + CLOSE) and len(j.stages) == fewest]
                assert latency == pytest.approx(min((j.idle, j.latency) for j in ties)[1], rel=CLOSE), (seed, objective)
            shortest = min(judged.period for judged in allowed)
            assert answer.bound_throughput_per_s == pytest.approx(1 / shortest, rel=CLOSE), seed
            memory = {device: base.costs.device(device).memory_bytes for device in base.devices}
            assert problems(answer, base.graph, base.devices, memory) == (), seed
    assert 0 < infeasible < 3 * BLOCK / 2, "the instances must contain both kinds"


def fleet_throughput(problem: Problem) -> float:
    answer = plan(problem)
    return answer.predicted.throughput_per_s if isinstance(answer, Plan) else 0.0


@pytest.mark.parametrize("seed", range(40))
def test_more_of_anything_never_hurts(seed: int) -> None:
    rng = random.Random(1000 + seed)
    graph = random_graph(rng, most_groups=20, most_inner_cuts=15)
    devices = node_ids(4)
    costs = random_costs(rng, graph, devices, memory_limits=True)
    before = fleet_throughput(Problem(graph, costs, devices[:3]))
    assert fleet_throughput(Problem(graph, costs, devices)) >= before
    roomy = Costs(
        {d: dataclasses.replace(known, memory_bytes=known.memory_bytes * 2) for d, known in costs.devices.items()},
        costs.links,
    )
    assert fleet_throughput(Problem(graph, roomy, devices[:3])) >= before
    wide = Costs(
        costs.devices,
        {pair: Link(link.latency_seconds / 2, link.bytes_per_second * 2) for pair, link in costs.links.items()},
    )
    assert fleet_throughput(Problem(graph, wide, devices[:3])) >= before


def _times_four(handling: Handling) -> Handling:
    sent = handling.sent_byte_seconds
    return Handling(4 * handling.message_seconds, 4 * handling.byte_seconds, True, None if sent is None else 4 * sent)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("seed", range(20))
def test_scaling_every_time_scales_the_prediction(seed: int, objective: Objective) -> None:
    rng = random.Random(2000 + seed)
    graph = random_graph(rng, most_groups=20, most_inner_cuts=15)
    devices = node_ids(4)
    costs = random_costs(rng, graph, devices, memory_limits=False)
    slower = Costs(
        {
            device: dataclasses.replace(
                known,
                prefix_seconds=tuple(4 * seconds for seconds in known.prefix_seconds),
                handling=_times_four(known.handling),
            )
            for device, known in costs.devices.items()
        },
        {pair: Link(4 * link.latency_seconds, link.bytes_per_second / 4) for pair, link in costs.links.items()},
    )
    fast, slow = planned(Problem(graph, costs, devices, objective)), planned(Problem(graph, slower, devices, objective))
    assert [stage.devices for stage in fast.stages] == [stage.devices for stage in slow.stages]
    assert [stage.segment for stage in fast.stages] == [stage.segment for stage in slow.stages]
    assert slow.predicted.throughput_per_s * 4 == fast.predicted.throughput_per_s
    assert slow.predicted.latency_s == 4 * fast.predicted.latency_s


@pytest.mark.parametrize("seed", range(40))
def test_never_worse_than_the_best_single_device_nor_better_than_the_bound(seed: int) -> None:
    rng = random.Random(3000 + seed)
    graph = random_graph(rng, most_groups=30, most_inner_cuts=20)
    devices = node_ids(rng.randint(2, 6))
    costs = random_costs(rng, graph, devices, memory_limits=False)
    for objective in (Objective.THROUGHPUT, Objective.LATENCY):
        answer = planned(Problem(graph, costs, devices, objective))
        singles = [planned(Problem(graph, costs, (device,), objective)).predicted for device in devices]
        if objective is Objective.THROUGHPUT:
            assert answer.predicted.throughput_per_s >= max(single.throughput_per_s for single in singles)
        else:
            assert answer.predicted.latency_s <= min(single.latency_s for single in singles)
        assert answer.bound_throughput_per_s >= answer.predicted.throughput_per_s
        assert answer.predicted == predict(graph, answer.stages, costs)
        for alternative in answer.alternatives:
            assert alternative.reason
            if "may share a stage" in alternative.reason:  # better perhaps, and not allowed
                continue
            if alternative.prediction and objective is Objective.THROUGHPUT:
                assert alternative.prediction.throughput_per_s <= answer.predicted.throughput_per_s * (1 + 1e-9)
        assert with_costs(answer, graph, costs) == answer


def test_equal_devices_split_an_even_chain_evenly() -> None:
    graph = chain_graph([10**6] * 8)
    devices = node_ids(4)
    costs = make_costs(devices, [[i * 0.01 for i in range(9)]] * 4)
    answer = planned(Problem(graph, costs, devices))
    assert [(stage.segment.start, stage.segment.end) for stage in answer.stages] == [(0, 2), (2, 4), (4, 6), (6, 8)]
    assert answer.predicted.throughput_per_s == pytest.approx(50)
    assert answer.certificate == "exact over 9 cuts x 4 devices of 1 type, order of groups fixed"
    names = [alternative.name for alternative in answer.alternatives]
    assert len(names) == 4 + 1 + 2 + 4 and "2 stages" in names and "3 stages" in names
    assert 5 <= answer.window <= 8


def test_ties_take_fewer_devices() -> None:
    graph = chain_graph([10**6, 1])
    devices = node_ids(2)
    costs = make_costs(devices, [[0.0, 0.01, 0.01], [0.0, 0.01, 0.01]])
    answer = planned(Problem(graph, costs, devices))
    assert len(answer.stages) == 1
    assert answer.window == 2
    two = next(alternative for alternative in answer.alternatives if alternative.name == "2 stages")
    assert two.reason.endswith("on 2 devices")


def test_a_gain_within_rounding_does_not_buy_a_device() -> None:
    graph = chain_graph([1, 10**6], sizes=[0, 0, 0])
    devices = node_ids(2)
    costs = make_costs(devices, [[0.0, 1e-15, 0.01]] * 2)
    assert len(planned(Problem(graph, costs, devices)).stages) == 1


def test_one_way_links_are_priced_in_the_direction_used() -> None:
    graph = chain_graph([10**6, 10**6], sizes=[0, 1_000_000, 0])
    first, second = node_ids(2)
    good, bad = Link(1e-4, 1e9), Link(1e-4, 1e6)
    prefixes = make_costs((first, second), [[0.0, 0.02, 0.04]] * 2).devices
    answer = planned(Problem(graph, Costs(prefixes, {(second, first): good, (first, second): bad}), (first, second)))
    assert answer.devices == (second, first)


def test_a_far_link_limits_the_rate_by_its_latency() -> None:
    graph = chain_graph([10**6, 10**6], sizes=[0, 0, 0])
    devices = node_ids(2)
    costs = make_costs(devices, [[0.0, 0.01, 0.02]] * 2, latency=0.030)
    forced = planned(Problem(graph, costs, devices, stages=2))
    assert forced.predicted.throughput_per_s == pytest.approx(1 / 0.015)
    assert forced.predicted.latency_s == pytest.approx(0.05)
    far = make_costs(devices, [[0.0, 0.01, 0.02]] * 2, latency=0.050)
    assert len(planned(Problem(graph, far, devices)).stages) == 1


def test_memory_takes_the_fewest_devices_that_hold_the_model() -> None:
    megabyte = 1 << 20
    graph = chain_graph([10**6] * 4, weights=[30 * megabyte] * 4)
    devices = node_ids(4)
    costs = make_costs(devices, [[i * 0.01 for i in range(5)]] * 4, memory=200 * megabyte)
    answer = planned(Problem(graph, costs, devices, Objective.MEMORY))
    assert len(answer.stages) == 2
    assert len(planned(Problem(graph, costs, devices)).stages) == 4
    small = make_costs(devices, [[i * 0.01 for i in range(5)]] * 4, memory=100 * megabyte)
    refused = plan(Problem(graph, small, devices, Objective.MEMORY))
    assert isinstance(refused, Infeasible)
    assert "the whole model needs" in refused.reasons[0]
    assert "cannot be separated" in refused.reasons[1]
    assert refused.as_error().exit_code == 5


def test_forced_stages_balance_by_costs_and_are_marked() -> None:
    graph = chain_graph([10**6] * 6)
    devices = node_ids(3)
    costs = make_costs(
        devices, [[i * 0.01 for i in range(7)], [i * 0.02 for i in range(7)], [i * 0.01 for i in range(7)]]
    )
    answer = planned(Problem(graph, costs, devices, stages=2))
    assert answer.forced
    assert len(answer.stages) == 2
    assert set(answer.devices) == {devices[0], devices[2]}
    assert answer.certificate.endswith("2 stages forced")
    three = planned(Problem(graph, costs, devices, stages=3))
    assert max(stage.compute_seconds for stage in three.stages) == pytest.approx(0.03)


def test_forced_stages_beyond_devices_and_cuts() -> None:
    graph = chain_graph([10**6, 10**6])
    devices = node_ids(4)
    costs = make_costs(devices, [[0.0, 0.01, 0.02]] * 4)
    refused = plan(Problem(graph, costs, devices, stages=5))
    assert refused == Infeasible(("5 stages need 5 devices, there are 4",))
    fewer = planned(Problem(graph, costs, devices, stages=4))
    assert len(fewer.stages) == 2
    assert fewer.certificate.endswith("4 stages forced, 2 made: no more legal cuts")


def test_a_stage_without_operations_is_the_last_resort() -> None:
    graph = chain_graph([0, 10**6, 10**6, 0])
    devices = node_ids(2)
    costs = make_costs(devices, [[0.0, 0.0, 0.01, 0.02, 0.02], [0.0, 0.0, 0.02, 0.04, 0.04]])
    answer = planned(Problem(graph, costs, devices, stages=2))
    assert all(stage.segment.flops > 0 for stage in answer.stages)


def test_excluded_and_pinned_devices() -> None:
    graph = chain_graph([10**6] * 4)
    devices = node_ids(3)
    costs = make_costs(devices, [[i * 0.01 for i in range(5)]] * 3)
    without = planned(Problem(graph, costs, devices, excluded=frozenset(devices[:1])))
    assert devices[0] not in without.devices
    pinned = planned(Problem(graph, costs, devices, head=devices[2], tail=devices[0]))
    assert (pinned.devices[0], pinned.devices[-1]) == (devices[2], devices[0])
    assert plan(Problem(graph, costs, devices, excluded=frozenset(devices))) == Infeasible(
        ("every device is excluded",)
    )
    impossible = plan(Problem(graph, costs, devices, stages=2, head=devices[0], tail=devices[0]))
    assert isinstance(impossible, Infeasible)
    assert "head or tail is pinned to a given device" in impossible.reasons


def test_larger_fleets_are_exact_too() -> None:
    graph = chain_graph([10**6] * 12)
    devices = node_ids(11)
    costs = make_costs(devices, [[i * 0.01 * (12 - rank) for i in range(13)] for rank in range(11)])
    answer = planned(Problem(graph, costs, devices))
    assert set(answer.devices) <= set(devices[3:])
    assert answer.certificate == "exact over 13 cuts x 11 devices, order of groups fixed"


def test_large_fleet_of_fast_small_devices_keeps_the_one_that_holds_the_model() -> None:
    graph = chain_graph([10**6], weights=[1 << 28])
    devices = node_ids(10)
    known = dict(make_costs(devices, [[0.0, 0.01]] * 9 + [[0.0, 1.0]], memory=1 << 28).devices)
    known[devices[9]] = dataclasses.replace(known[devices[9]], memory_bytes=1 << 30)
    costs = Costs(known, make_costs(devices, [[0.0, 1.0]] * 10).links)
    assert planned(Problem(graph, costs, devices)).devices == (devices[9],)


def test_many_cuts_are_thinned_and_the_certificate_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = chain_graph([10**6] * 60)
    devices = node_ids(3)
    costs = make_costs(devices, [[i * 0.01 for i in range(61)]] * 3)
    whole = planned(Problem(graph, costs, devices))
    monkeypatch.setattr("mesh.planning.answer.MAX_CUTS", 30)
    thinned = planned(Problem(graph, costs, devices))
    assert "of 61 in every slice of the work" in thinned.certificate
    assert thinned.predicted.throughput_per_s >= 0.9 * whole.predicted.throughput_per_s
    assert problems(thinned, graph, devices) == ()


def test_questions_without_an_answer() -> None:
    graph = chain_graph([10**6])
    devices = node_ids(1)
    costs = make_costs(devices, [[0.0, 0.01]])
    energy = plan(Problem(graph, costs, devices, Objective.ENERGY))
    assert isinstance(energy, Infeasible) and "watts" in energy.reasons[0]
    assert plan(Problem(graph, costs, ())) == Infeasible(("no devices to plan for",))
    empty = dataclasses.replace(graph, groups=(), cuts=graph.cuts[:1])
    assert isinstance(plan(Problem(empty, make_costs(devices, [[0.0]]), devices)), Infeasible)


def test_bad_problems_are_refused() -> None:
    graph = chain_graph([10**6])
    devices = node_ids(2)
    costs = make_costs(devices, [[0.0, 0.01]] * 2)
    with pytest.raises(UsageError, match="stages is 0"):
        Problem(graph, costs, devices, stages=0)
    with pytest.raises(UsageError, match="max_tensors is 0"):
        Problem(graph, costs, devices, max_tensors=0)
    with pytest.raises(UsageError, match="listed twice"):
        Problem(graph, costs, (devices[0], devices[0]))
    with pytest.raises(UsageError, match="no costs are known"):
        Problem(graph, costs, node_ids(3))
    with pytest.raises(UsageError, match="costs cover 1 groups"):
        Problem(chain_graph([1, 1]), costs, devices)


@pytest.mark.parametrize(("slower", "is_used"), [(20, False), (4, True)])
def test_a_device_that_adds_next_to_nothing_is_left_out(slower: int, is_used: bool) -> None:
    strong = equal_boards(3, groups=100)
    weak = strong.devices[2]
    known = strong.costs.devices[weak]
    slow = dataclasses.replace(known, prefix_seconds=tuple(slower * seconds for seconds in known.prefix_seconds))
    problem = dataclasses.replace(
        strong, costs=dataclasses.replace(strong.costs, devices={**strong.costs.devices, weak: slow})
    )
    assert weak in planned(problem).devices, "it makes it faster, if only by a little"
    answer = planned(dataclasses.replace(problem, least_gain=0.03))
    assert (weak in answer.devices) is is_used
    assert answer.predicted.throughput_per_s * 1.03 >= planned(problem).predicted.throughput_per_s
    assert any("3 " in each.name for each in answer.alternatives) is not is_used, "what it would have brought is told"
