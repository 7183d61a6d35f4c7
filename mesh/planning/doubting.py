"""Whether a link of a running plan is slower than was measured, which no stage can tell.

Pure. Frames that are on their way over a slow link wait in the network, where no stage sees them: that looks like a
source that offers little. So a plan that stays short of its prediction while its devices are as fast as their costs
has its links measured again, once per generation, by the watch: of the pairs that `links_in_doubt` names, beside the
frames that go on meanwhile. What those take of a link is added to what was found: together it is what the link
carries. `judge_links` then decides as `mesh.planning.verifying` does of devices; the links of a plan that would win
are measured before it is put in force, for where one link is slow others may be (`links_to_prove`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

from mesh.core.ids import NodeId
from mesh.core.plan import Plan
from mesh.core.report import StageReport
from mesh.planning.predict import with_costs
from mesh.planning.problem import Problem
from mesh.planning.replanning import Holdings
from mesh.planning.verifying import FULL_SHARE, LOOKS, CorrectCosts, Keep, Replan, RollBack, Watched, decide

SLOWER_LINK = 0.75
"""Of the rate that is believed. A link is measured beside frames here, which is less exact than alone."""

Pair = tuple[NodeId, NodeId]


def links_in_doubt(watched: Watched, problem: Problem, plan: Plan, reports: Sequence[StageReport]) -> dict[Pair, float]:
    """Links to measure again, with the bytes per second that frames take of each; empty while nothing is amiss.

    A device that is busy most of the time would make its links look slow.
    """
    if watched.short < LOOKS:
        return {}
    busy = {r.device for r in reports if r.throughput_per_s * r.compute_seconds >= FULL_SHARE}
    rate, found = watched.throughput_per_s, dict[Pair, float]()
    for before, after in pairwise(plan.stages):
        nbytes = problem.space.wire_bytes(before.codec, problem.graph.cut_at[after.segment.start])
        for source in before.devices:
            for target in after.devices:
                if source != target and not busy.intersection((source, target)):
                    share = rate * nbytes / (len(before.devices) * len(after.devices))
                    found[source, target] = found.get((source, target), 0.0) + share
    return found


def links_to_prove(verdict: Keep | CorrectCosts, measured: Collection[Pair]) -> list[Pair]:
    """Links of the plan that `verdict` would put in force and that were not measured again."""
    if not isinstance(verdict, Replan | RollBack):
        return []
    pairs = [
        (source, target)
        for before, after in pairwise(verdict.improved.plan.stages)
        for source in before.devices
        for target in after.devices
    ]
    return [pair for pair in pairs if pair not in measured and pair[0] != pair[1]]


def judge_links(
    watched: Watched,
    problem: Problem,
    plan: Plan,
    measured: Mapping[Pair, float],
    holdings: Holdings,
) -> Keep | CorrectCosts:
    """What to do about links that make `measured` bytes per second, frames included; nothing if that is as believed."""
    links = dict(problem.costs.links)
    parts = []
    for (source, target), rate in measured.items():
        believed = problem.costs.link(source, target)
        if rate < believed.bytes_per_second * SLOWER_LINK:
            links[source, target] = replace(believed, bytes_per_second=rate, measured=True)
            names = f"{problem.name_of(source)} to {problem.name_of(target)}"
            parts.append(f"{names} carries {rate / 1e6:.3g} MB/s, {believed.bytes_per_second / 1e6:.3g} were measured")
    if not parts:
        return Keep()
    predicted = with_costs(plan, problem.graph, problem.costs, problem.space).predicted.throughput_per_s
    told = f"{watched.throughput_per_s:.3g} frames/s are measured, {predicted:.3g} were predicted"
    corrected = replace(problem, costs=replace(problem.costs, links=links))
    reason = "; ".join([*parts, told])
    if plan.forced:
        return CorrectCosts(f"{reason}; the plan is forced and stays", corrected.costs, {})
    return decide(corrected, plan, reason, {}, holdings)
