"""Who takes over when a device is lost: pure, and the same answer for everybody who asks.

A deployment names stand-bys for each of its stages. Whoever notices a loss first (a client whose stream broke)
computes the repaired deployment from the old one and from who is lost, and puts it in force under the next
generation. Two that notice the same loss at once compute equal deployments, which nodes take as one; two that see
different losses compute different ones, of which nodes take the first and refuse the other.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from mesh.core.ids import NodeId
from mesh.core.plan import Deployment, Fence, Plan

MAX_STANDBYS = 3
"""Per stage. The first has the segment ahead of time; the others fetch it when they are needed."""


def choose_standbys(plan: Plan, candidates: Sequence[Collection[NodeId]]) -> tuple[tuple[NodeId, ...], ...]:
    """Stand-bys for each stage out of `candidates`, which holds per stage the nodes that could run it.

    Idle nodes first, in another order for each stage, so that one loss does not put everything on one node.
    """
    busy = plan.devices
    chosen = []
    for index, (stage, able) in enumerate(zip(plan.stages, candidates, strict=True)):
        others = sorted(node for node in able if node not in stage.devices)
        idle = [node for node in others if node not in busy]
        used = [node for node in others if node in busy]
        chosen.append((*_rotated(idle, index), *_rotated(used, index))[:MAX_STANDBYS])
    return tuple(chosen)


def _rotated(nodes: Sequence[NodeId], by: int) -> tuple[NodeId, ...]:
    start = by % len(nodes) if nodes else 0
    return (*nodes[start:], *nodes[:start])


def repair(
    deployment: Deployment, lost: Collection[NodeId], names: Mapping[NodeId, str] | None = None
) -> Deployment | None:
    """The next generation, without the devices that are `lost`; None where a stage has nobody left.

    A replicated stage loses the replica; only a stage that is left without any device gets a stand-by, the
    least used one first. What was lost becomes the last stand-by of its stage: it holds the segment, and may return.
    """
    if not any(device in lost for device in deployment.plan.devices):
        return None
    standbys = deployment.standbys or tuple(() for _ in deployment.plan.stages)
    load: dict[NodeId, int] = {}
    for stage in deployment.plan.stages:
        for device in stage.devices:
            load[device] = load.get(device, 0) + 1
    stages, waiting, moves = [], [], []
    for index, (stage, spare) in enumerate(zip(deployment.plan.stages, standbys, strict=True)):
        gone = tuple(device for device in stage.devices if device in lost)
        left = tuple(device for device in stage.devices if device not in lost)
        if gone and not left:
            able = [node for node in spare if node not in lost]
            if not able:
                return None
            taking = min(able, key=lambda node: (load.get(node, 0), spare.index(node)))
            load[taking] = load.get(taking, 0) + 1
            left = (taking,)
            moves.append(f"stage {index} moved from {_name(gone[0], names)} to {_name(taking, names)}")
        elif gone:
            moves.append(f"stage {index} goes on without {_name(gone[0], names)}")
        stages.append(replace(stage, devices=left))
        waiting.append((*(node for node in spare if node not in left), *gone)[-MAX_STANDBYS:])
    plan = replace(deployment.plan, stages=tuple(stages))
    fence = Fence(deployment.fence.term, deployment.fence.generation + 1)
    return replace(deployment, plan=plan, fence=fence, standbys=tuple(waiting), cause="; ".join(moves))


def _name(node: NodeId, names: Mapping[NodeId, str] | None) -> str:
    return (names or {}).get(node, node[:8])
