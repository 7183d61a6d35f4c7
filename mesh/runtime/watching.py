"""Holds what runs against what was predicted, and puts a better plan in force: the coordinator daemon's watch.

    look at all nodes ─► per deployment: ─┬─ lost device, or repaired by a client ─► improve ─┐
                                          ├─ a device came back ─────────────────► improve ─┼─► replace, or tell
                                          └─ same as before ─► watch ─► verify ───────────┘

The decisions are pure (`mesh.planning.verifying`, `mesh.planning.replanning`); this performs them, one look after the
other, in one task of the daemon. It keeps soft state only: what a restarted daemon does not remember of a deployment it
reads from the nodes, which hold the plan and the whole model, and from its store of costs. Streams need no watch: they
are repaired by their clients, and move to whatever generation is put in force here.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from mesh.control.deployments import DeploymentState, key_of
from mesh.core.costs import Costs, DeviceType, type_of
from mesh.core.ids import DeploymentName, NodeId, Sha256
from mesh.core.plan import Deployment, Plan, PlanOptions
from mesh.core.report import StageReport
from mesh.errors import MeshError, ModelInvalid, UsageError, VerificationFailed
from mesh.model.read import SourceModel, read_model_bytes
from mesh.model.summarise import summarise
from mesh.planning.doubting import Pair, judge_links, links_in_doubt, links_to_prove
from mesh.planning.problem import Problem, make_problem, uncut
from mesh.planning.replanning import SLACK, Improved, improve, moved_bytes, price
from mesh.planning.verifying import (
    MARGIN,
    PAUSE_S,
    CorrectCosts,
    Keep,
    Replan,
    RollBack,
    Watched,
    verify,
    watch,
)
from mesh.runtime.codec_offers import codecs_of, find_codecs
from mesh.runtime.coordinator import Coordinator
from mesh.runtime.costing import costs_from_store
from mesh.runtime.deploying import Planned
from mesh.runtime.fleet import Answered
from mesh.runtime.memory_costs import keep_stage_memory
from mesh.storage.cost_store import CostStore

LOOK_INTERVAL_S = 1.0
"""A stage's own mean covers ten frames; a second of looks to notice with costs each node two small calls."""

MISSING_S = 3.0
"""A device that does not answer is waited for so long before its deployment goes on without it: clients that stream
repair sooner, and others may have seen it restart."""

REJOIN_S = 10.0
"""A device that came back must have been there for so long before it is planned with: one that comes and goes would
take the streams along each time."""

FAILED_PAUSE_S = 300.0
"""After a change that could not be put in force."""

SAME_SPEED = 0.25
"""Devices of one type that are off their costs alike, within so much, correct those of the type; one alone is special,
and what it does is not told of the others."""


@dataclass(slots=True)
class _Known:
    """What the watch knows of one deployment; of its newest generation, except for the problem."""

    deployment: Deployment
    model: SourceModel
    problem: Problem
    watched: Watched = field(default_factory=Watched)
    quiet_until: float = 0.0
    """In the watch's clock: no change before."""
    members: frozenset[NodeId] = frozenset()
    """Devices of the problem that answered when the plan was last thought about."""
    changed_at: float | None = None
    """Since when others answer than these."""
    is_told_losing: bool = False
    are_links_checked: bool = False
    """Whether the links of this generation were measured again: that takes some of what streams could use."""


class Watch:
    """`run` for as long as the daemon lives. Not for several tasks at once."""

    def __init__(self, coordinator: Coordinator, store: CostStore) -> None:
        self._coordinator = coordinator
        self._store = store
        self._known: dict[DeploymentName, _Known] = {}
        self._untold: dict[DeploymentName, str] = {}

    async def run(self) -> None:
        while True:
            await asyncio.sleep(LOOK_INTERVAL_S)
            if not self._coordinator.is_working:
                await self.look()

    async def look(self) -> None:
        """One look at everything that runs."""
        nodes = await self._coordinator.look()
        newest: dict[DeploymentName, Deployment] = {}
        for node in nodes:
            for report in node.deployments:
                known = newest.get(report.deployment.name)
                is_active = report.state == DeploymentState.ACTIVE.value
                if is_active and (known is None or known.fence < report.deployment.fence):
                    newest[report.deployment.name] = report.deployment
        self._known = {name: known for name, known in self._known.items() if name in newest}
        for deployment in newest.values():
            try:
                await self._look_at(deployment, nodes)
            except MeshError as error:
                self._tell_once(deployment.name, f"could not be held against its plan: {error.message}")

    async def _look_at(self, deployment: Deployment, nodes: Sequence[Answered]) -> None:
        now = time.monotonic()
        known = await self._recall(deployment, nodes)
        if known is None:
            return
        there = frozenset(n.view.capabilities.node_id for n in nodes).intersection(known.problem.devices)
        is_repaired = known.deployment.fence != deployment.fence
        known.deployment = deployment
        if is_repaired:
            known.watched, known.are_links_checked = Watched(), False
        if there != known.members or is_repaired:
            await self._reconsider(known, there, nodes, is_repaired, now)
            return
        known.changed_at = None
        reports = _reports(deployment, nodes)
        problem = _among(known.problem, there)
        known.watched = watch(known.watched, problem, deployment.plan, reports)
        if keep_stage_memory(self._store, problem.graph, deployment.plan, reports, _types(nodes)):
            await asyncio.to_thread(self._store.save)
        pause_s = PAUSE_S if now >= known.quiet_until else 0.0
        if pause_s and (any(track.off for track in known.watched.tracks.values()) or known.watched.losing):
            await self._verify(known, problem, pause_s, nodes)
        elif pause_s and not known.are_links_checked:
            doubted = links_in_doubt(known.watched, problem, deployment.plan, reports)
            if doubted:
                known.are_links_checked = True
                await self._check_links(known, problem, doubted, nodes)

    async def _recall(self, deployment: Deployment, nodes: Sequence[Answered]) -> _Known | None:
        """What is known of `deployment`, or can be found out without disturbing anybody; None where it cannot."""
        known = self._known.get(deployment.name)
        remembered = self._coordinator.planned(deployment.name)
        if remembered is not None and remembered[0] == deployment.fence and remembered[1].problem is not None:
            if known is None or known.deployment.fence != deployment.fence:
                planned, problem = remembered[1], remembered[1].problem
                known = _Known(deployment, planned.model, problem, members=frozenset(problem.devices))
                self._known[deployment.name] = known
            return known
        if known is not None and known.deployment.fence.term == deployment.fence.term:
            return known  # the same generation, or a client's repair of it
        found = await self._learn(deployment, nodes)
        if found is not None:
            self._known[deployment.name] = found
        return found

    async def _learn(self, deployment: Deployment, nodes: Sequence[Answered]) -> _Known | None:
        """A deployment of before this daemon's time, from what its nodes hold and the store knows."""
        named = {n.view.capabilities.node_id: n for n in nodes if n.view.capabilities.node_id in deployment.addresses}
        sha256 = deployment.plan.model_sha256
        data = await _read_model(list(named.values()), sha256)
        if data is None:
            self._tell_once(deployment.name, "is not held against its plan: no node holds the whole model")
            return None
        model = await asyncio.to_thread(read_model_bytes, data)
        graph = await asyncio.to_thread(summarise, model)
        told = {node: answered.view.capabilities for node, answered in named.items()}
        try:
            costs = costs_from_store(self._store, graph, told)
        except UsageError as error:
            self._tell_once(deployment.name, f"is not held against its plan: {error.message}")
            return None
        names = {node: capabilities.name for node, capabilities in told.items()}
        options = PlanOptions(deployment.plan.objective, limits=deployment.plan.limits, variant=deployment.plan.variant)
        limits, needed = deployment.plan.limits, codecs_of(deployment.plan)
        tell = partial(self._tell_once, deployment.name)
        codecs = await find_codecs(told.values(), model, graph, limits.codecs, tell, needed=needed)
        watts = {node: capabilities.watts for node, capabilities in told.items() if capabilities.watts is not None}
        problem = make_problem(graph, costs, options, names, watts, codecs)
        return _Known(deployment, model, problem, members=frozenset(problem.devices))

    # Membership -----------------------------------------------------------------------------------

    async def _reconsider(
        self, known: _Known, there: frozenset[NodeId], nodes: Sequence[Answered], is_repaired: bool, now: float
    ) -> None:
        """Other devices answer than before, or a client has repaired the deployment: is there a better plan now?"""
        if known.changed_at is None:
            known.changed_at = now
        is_broken = any(device not in there for device in known.deployment.plan.devices)
        if not is_repaired and now - known.changed_at < (MISSING_S if is_broken else REJOIN_S):
            return
        lost = [known.problem.name_of(device) for device in known.problem.devices if device not in there]
        known.members, known.changed_at = there, None
        if known.deployment.plan.forced or not there:
            return
        problem = _among(known.problem, there)
        plan = known.deployment.plan
        holdings = await self._holdings(known, nodes)
        began = time.perf_counter()
        improved = await asyncio.to_thread(improve, problem, plan.stages, holdings)
        seconds = time.perf_counter() - began
        if improved is None:
            self._coordinator.tell(known.deployment.name, f"no plan is possible without {', '.join(lost)}")
            return
        improved = _insist(problem, plan, improved, holdings)
        before = price(problem, plan.stages)
        if price(problem, improved.plan.stages) > before * (1 - MARGIN):
            self._coordinator.tell(
                known.deployment.name, f"the plan stays: no other is {MARGIN:.0%} better on the devices that answer"
            )
            return
        what = f"without {', '.join(lost)}" if lost else "with every device back"
        cause = f"{what}: {_describe(problem, plan, improved)}, planned in {seconds * 1e3:.0f} ms"
        self._coordinator.tell(known.deployment.name, f"improved plan: {cause}")
        await self._replace(known, problem, improved, cause)

    # Verification ---------------------------------------------------------------------------------

    async def _verify(self, known: _Known, problem: Problem, pause_s: float, nodes: Sequence[Answered]) -> None:
        plan = known.deployment.plan
        holdings = await self._holdings(known, nodes)
        verdict = await asyncio.to_thread(verify, known.watched, problem, plan, holdings, pause_s)
        if isinstance(verdict, Keep):
            return
        if not verdict.factors and plan.forced:
            if not known.is_told_losing:
                self._coordinator.tell(known.deployment.name, verdict.reason)
            known.is_told_losing = True
            return
        await self._store_costs(known, verdict, nodes)
        await self._follow(known, problem, verdict, bool(verdict.factors))

    async def _check_links(
        self, known: _Known, problem: Problem, doubted: Mapping[Pair, float], nodes: Sequence[Answered]
    ) -> None:
        """Measure links again beside the frames that they carry, and put what is found in the place of what was."""
        by_id = {node.view.capabilities.node_id: node for node in nodes}
        plan, holdings = known.deployment.plan, await self._holdings(known, nodes)
        measured: dict[Pair, float] = {}
        verdict: Keep | CorrectCosts = Keep()
        to_measure = list(doubted)
        while to_measure:
            for source, target in to_measure:
                link = await by_id[source].client.measure_link(by_id[target].view.address)
                measured[source, target] = link.bytes_per_second + doubted.get((source, target), 0.0)
            verdict = await asyncio.to_thread(judge_links, known.watched, problem, plan, measured, holdings)
            to_measure = links_to_prove(verdict, measured)
        if isinstance(verdict, Keep):
            return
        for pair in measured:
            if verdict.costs.link(*pair) != problem.costs.link(*pair):
                stored = self._store.link(*pair)
                link = verdict.costs.link(*pair) if stored is None else stored.as_link()
                link = replace(link, bytes_per_second=verdict.costs.link(*pair).bytes_per_second)
                self._store.put_link(*pair, link, time.time())
        await asyncio.to_thread(self._store.save)
        await self._follow(known, problem, verdict, True)

    async def _follow(self, known: _Known, problem: Problem, verdict: CorrectCosts, is_told: bool) -> None:
        """Believe the costs of `verdict` from now on, and put its plan in force where it has one."""
        devices = {**known.problem.costs.devices, **verdict.costs.devices}
        links = {**known.problem.costs.links, **verdict.costs.links}
        known.problem = replace(known.problem, costs=Costs(devices, links))
        known.watched = Watched()
        if is_told:
            self._coordinator.tell(known.deployment.name, f"costs corrected: {verdict.reason}")
        if isinstance(verdict, Replan | RollBack):
            word = "rolled back" if isinstance(verdict, RollBack) else "planned again"
            cause = f"{word}: {verdict.reason}; {_moved(problem, verdict.improved)}"
            await self._replace(known, _among(known.problem, known.members), verdict.improved, cause)

    async def _store_costs(self, known: _Known, verdict: CorrectCosts, nodes: Sequence[Answered]) -> None:
        """What the stages took becomes what is expected of such devices, where all of a type agree."""
        types = _types(nodes)
        by_type: dict[DeviceType, list[float]] = {}
        for device, factor in verdict.factors.items():
            if device in types:
                by_type.setdefault(types[device], []).append(factor)
        for stage in known.deployment.plan.stages:
            for device in stage.devices:
                factors = by_type.get(types[device], []) if device in types else []
                if device not in verdict.factors or max(factors) > min(factors) * (1 + SAME_SPEED):
                    continue
                seconds = verdict.costs.compute(device, stage.segment.start, stage.segment.end).seconds
                if stage.segment.sha256 is not None and seconds > 0:
                    model = known.problem.graph.model_sha256
                    self._store.put_segment(model, stage.segment, types[device], seconds, time.time())
        await asyncio.to_thread(self._store.save)

    # Acting ---------------------------------------------------------------------------------------

    async def _replace(self, known: _Known, problem: Problem, improved: Improved, cause: str) -> None:
        name = known.deployment.name
        planned = Planned(known.model, problem.graph, improved.plan, problem=known.problem)
        try:
            replaced = await self._coordinator.replace(known.deployment, planned, cause, _ignore)
        except (ModelInvalid, VerificationFailed) as error:  # as when it was deployed; a daemon before this one knew
            known.problem = uncut(known.problem)
            self._coordinator.tell(name, f"{cause}; its cuts cannot be proven and are not tried again: {error}")
            return
        except MeshError as error:
            known.quiet_until = time.monotonic() + FAILED_PAUSE_S
            self._coordinator.tell(name, f"{cause}; this could not be put in force: {error}")
            return
        if replaced is not None:
            members = frozenset(problem.devices)
            after = _Known(replaced, known.model, known.problem, members=members)
            after.quiet_until = time.monotonic() + PAUSE_S
            self._known[name] = after

    async def _holdings(self, known: _Known, nodes: Sequence[Answered]) -> dict[NodeId, set[str]]:
        """Weights that each node holds as contents: parts of the plan in force, and whole models."""
        graph, plan = known.problem.graph, known.deployment.plan
        contents: dict[str, set[str]] = {graph.model_sha256: set(graph.weight_bytes)}
        for stage in plan.stages:
            if stage.segment.sha256 is not None:
                groups = graph.groups[stage.segment.start : stage.segment.end]
                contents[stage.segment.sha256] = {name for group in groups for name in group.weights}
        asked = [Sha256(sha256) for sha256 in contents]

        async def ask(node: Answered) -> tuple[NodeId, set[str]]:
            try:
                held = await node.client.has_content(asked)
            except MeshError:
                held = set()  # then everything would have to be sent to it
            return node.view.capabilities.node_id, set().union(*(contents[sha256] for sha256 in held))

        return dict(await asyncio.gather(*map(ask, nodes)))

    def _tell_once(self, name: DeploymentName, text: str) -> None:
        if self._untold.get(name) != text:
            self._untold[name] = text
            self._coordinator.tell(name, text)


def _ignore(line: str) -> None:
    """Progress of what nobody waits for; its outcome is told."""


def _types(nodes: Sequence[Answered]) -> dict[NodeId, DeviceType]:
    return {node.view.capabilities.node_id: type_of(node.view.capabilities) for node in nodes}


def _reports(deployment: Deployment, nodes: Sequence[Answered]) -> list[StageReport]:
    key = key_of(deployment)
    return [
        stage for node in nodes for report in node.deployments if key_of(report.deployment) == key
        for stage in report.stages
    ]  # fmt: skip


def _among(problem: Problem, there: frozenset[NodeId]) -> Problem:
    return replace(problem, devices=tuple(device for device in problem.devices if device in there))


def _insist(problem: Problem, plan: Plan, improved: Improved, holdings: Mapping[NodeId, set[str]]) -> Improved:
    """The best plan, where the one that moves least wins too little over what runs."""
    if price(problem, improved.plan.stages) <= price(problem, plan.stages) * (1 - MARGIN):
        return improved
    optimum = improved.optimum
    return Improved(optimum, moved_bytes(problem.graph, optimum.stages, holdings), optimum)


def _describe(problem: Problem, before: Plan, improved: Improved) -> str:
    period, old = price(problem, improved.plan.stages), price(problem, before.stages)
    where = ", ".join(problem.name_of(device) for device in improved.plan.devices)
    was = f" instead of {1 / old:.3g}" if old < float("inf") else ""
    return f"{1 / period:.3g} frames/s on {where}{was}; {_moved(problem, improved)}"


def _moved(problem: Problem, improved: Improved) -> str:
    total = max(1, problem.graph.total_weight_bytes)
    share = improved.moved_bytes / total
    return f"{improved.moved_bytes} bytes of weights new to their devices ({share:.0%}, slack {SLACK:.0%})"


async def _read_model(nodes: Sequence[Answered], sha256: Sha256) -> bytes | None:
    """The whole model from whichever of `nodes` has it."""
    for node in nodes:
        try:
            if sha256 in await node.client.has_content([sha256]):
                return b"".join([chunk async for _, chunk in node.client.get_content(sha256)])
        except MeshError:
            continue  # another one may have it
    return None
