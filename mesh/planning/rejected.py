"""What else was weighed and not chosen, each with its figures and the reason in words.

Read off the finished search, so the figures are the best of their kind: each device alone, full copies, every
other number of stages, the chosen plan's devices left out one at a time, and those that it leaves out put to work.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from mesh.core.ids import NodeId
from mesh.core.plan import Alternative, Objective, Prediction, Stage
from mesh.planning.breakdown import break_down, find_bottleneck
from mesh.planning.comparators import best_copies
from mesh.planning.memory import stage_memory_bytes
from mesh.planning.predict import predict
from mesh.planning.problem import Problem
from mesh.planning.search import Way
from mesh.planning.searched import Priced, Searched

SAME = 1e-6
"""Relative difference below which two predictions are called equal in words."""


def list_alternatives(searched: Searched, chosen: Sequence[Stage], predicted: Prediction) -> tuple[Alternative, ...]:
    """Alternatives to `chosen` in the order: devices alone, copies, numbers of stages, without and with a device."""
    priced = searched.priced
    used = [device for stage in chosen for device in stage.devices]
    found = list(list_singles(priced, chosen, predicted))
    what = "stages" if len(used) == len(chosen) else "devices"
    for count in range(2, priced.device_counts.stop):
        price, state, last = searched.best(searched.prices, count)
        if count != len(used) and price < math.inf:
            way = searched.prices.way(state, last)
            found.append(_describe(priced, f"{count} {what}", priced.stages(way), predicted, ""))
    if len(used) > 1:
        for index, members in enumerate(priced.arcs.types):
            left_out = [device for device in members if device in used]
            found.extend(_without(searched, index, priced.problem.name_of(device), predicted) for device in left_out)
    if priced.problem.objective is not Objective.ENERGY:  # the tables hold no energies
        found.extend(_with_idle(searched, used, predicted))
    return tuple(found)


def list_singles(priced: Priced, chosen: Sequence[Stage], predicted: Prediction) -> tuple[Alternative, ...]:
    """Every device alone and full copies, but for the chosen plan itself; needs no search."""
    used = [device for stage in chosen for device in stage.devices]
    devices = [(device, index) for index, members in enumerate(priced.arcs.types) for device in members]
    singles = [_alone_on(priced, device, index, predicted) for device, index in devices if used != [device]]
    return (*singles, *_copies(priced, used if len(chosen) == 1 else (), predicted))


def _copies(priced: Priced, chosen: Sequence[NodeId], predicted: Prediction) -> tuple[Alternative, ...]:
    """The whole model on several devices, unless these are `chosen` or a pin rules it out."""
    problem = priced.problem
    if problem.stages is not None or problem.head is not None or problem.tail is not None:
        return ()
    stage = best_copies(problem)
    if stage is None or len(stage.devices) == 1 or set(stage.devices) == set(chosen):
        return ()
    name = f"copies on {', '.join(problem.name_of(device) for device in stage.devices)}"
    found = _describe(priced, name, (stage,), predicted, "")
    if len(stage.devices) > problem.space.max_replicas:
        allowed = problem.space.max_replicas
        why = f"at most {allowed} {'device' if allowed == 1 else 'devices'} may share a stage"
        found = replace(found, reason=f"{why}; {found.reason}")
    return (found,)


def _alone_on(priced: Priced, device: NodeId, index: int, chosen: Prediction) -> Alternative:
    """The whole model on `device` of type `index`."""
    problem = priced.problem
    pinned_away = any(pin not in (None, device) for pin in (problem.head, problem.tail))
    kind = next(number for number, kind in enumerate(priced.arcs.kinds) if kind.type == index)
    fits = not pinned_away and priced.arcs.period[kind, 0, -1] < math.inf
    way: Way = ((kind, 0, len(priced.arcs.codec_of) - 1),)
    stages = [replace(stage, devices=(device,)) for stage in priced.stages(way)] if fits else None
    name = f"alone on {problem.name_of(device)}"
    return _describe(priced, name, stages, chosen, _why_not_alone(problem, device))


def _without(searched: Searched, left_out: int, name: str, predicted: Prediction) -> Alternative:
    """The best plan with one device of type `left_out` less."""
    bests = [searched.best(searched.prices, count, left_out) for count in searched.priced.device_counts]
    price, state, last = min(bests, key=lambda best: best[0])
    stages = None if price == math.inf else searched.priced.stages(searched.prices.way(state, last))
    return _describe(searched.priced, f"without {name}", stages, predicted, "the other devices cannot hold the model")


def _with_idle(searched: Searched, used: Sequence[NodeId], predicted: Prediction) -> list[Alternative]:
    """The best plan that uses one device of a type more than the chosen one, for each type with idle devices."""
    priced, problem = searched.priced, searched.priced.problem
    found = []
    for index, members in enumerate(priced.arcs.types):
        idle = [device for device in members if device not in used]
        if not idle:
            continue
        name = problem.name_of(idle[0])
        at_least = (index, len(members) - len(idle) + 1)
        bests = [searched.best(searched.prices, count, None, at_least) for count in priced.device_counts]
        price, state, last = min(bests, key=lambda best: best[0], default=(math.inf, 0, 0))
        others = f" (so with {', '.join(map(problem.name_of, idle[1:]))})" if len(idle) > 1 else ""
        if price == math.inf:
            reason = f"no plan has room for {name}: memory, cuts or a pin rule it out{others}"
            found.append(Alternative(f"with {name}", None, reason))
            continue
        stages = priced.stages(searched.prices.way(state, last))
        found.append(_describe_idle(priced, name, stages, predicted, others))
    return found


def _describe_idle(priced: Priced, name: str, stages: Sequence[Stage], chosen: Prediction, others: str) -> Alternative:
    """Why a plan that uses `name` too was not chosen."""
    problem = priced.problem
    figures = _describe(priced, f"with {name}", stages, chosen, "")
    known = figures.prediction or chosen
    is_slower = (
        known.latency_s > chosen.latency_s * (1 + SAME)
        if problem.objective is Objective.LATENCY
        else known.throughput_per_s < chosen.throughput_per_s * (1 - SAME)
    )
    if problem.objective is Objective.MEMORY:
        verdict = f"{name} is not needed to hold the model"
    else:
        verdict = f"{name} would make it slower" if is_slower else f"{name} would not make it faster"
    worst = find_bottleneck(break_down(problem.graph, stages, problem.costs, problem.space))
    devices = " and ".join(map(problem.name_of, stages[worst.stage].devices))
    if worst.is_link:
        target = " and ".join(map(problem.name_of, stages[worst.stage + 1].devices))
        devices = f"the link from {devices} to {target}"
    pace = f"{devices} would take {worst.period_seconds * 1e3:.3g} ms per frame"
    return replace(figures, reason=f"{verdict}: {pace}; {figures.reason}{others}")


def _describe(
    priced: Priced, name: str, stages: Sequence[Stage] | None, chosen: Prediction, infeasible: str
) -> Alternative:
    problem = priced.problem
    if stages is None:
        return Alternative(name=name, prediction=None, reason=infeasible)
    prediction = predict(problem.graph, stages, problem.costs, problem.space)
    if problem.stages is not None and len(stages) != problem.stages:
        return Alternative(name, prediction, f"{problem.stages} stages are forced")
    if problem.objective is Objective.LATENCY:
        ratio = prediction.latency_s / chosen.latency_s
        figures = f"latency {prediction.latency_s * 1e3:.3g} ms, {ratio:.2f} times as long"
    else:
        ratio = chosen.throughput_per_s / prediction.throughput_per_s
        figures = f"throughput {prediction.throughput_per_s:.3g}/s, {1 / ratio:.2f} times the chosen plan's"
    if ratio > 1 + SAME:
        return Alternative(name, prediction, figures)
    count = sum(len(stage.devices) for stage in stages)
    return Alternative(name, prediction, f"{figures}, on {count} {'device' if count == 1 else 'devices'}")


def _why_not_alone(problem: Problem, device: NodeId) -> str:
    """Why `device` cannot run everything by itself."""
    need = stage_memory_bytes(problem.graph, 0, len(problem.graph.groups), device, problem.costs)
    have = problem.costs.device(device).memory_bytes
    if need > have:
        return f"memory: the whole model needs {need / 1e6:.0f} MB, it has {have / 1e6:.0f} MB"
    return "the head or tail is pinned to another device"
