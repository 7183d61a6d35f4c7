"""Memory that segments took, between those who tell it and the store: profiles and running stages tell, plans ask.

Without state; called by whoever owns the store, in its event loop.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence

from mesh.core.costs import DeviceType, type_of
from mesh.core.fleet import Capabilities
from mesh.core.graph import Graph
from mesh.core.ids import NodeId, Sha256
from mesh.core.memory import MeasuredGrowth, MemoryModel
from mesh.core.plan import FLOAT, Plan
from mesh.core.report import ModelProfile, StageReport
from mesh.planning.memory import fit_memory
from mesh.storage.cost_figures import MAX_PEAK_BYTES, MemoryCost
from mesh.storage.cost_store import CostStore

SAME_PEAK = 0.05
"""Two loads of one segment differ by less: the store, which may lie on an SD card, is not written again for that."""


def memory_model(store: CostStore, graph: Graph, told: Capabilities) -> MemoryModel:
    """What segments of `graph` take on such a device, as far as the store knows."""
    known = store.memory_of(graph.model_sha256, type_of(told))
    return fit_memory(graph, (MeasuredGrowth(each.start, each.end, each.peak_bytes) for each in known))


def memory_age(store: CostStore, graph: Graph, told: Capabilities) -> float | None:
    """Seconds since the oldest of these figures was taken; None where there is none."""
    known = store.memory_of(graph.model_sha256, type_of(told))
    return time.time() - known[0].at if known else None


def keep_memory(
    store: CostStore, graph: Graph, where: DeviceType, measured: Iterable[tuple[Sha256, int, int, int]]
) -> None:
    """`measured`: content, first and last group (exclusive), bytes; what is 0 or nonsense is not known."""
    for sha256, start, end, peak_bytes in measured:
        if 0 < peak_bytes <= MAX_PEAK_BYTES:
            store.put_memory(sha256, where, MemoryCost(graph.model_sha256, start, end, peak_bytes, time.time()))


def keep_profile_memory(
    store: CostStore,
    graph: Graph,
    where: DeviceType,
    profile: ModelProfile,
    whole: tuple[Sha256, int, int],
    parts: Sequence[tuple[Sha256, int, int]],
) -> None:
    """What a profile of `whole`, which may be a piece of the model, says of it and of its `parts`."""
    peaks = zip(parts, profile.part_peak_bytes, strict=False)
    keep_memory(store, graph, where, [(*whole, profile.peak_bytes), *((*part, peak) for part, peak in peaks)])


def keep_stage_memory(
    store: CostStore, graph: Graph, plan: Plan, reports: Sequence[StageReport], types: Mapping[NodeId, DeviceType]
) -> bool:
    """What the engines of a deployment took; whether the store knows more now. Variants are other contents, and not
    kept: their groups would be taken for the model's own."""
    is_new = False
    for report in reports:
        if report.device is None or report.device not in types or not report.stage < len(plan.stages):
            continue
        stage, where = plan.stages[report.stage], types[report.device]
        start, end, sha256 = stage.segment.start, stage.segment.end, stage.segment.sha256
        if stage.variant != FLOAT or sha256 is None or not 0 < report.peak_bytes <= MAX_PEAK_BYTES:
            continue
        of_model = store.memory_of(graph.model_sha256, where)
        known = next((each.peak_bytes for each in reversed(of_model) if (each.start, each.end) == (start, end)), 0)
        if abs(report.peak_bytes - known) > SAME_PEAK * known:
            keep_memory(store, graph, where, [(sha256, start, end, report.peak_bytes)])
            is_new = True
    return is_new
