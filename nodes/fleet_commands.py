"""`mesh nodes`, `plan`, `deploy`, `status`, `undeploy`: what a person asks of the mesh."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mesh.client.mesh_client import Mesh, read_model_file
from mesh.core.ids import NodeId, check_name, make_name
from mesh.core.plan import Objective, Plan, PlanOptions
from mesh.errors import MissingExtra, NoNodes, NotFound, UsageError
from mesh.runtime.coordinator import NO_NODES_HINT
from nodes import render
from nodes.output import print_json, say


async def show_nodes(connection: Mesh, as_json: bool) -> None:
    async with connection as mesh:
        views = await mesh.nodes()
    if all(view.is_lost for view in views):
        told = (
            f"no node answers: {', '.join(view.capabilities.name for view in views)}" if views else "no node was found"
        )
        raise NoNodes(told, hint=NO_NODES_HINT)
    if as_json:
        print_json({"nodes": [render.node_document(view) for view in views]})
    else:
        print(render.nodes_table(views))


def parse_objective(text: str) -> Objective:
    try:
        return Objective(text)
    except ValueError:
        known = ", ".join(objective.value for objective in Objective)
        raise UsageError(f"unknown objective {text[:40]!r}", hint=f"one of {known}") from None


def read_plan(path: Path, model: bytes) -> Plan:
    """A plan file for this model; raises `UsageError` naming what is wrong in it."""
    try:
        document = json.loads(path.read_text())
    except FileNotFoundError:
        raise NotFound(f"there is no plan file {path}") from None
    except (OSError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise UsageError(f"the plan file {path} cannot be read: {error}") from None
    try:
        from mesh.model.read import read_model_bytes
        from mesh.model.summarise import summarise
        from mesh.planning.document import plan_from_json
    except ImportError as error:
        raise MissingExtra(
            f"a plan file needs the package {error.name!r}",
            hint="install the extra infermesh[coordinator]: pip install '.[coordinator]' in a clone",
        ) from None
    return plan_from_json(document, summarise(read_model_bytes(model)))


def make_options(model: bytes, objective: str, stages: int | None, plan: Path | None) -> PlanOptions:
    if plan is not None and stages is not None:
        raise UsageError("--plan and --stages both force a plan; give one")
    forced = read_plan(plan, model) if plan is not None else None
    return PlanOptions(objective=parse_objective(objective), stages=stages, forced=forced)


def plan_document(plan: Plan) -> dict[str, Any]:
    from mesh.planning.document import plan_to_json

    return dict(plan_to_json(plan))


async def show_plan(
    connection: Mesh, model: Path, objective: str, stages: int | None, explain: bool, as_json: bool
) -> None:
    data = await asyncio.to_thread(read_model_file, model)
    options = make_options(data, objective, stages, None)
    async with connection as mesh:
        plan = await mesh.coordinator.plan(data, options, say)
        names = {view.capabilities.node_id: view.capabilities.name for view in await mesh.nodes()}
    print_plan(plan, names, explain, as_json)


async def show_offline_plan(
    model: Path, fleet: Path, objective: str, stages: int | None, explain: bool, as_json: bool
) -> None:
    """As `show_plan`, for the devices of a fleet file instead of a mesh."""
    from mesh.core.fleet_file import parse_fleet
    from nodes.lab_commands import read_fleet_file

    devices = parse_fleet(read_fleet_file(fleet))
    data = await asyncio.to_thread(read_model_file, model)
    options = make_options(data, objective, stages, None)
    try:
        from mesh.runtime.offline_plan import plan_offline
    except ImportError as error:
        raise MissingExtra(
            f"planning needs the package {error.name!r}, which is not installed here",
            hint="install the extra infermesh[coordinator]: pip install '.[coordinator]' in a clone",
        ) from None
    planned = await plan_offline(data, devices, options, say)
    print_plan(planned.plan, planned.names, explain, as_json)


def print_plan(plan: Plan, names: Mapping[NodeId, str], explain: bool, as_json: bool) -> None:
    if as_json:
        print_json({**plan_document(plan), "names": {device: names.get(device, "") for device in plan.devices}})
        return
    print(render.plan_table(plan, names))
    if explain:
        from mesh.planning.explain import explain as explain_plan

        print(explain_plan(plan, lambda device: names.get(device, device[:8])))


async def deploy(
    connection: Mesh,
    model: Path,
    name: str | None,
    objective: str,
    stages: int | None,
    plan: Path | None,
    as_json: bool,
) -> None:
    data = await asyncio.to_thread(read_model_file, model)
    options = make_options(data, objective, stages, plan)
    chosen = check_name(name, "deployment") if name is not None else make_name(model.stem, "model")
    async with connection as mesh:
        deployment = await mesh.coordinator.deploy(data, chosen, options, say)
        names = {view.capabilities.node_id: view.capabilities.name for view in await mesh.nodes()}
    if as_json:
        print_json(
            {
                "name": deployment.name,
                "term": deployment.fence.term,
                "generation": deployment.fence.generation,
                "plan": plan_document(deployment.plan),
            }
        )
        return
    print(render.plan_table(deployment.plan, names))
    wanted = options.stages
    if wanted is not None and len(deployment.plan.stages) < wanted:
        say(f"warning: {wanted} stages were asked for, the model has cuts for {len(deployment.plan.stages)}")
    print(
        f"{deployment.name} is active (generation {deployment.fence}); try: mesh infer {deployment.name} --input X.npz"
    )


async def show_status(connection: Mesh, name: str, as_json: bool) -> None:
    async with connection as mesh:
        reports = await mesh.status(name)
    if as_json:
        documents = [render.deployment_document(report, plan_document(report.deployment.plan)) for report in reports]
        print_json({"deployments": documents})
    elif not reports:
        print("nothing is deployed")
    else:
        print(render.status_table(reports))
        if name:
            for happening in reports[0].happenings:
                print(f"  {happening.text}")


async def undeploy(connection: Mesh, name: str, as_json: bool) -> None:
    async with connection as mesh:
        await mesh.undeploy(name)
    if as_json:
        print_json({"undeployed": name})
    else:
        print(f"{name} is gone")
