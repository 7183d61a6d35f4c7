"""A plan for a fleet that is only written down: no daemon, no network; needs numpy and onnx, as all planning.

read and summarise ─► time the model on one core here ─► estimate costs from the file ─► plan
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, replace

from mesh.core.fleet_file import Fleet, FleetDevice
from mesh.core.graph import Graph
from mesh.core.ids import NodeId
from mesh.core.plan import RAW, Plan, PlanOptions
from mesh.engines import make_engine
from mesh.engines.contract import LoadOptions
from mesh.errors import MeshError, UsageError
from mesh.hardware.limits import read_limits
from mesh.model.read import SourceModel, read_model_bytes
from mesh.model.summarise import summarise
from mesh.planning.coding import spare_codecs
from mesh.planning.exact import plan as solve
from mesh.planning.explain import MoreFleet, explain
from mesh.planning.fleet_costs import (
    Yardstick,
    coding_seconds,
    estimate_costs,
    nominal_core_seconds,
    plannable,
    watts_of,
    wired,
)
from mesh.planning.predict import with_costs
from mesh.planning.problem import Infeasible as NoPlan
from mesh.planning.problem import Problem, check_options, make_problem
from mesh.planning.validate import codec_problems, problems
from mesh.runtime.codec_gate import hold_to_answers
from mesh.runtime.codec_offers import codecs_of, price_codecs
from mesh.runtime.coordinator import Progress
from mesh.runtime.measure import measure_model

MEASURE_BUDGET_S = 1.0
"""As for a node that is asked how fast it is."""


@dataclass(frozen=True, slots=True)
class OfflinePlan:
    plan: Plan
    names: Mapping[NodeId, str]
    problem: Problem
    """What `plan` is the answer to."""


async def plan_offline(
    data: bytes, fleet: Fleet, options: PlanOptions, progress: Progress, core_seconds: float | None = None
) -> OfflinePlan:
    """Plan the model in `data` for `fleet`; `core_seconds`, of the model on one core, is measured where it is None.

    Raises `ModelError`s, `UsageError` and `Infeasible`."""
    devices = plannable(fleet)
    names = {node: device.name for node, device in devices.items()}
    check_options(options, names)
    model = await asyncio.to_thread(read_model_bytes, data)
    graph = await asyncio.to_thread(summarise, model)
    progress(f"{len(graph.groups)} operator groups, {len(graph.cuts) - 2} places to cut")
    if core_seconds is None:
        core_seconds, source = await _time_one_core(model, graph, progress)
    else:
        source = f"{core_seconds * 1e3:.3g} ms on one core, as given"
    limits = read_limits()
    yardstick = Yardstick(core_seconds, limits.cores, limits.memory_available_bytes)
    wanted = {codec for codec in (*options.limits.codecs, *codecs_of(options.forced)) if codec != RAW}
    speeds = dict.fromkeys(wanted, (coding_seconds(devices, yardstick),) * 2)
    codecs = await price_codecs(model, graph, speeds, progress, needed=codecs_of(options.forced))
    costs = estimate_costs(graph, devices, yardstick)
    problem = make_problem(graph, costs, options, names, watts_of(devices), codecs)
    if options.forced is not None:
        found = _carry_out(options.forced, problem)
    else:
        answer = await asyncio.to_thread(solve, problem)
        if isinstance(answer, NoPlan):
            raise answer.as_error()
        found = answer
        if codecs:
            found, problem = await hold_to_answers(model, graph, problem, spare_codecs(answer, problem), progress)
    if options.explain:
        others = _on_wires(problem, devices, yardstick)
        found = replace(found, explanation=await asyncio.to_thread(explain, problem, found, others))
    certificate = f"{found.certificate}; all costs are estimates: {source}, scaled by cpu; links from rate and latency"
    return OfflinePlan(replace(found, certificate=certificate), names, problem)


def _carry_out(forced: Plan, problem: Problem) -> Plan:
    """`forced` with the figures of this fleet; raises `UsageError` for what it cannot carry out."""
    memory = {device: problem.costs.device(device).memory_bytes for device in problem.devices}
    wrong = problems(forced, problem.graph, problem.devices, memory) or codec_problems(forced, problem.space)
    if wrong:
        raise UsageError(f"the plan cannot be carried out: {'; '.join(wrong)}", hint="make one with mesh plan --json")
    return replace(with_costs(forced, problem.graph, problem.costs, problem.space), forced=True)


def _on_wires(problem: Problem, devices: Mapping[NodeId, FleetDevice], yardstick: Yardstick) -> list[MoreFleet]:
    """The problem with wires in place of radio, where there is any."""
    others = wired(devices)
    if others is None:
        return []
    costs = estimate_costs(problem.graph, others, yardstick)
    return [MoreFleet("wires (100 Mbit) in place of radio", replace(problem, costs=costs))]


async def _time_one_core(model: SourceModel, graph: Graph, progress: Progress) -> tuple[float, str]:
    """Seconds of one inference on one core, and in words where they come from."""
    try:
        measured = await measure_model(make_engine(), model.data, LoadOptions(threads=1), MEASURE_BUDGET_S)
    except MeshError as error:  # no runtime here, or one that does not take this model with made-up inputs
        reason = error
    else:
        progress(f"one core of this machine runs the whole model in {measured.run_seconds * 1e3:.2f} ms")
        return measured.run_seconds, f"{measured.run_seconds * 1e3:.3g} ms on one core of this machine"
    seconds = nominal_core_seconds(graph)
    progress(f"the model cannot be timed here, its speed is nominal: {reason}")
    return seconds, f"a nominal {seconds * 1e3:.3g} ms on one core"
