"""The coordinator: the fleet's view, status, deploy and undeploy. In a daemon, or inside one command.

Nodes are the truth. A coordinator keeps nothing that it could not ask the nodes again: each node
stores the whole of every deployment that it is part of. Its death stops no stream, and two of them
are told apart by the nodes' fences.

Planning and deploying need numpy and onnx; they are imported when first asked for, so that a sensor
client can use the rest without them.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Protocol

from mesh.control.generations import DeploymentState, Key, key_of
from mesh.core.ids import DeploymentName, check_name
from mesh.core.plan import Deployment, Fence, Plan, PlanOptions
from mesh.core.report import DeploymentReport, Happening, NodeView
from mesh.errors import DeploymentNotFound, MeshError, MissingExtra, NoNodes
from mesh.runtime.fleet import Answered, Fleet
from mesh.runtime.supervise import carry_through, together
from mesh.storage.cost_store import CostStore, open_shared

if TYPE_CHECKING:
    from mesh.runtime.deploying import Planned

Progress = Callable[[str], None]
"""Told in words what is going on; called on the event loop."""

NO_NODES_HINT = "start one with `mesh node`, or name one with --peer HOST:PORT where multicast does not reach"

RETIRE_LIMIT_S = 60.0
"""To remove what a new generation has replaced; each device may take 10 s to finish what is in flight."""

MAX_TOLD = 50
"""Happenings per deployment that a coordinator remembers itself, besides those of the nodes."""

STATE_ORDER = (
    DeploymentState.FAILED,
    DeploymentState.GONE,
    DeploymentState.DRAINING,
    DeploymentState.PREPARING,
    DeploymentState.LOADING,
    DeploymentState.READY,
    DeploymentState.ACTIVE,
)
"""From least to most advanced: a deployment is as far as its last stage."""


class CoordinatorPort(Protocol):
    """What commands and clients ask of a coordinator, wherever it runs."""

    async def list_nodes(self) -> list[NodeView]: ...

    async def plan(self, model: bytes, options: PlanOptions, progress: Progress) -> Plan: ...

    async def deploy(self, model: bytes, name: str, options: PlanOptions, progress: Progress) -> Deployment: ...

    async def status(self, name: str = "") -> list[DeploymentReport]: ...

    async def resolve(self, name: str) -> Deployment: ...

    async def undeploy(self, name: str) -> None: ...


class Coordinator:
    """Works on a fleet that somebody else opened and closes."""

    def __init__(self, fleet: Fleet, costs: CostStore | Path | None = None) -> None:
        """`costs`: what was measured before, or the file of it that is shared with other processes and opened when
        first planned; without it, what this coordinator measures is kept while it lives."""
        self._fleet = fleet
        self._costs = costs if costs is not None else CostStore()
        self._working = asyncio.Lock()
        self._planned: dict[DeploymentName, tuple[Fence, Planned]] = {}
        self._told: dict[str, deque[Happening]] = {}

    async def list_nodes(self) -> list[NodeView]:
        return await self._fleet.nodes()

    async def answered(self) -> list[Answered]:
        """Nodes that answer; raises `NoNodes`."""
        found = await self._fleet.answered()
        if not found:
            raise NoNodes("no node answers", hint=NO_NODES_HINT)
        return found

    async def look(self) -> list[Answered]:
        """Nodes that answer, if any."""
        return await self._fleet.answered()

    @property
    def is_working(self) -> bool:
        """Whether a model is being planned or deployed."""
        return self._working.locked()

    async def _answered_about(self, name: str) -> list[Answered]:
        """As `answered`; if none of them holds `name`, only after everyone has had the time to answer."""
        nodes = await (self._fleet.answered_about(name) if name else self._fleet.answered())
        if not nodes or (name and not _generations(nodes, name)):
            await self._fleet.settle(patiently=True)
            nodes = await self.answered()
        return nodes

    async def plan(self, model: bytes, options: PlanOptions, progress: Progress) -> Plan:
        deploying = _load_deploying()
        async with self._turn(progress):
            costs = await self._open_costs(progress)
            plan: Plan = (await deploying.make_plan(await self.answered(), model, options, costs, progress)).plan
            return plan

    async def deploy(self, model: bytes, name: str, options: PlanOptions, progress: Progress) -> Deployment:
        """Plan, split, prove, load and activate; an older generation of `name` is drained afterwards.

        Either the new generation is active on every device of its plan, or it is on none and the old one goes on.
        """
        check_name(name, "deployment")
        deploying = _load_deploying()
        async with self._turn(progress):
            costs = await self._open_costs(progress)
            planned = await deploying.make_plan(await self.answered(), model, options, costs, progress)
            # Asked again: nodes have finished measuring themselves meanwhile, and others may have repaired what runs.
            return await self._put_in_force(await self.answered(), planned, name, "", progress)

    async def replace(self, old: Deployment, planned: Planned, cause: str, progress: Progress) -> Deployment | None:
        """Put another plan of the same model in force, beside `old` and then in its place, for the reason `cause`.

        None where `old` is no longer the newest generation: somebody else was faster.
        """
        async with self._turn(progress):
            nodes = await self.answered()
            newest = _generations(nodes, old.name)[-1:]
            if [deployment.fence for deployment in newest] != [old.fence]:
                return None
            return await self._put_in_force(nodes, planned, old.name, cause, progress)

    async def _put_in_force(
        self, nodes: Sequence[Answered], planned: Planned, name: str, cause: str, progress: Progress
    ) -> Deployment:
        """The next generation of `name`, made active on all of its devices before older ones are removed."""
        deploying = _load_deploying()
        fence = _next_fence(nodes, DeploymentName(name))
        deployment: Deployment = await deploying.activate(
            nodes, planned, DeploymentName(name), fence, progress, cause=cause
        )
        if len(deployment.plan.stages) < len(planned.plan.stages):
            planned = planned.given_up_for(deployment.plan)
        self._planned[deployment.name] = (deployment.fence, planned)
        await carry_through(self._retire(nodes, _generations(nodes, name), progress), RETIRE_LIMIT_S)
        return deployment

    def planned(self, name: DeploymentName) -> tuple[Fence, Planned] | None:
        """What this coordinator last put in force under `name`; None where it was somebody else."""
        return self._planned.get(name)

    def tell(self, name: str, text: str) -> None:
        """Note something for people who ask for the status of `name`."""
        self._told.setdefault(name, deque(maxlen=MAX_TOLD)).append(Happening(time.time(), text))

    async def _open_costs(self, progress: Progress) -> CostStore:
        if isinstance(self._costs, CostStore):
            return self._costs
        costs, told = await asyncio.to_thread(open_shared, self._costs)
        self._costs = costs
        if told:
            progress(told)
        return costs

    @contextlib.asynccontextmanager
    async def _turn(self, progress: Progress) -> AsyncIterator[None]:
        """One at a time: measuring two at once would measure each other."""
        if self._working.locked():
            progress("waiting until another model has been planned")
        async with self._working:
            yield

    async def _retire(self, nodes: Sequence[Answered], generations: Sequence[Deployment], progress: Progress) -> None:
        """Remove what a new generation has replaced. It is in force whatever goes wrong here, so that is only told."""
        for old in generations:
            try:
                async with asyncio.timeout(RETIRE_LIMIT_S / (len(generations) + 1)):
                    await self._drain(nodes, old)
            except TimeoutError:
                progress(f"generation {old.fence} of {old.name!r} is still being removed")
            except MeshError as error:
                progress(f"generation {old.fence} of {old.name!r} is not removed everywhere: {error}")

    async def status(self, name: str = "") -> list[DeploymentReport]:
        """The newest generation of each deployment; raises `DeploymentNotFound` where `name` is none."""
        if name:
            check_name(name, "deployment")
        nodes = await self._answered_about(name)
        names = sorted({report.deployment.name for node in nodes for report in node.deployments})
        if name and name not in names:
            raise await self._not_found(name, names)
        return [_merge(nodes, found, self._told.get(found, ())) for found in names if not name or found == name]

    async def _not_found(self, name: str, names: Sequence[str]) -> DeploymentNotFound:
        silent = [view.capabilities.name for view in await self._fleet.nodes() if view.is_lost]
        if silent:
            told = f"there is no deployment {name!r} on the nodes that answer; no answer from {', '.join(silent)}"
            return DeploymentNotFound(told, hint="a node that is away may hold it; see `mesh nodes`")
        return DeploymentNotFound(f"there is no deployment {name!r}", hint=_known(names))

    async def resolve(self, name: str) -> Deployment:
        """Where the newest generation of `name` runs; raises `DeploymentNotFound`."""
        check_name(name, "deployment")
        (report,) = await self.status(name)
        return report.deployment

    async def undeploy(self, name: str) -> None:
        check_name(name, "deployment")
        nodes = await self.answered()
        if not _generations(nodes, name):
            nodes = await self._answered_about(name)
        generations = _generations(nodes, name)
        if not generations:
            names = sorted({report.deployment.name for node in nodes for report in node.deployments})
            raise await self._not_found(name, names)
        for deployment in generations:
            await self._drain(nodes, deployment)
        self._planned.pop(DeploymentName(name), None)
        self._told.pop(name, None)

    async def _drain(self, nodes: Sequence[Answered], deployment: Deployment) -> None:
        """All at once: each stage works until its streams have ended, and tells clients to move on."""
        key = key_of(deployment)
        holders = [node for node in nodes if _holds(node, key)]
        await together(node.client.drain(key) for node in holders)


def _load_deploying() -> ModuleType:
    try:
        from mesh.runtime import deploying
    except ImportError as error:
        raise MissingExtra(
            f"planning needs the package {error.name!r}, which is not installed here",
            hint="install the extra infermesh[coordinator]: pip install '.[coordinator]' in a clone, "
            "or name a running coordinator with --coordinator HOST:PORT",
        ) from None
    return deploying


def _holds(node: Answered, key: Key) -> bool:
    return any(key_of(report.deployment) == key for report in node.deployments)


def _generations(nodes: Sequence[Answered], name: str) -> list[Deployment]:
    """Every generation of `name` that some node holds, oldest first."""
    found = {
        key_of(report.deployment): report.deployment
        for node in nodes
        for report in node.deployments
        if report.deployment.name == name
    }
    return [found[key] for key in sorted(found, key=lambda key: key.fence)]


def _next_fence(nodes: Sequence[Answered], name: DeploymentName) -> Fence:
    """Above everything that any node has seen.

    A term of its own, because generations that were removed or taken back count only in the nodes' highest term.
    """
    term = max((node.highest_term for node in nodes), default=0)
    generations = [deployment.fence.generation for deployment in _generations(nodes, name)]
    return Fence(term + 1, max(generations, default=0) + 1)


def _known(names: Sequence[str]) -> str:
    return f"there are: {', '.join(names)}" if names else "nothing is deployed; see `mesh deploy`"


def _merge(nodes: Sequence[Answered], name: str, told: Iterable[Happening]) -> DeploymentReport:
    """One report from those of all its nodes, and what the coordinator itself has `told` of it."""
    deployment = _generations(nodes, name)[-1]
    key = key_of(deployment)
    by_id = {node.view.capabilities.node_id: node for node in nodes}
    reports: list[DeploymentReport] = []
    reasons: list[str] = []
    for device in deployment.plan.devices:
        node = by_id.get(device)
        held = [r for r in node.deployments if key_of(r.deployment) == key] if node is not None else []
        reports.extend(held)
        if node is None:
            reasons.append(f"node {device[:8]} at {deployment.addresses[device]} does not answer")
        elif not held:
            reasons.append(f"node {node.view.capabilities.name} no longer holds its stage")
        elif node.view.address != deployment.addresses[device]:
            moved = f"{deployment.addresses[device]} to {node.view.address}"
            reasons.append(f"node {node.view.capabilities.name} has moved from {moved}; deploy the model again")
    reasons.extend(report.reason for report in reports if report.reason)
    states = [DeploymentState(report.state) for report in reports]
    state = DeploymentState.FAILED if reasons else min(states, key=STATE_ORDER.index)
    of_nodes = (happening for report in reports for happening in report.happenings)
    happenings = sorted((*of_nodes, *told), key=lambda happening: happening.time)
    stages = tuple(sorted((s for report in reports for s in report.stages), key=lambda stage: stage.stage))
    merged = replace(reports[0], state=state.value, reason="; ".join(reasons), stages=stages)
    return replace(merged, happenings=tuple(happenings))
