"""Devices that differ by less than measuring them twice does are planned for as if they were equal.

An exact search grows with the power of its device types, and of sixteen boards of one kind no two measure the same. A
group of nearly equal devices is taken at its slowest in every figure: a plan made so holds for the real devices. Taken
at the fastest instead, the same search gives a period that no real plan can beat: that is the certificate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

from mesh.core.costs import Costs, DeviceCosts
from mesh.core.fleet import Handling, Link
from mesh.core.ids import NodeId
from mesh.planning.problem import Problem

NEARLY = 0.01
"""Of computing times of each operator group: boards of one kind that share a profile are as near."""

NEARLY_MOVING = 0.25
"""Of links and of handling messages: two measurements of one link differ by as much."""

Choose = Callable[[Iterable[float]], float]


@dataclass(frozen=True, slots=True)
class Grouped:
    slowest: Problem
    fastest: Problem
    groups: int


def group_nearly_equal(problem: Problem) -> Grouped | None:
    """`problem` with nearly equal devices made equal, at their slowest and fastest; None where there are none."""
    groups: list[list[NodeId]] = []
    seconds = {device: _group_seconds(problem.costs.device(device)) for device in problem.usable_devices}
    for device in problem.usable_devices:
        fits = None
        if device not in (problem.head, problem.tail):
            fits = next((g for g in groups if all(_near(problem, seconds, device, other) for other in g)), None)
        if fits is None:
            groups.append([device])
        else:
            fits.append(device)
    if len(groups) == len(problem.usable_devices):
        return None
    return Grouped(
        _with_equal(problem, seconds, groups, max, min), _with_equal(problem, seconds, groups, min, max), len(groups)
    )


def _group_seconds(costs: DeviceCosts) -> tuple[float, ...]:
    return tuple(after - before for before, after in pairwise(costs.prefix_seconds))


def _near(problem: Problem, seconds: dict[NodeId, tuple[float, ...]], one: NodeId, other: NodeId) -> bool:
    costs, space = problem.costs, problem.space
    if other in (problem.head, problem.tail) or costs.device(one).memory != costs.device(other).memory:
        return False
    if space.nic(one) != space.nic(other) or space.watts.get(one) != space.watts.get(other):
        return False
    if any(v.prefix_seconds.get(one) != v.prefix_seconds.get(other) for v in space.variants):
        return False
    if any(c.seconds_of(one) != c.seconds_of(other) for c in space.codecs):
        return False
    if not all(_within(a, b, NEARLY) for a, b in zip(seconds[one], seconds[other], strict=True)):
        return False
    return _links_near(costs.link(one, other), costs.link(other, one)) and all(
        _links_near(costs.link(one, third), costs.link(other, third))
        and _links_near(costs.link(third, one), costs.link(third, other))
        for third in problem.usable_devices
        if third not in (one, other)
    )


def _links_near(one: Link, other: Link) -> bool:
    return _within(one.bytes_per_second, other.bytes_per_second, NEARLY_MOVING) and _within(
        one.latency_seconds, other.latency_seconds, NEARLY_MOVING
    )


def _within(one: float, other: float, share: float) -> bool:
    return abs(one - other) <= share * min(one, other)


def _with_equal(
    problem: Problem,
    seconds: dict[NodeId, tuple[float, ...]],
    groups: list[list[NodeId]],
    longest: Choose,
    least: Choose,
) -> Problem:
    """Times by `longest`, rates and memory by `least` of each group."""
    costs = problem.costs
    devices = {}
    for members in groups:
        known = [costs.device(device) for device in members]
        times = [longest(values) for values in zip(*(seconds[device] for device in members), strict=True)]
        messages = [each.handling for each in known]
        handling = Handling(
            longest(each.message_seconds for each in messages),
            longest(each.byte_seconds for each in messages),
            all(each.measured for each in messages),
            longest(
                each.byte_seconds if each.sent_byte_seconds is None else each.sent_byte_seconds for each in messages
            ),
        )
        equal = replace(
            known[0],
            prefix_seconds=(0.0, *accumulate(times)),
            memory_bytes=int(least(each.memory_bytes for each in known)),
            handling=handling,
        )
        devices.update(dict.fromkeys(members, equal))
    links = {}
    for sources in groups:
        for targets in groups:
            pairs = [(source, target) for source in sources for target in targets if source != target]
            known_links = [costs.link(*pair) for pair in pairs]
            if known_links:
                equal_link = Link(
                    longest(link.latency_seconds for link in known_links),
                    least(link.bytes_per_second for link in known_links),
                    all(link.measured for link in known_links),
                )
                links.update(dict.fromkeys(pairs, equal_link))
    return replace(problem, devices=problem.usable_devices, costs=Costs(devices, links))
