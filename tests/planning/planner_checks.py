"""One seeded problem against the independent oracle and the validator, for every objective; also the beam's laws.

Used by the test suite for a few hundred seeds and by `scripts/check_planner` for thousands.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from unittest import mock

from mesh.core.plan import Objective, Plan
from mesh.planning import exact
from mesh.planning.predict import energy_joules, predict
from mesh.planning.problem import Infeasible, Problem
from mesh.planning.validate import contradictions, problems
from tests.planning.space_instances import Instance, for_objective, random_instance
from tests.planning.space_oracle import Oracle

CLOSE = 1e-9


@dataclasses.dataclass
class Tally:
    """What a number of checks came to."""

    verdicts: int = 0
    infeasible: int = 0
    beam_plans: int = 0
    beam_best: int = 0
    """Plans of the beam that are as good as the best."""
    beam_missed: int = 0
    """Where a plan exists and the beam found none."""


def check_seed(seed: int, tally: Tally) -> Iterator[str]:
    """Complaints about the planner's answers to one problem, for every objective."""
    base = random_instance(seed)
    for objective in Objective:
        instance = for_objective(base, objective)
        best = Oracle(instance).best(objective)
        tally.verdicts += 1
        tally.infeasible += best == math.inf
        for complaint in _check(instance, objective, best, tally):
            yield f"seed {seed}, {objective.value}: {complaint}"


def price(problem: Problem, plan: Plan) -> float:
    """What the objective counts, worked out anew from the plan's stages."""
    predicted = predict(problem.graph, plan.stages, problem.costs, problem.space)
    match problem.objective:
        case Objective.THROUGHPUT:
            return 1 / predicted.throughput_per_s
        case Objective.LATENCY:
            return predicted.latency_s
        case Objective.MEMORY:
            return sum(len(stage.devices) for stage in plan.stages)
        case Objective.ENERGY:
            return energy_joules(problem.graph, plan.stages, problem.costs, problem.space)


def _check(instance: Instance, objective: Objective, best: float, tally: Tally) -> Iterator[str]:
    problem = instance.problem
    with mock.patch.object(exact, "MAX_STEPS", math.inf), mock.patch.object(exact, "MAX_ENERGY_STEPS", math.inf):
        answer = exact.plan(problem)
    yield from _judge(problem, answer, best)
    if isinstance(answer, Plan) and price(problem, answer) > best * (1 + CLOSE):
        yield f"the plan has {price(problem, answer)}, the best {best}"
    with mock.patch.object(exact, "MAX_STEPS", 0):
        limited = exact.plan(problem) if objective is Objective.THROUGHPUT else answer
    guided = exact.plan_by_beam(problem)
    if isinstance(guided, Infeasible):
        tally.beam_missed += best < math.inf
    else:
        yield from (f"beam: {complaint}" for complaint in _judge(problem, guided, best))
        tally.beam_plans += 1
        tally.beam_best += price(problem, guided) <= best * (1 + CLOSE)
        yield from (f"limited: {complaint}" for complaint in _judge(problem, limited, best))
        if isinstance(limited, Plan) and price(problem, limited) > best * (1 + CLOSE):
            yield f"the limited search has {price(problem, limited)}, the best {best}"


def _judge(problem: Problem, answer: Plan | Infeasible, best: float) -> Iterator[str]:
    """What holds of every answer, exact or not."""
    if isinstance(answer, Infeasible):
        if best < math.inf:
            yield f"called infeasible ({answer.reasons}), the oracle has {best}"
        elif not answer.reasons:
            yield "infeasible without a reason"
        return
    if best == math.inf:
        yield f"a plan where none is possible: {answer.stages}"
        return
    if price(problem, answer) < best * (1 - CLOSE):
        yield f"better than the best: {price(problem, answer)} < {best}"
    if problem.objective is Objective.THROUGHPUT and answer.bound_throughput_per_s < (1 - CLOSE) / best:
        yield f"the bound {answer.bound_throughput_per_s}/s excludes the best, {1 / best}/s"
    memory = {device: problem.costs.device(device).memory_bytes for device in problem.devices}
    taken = {device: problem.costs.device(device).memory for device in problem.devices}
    yield from problems(answer, problem.graph, problem.devices, memory, problem.space, taken)
    yield from contradictions(answer, problem)
