"""The planner: the best plan in its space, proven by exhausting that space where its size allows.

The space: every way to cut the given order of operator groups at usable legal cuts into stages, on
every subset of the devices in every order, one device per stage unless the problem allows replicas. A
single device is the case of one stage, so the answer is never predicted slower than the best of them.
The search (`mesh.planning.search`) gives the best price for every number of devices of each type; the
smallest number of devices that reaches the best is taken, and among plans of equal period the one of
least latency.

Larger questions go to a beam search first (`mesh.planning.beam`). What it finds removes most arcs from
the exact search, which is then often affordable; where it is not, the answer is the beam's, and the
certificate says how far from the best it can be at most. Of very many cuts, the cheapest one in every
small slice of the work is kept, and the certificate says that too.
"""

from __future__ import annotations

import dataclasses
import math

from mesh.core.plan import Objective, Plan
from mesh.planning.answer import make_plan, obvious_reasons, thin_cuts, why_nothing_fits
from mesh.planning.arcs import least_period, price_arcs
from mesh.planning.beam import Guided, find_guided
from mesh.planning.bound import allow, find_prices
from mesh.planning.comparators import find_copies
from mesh.planning.device_types import group_devices
from mesh.planning.energy import find_cheapest
from mesh.planning.nearly_equal import group_nearly_equal
from mesh.planning.predict import make_stage
from mesh.planning.problem import Infeasible, Problem
from mesh.planning.rejected import list_alternatives, list_singles
from mesh.planning.searched import TIE, Priced, Searched, period_question, search_all

MAX_STEPS = 100_000_000
"""Elementary steps of a search without a limit: about 0.2 s on one desktop core, ten times that on a board."""

MAX_LIMITED_STEPS = 1_000_000_000
"""The same where a beam's plan has already removed what is slower."""

MAX_TABLE_ENTRIES = 20_000_000
"""8 bytes each, 160 MB: what a coordinator on a board may use for a moment."""

MOST_DIFFERENT = 12
"""Devices that no two of are equal. Beyond, nearly equal ones are also planned for as if they were."""

MAX_ENERGY_STEPS = 5_000_000
"""Least energy takes hundreds of searches."""


def plan(problem: Problem) -> Plan | Infeasible:
    """The best plan of `problem`, or why there is none.

    With forced stages the plan has exactly that many, or as many as there are legal cuts for, which
    the certificate then says.
    """
    return _or_copies(problem, _plan_pipeline(problem))


def plan_by_beam(problem: Problem) -> Plan | Infeasible:
    """What `plan` answers where nothing can be exhausted, for problems of any size."""
    priced, note = _price(problem)
    if isinstance(priced, Infeasible):
        return priced
    guided = find_guided(priced)
    return _nothing_found(priced) if guided is None else _or_copies(problem, plan_guided(priced, guided, note))


def _or_copies(problem: Problem, found: Plan | Infeasible) -> Plan | Infeasible:
    """`found`, unless copies of the whole model on devices of several types are faster."""
    copies = find_copies(problem) if problem.objective is Objective.THROUGHPUT else None
    if copies is None or isinstance(found, Infeasible):
        return found
    if copies.period * found.predicted.throughput_per_s >= 1 - TIE:
        return found
    return make_plan(problem, (copies.stage,), found.certificate, found.bound_throughput_per_s)


def _plan_pipeline(problem: Problem) -> Plan | Infeasible:
    """The best plan whose stages are each on devices of one type."""
    priced, note = _price(problem)
    if isinstance(priced, Infeasible):
        return priced
    most_steps = MAX_ENERGY_STEPS if problem.objective is Objective.ENERGY else MAX_STEPS
    if is_affordable(priced, math.inf, most_steps):
        return plan_exactly(priced, note)
    guided = find_guided(priced)
    if guided is None:
        return _nothing_found(priced)
    if problem.objective is Objective.THROUGHPUT and guided.price > guided.bound * (1 + TIE):
        limit = guided.price * (1 + TIE) * (1 + problem.least_gain)
        if is_affordable(priced, limit, MAX_LIMITED_STEPS):
            return plan_exactly(priced, note, limit)
    found = plan_guided(priced, guided, note)
    if problem.objective is Objective.THROUGHPUT and len(priced.arcs.types) > MOST_DIFFERENT:
        return _plan_grouped(priced, found, note)
    return found


def _plan_grouped(guided: Priced, found: Plan, note: str) -> Plan:
    """`found`, or what is better where nearly equal devices are taken for equal; with the tighter of both bounds."""
    problem = guided.problem
    grouped = group_nearly_equal(problem)
    if grouped is None:
        return found
    answers: list[Plan] = []
    for each in (grouped.slowest, grouped.fastest):
        priced, note = _price(each)
        if isinstance(priced, Infeasible) or not is_affordable(priced, math.inf, MAX_STEPS):
            return found
        answer = plan_exactly(priced, note)
        if isinstance(answer, Infeasible):
            return found
        answers.append(answer)
    made, bound = answers
    bound_per_s = min(found.bound_throughput_per_s, bound.bound_throughput_per_s)
    costs, space = problem.costs, problem.space
    stages = [make_stage(s.segment, s.devices, costs, s.variant, s.codec, space) for s in made.stages]
    plan = make_plan(problem, stages, "", bound_per_s, found.alternatives)
    kind = f"{grouped.groups} groups of nearly equal devices"
    if plan.predicted.throughput_per_s < found.predicted.throughput_per_s:
        plan = dataclasses.replace(found, bound_throughput_per_s=max(bound_per_s, found.predicted.throughput_per_s))
        text = f"beam over {_size(guided, note)}; bound from {kind}, each taken at its fastest"
    else:
        text = f"{made.certificate}; {kind}, each taken at its slowest"
    gap = _gap(1 / plan.predicted.throughput_per_s, 1 / plan.bound_throughput_per_s)
    return dataclasses.replace(plan, certificate=f"{text}{gap}")


def _price(problem: Problem) -> tuple[Priced | Infeasible, str]:
    """The problem with its arcs and a note on left-out cuts, or why it has no plan."""
    reasons = obvious_reasons(problem)
    if reasons:
        return Infeasible(reasons), ""
    types = group_devices(problem)
    cuts, note = thin_cuts(problem, len(types))
    return Priced(problem, price_arcs(problem, cuts, types)), note


def _nothing_found(priced: Priced) -> Infeasible:
    refused = why_nothing_fits(priced.problem, priced.arcs.cuts)
    if find_prices(priced, allow(priced.arcs, math.inf)).impossible:
        return refused
    return Infeasible(("no plan was found, which does not prove that there is none", *refused.reasons))


def is_affordable(priced: Priced, limit: float, most_steps: int) -> bool:
    """Whether plans of prices up to `limit` can be exhausted."""
    if math.prod(count + 1 for count in priced.arcs.counts) * len(priced.arcs.codec_of) > MAX_TABLE_ENTRIES:
        return False
    question = period_question(priced, limit)
    return question.table_entries <= MAX_TABLE_ENTRIES and question.steps <= most_steps


def plan_exactly(priced: Priced, note: str, limit: float = math.inf) -> Plan | Infeasible:
    """The best plan of those with a price up to `limit`; the caller knows that one exists if it is finite."""
    problem = priced.problem
    searched = search_all(priced, limit)
    count = _choose_count(searched)
    if count is None:
        return why_nothing_fits(problem, priced.arcs.cuts)
    shortest = min(searched.best(searched.periods, number)[0] for number in priced.device_counts)
    if problem.objective is Objective.ENERGY:
        cheapest = find_cheapest(priced)
        if cheapest is None:
            return why_nothing_fits(problem, priced.arcs.cuts)
        way, count = cheapest.way, sum(priced.arcs.kinds[kind].replicas for kind, _, _ in cheapest.way)
        note += _gap(cheapest.joules, cheapest.bound_joules)
    else:
        way = searched.best_way(count)
    stages = priced.stages(way)
    found = make_plan(problem, stages, _certificate(priced, count, note), 1.0 / shortest if shortest > 0 else 0.0)
    if limit == math.inf:
        return dataclasses.replace(found, alternatives=list_alternatives(searched, stages, found.predicted))
    return dataclasses.replace(found, alternatives=list_singles(priced, stages, found.predicted))


def _choose_count(searched: Searched) -> int | None:
    """The fewest devices that reach the best price, or near enough (for MEMORY: any price); None if nothing fits."""
    prices = {count: searched.best(searched.prices, count)[0] for count in searched.priced.device_counts}
    least = min(prices.values())
    if least == math.inf:
        return None
    problem = searched.priced.problem
    if problem.objective is Objective.MEMORY:
        return next(count for count, price in prices.items() if price < math.inf)
    gain = problem.least_gain if problem.objective is Objective.THROUGHPUT else 0.0
    best = next(count for count, price in prices.items() if price <= least * (1 + TIE))
    # Each device that is left out in turn may cost as much.
    return next(count for count, price in prices.items() if price <= least * (1 + TIE) * (1 + gain) ** (best - count))


def plan_guided(priced: Priced, guided: Guided, note: str) -> Plan:
    """The beam's plan, its devices arranged anew in the best way where that can be exhausted."""
    problem = priced.problem
    stages = priced.stages(guided.way)
    used = {device for stage in stages for device in stage.devices}
    certificate = f"beam over {_size(priced, note)}{_gap(guided.price, guided.bound)}"
    shortest = guided.period_bound or least_period(priced.arcs)
    found = make_plan(problem, stages, certificate, 1.0 / shortest if shortest > 0 else 0.0)
    found = dataclasses.replace(found, alternatives=list_singles(priced, stages, found.predicted))
    fewer = dataclasses.replace(problem, devices=tuple(device for device in problem.devices if device in used))
    inner = Priced(fewer, price_arcs(fewer, priced.arcs.cuts, group_devices(fewer)))
    if problem.objective is Objective.THROUGHPUT and is_affordable(inner, math.inf, MAX_STEPS):
        arranged = plan_exactly(inner, note)
        if isinstance(arranged, Plan) and arranged.predicted.throughput_per_s >= found.predicted.throughput_per_s:
            gap = _gap(1.0 / arranged.predicted.throughput_per_s, guided.bound)
            certificate = f"beam over {_size(priced, note)}{gap}"
            return dataclasses.replace(
                arranged,
                certificate=certificate,
                bound_throughput_per_s=found.bound_throughput_per_s,
                alternatives=list_singles(priced, arranged.stages, arranged.predicted),
            )
    return found


def _certificate(priced: Priced, count: int, note: str) -> str:
    problem = priced.problem
    text = f"exact over {_size(priced, note)}"
    if problem.stages is not None:
        text += f"; {problem.stages} stages forced"
        if count < problem.stages:
            text += f", {count} made: no more legal cuts"
    return text


def _size(priced: Priced, note: str) -> str:
    devices, types = sum(priced.arcs.counts), len(priced.arcs.types)
    of_types = f" of {types} {'type' if types == 1 else 'types'}" if types < devices else ""
    return f"{len(priced.arcs.cuts)} cuts{note} x {devices} devices{of_types}, order of groups fixed"


def _gap(price: float, bound: float) -> str:
    if price <= bound * (1 + TIE):
        return ""
    return f"; at most {(price / bound - 1) * 100:.2g} % from the best" if bound > 0 else "; no bound is known"
