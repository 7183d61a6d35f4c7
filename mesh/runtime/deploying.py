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
from mesh.core.costs import Costs
from mesh.core.fleet import Link, NodeState
from mesh.core.graph import Graph
from mesh.core.ids import DeploymentName, NodeId, Sha256
from mesh.core.plan import Deployment, Fence, Plan, PlanOptions
from mesh.core.tensor import TensorSpec
from mesh.engines import make_engine
from mesh.errors import (
    DeploymentNotFound,
    Infeasible,
    MeshError,
    ModelInvalid,
    NodeLost,
    NoNodes,
    StorageError,
    Timeout,
    UsageError,
    VerificationFailed,
)
from mesh.model.extract import extract
from mesh.model.read import SourceModel, read_model_bytes
from mesh.model.summarise import summarise
from mesh.planning.exact import plan as solve
from mesh.planning.predict import with_costs
from mesh.planning.problem import Infeasible as NoPlan
from mesh.planning.problem import Problem
from mesh.planning.validate import problems
from mesh.runtime.coordinator import Progress
from mesh.runtime.fleet import Answered
from mesh.runtime.measure import MEMORY_FACTOR
from mesh.runtime.profiling import measure_spread
from mesh.runtime.proving import prove
from mesh.runtime.supervise import carry_through, together

MEASURE_BUDGET_S = 1.0
"""Time that each device spends running the whole model: some tens of runs of a model fit for such devices."""

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
    """On one device, for when `plan` has cuts that cannot be proven; None where whoever asked wants the cuts."""


# Planning -----------------------------------------------------------------------------------------


async def make_plan(nodes: Sequence[Answered], data: bytes, options: PlanOptions, progress: Progress) -> Planned:
    """Plan the model in `data` on `nodes`. Raises `ModelError`s, `Infeasible`, `NoNodes`, `NodeLost`."""
    model = await asyncio.to_thread(read_model_bytes, data)
    graph = await asyncio.to_thread(summarise, model)
    progress(f"{len(graph.groups)} operator groups, {len(graph.cuts) - 2} places to cut")
    nodes = await _await_probes(_chosen(nodes, options), progress)
    if options.stages is not None and options.stages > len(nodes):
        raise Infeasible(f"{options.stages} stages need {options.stages} devices, there are {len(nodes)}")
    costs = await _measure(nodes, model, graph, options, progress)
    names = {node.view.capabilities.node_id: node.view.capabilities.name for node in nodes}
    devices = tuple(costs.devices)
    if options.forced is not None:
        wrong = problems(options.forced, graph, devices)
        if wrong:
            raise UsageError(f"the plan cannot be carried out: {'; '.join(wrong)}")
        return Planned(model, graph, replace(with_costs(options.forced, graph, costs), forced=True))
    problem = Problem(graph, costs, devices, options.objective, options.stages, names=names)
    found = await asyncio.to_thread(solve, problem)
    if isinstance(found, NoPlan):
        raise found.as_error()
    whole = None
    if len(found.stages) > 1 and options.stages is None:
        alone = await asyncio.to_thread(solve, replace(problem, stages=1))
        whole = None if isinstance(alone, NoPlan) else alone
    return Planned(model, graph, found, whole)


def _chosen(nodes: Sequence[Answered], options: PlanOptions) -> list[Answered]:
    known = {node.view.capabilities.node_id: node for node in nodes}
    wanted = options.devices
    if options.forced is not None:
        wanted = options.forced.devices
    missing = [device for device in wanted if device not in known]
    if missing:
        raise NoNodes(f"nodes {', '.join(device[:8] for device in missing)} are asked for and do not answer")
    return [known[device] for device in wanted] if wanted else list(nodes)


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


async def _measure(
    nodes: Sequence[Answered], model: SourceModel, graph: Graph, options: PlanOptions, progress: Progress
) -> Costs:
    """A node that is lost meanwhile is left out, unless what is asked for cannot be had without it."""
    seconds: dict[NodeId, float | None] = {}
    needed = len(nodes) if options.forced is not None or options.devices else options.stages or 1
    for node in nodes:  # one after the other: nodes may share a machine
        capabilities = node.view.capabilities
        try:
            seconds[capabilities.node_id] = await _measure_model(node, model, progress)
        except NodeLost as error:
            if len(nodes) - 1 < needed:
                raise
            nodes = [other for other in nodes if other is not node]
            progress(f"{capabilities.name} is left out: {error}")
    links = await _measure_links(nodes, progress)
    may_cut = options.forced is None and options.stages != 1 and len(nodes) > 1
    work = await _spread(model, graph, progress) if may_cut else None
    return Costs.from_measurements(
        graph,
        seconds,
        {node.view.capabilities.node_id: node.view.capabilities.gflops for node in nodes},
        links,
        {node.view.capabilities.node_id: node.view.capabilities.memory_available_bytes for node in nodes},
        group_work=work,
    )


async def _spread(model: SourceModel, graph: Graph, progress: Progress) -> list[float] | None:
    try:
        return await asyncio.to_thread(measure_spread, make_engine(), model, graph)
    except MeshError as error:
        progress(f"the time of each part is estimated from its operations: {error}")
        return None


async def _measure_model(node: Answered, model: SourceModel, progress: Progress) -> float | None:
    """Seconds of one run of the whole model on `node`; None, with the reason told, where it cannot run it."""
    name = node.view.capabilities.name
    try:
        await _send(node, model.sha256, model.data)
        measured = await node.client.measure_model(model.sha256, MEASURE_BUDGET_S)
    except NodeLost:
        raise
    except MeshError as error:
        progress(f"{name} cannot run the model whole, its speed is estimated: {error}")
        return None
    progress(f"{name} runs the whole model in {measured.run_seconds * 1e3:.2f} ms")
    return measured.run_seconds


async def _measure_links(nodes: Sequence[Answered], progress: Progress) -> Mapping[tuple[NodeId, NodeId], Link]:
    links: dict[tuple[NodeId, NodeId], Link] = {}
    for source in nodes:
        for target in nodes:
            if source is target:
                continue
            names = source.view.capabilities.name, target.view.capabilities.name
            try:
                link = await source.client.measure_link(target.view.address)
            except (NodeLost, Timeout) as error:
                told = f"{names[0]} cannot measure its link to {names[1]}: {error.message}"
                raise NodeLost(told, hint="see `mesh nodes`; without a node that is lost, deploying works") from None
            links[source.view.capabilities.node_id, target.view.capabilities.node_id] = link
            progress(
                f"{names[0]} to {names[1]}: {link.latency_seconds * 1e3:.2f} ms, {link.bytes_per_second / 1e6:.0f} MB/s"
            )
    return links


# Putting in force ---------------------------------------------------------------------------------


async def activate(
    nodes: Sequence[Answered],
    planned: Planned,
    name: DeploymentName,
    fence: Fence,
    progress: Progress,
    feeds: Mapping[str, Array] | None = None,
) -> Deployment:
    """Cut, prove, send, load and activate. Raises what went wrong, after taking everything back.

    `feeds` are what the proof runs on, made up where None. Cuts that cannot be proven are given up for
    `planned.whole` where there is one.
    """
    plan, parts = await _cut_and_prove(planned, progress, feeds)
    by_id = {node.view.capabilities.node_id: node for node in nodes}
    standbys = choose_standbys(plan, [_able(nodes, len(parts[sha256])) for sha256 in _contents(plan)])
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
    )
    stages = [
        (by_id[device], sha256)
        for stage, sha256 in zip(plan.stages, _contents(plan), strict=True)
        for device in stage.devices
    ]
    try:
        progress("sending segments")
        await together(_send(node, sha256, parts[sha256]) for node, sha256 in stages)
        # At least one node keeps the whole model, so that a new plan never depends on who deployed it.
        await _send(stages[0][0], planned.model.sha256, planned.model.data)
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


def _able(nodes: Sequence[Answered], size_bytes: int) -> list[NodeId]:
    """Nodes that can run models and have the memory and the disk for a segment of `size_bytes`."""
    return [
        told.node_id
        for told in (node.view.capabilities for node in nodes)
        if told.state is NodeState.READY
        and told.can_run
        and told.memory_available_bytes >= MEMORY_FACTOR * size_bytes
        and told.disk_available_bytes >= size_bytes
    ]


async def _cache_ahead(
    by_id: Mapping[NodeId, Answered], deployment: Deployment, parts: Mapping[Sha256, bytes], progress: Progress
) -> None:
    """Send each segment to its first stand-by. The deployment is in force without that, so what fails is only told."""
    for spare, sha256 in zip(deployment.standbys, _contents(deployment.plan), strict=True):
        for node in spare[:1]:
            try:
                await _send(by_id[node], sha256, parts[sha256])
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
        await asyncio.to_thread(_prove, planned.model, planned.graph, plan, feeds)
    except (ModelInvalid, VerificationFailed) as error:
        if planned.whole is None:
            raise
        progress(f"not cut, but whole on one device: {error}")
        return await asyncio.to_thread(_cut, replace(planned, plan=planned.whole))
    return plan, parts


def _cut(planned: Planned) -> tuple[Plan, dict[Sha256, bytes]]:
    parts: dict[Sha256, bytes] = {}
    stages = []
    for stage in planned.plan.stages:
        data = extract(planned.model, planned.graph, stage.segment)
        sha256 = Sha256(hashlib.sha256(data).hexdigest())
        parts[sha256] = data
        stages.append(replace(stage, segment=replace(stage.segment, sha256=sha256)))
    return replace(planned.plan, stages=tuple(stages)), parts


def _prove(model: SourceModel, graph: Graph, plan: Plan, feeds: Mapping[str, Array] | None) -> None:
    prove(make_engine(), model, graph, [stage.segment for stage in plan.stages], feeds).require()


def _boundaries(model: SourceModel, graph: Graph, plan: Plan) -> tuple[tuple[TensorSpec, ...], ...]:
    inner = [
        tuple(graph.specs[name] for name in graph.cut_at[stage.segment.start].tensors) for stage in plan.stages[1:]
    ]
    return (model.inputs, *inner, graph.outputs)


async def _send(node: Answered, sha256: Sha256, data: bytes) -> None:
    try:
        if sha256 not in await node.client.has_content([sha256]):
            await node.client.put_content(sha256, data)
    except Timeout as error:  # of calls that any node answers at once, however slow it computes
        raise NodeLost(error.message, hint="check that it runs and can be reached") from None
    except StorageError as error:
        raise type(error)(f"{node.view.capabilities.name}: {error.message}", hint=error.hint) from None


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
