"""Is the plan in force what it was predicted to be? Decided from what its stages tell while frames flow.

    stage reports ─► watch ─► Watched ─► verify ─► Keep | CorrectCosts | Replan | RollBack

Pure: the coordinator's watch looks every second or two, hands in what the nodes said, and carries out the verdict. A
stage is judged by its busy time per frame, never by frames per second: a source that offers little is no slow plan. A
device that is idle between frames may be faster than it can keep up, within its quota of a core or before it gets hot,
so only one that is always busy counts as faster than its costs. What a device took is averaged over looks with its
variance; it is off its costs when it was so for several looks in a row by more than a tenth and more than its own
noise. Then its costs are scaled to what was measured, and the current plan is priced first: it is replaced only by one
that wins by a margin. Whether the whole is as fast as predicted is judged only while frames queue up somewhere, which
shows that the plan and not the source sets the pace; a loss against one device that no device's costs explain (a link,
other work) is not planned again with figures that are known to be wrong, but rolled back.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from mesh.core.costs import Costs
from mesh.core.ids import NodeId
from mesh.core.plan import Objective, Plan
from mesh.core.report import StageReport
from mesh.planning.exact import plan as solve
from mesh.planning.predict import pass_seconds, with_costs
from mesh.planning.problem import Infeasible, Problem
from mesh.planning.replanning import SLACK, Holdings, Improved, improve, moved_bytes, period_in_force, price

MIN_FRAMES = 8
"""Between two looks, for a look to count: the stages' own mean remembers about ten frames."""

MIN_COMPUTE_SECONDS = 100e-6
"""Of a stage. A part that takes less than handing it to the engine does is not told from that."""

LOOK_WEIGHT = 0.4
"""Of the newest look in the mean: three looks are most of it, so that what was is forgotten in ten seconds."""

LEAST_DEVIATION = 0.10
"""Below it a device is as its costs say: repeated measurements of one machine differ by as much."""

SIGMAS = 3.0
"""A device that varies is off only beyond its own noise."""

LOOKS = 5
"""In a row before anything is done: fewer are a burst of other work, or a mean that still climbs."""

STREAMING_ALLOWANCE = 1.25
"""Computing takes up to so much longer while frames flow than alone, because messages are handled by the same cores.
Where all devices in use show that, those not in use would too."""

MARGIN = 0.10
"""A plan that replaces another must be predicted so much faster: less is within the error of a prediction, and every
change costs the streams some hundred milliseconds."""

LOSS_MARGIN = 0.05
"""What runs must be slower than one device by so much to be rolled back on the whole's throughput alone."""

PAUSE_S = 20.0
"""Between two changes of one deployment: the new plan must have shown what it does."""

FULL_SHARE = 0.85
"""A stage that is busy for so much of the time sets the pace; the rest is handing over."""

SHORT = 0.15
"""What a plan makes less than predicted, for its links to be doubted: less is within the error of a prediction."""

QUEUE_PERIODS = 0.5
"""Frames that wait so much of a period to leave a stage are held up by what comes after it."""


@dataclass(frozen=True, slots=True)
class Track:
    """What one device took for one stage over what its costs say."""

    frames: int
    """The counter at the last look."""
    mean: float = 1.0
    variance: float = 0.0
    looks: int = 0
    off: int = 0
    """Looks in a row in which it was off, all to the same side; negative where it was faster than its costs."""


@dataclass(frozen=True, slots=True)
class Watched:
    """What is remembered of one generation between looks."""

    tracks: Mapping[tuple[int, NodeId], Track] = field(default_factory=dict)
    losing: int = 0
    """Looks in a row in which the whole was slower than one device would be, and every device as fast as its costs."""
    throughput_per_s: float = 0.0
    """Of the last look."""
    latency_s: float = 0.0
    """Of the last look, queues included."""
    short: int = 0
    """Looks in a row in which it made less than predicted, and every device was as fast as its costs."""
    is_full: bool = False
    """Whether the plan set the pace at the last look, rather than the source."""


@dataclass(frozen=True, slots=True)
class Keep:
    """The plan does what it was predicted to, or not enough is known yet."""


@dataclass(frozen=True, slots=True)
class CorrectCosts:
    """The costs were wrong; the plan remains good enough, or must not be changed."""

    reason: str
    costs: Costs
    factors: Mapping[NodeId, float]
    """Measured over believed time, of the devices in use."""


@dataclass(frozen=True, slots=True)
class Replan(CorrectCosts):
    """Another plan wins."""

    improved: Improved


@dataclass(frozen=True, slots=True)
class RollBack(CorrectCosts):
    """One device wins."""

    improved: Improved


Verdict = Keep | CorrectCosts | Replan | RollBack


# Looking ------------------------------------------------------------------------------------------


def watch(watched: Watched, problem: Problem, plan: Plan, reports: Sequence[StageReport]) -> Watched:
    """Take in one look at the stages of `plan`. Costs of `problem` are what is believed of the devices."""
    tracks = dict(watched.tracks)
    for report in reports:
        if report.device is None or report.stage >= len(plan.stages):
            continue
        place = (report.stage, report.device)
        known = tracks.get(place)
        believed = _believed(problem, plan, *place)
        if known is None or report.frames < known.frames or believed < MIN_COMPUTE_SECONDS:
            tracks[place] = Track(report.frames)  # what came before is of another time
        elif report.frames - known.frames >= MIN_FRAMES:
            tracks[place] = _take(known, report.frames, _ratio(report, believed))
    throughput = sum(report.throughput_per_s for report in reports if report.stage == len(plan.stages) - 1)
    is_full = throughput > 0 and _is_full(problem, plan, reports)
    latency = _latency(problem, plan, reports)
    is_explained = any(
        track.off or (not track.looks and _believed(problem, plan, *place) >= MIN_COMPUTE_SECONDS)
        for place, track in tracks.items()
    )
    predicted = with_costs(plan, problem.graph, problem.costs, problem.space).predicted.throughput_per_s
    is_short = 0 < throughput < predicted * (1 - SHORT) and not is_explained
    is_losing = len(plan.devices) > 1 and throughput > 0 and not is_explained
    is_losing = is_losing and _loses(problem, throughput, latency, is_full)
    losing, short = watched.losing + 1 if is_losing else 0, watched.short + 1 if is_short else 0
    return Watched(tracks, losing, throughput, latency, short, is_full)


def _believed(problem: Problem, plan: Plan, stage: int, device: NodeId) -> float:
    segment = plan.stages[stage].segment
    return problem.costs.compute(device, segment.start, segment.end).seconds


def _loses(problem: Problem, throughput: float, latency_s: float, is_full: bool) -> bool:
    """Whether one device alone would do better: in throughput while frames queue, in latency while they do not."""
    by_latency = problem.objective is Objective.LATENCY and not is_full
    single = _best_single(problem) if is_full or by_latency else None
    if single is None:
        return False
    if by_latency:
        return latency_s > single.predicted.latency_s * (1 + LOSS_MARGIN)
    return throughput < single.predicted.throughput_per_s * (1 - LOSS_MARGIN)


def _latency(problem: Problem, plan: Plan, reports: Sequence[StageReport]) -> float:
    """Seconds from head to tail: what the stages measured, and the links as they are believed to be."""
    predicted = with_costs(plan, problem.graph, problem.costs, problem.space)
    believed = sum(stage.compute_seconds for stage in predicted.stages)
    measured = 0.0
    for index in range(len(plan.stages)):
        there = [r.waiting_seconds + r.compute_seconds + r.leaving_seconds for r in reports if r.stage == index]
        measured += max(there, default=0.0)
    return predicted.predicted.latency_s - believed + measured


def _ratio(report: StageReport, believed: float) -> float:
    """Measured over believed seconds per frame; of a device that is often idle at least 1, see the module."""
    ratio = report.compute_seconds / believed
    is_busy = report.throughput_per_s * report.compute_seconds >= FULL_SHARE
    return ratio if is_busy else max(1.0, ratio)


def _take(track: Track, frames: int, ratio: float) -> Track:
    weight = LOOK_WEIGHT if track.looks else 1.0
    away = ratio - track.mean
    mean = track.mean + weight * away
    is_off = abs(ratio - 1) > max(LEAST_DEVIATION, SIGMAS * math.sqrt(track.variance))
    side = (1 if ratio > 1 else -1) if is_off else 0
    goes_on = is_off and track.off * side >= 0
    # A step, and the stage's own mean on its way up to it, is no noise; what does not last is.
    variance = track.variance if goes_on or not track.looks else (1 - weight) * (track.variance + weight * away * away)
    return Track(frames, mean, variance, track.looks + 1, track.off + side if goes_on else side)


def _is_full(problem: Problem, plan: Plan, reports: Sequence[StageReport]) -> bool:
    """Whether frames queue up: some device is busy nearly all the time, or frames wait to leave it."""
    for report in reports:
        rate = report.throughput_per_s
        if report.device is None or rate <= 0 or report.stage >= len(plan.stages):
            continue
        stage = plan.stages[report.stage]
        passes = pass_seconds(problem.graph, plan.stages, report.stage, problem.costs, problem.space)
        handling = passes[stage.devices.index(report.device)] if report.device in stage.devices else 0.0
        segment = stage.segment
        handling -= problem.costs.compute(report.device, segment.start, segment.end).seconds
        if rate * (report.compute_seconds + max(0.0, handling)) >= FULL_SHARE:
            return True
        if rate * report.leaving_seconds >= QUEUE_PERIODS:
            return True
    return False


def _best_single(problem: Problem) -> Plan | None:
    """The whole model on one device, within the problem's limits."""
    found = solve(replace(problem, stages=1))
    return None if isinstance(found, Infeasible) else replace(found, forced=False)


# Deciding -----------------------------------------------------------------------------------------


def verify(watched: Watched, problem: Problem, plan: Plan, holdings: Holdings, pause_s: float) -> Verdict:
    """What to do about `plan`; `pause_s` since it replaced another one by itself, infinite for what was deployed."""
    if pause_s < PAUSE_S:
        return Keep()
    off = {place for place, track in watched.tracks.items() if abs(track.off) >= LOOKS}
    if not off and watched.losing < LOOKS:
        return Keep()
    factors = _factors(plan, watched, off) if off else {}
    costs = correct(problem.costs, problem.devices, factors)
    corrected = replace(problem, costs=costs)
    reason = _reason(problem, plan, watched, off)
    if plan.forced:
        return CorrectCosts(f"{reason}; the plan is forced and stays", costs, factors)
    if not off:
        return _roll_back(corrected, reason, holdings)
    return decide(corrected, plan, reason, factors, holdings)


def decide(
    corrected: Problem, plan: Plan, reason: str, factors: Mapping[NodeId, float], holdings: Holdings
) -> CorrectCosts:
    """What follows from costs that were corrected: the running plan is priced first."""
    costs, now = corrected.costs, price(corrected, plan.stages)
    found = improve(corrected, plan.stages, holdings, SLACK)
    if found is not None and price(corrected, found.plan.stages) >= now * (1 - MARGIN):
        # The one that moves least wins too little; the best may win enough.
        moved = moved_bytes(corrected.graph, found.optimum.stages, holdings)
        found = Improved(found.optimum, moved, found.optimum)
    if found is None or price(corrected, found.plan.stages) > now * (1 - MARGIN):
        told = f"{1 / period_in_force(corrected, plan.stages):.3g} frames/s are predicted now"
        return CorrectCosts(f"{reason}; the plan stays, no other is {MARGIN:.0%} better; {told}", costs, factors)
    verdict = RollBack if len(found.plan.devices) == 1 else Replan
    told = f"{reason}; {_compare(corrected, plan, found.plan)}"
    return verdict(told, costs, factors, found)


def correct(costs: Costs, devices: Sequence[NodeId], factors: Mapping[NodeId, float]) -> Costs:
    """`costs` with every device of `factors` scaled by it, and the others by what all in use have in common."""
    if not factors:
        return costs
    common = min(max(1.0, min(factors.values())), STREAMING_ALLOWANCE)
    scaled = {}
    for device, known in costs.devices.items():
        factor = factors.get(device, common if device in devices else 1.0)
        scaled[device] = replace(
            known,
            prefix_seconds=tuple(factor * seconds for seconds in known.prefix_seconds),
            run_seconds=factor * known.run_seconds,
            cut_seconds=factor * known.cut_seconds,
        )
    return replace(costs, devices=scaled)


def _factors(plan: Plan, watched: Watched, off: set[tuple[int, NodeId]]) -> dict[NodeId, float]:
    """Per device, the mean over its stages by their time; of one that is on its costs too, once another is off."""
    sums: dict[NodeId, tuple[float, float]] = {}
    for (index, device), track in watched.tracks.items():
        if track.looks:
            weight = plan.stages[index].compute_seconds
            before = sums.get(device, (0.0, 0.0))
            sums[device] = before[0] + weight * track.mean, before[1] + weight
    off_devices = {device for _, device in off}
    return {
        device: total / weight
        for device, (total, weight) in sums.items()
        if weight > 0 and (device in off_devices or abs(total / weight - 1) <= LEAST_DEVIATION)
    }


def _roll_back(problem: Problem, reason: str, holdings: Holdings) -> Keep | RollBack:
    single = _best_single(problem)
    if single is None:
        return Keep()  # nothing was slower than it
    improved = Improved(single, moved_bytes(problem.graph, single.stages, holdings), single)
    told = f"{reason}; back to {problem.name_of(single.devices[0])} alone"
    return RollBack(told, problem.costs, {}, improved)


# Telling ------------------------------------------------------------------------------------------


def _reason(problem: Problem, plan: Plan, watched: Watched, off: set[tuple[int, NodeId]]) -> str:
    """What was noticed, with figures."""
    parts = []
    for index, device in sorted(off):
        segment = plan.stages[index].segment
        believed = problem.costs.compute(device, segment.start, segment.end).seconds
        mean = watched.tracks[index, device].mean
        name = problem.name_of(device)
        parts.append(
            f"{name} takes {believed * mean * 1e3:.3g} ms per frame for stage {index}, "
            f"{mean:.2f} times the {believed * 1e3:.3g} ms of its profile"
        )
    if not off:
        predicted = with_costs(plan, problem.graph, problem.costs, problem.space).predicted
        single = _best_single(problem)
        alone = predicted if single is None else single.predicted
        if watched.is_full:
            measured, wanted, other = watched.throughput_per_s, predicted.throughput_per_s, alone.throughput_per_s
            unit = "frames/s under full load"
        else:
            measured, wanted, other = watched.latency_s * 1e3, predicted.latency_s * 1e3, alone.latency_s * 1e3
            unit = "ms per frame"
        parts.append(f"{measured:.3g} {unit} are measured, {wanted:.3g} were predicted, one device makes {other:.3g}")
    return "; ".join(parts)


def _compare(problem: Problem, before: Plan, after: Plan) -> str:
    old, new = (1 / period_in_force(problem, plan.stages) for plan in (before, after))
    where = ", ".join(problem.name_of(device) for device in after.devices)
    return f"{new:.3g} frames/s on {where} instead of {old:.3g}"
