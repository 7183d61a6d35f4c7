"""Simple ways to share a model, to hold the planner's answers against: what people would do by hand.

Each takes a `Problem` and gives the same kinds of answer as the planner. They look at less on purpose;
where the memory of a device does not suffice for what a rule gives it, the rule has no plan. They use
the usable devices in the problem's order and know neither pins nor forced stages, replicas (but for
`copies`), variants nor codecs.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np

from mesh.core.graph import Cut
from mesh.core.ids import NodeId
from mesh.core.plan import Plan, Stage
from mesh.core.segments import segment_between
from mesh.planning.answer import make_plan, obvious_reasons
from mesh.planning.arcs import Kind
from mesh.planning.memory import stage_memory_bytes
from mesh.planning.predict import FRAMES_PER_LINK, make_stage, period_seconds
from mesh.planning.problem import Infeasible, Problem, usable_cuts
from mesh.planning.search import Question, search


def plan_single(problem: Problem) -> Plan | Infeasible:
    """The whole model on the device that is fastest with it."""
    wholes = _find_wholes(problem)
    if isinstance(wholes, Infeasible):
        return wholes
    return make_plan(problem, (wholes[0].stage,), "the best single device")


def plan_copies(problem: Problem) -> Plan | Infeasible:
    """The whole model on every device that holds it, frames going to whoever is free."""
    wholes = _find_wholes(problem)
    if isinstance(wholes, Infeasible):
        return wholes
    best = _best_copies(problem, wholes, len(wholes))
    return make_plan(problem, (best.stage,), "full copies")


def _find_wholes(problem: Problem) -> list[Copies] | Infeasible:
    if reasons := obvious_reasons(problem):
        return Infeasible(reasons)
    return _wholes(problem) or Infeasible(("no device holds the whole model",))


def plan_uniform(problem: Problem) -> Plan | Infeasible:
    """As many operator groups on every device."""
    return _plan_shares(problem, [1.0] * len(problem.usable_devices), [1.0] * len(problem.graph.groups))


def plan_by_memory(problem: Problem) -> Plan | Infeasible:
    """Operator groups in proportion to memory."""
    shares = [float(problem.costs.device(device).memory_bytes) for device in problem.usable_devices]
    return _plan_shares(problem, shares, [1.0] * len(problem.graph.groups))


def plan_by_speed(problem: Problem) -> Plan | Infeasible:
    """Arithmetic in proportion to how fast the whole model runs."""
    costs = problem.costs
    shares = [1.0 / max(costs.device(device).whole_model_seconds, 1e-12) for device in problem.usable_devices]
    work = [float(group.flops) for group in problem.graph.groups]
    return _plan_shares(problem, shares, work if sum(work) else [1.0] * len(work))


def plan_homogeneous(problem: Problem) -> Plan | Infeasible:
    """The exact optimum for as many average devices and links, carried out on the real ones (PipeDream-style)."""
    reasons = obvious_reasons(problem)
    if reasons:
        return Infeasible(reasons)
    devices, costs = problem.usable_devices, problem.costs
    cuts = usable_cuts(problem.graph, problem.max_tensors)
    positions = np.array([cut.position for cut in cuts])
    nbytes = np.array([float(cut.bytes) for cut in cuts])
    known = [costs.device(device) for device in devices]
    before = np.mean([device.prefix_seconds for device in known], axis=0)[positions]
    leave, entry = (
        np.mean([[device.handling.seconds(cut.bytes, sent=sent) for cut in cuts] for device in known], axis=0)
        for sent in (True, False)
    )
    own = before[None, :] - before[:, None] + leave[None, :] + entry[:, None]
    own[positions[:, None] >= positions[None, :]] = np.inf
    links = [costs.link(a, b) for a in devices for b in devices if a != b]
    between = np.zeros(len(cuts))
    if links:
        latency = statistics.fmean(link.latency_seconds for link in links)
        moving = nbytes / statistics.harmonic_mean([link.bytes_per_second for link in links])
        between = np.maximum(moving, (latency + moving) / FRAMES_PER_LINK)
    most = min(len(devices), len(cuts) - 1)
    question = Question((len(devices),), (Kind(0, 1),), own[None], between[None, None], np.maximum, most)
    table = search(question)
    _, state, kind = min((table.best(count) for count in range(1, most + 1)), key=lambda best: best[0])
    bounds = [cuts[0], *(cuts[end] for _, _, end in table.way(state, kind))]
    return _plan_split(problem, bounds, devices)


@dataclass(frozen=True, slots=True)
class Copies:
    stage: Stage
    period: float


def find_copies(problem: Problem) -> Copies | None:
    """The best full copies that `problem` allows on devices of any types; None where it allows none."""
    most = problem.space.max_replicas
    if most == 1 or problem.stages is not None or problem.head is not None or problem.tail is not None:
        return None
    wholes = _wholes(problem)
    return _best_copies(problem, wholes, most) if wholes else None


def best_copies(problem: Problem) -> Stage | None:
    """Full copies on as many devices as helps, however many may share a stage; None where no device holds the model."""
    wholes = _wholes(problem)
    return _best_copies(problem, wholes, len(wholes)).stage if wholes else None


def _best_copies(problem: Problem, wholes: Sequence[Copies], most: int) -> Copies:
    """The fastest devices: each more adds what it computes."""
    segment = segment_between(problem.graph, 0, len(problem.graph.groups))
    best = wholes[0]
    for count in range(2, min(most, len(wholes)) + 1):
        devices = tuple(whole.stage.devices[0] for whole in wholes[:count])
        slowest = wholes[count - 1].stage.variant
        stage = make_stage(segment, devices, problem.costs, slowest, space=problem.space)
        copies = _price(problem, stage)
        if copies.period < best.period:
            best = copies
    return best


def _wholes(problem: Problem) -> list[Copies]:
    """Every device that holds the whole model, alone with it, the fastest first."""
    found = []
    end = len(problem.graph.groups)
    segment = segment_between(problem.graph, 0, end)
    for device in problem.usable_devices:
        need = stage_memory_bytes(problem.graph, 0, end, device, problem.costs)
        if need <= problem.costs.device(device).memory_bytes:
            found.append(_price(problem, make_stage(segment, (device,), problem.costs)))
    return sorted(found, key=lambda whole: whole.period)


def _price(problem: Problem, stage: Stage) -> Copies:
    return Copies(stage, period_seconds(problem.graph, (stage,), problem.costs, problem.space))


def _plan_shares(problem: Problem, shares: Sequence[float], work: Sequence[float]) -> Plan | Infeasible:
    """Devices take shares of the work in their order, each at least one segment while there are cuts."""
    reasons = obvious_reasons(problem)
    if reasons:
        return Infeasible(reasons)
    cuts = usable_cuts(problem.graph, problem.max_tensors)
    devices = problem.usable_devices[: len(cuts) - 1]
    done = [0.0, *accumulate(work)]
    wanted = [done[-1] * part / sum(shares[: len(devices)]) for part in accumulate(shares[: len(devices)])]
    bounds = [cuts[0]]
    for index, target in enumerate(wanted[:-1]):
        first = cuts.index(bounds[-1]) + 1
        choice = cuts[first : len(cuts) - (len(devices) - 1 - index)]
        bounds.append(min(choice, key=lambda cut: abs(done[cut.position] - target)))
    return _plan_split(problem, [*bounds, cuts[-1]], devices)


def _plan_split(problem: Problem, bounds: Sequence[Cut], devices: Sequence[NodeId]) -> Plan | Infeasible:
    """Stages between `bounds` on `devices` in order, unless one does not fit."""
    stages = []
    for device, (start, end) in zip(devices, pairwise(cut.position for cut in bounds), strict=False):
        need = stage_memory_bytes(problem.graph, start, end, device, problem.costs)
        have = problem.costs.device(device).memory_bytes
        if need > have:
            name = problem.name_of(device)
            return Infeasible((f"memory: {name} has {have / 1e6:.0f} MB, its share needs {need / 1e6:.0f} MB",))
        stages.append(make_stage(segment_between(problem.graph, start, end), (device,), problem.costs))
    return make_plan(problem, stages, "by a rule, without a bound")
