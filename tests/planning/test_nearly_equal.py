"""Boards that measure nearly the same are planned for as equal ones: better plans, and bounds that hold."""

from __future__ import annotations

import random
from dataclasses import replace

from mesh.core.costs import Costs, DeviceCosts, Handling
from mesh.core.fleet import Link
from mesh.core.plan import Plan
from mesh.planning.exact import MOST_DIFFERENT, plan, plan_by_beam
from mesh.planning.nearly_equal import group_nearly_equal
from mesh.planning.predict import period_seconds
from mesh.planning.problem import Problem
from mesh.planning.validate import problems
from tests.planning.instances import PLENTY, chain_graph, node_ids


def boards(rng: random.Random, kinds: tuple[float, ...], count: int, spread: float = 0.005) -> Problem:
    """`count` boards of each of `kinds` (seconds of the model), no two of them quite the same."""
    flops = [rng.randint(1, 100) for _ in range(40)]
    graph = chain_graph(flops, sizes=[rng.randint(1000, 50_000) for _ in range(41)])
    devices = node_ids(count * len(kinds))
    known = {}
    for index, device in enumerate(devices):
        pace = kinds[index // count] * rng.uniform(1 - spread, 1 + spread) / sum(flops)
        seconds = [0.0]
        for work in flops:
            seconds.append(seconds[-1] + work * pace)
        known[device] = DeviceCosts(tuple(seconds), PLENTY, True, Handling(1e-4, 1e-10, measured=True))
    links = {
        (a, b): Link(3e-4 * rng.uniform(0.9, 1.1), 1.2e7 * rng.uniform(0.9, 1.1), True)
        for a in devices
        for b in devices
        if a != b
    }
    return Problem(graph, Costs(known, links), devices)


def test_groups_are_at_their_slowest_and_fastest() -> None:
    problem = boards(random.Random(1), (0.1, 0.3), 3)
    grouped = group_nearly_equal(problem)
    assert grouped is not None
    assert grouped.groups == 2
    for device in problem.devices:
        real = problem.costs.device(device)
        slow, fast = grouped.slowest.costs.device(device), grouped.fastest.costs.device(device)
        for i, (a, b) in enumerate(zip(real.prefix_seconds, real.prefix_seconds[1:], strict=False)):
            assert fast.prefix_seconds[i + 1] - fast.prefix_seconds[i] <= (b - a) * (1 + 1e-9)
            assert slow.prefix_seconds[i + 1] - slow.prefix_seconds[i] >= (b - a) * (1 - 1e-9)
    for pair, link in problem.costs.links.items():
        slow_link, fast_link = grouped.slowest.costs.link(*pair), grouped.fastest.costs.link(*pair)
        assert slow_link.bytes_per_second <= link.bytes_per_second <= fast_link.bytes_per_second
        assert fast_link.latency_seconds <= link.latency_seconds <= slow_link.latency_seconds


def test_different_and_pinned_devices_stay_apart() -> None:
    assert group_nearly_equal(boards(random.Random(2), (0.1, 0.2, 0.3), 1)) is None
    problem = boards(random.Random(2), (0.1,), 2)
    assert group_nearly_equal(replace(problem, head=problem.devices[0])) is None


def test_more_than_a_dozen_measured_boards() -> None:
    for seed in range(3):
        problem = boards(random.Random(seed), (0.1, 0.25), 8)
        assert len(problem.devices) > MOST_DIFFERENT
        found, beam = plan(problem), plan_by_beam(problem)
        assert isinstance(found, Plan)
        assert isinstance(beam, Plan)
        assert problems(found, problem.graph, problem.devices) == ()
        assert found.predicted.throughput_per_s >= beam.predicted.throughput_per_s * (1 - 1e-9)
        assert found.predicted.throughput_per_s <= found.bound_throughput_per_s <= beam.bound_throughput_per_s
        assert 1 / period_seconds(problem.graph, found.stages, problem.costs) == found.predicted.throughput_per_s
        assert found.bound_throughput_per_s / found.predicted.throughput_per_s < 1.05
