"""Groups devices that no plan could tell apart, so that a search counts them instead of naming them.

Two devices are equal where all their figures are, and where exchanging them changes no link. Exactness
grows with the number of devices per type, and only with its power in the number of types.
"""

from __future__ import annotations

from mesh.core.ids import NodeId
from mesh.planning.problem import Problem

DeviceTypes = tuple[tuple[NodeId, ...], ...]
"""Every usable device once, equal ones together, in the problem's order."""


def group_devices(problem: Problem) -> DeviceTypes:
    """The usable devices of `problem` by type; a pinned device is a type of its own."""
    types: list[list[NodeId]] = []
    for device in problem.usable_devices:
        fits = None
        if device not in (problem.head, problem.tail):
            fits = next((members for members in types if _equal(problem, device, members[0])), None)
        if fits is None:
            types.append([device])
        else:
            fits.append(device)
    return tuple(tuple(members) for members in types)


def _equal(problem: Problem, one: NodeId, other: NodeId) -> bool:
    costs, space = problem.costs, problem.space
    if other in (problem.head, problem.tail) or costs.device(one) != costs.device(other):
        return False
    if space.nic(one) != space.nic(other) or space.watts.get(one) != space.watts.get(other):
        return False
    if any(v.prefix_seconds.get(one) != v.prefix_seconds.get(other) for v in space.variants):
        return False
    if any(c.seconds_of(one) != c.seconds_of(other) for c in space.codecs):
        return False
    if costs.link(one, other) != costs.link(other, one):
        return False
    rest = (device for device in problem.usable_devices if device not in (one, other))
    return all(
        costs.link(one, third) == costs.link(other, third) and costs.link(third, one) == costs.link(third, other)
        for third in rest
    )
