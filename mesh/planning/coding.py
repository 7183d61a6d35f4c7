"""Which codecs of a found plan are not needed after all. Pure.

A search weighs seconds only. Of its answer every codec is taken back that gains less than predictions are wrong by, the
lossiest first to go: a number that travels as it is needs no proof.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from mesh.core.coding import CODECS
from mesh.core.plan import Objective, Plan, Prediction
from mesh.planning.predict import predict, with_costs
from mesh.planning.problem import LEAST_GAIN, Problem
from mesh.planning.space import Codec


def spare_codecs(plan: Plan, problem: Problem) -> Plan:
    """`plan` with the least codecs that keep it within `LEAST_GAIN` of what is predicted of it.

    For throughput and latency; for the other objectives, which codecs do not serve, it stays as it is.
    """
    if problem.objective not in (Objective.THROUGHPUT, Objective.LATENCY):
        return plan
    best, stages = plan.predicted, list(plan.stages)
    known = {codec.name: codec for codec in problem.space.codecs}
    for index, stage in enumerate(stages[:-1]):
        ends = (*stage.devices, *stages[index + 1].devices)
        for codec in CODECS[: CODECS.index(stage.codec)] if stage.codec in CODECS else ():
            spoken = known.get(codec)
            if spoken is not None and not _is_spoken(spoken, ends, stage.segment.end):
                continue
            if spoken is None and codec != CODECS[0]:
                continue
            tried = [*stages[:index], replace(stage, codec=codec), *stages[index + 1 :]]
            if _is_as_good(predict(problem.graph, tried, problem.costs, problem.space), best, problem.objective):
                stages = tried
                break
    if tuple(stages) == plan.stages:
        return plan
    spared = replace(plan, stages=tuple(stages))
    return replace(with_costs(spared, problem.graph, problem.costs, problem.space), explanation=None)


def _is_spoken(codec: Codec, devices: Sequence[str], position: int) -> bool:
    return codec.may_cross(position) and all(device in codec.byte_seconds for device in devices)


def _is_as_good(found: Prediction, best: Prediction, objective: Objective) -> bool:
    if objective is Objective.LATENCY:
        return found.latency_s <= best.latency_s * (1 + LEAST_GAIN)
    return found.throughput_per_s >= best.throughput_per_s * (1 - LEAST_GAIN)
