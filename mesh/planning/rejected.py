"""The plans that were not chosen, each with its figures and the reason in words.

Read off the finished search, so the figures are the best of their kind: each device alone, every
other number of stages, and the chosen plan's devices left out one at a time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from mesh.core.ids import NodeId
from mesh.core.plan import Alternative, Objective, Prediction, Stage
from mesh.planning.memory import segment_memory_bytes
from mesh.planning.predict import predict
from mesh.planning.search import Way
from mesh.planning.searched import Searched

SAME = 1e-6
"""Relative difference below which two predictions are called equal in words."""


def list_alternatives(searched: Searched, chosen: Sequence[Stage], predicted: Prediction) -> tuple[Alternative, ...]:
    """Alternatives to `chosen` in the order: devices alone, numbers of stages, left-out devices."""
    devices = searched.arcs.devices
    names = searched.problem.name_of
    used = {stage.devices[0] for stage in chosen}
    found = []
    for index, device in enumerate(devices):
        if used != {device}:
            price = searched.prices.price(1 << index, index)
            pinned_away = searched.problem.tail not in (None, device)
            way = None if price == math.inf or pinned_away else searched.prices.way(1 << index, index)
            found.append(_describe(searched, f"alone on {names(device)}", way, predicted, _alone(searched, device)))
    for count in range(2, len(devices) + 1):
        price, mask, last = searched.best(searched.prices, count)
        if count != len(chosen) and price < math.inf:
            way = searched.prices.way(mask, last)
            found.append(_describe(searched, f"{count} stages", way, predicted, ""))
    if len(used) > 1:
        for index, device in enumerate(devices):
            if device in used:
                found.append(_without(searched, index, names(device), predicted))
    return tuple(found)


def _without(searched: Searched, left_out: int, name: str, predicted: Prediction) -> Alternative:
    """The best plan that does not use one of the chosen devices."""
    forced = searched.problem.stages
    counts = range(1, len(searched.arcs.devices)) if forced is None else (forced,)
    bests = [searched.best(searched.prices, count, without=left_out) for count in counts]
    price, mask, last = min(bests, key=lambda best: best[0])
    way = None if price == math.inf else searched.prices.way(mask, last)
    return _describe(searched, f"without {name}", way, predicted, "the other devices cannot hold the model")


def _describe(searched: Searched, name: str, way: Way | None, chosen: Prediction, infeasible: str) -> Alternative:
    problem = searched.problem
    if way is None:
        return Alternative(name=name, prediction=None, reason=infeasible)
    prediction = predict(problem.graph, searched.stages(way), problem.costs)
    if problem.stages is not None and len(way) != problem.stages:
        return Alternative(name, prediction, f"{problem.stages} stages are forced")
    if problem.objective is Objective.LATENCY:
        ratio = prediction.latency_s / chosen.latency_s
        figures = f"latency {prediction.latency_s * 1e3:.3g} ms, {ratio:.2f} times as long"
    else:
        ratio = chosen.throughput_per_s / prediction.throughput_per_s
        figures = f"throughput {prediction.throughput_per_s:.3g}/s, {1 / ratio:.2f} times the chosen plan's"
    if ratio > 1 + SAME:
        return Alternative(name, prediction, figures)
    return Alternative(name, prediction, f"{figures}, on {len(way)} {'device' if len(way) == 1 else 'devices'}")


def _alone(searched: Searched, device: NodeId) -> str:
    """Why `device` cannot run everything by itself."""
    graph = searched.problem.graph
    need = segment_memory_bytes(graph, 0, len(graph.groups))
    have = searched.problem.costs.device(device).memory_bytes
    if need > have:
        return f"memory: the whole model needs {need / 1e6:.0f} MB, it has {have / 1e6:.0f} MB"
    return "the head or tail is pinned to another device"
