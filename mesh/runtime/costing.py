"""Costs of a model on nodes: what the store knows, and what is measured because it does not.

A device *type* is profiled once, on the first of its devices; the others are as fast, or as much faster as their
probes say. What loaded segments took replaces the profile for their part (`mesh.core.costs.refine`). Links are
measured for every pair, and again when they are old. Called by whoever plans, which owns the store.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import accumulate, permutations

from mesh.core.costs import Costs, DeviceCosts, DeviceType, type_of
from mesh.core.fleet import BYTE_SECONDS, MESSAGE_SECONDS, Capabilities, Handling, Link
from mesh.core.graph import Graph
from mesh.core.ids import NodeId
from mesh.core.plan import PlanOptions
from mesh.core.profile import SegmentTimes, TimedPart, refine
from mesh.core.report import ModelProfile
from mesh.errors import MeshError, NodeLost, StorageError, Timeout
from mesh.model.read import SourceModel
from mesh.runtime.coordinator import Progress
from mesh.runtime.fleet import Answered
from mesh.runtime.measure import MEMORY_FACTOR
from mesh.runtime.memory_costs import keep_profile_memory, memory_age, memory_model
from mesh.runtime.piecewise import measure_pieces
from mesh.runtime.profiling import PROFILE_BUDGET_S, part_positions, spread_profile
from mesh.runtime.sending import send_content, send_parts
from mesh.storage.cost_figures import ModelCost
from mesh.storage.cost_store import CostStore

MEASURE_BUDGET_S = 1.0
"""Time that a device spends running the whole model: some tens of runs of a model fit for such devices."""

PROBE_AGREEMENT = 0.15
"""Devices of one type whose probes differ by less than this share are taken as equally fast: probes of one board differ
by a tenth from start to start, and equal devices keep the planner exact where different ones do not."""

FRAME_MESSAGES = 2.0
"""One frame of a stream, into a stage or out of it, in messages of a call: its credits, the queue, the engine, and
caches that a model has emptied between two frames (measured)."""

LEAST_OF_A_PART = 0.1
"""Of a loaded segment's time is its groups' own, whatever a call and its cuts are thought to take."""

LINK_MAX_AGE_S = 600.0
"""Boards are moved, radio channels fill up; and a command that is given twice in ten minutes need not measure twice."""


def costs_from_store(
    store: CostStore,
    graph: Graph,
    devices: Mapping[NodeId, Capabilities],
    links: Mapping[tuple[NodeId, NodeId], Link] | None = None,
) -> Costs:
    """Costs of `graph` on `devices` from what is stored; nothing is measured, nobody is asked.

    A device whose type never ran the model is estimated from its probe. `links` default to the stored ones. Raises
    `UsageError` where a link is not known, or a device neither ran the model nor has a probe.
    """
    known = {node: _model_cost(store, graph, told) for node, told in devices.items()}
    times = {node: _times(store, graph, devices[node], cost) for node, cost in known.items() if cost}
    shares = next((each.group_seconds for each in times.values()), None)
    links = stored_links(store, devices) if links is None else links
    found = Costs.from_measurements(
        graph,
        {node: times[node].whole_seconds if node in times else None for node in devices},
        {node: told.gflops for node, told in devices.items() if told.gflops > 0},
        links,
        {node: told.memory_available_bytes for node, told in devices.items()},
        handling={node: handling_of(node, told.cores, links) for node, told in devices.items()},
        group_work=shares,
    )
    measured = {node: _with_times(found.device(node), each) for node, each in times.items()}
    known_devices = {**found.devices, **measured}
    memory = {node: memory_model(store, graph, told) for node, told in devices.items()}
    return Costs({node: replace(each, memory=memory[node]) for node, each in known_devices.items()}, found.links)


def stored_links(store: CostStore, devices: Mapping[NodeId, Capabilities]) -> dict[tuple[NodeId, NodeId], Link]:
    """However old; pairs that were never measured are missing."""
    found = {pair: store.link(*pair) for pair in permutations(devices, 2)}
    return {pair: cost.as_link() for pair, cost in found.items() if cost}


def handling_of(node: NodeId, cores: float, links: Mapping[tuple[NodeId, NodeId], Link]) -> Handling:
    """What a message of a stream costs `node`, from what messages cost it on its `links`; estimated where none says.

    Engine and event loop share what there is of less than one core, so there everything takes as much longer.
    """
    share = min(1.0, cores)
    sending = [link.sending for (source, _), link in links.items() if source == node and link.sending]
    receiving = [link.receiving for (_, target), link in links.items() if target == node and link.receiving]
    if not sending or not receiving:
        return Handling(MESSAGE_SECONDS / share, BYTE_SECONDS / share)
    return Handling(
        FRAME_MESSAGES * statistics.median(end.message_seconds for end in (*sending, *receiving)) / share,
        statistics.median(end.byte_seconds for end in receiving) / share,
        measured=True,
        sent_byte_seconds=statistics.median(end.byte_seconds for end in sending) / share,
    )


def _model_cost(store: CostStore, graph: Graph, told: Capabilities) -> ModelCost | None:
    cost = store.model(graph.model_sha256, type_of(told))
    return cost if cost is not None and len(cost.group_seconds) == len(graph.groups) else None


def _times(store: CostStore, graph: Graph, told: Capabilities, cost: ModelCost) -> SegmentTimes:
    """Of the device, with what loaded segments of the model took on its like."""
    parts = []
    for each in store.segments_of(graph.model_sha256, type_of(told)):
        ends = (each.start > 0) + (each.end < len(graph.groups))
        own = max(each.seconds - cost.run_seconds - ends * cost.cut_seconds, LEAST_OF_A_PART * each.seconds)
        parts.append(TimedPart(each.start, each.end, own))
    scale = speed_ratio(cost.gflops, told.gflops)
    groups = tuple(seconds * scale for seconds in refine(cost.group_seconds, parts))
    return SegmentTimes(groups, cost.run_seconds * scale, cost.cut_seconds * scale)


def speed_ratio(measured_gflops: float, gflops: float) -> float:
    """How much longer a device takes than the one of its type that was measured."""
    if measured_gflops <= 0 or gflops <= 0 or abs(gflops / measured_gflops - 1) < PROBE_AGREEMENT:
        return 1.0
    return measured_gflops / gflops


def _with_times(device: DeviceCosts, times: SegmentTimes) -> DeviceCosts:
    prefix = (0.0, *accumulate(times.group_seconds))
    return replace(device, prefix_seconds=prefix, run_seconds=times.run_seconds, cut_seconds=times.cut_seconds)


# Measuring ----------------------------------------------------------------------------------------


async def measure_costs(
    nodes: Sequence[Answered],
    model: SourceModel,
    graph: Graph,
    options: PlanOptions,
    store: CostStore,
    progress: Progress,
) -> Costs:
    """Costs of `graph` on `nodes`; measured now where the store does not know them, and stored.

    A node that is lost meanwhile is left out, unless what is asked for cannot be had without it. Raises `NodeLost`,
    and `StorageError` where the store is a coordinator's own and cannot be written.
    """
    needed = len(nodes) if options.forced is not None else options.stages or 1
    may_cut = options.forced is None and options.stages != 1 and len(nodes) > 1
    if options.measure:
        store.forget_model(graph.model_sha256)
    seen: set[DeviceType] = set()
    for node in nodes:  # one after the other: nodes may share a machine
        told = node.view.capabilities
        if type_of(told) in seen:
            continue
        known = _model_cost(store, graph, told)
        if known is not None and (known.is_profiled or not may_cut):
            oldest = memory_age(store, graph, told)
            memory = "" if oldest is None else f"; memory of segments as measured {describe_age(oldest)} ago, or later"
            age = describe_age(time.time() - known.at)
            progress(f"{told.name}: {known.seconds * 1e3:.2f} ms, {age} ago{memory}")
        else:
            try:
                cost = await _measure_type(node, model, graph, may_cut, store, progress)
            except NodeLost as error:
                if len(nodes) - 1 < needed:
                    raise
                nodes = [other for other in nodes if other is not node]
                progress(f"{told.name} is left out: {error}")
                continue
            if cost is not None:
                store.put_model(graph.model_sha256, type_of(told), cost)
        seen.add(type_of(told))
    nodes, links = await _measure_links(nodes, needed, store, options.measure, progress)
    await _save(store, progress)
    devices = {node.view.capabilities.node_id: node.view.capabilities for node in nodes}
    return costs_from_store(store, graph, devices, links)


async def _save(store: CostStore, progress: Progress) -> None:
    """A command goes on where it may not write: it has what it needs, and only the next one measures again."""
    try:
        await asyncio.to_thread(store.save)
    except StorageError as error:
        if not store.is_shared:
            raise
        store.keep_in_memory()
        progress(f"what was measured is not kept for the next time: {error.message}")


async def _measure_type(
    node: Answered, model: SourceModel, graph: Graph, may_cut: bool, store: CostStore, progress: Progress
) -> ModelCost | None:
    """What the model takes on `node`, whole or else in pieces; None, with the reason told, where it can run neither."""
    times: SegmentTimes | None
    seconds = await _measure_model(node, model, progress)
    if seconds is not None:
        profile, positions = await _profile(node, model, graph, store, progress) if may_cut else (ModelProfile(), [])
        times = await asyncio.to_thread(spread_profile, model, graph, seconds, profile, positions)
    else:
        times = await measure_pieces(node, model, graph, store, progress) if may_cut else None
    if times is None:
        return None
    return ModelCost(
        times.group_seconds,
        time.time(),
        run_seconds=times.run_seconds,
        cut_seconds=times.cut_seconds,
        is_profiled=may_cut,
        gflops=node.view.capabilities.gflops,
    )


async def _profile(
    node: Answered, model: SourceModel, graph: Graph, store: CostStore, progress: Progress
) -> tuple[ModelProfile, list[int]]:
    """How the model's time is spread on `node`, and the ends of the parts that were timed; empty, with the reason told,
    where it cannot be had. What it says of memory is stored."""
    name = node.view.capabilities.name
    positions = part_positions(graph)
    try:
        sent = await send_parts(node, model, graph, positions)
        digests = [sha256 for sha256, _, _ in sent]
        profile = await node.client.profile_model(model.sha256, digests, PROFILE_BUDGET_S)
    except NodeLost:
        raise
    except MeshError as error:
        progress(f"{name}: the time of each part is estimated from its operations: {error}")
        return ModelProfile(), positions
    progress(f"{name}: {len(profile.kernels)} kernels and {len(digests)} parts are timed")
    whole = (model.sha256, 0, len(graph.groups))
    keep_profile_memory(store, graph, type_of(node.view.capabilities), profile, whole, sent)
    return profile, positions


def describe_age(seconds: float) -> str:
    """In words, in the largest unit that is not less than one."""
    for size, unit in ((86_400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} seconds"


async def _measure_model(node: Answered, model: SourceModel, progress: Progress) -> float | None:
    """Seconds of one run of the whole model on `node`; None, with the reason told, where it cannot run it."""
    told = node.view.capabilities
    name = told.name
    if MEMORY_FACTOR * len(model.data) > told.memory_available_bytes:  # it would refuse, after all these bytes
        progress(f"{name} cannot hold the model whole")
        return None
    try:
        await send_content(node, model.sha256, model.data)
        measured = await node.client.measure_model(model.sha256, MEASURE_BUDGET_S)
    except NodeLost:
        raise
    except MeshError as error:
        progress(f"{name} cannot run the model whole: {error}")
        return None
    progress(f"{name} runs the whole model in {measured.run_seconds * 1e3:.2f} ms")
    return measured.run_seconds


Links = dict[tuple[NodeId, NodeId], Link]


async def _measure_links(
    nodes: Sequence[Answered], needed: int, store: CostStore, again: bool, progress: Progress
) -> tuple[Sequence[Answered], Links]:
    """The nodes that still answer, at least `needed`, and every link between them. Raises `NodeLost`."""
    measured: Links = {}
    while True:
        try:
            links, ages = await _link_all(nodes, measured, store, again, progress)
        except NodeLost as error:
            if len(nodes) - 1 < needed:
                raise
            left = [node for node in nodes if await _answers(node)]
            if len(left) == len(nodes) or len(left) < max(needed, 1):
                raise
            gone = (node.view.capabilities.name for node in nodes if node not in left)
            progress(f"{', '.join(gone)} is left out: {error.message}")
            nodes = left
            continue
        if ages:
            progress(f"{len(ages)} links as measured {describe_age(max(ages))} ago, or later")
        return nodes, links


async def _answers(node: Answered) -> bool:
    try:
        await node.client.get_capabilities()
    except (NodeLost, Timeout):
        return False
    return True


async def _link_all(
    nodes: Sequence[Answered], measured: Links, store: CostStore, again: bool, progress: Progress
) -> tuple[Links, list[float]]:
    """Every link, and the ages of those that were known; what is measured now is added to `measured`, too."""
    links: Links = {}
    ages: list[float] = []
    for source, target in permutations(nodes, 2):
        pair = source.view.capabilities.node_id, target.view.capabilities.node_id
        known = store.link(*pair)
        if pair in measured:
            links[pair] = measured[pair]
        elif known is not None and not again and 0 <= time.time() - known.at < LINK_MAX_AGE_S:
            links[pair] = known.as_link()
            ages.append(time.time() - known.at)
        else:
            links[pair] = measured[pair] = await _measure_link(source, target, progress)
            store.put_link(*pair, links[pair], time.time())
    return links, ages


async def _measure_link(source: Answered, target: Answered, progress: Progress) -> Link:
    names = source.view.capabilities.name, target.view.capabilities.name
    try:
        link = await source.client.measure_link(target.view.address)
    except (NodeLost, Timeout) as error:
        told = f"{names[0]} cannot measure its link to {names[1]}: {error.message}"
        raise NodeLost(told, hint="see `mesh nodes`; without a node that is lost, deploying works") from None
    progress(f"{names[0]} to {names[1]}: {link.latency_seconds * 1e3:.2f} ms, {link.bytes_per_second / 1e6:.0f} MB/s")
    return link
