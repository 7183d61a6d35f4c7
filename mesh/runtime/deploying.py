"""Planning and putting a plan in force: the coordinator's heavy half, which needs numpy and onnx.

    read and summarise ─► measure devices and links ─► plan ─► cut ─► prove equal ─► send ─► load ─► activate

Stateless: each call works on the nodes that it is given. A deployment either becomes active on all
of its devices or is taken back from all of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from mesh.arrays import Array
from mesh.control.deployments import key_of
from mesh.control.repair import choose_standbys
from mesh.control.timing import CALL_TIMEOUT_S, DRAIN_TIMEOUT_S
from mesh.core.fleet import NodeState
from mesh.core.graph import Graph
from mesh.core.ids import DeploymentName, NodeId, Sha256
from mesh.core.plan import RAW, Deployment, Fence, Plan, PlanOptions
from mesh.core.tensor import TensorSpec
from mesh.engines import make_engine
from mesh.errors import (
    DeploymentNotFound,
    Infeasible,
    MeshError,
    ModelInvalid,
    NodeLost,
    NoNodes,
    UsageError,
    VerificationFailed,
)
from mesh.model.extract import extract
from mesh.model.read import SourceModel, read_model_bytes
from mesh.model.summarise import summarise
from mesh.planning.coding import spare_codecs
from mesh.planning.exact import plan as solve
from mesh.planning.explain import explain
from mesh.planning.predict import with_costs
from mesh.planning.problem import Infeasible as NoPlan
from mesh.planning.problem import Problem, check_options, make_problem, uncut
from mesh.planning.validate import codec_problems, problems
from mesh.runtime.codec_gate import hold_to_answers, loses, measure_change, require_small
from mesh.runtime.codec_offers import codecs_of, find_codecs
from mesh.runtime.coordinator import Progress
from mesh.runtime.costing import measure_costs
from mesh.runtime.fleet import Answered
from mesh.runtime.measure import MEMORY_FACTOR
from mesh.runtime.proving import prove
from mesh.runtime.sending import send_content
from mesh.runtime.supervise import carry_through, together
from mesh.storage.cost_store import CostStore

PROBE_WAIT_S = 30.0
"""A node that has just started may still be measuring itself; a slow board takes that long."""

PROBE_POLL_S = 0.2

TAKE_BACK_ASK_S = 1.0
"""For a node to say what it holds. Short: one of them is the reason for asking, and has been waited for already."""

TAKE_BACK_LIMIT_S = CALL_TIMEOUT_S + 2 * DRAIN_TIMEOUT_S
"""All nodes at once: each is asked what it holds, and may then finish what is in flight."""


@dataclass(frozen=True, slots=True)
class Planned:
    model: SourceModel
    graph: Graph
    plan: Plan
    whole: Plan | None = None
    """Without cuts, for when those of `plan` cannot be proven; None where whoever asked wants the cuts."""
    problem: Problem | None = None
    """What `plan` answers; kept to hold the plan against, and to plan again."""
    is_held: bool = False
    """Whether what its codecs do to the answers has been measured, and is allowed."""

    def given_up_for(self, whole: Plan) -> Planned:
        """`whole` instead, after the cuts of `plan` could not be proven: what replaces it later has none either."""
        problem = None if self.problem is None else uncut(self.problem)
        return replace(self, plan=whole, whole=None, problem=problem)


# Planning -----------------------------------------------------------------------------------------


async def make_plan(
    nodes: Sequence[Answered], data: bytes, options: PlanOptions, store: CostStore, progress: Progress
) -> Planned:
    """Plan the model in `data` on `nodes`; what `store` does not know is measured.

    Raises `ModelError`s, `Infeasible`, `NoNodes`, `NodeLost`.
    """
    model = await asyncio.to_thread(read_model_bytes, data)
    graph = await asyncio.to_thread(summarise, model)
    progress(f"{len(graph.groups)} operator groups, {len(graph.cuts) - 2} places to cut")
    check_options(options, {node.view.capabilities.node_id: node.view.capabilities.name for node in nodes})
    nodes = await _await_probes(_chosen(nodes, options), progress)
    if options.stages is not None and options.stages > len(nodes):
        raise Infeasible(f"{options.stages} stages need {options.stages} devices, there are {len(nodes)}")
    costs = await measure_costs(nodes, model, graph, options, store, progress)
    names = {node.view.capabilities.node_id: node.view.capabilities.name for node in nodes}
    devices = tuple(costs.devices)
    told = [node.view.capabilities for node in nodes]
    watts = {each.node_id: each.watts for each in told if each.watts is not None}
    codecs = await find_codecs(told, model, graph, options.limits.codecs, progress, needed=codecs_of(options.forced))
    if options.forced is not None:
        permitted = options.forced.limits
        limits = replace(options.limits, codecs=permitted.codecs, answer_change=permitted.answer_change)
        wishes = replace(options, forced=None, limits=limits)
        problem = make_problem(graph, costs, wishes, names, watts, codecs)
        wrong = problems(options.forced, graph, devices) or codec_problems(options.forced, problem.space)
        if wrong:
            raise UsageError(f"the plan cannot be carried out: {'; '.join(wrong)}")
        forced = replace(with_costs(options.forced, graph, costs, problem.space), forced=True)
        return Planned(model, graph, forced, problem=problem)
    problem = make_problem(graph, costs, options, names, watts, codecs)
    answer = await asyncio.to_thread(solve, problem)
    if isinstance(answer, NoPlan):
        raise answer.as_error()
    found = answer
    if codecs:
        found, problem = await hold_to_answers(model, graph, problem, spare_codecs(answer, problem), progress)
    if options.explain:
        found = replace(found, explanation=await asyncio.to_thread(explain, problem, found))
    whole = None
    if len(found.stages) > 1 and options.stages is None:
        alone = await asyncio.to_thread(solve, uncut(problem))
        whole = None if isinstance(alone, NoPlan) else alone
    return Planned(model, graph, found, whole, problem, is_held=True)


def _chosen(nodes: Sequence[Answered], options: PlanOptions) -> list[Answered]:
    """The nodes that may be used; what is excluded is not even measured."""
    known = {node.view.capabilities.node_id: node for node in nodes}
    limits = options.limits
    wanted = options.forced.devices if options.forced is not None else ()
    pinned = (*wanted, *([limits.head] if limits.head is not None else ()))
    missing = [device for device in pinned if device not in known]
    if not missing and limits.only and not any(device in known for device in limits.only):
        missing = list(limits.only)
    if missing:
        raise NoNodes(f"nodes {', '.join(device[:8] for device in missing)} are asked for and do not answer")
    chosen = [known[device] for device in wanted] if wanted else list(nodes)
    left = [node for node in chosen if limits.allows(node.view.capabilities.node_id)]
    if not left:
        raise Infeasible("every node that answers is excluded")
    return left


async def _await_probes(nodes: Sequence[Answered], progress: Progress) -> list[Answered]:
    """Wait for nodes that are measuring themselves; leave out those that cannot run models."""
    ready: list[Answered] = []
    deadline = asyncio.get_running_loop().time() + PROBE_WAIT_S
    for node in nodes:
        name = node.view.capabilities.name
        capabilities = node.view.capabilities
        if capabilities.state is NodeState.MEASURING:
            progress(f"{name} is measuring itself")
        while capabilities.state is NodeState.MEASURING and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(PROBE_POLL_S)
            capabilities = await node.client.get_capabilities()
        if capabilities.state is not NodeState.READY:
            progress(f"{name} is left out: it is {capabilities.state.value}")
        elif not capabilities.can_run:
            details = "; ".join(provider.detail for provider in capabilities.providers if provider.detail)
            progress(f"{name} is left out: it cannot run models ({details or 'no execution provider'})")
        else:
            ready.append(replace(node, view=replace(node.view, capabilities=capabilities)))
    if not ready:
        raise Infeasible("no node can run models now")
    return ready


# Putting in force ---------------------------------------------------------------------------------


async def activate(
    nodes: Sequence[Answered],
    planned: Planned,
    name: DeploymentName,
    fence: Fence,
    progress: Progress,
    feeds: Mapping[str, Array] | None = None,
    cause: str = "",
) -> Deployment:
    """Cut, prove, send, load and activate. Raises what went wrong, after taking everything back.

    `feeds` are what the proof runs on, made up where None. Cuts that cannot be proven are given up for
    `planned.whole` where there is one. `cause` is why an older generation is replaced.
    """
    plan, parts = await _cut_and_prove(planned, progress, feeds)
    by_id = {node.view.capabilities.node_id: node for node in nodes}
    for device in plan.devices:
        if device not in by_id:
            raise NodeLost(f"node {device[:8]} went away while the model was planned for it", hint="deploy it again")
    allowed = [node for node in nodes if plan.limits.allows(node.view.capabilities.node_id)]
    standbys = choose_standbys(
        plan, [_able(allowed, len(parts[sha256]), plan, index) for index, sha256 in enumerate(_contents(plan))]
    )
    devices = dict.fromkeys((*plan.devices, *(node for spare in standbys for node in spare)))
    deployment = Deployment(
        name=name,
        fence=fence,
        plan=plan,
        inputs=planned.model.inputs,
        outputs=planned.graph.outputs,
        boundaries=_boundaries(planned.model, planned.graph, plan),
        addresses={device: by_id[device].view.address for device in devices},
        standbys=standbys,
        cause=cause,
    )
    stages = [
        (by_id[device], sha256)
        for stage, sha256 in zip(plan.stages, _contents(plan), strict=True)
        for device in stage.devices
    ]
    try:
        progress("sending segments")
        await together(send_content(node, sha256, parts[sha256]) for node, sha256 in stages)
        # At least one node keeps the whole model, so that a new plan never depends on who deployed it.
        await send_content(stages[0][0], planned.model.sha256, planned.model.data)
        progress("loading")
        await together(node.client.prepare(deployment) for node, _ in stages)
        for node, _ in reversed(stages):  # tail first: an active stage can always send on
            await node.client.activate(key_of(deployment))
        await _cache_ahead(by_id, deployment, parts, progress)
    except BaseException as error:  # also when whoever asked goes away: nothing may be left half done
        left = await _take_back([node for node, _ in stages], deployment)
        if isinstance(error, MeshError):
            error.hint = "; ".join(filter(None, [error.hint, left]))
        raise
    return deployment


def _contents(plan: Plan) -> list[Sha256]:
    """Of each stage, in running order; for a plan whose segments have been cut."""
    return [stage.segment.sha256 for stage in plan.stages if stage.segment.sha256 is not None]


def _able(nodes: Sequence[Answered], size_bytes: int, plan: Plan, stage: int) -> list[NodeId]:
    """Nodes that can run models, have the memory and the disk for a segment of `size_bytes`, and speak the codecs of
    the edges into and out of `stage`."""
    spoken = plan.codecs_at(stage)
    return [
        told.node_id
        for told in (node.view.capabilities for node in nodes)
        if told.state is NodeState.READY
        and told.can_run
        and told.memory_available_bytes >= MEMORY_FACTOR * size_bytes
        and told.disk_available_bytes >= size_bytes
        and spoken <= {RAW, *(codec.name for codec in told.codecs)}
    ]


async def _cache_ahead(
    by_id: Mapping[NodeId, Answered], deployment: Deployment, parts: Mapping[Sha256, bytes], progress: Progress
) -> None:
    """Send each segment to its first stand-by. The deployment is in force without that, so what fails is only told."""
    for spare, sha256 in zip(deployment.standbys, _contents(deployment.plan), strict=True):
        for node in spare[:1]:
            try:
                await send_content(by_id[node], sha256, parts[sha256])
            except MeshError as error:
                progress(f"{by_id[node].view.capabilities.name} is no stand-by yet: {error.message}")


async def _cut_and_prove(
    planned: Planned, progress: Progress, feeds: Mapping[str, Array] | None
) -> tuple[Plan, dict[Sha256, bytes]]:
    plan, parts = await asyncio.to_thread(_cut, planned)
    if len(plan.stages) == 1:
        return plan, parts
    progress(f"proving that {len(plan.stages)} segments equal the whole")
    try:
        await asyncio.to_thread(_prove, planned, plan, feeds)
    except (ModelInvalid, VerificationFailed) as error:
        if planned.whole is None:
            raise
        progress(f"not cut, but whole on one device: {error}")
        return await asyncio.to_thread(_cut, planned.given_up_for(planned.whole))
    return plan, parts


def _cut(planned: Planned) -> tuple[Plan, dict[Sha256, bytes]]:
    parts: dict[Sha256, bytes] = {}
    stages = []
    for stage in planned.plan.stages:
        data = extract(planned.model, planned.graph, stage.segment)
        sha256 = Sha256(hashlib.sha256(data).hexdigest())
        parts[sha256] = data
        stages.append(replace(stage, segment=replace(stage.segment, sha256=sha256)))
    return replace(planned.plan, stages=tuple(stages), explanation=None), parts


def _prove(planned: Planned, plan: Plan, feeds: Mapping[str, Array] | None) -> None:
    engine, model, graph = make_engine(), planned.model, planned.graph
    prove(engine, model, graph, [stage.segment for stage in plan.stages], feeds).require()
    if loses(plan) and not planned.is_held:
        require_small(measure_change(engine, model, graph, plan.stages, feeds), plan.limits.answer_change)


def _boundaries(model: SourceModel, graph: Graph, plan: Plan) -> tuple[tuple[TensorSpec, ...], ...]:
    inner = [
        tuple(graph.specs[name] for name in graph.cut_at[stage.segment.start].tensors) for stage in plan.stages[1:]
    ]
    return (model.inputs, *inner, graph.outputs)


async def _take_back(nodes: Sequence[Answered], deployment: Deployment) -> str:
    """Remove what was prepared; returns in words what could not be removed. Not stopped by a cancellation."""

    async def take_back() -> list[str]:
        return await asyncio.gather(*(_take_back_from(node, deployment) for node in nodes))

    try:
        left = await carry_through(take_back(), TAKE_BACK_LIMIT_S)
    except TimeoutError:
        return f"generation {deployment.fence} may still be on some nodes"
    return "; ".join(filter(None, left))


async def _take_back_from(node: Answered, deployment: Deployment) -> str:
    key = key_of(deployment)
    try:
        await node.client.list_deployments(deployment.name, TAKE_BACK_ASK_S)  # whether it answers at all
        # Whatever it holds by now: a preparation that was cancelled here may just be beginning there.
        with contextlib.suppress(DeploymentNotFound):
            await node.client.drain(key)
    except MeshError as error:
        return f"{node.view.capabilities.name} may still hold its part: {error.message}"
    return ""
