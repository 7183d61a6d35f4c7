"""`mesh nodes`, `plan`, `deploy`, `status`, `undeploy`: what a person asks of the mesh."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from mesh.client.mesh_client import Mesh, read_model_file
from mesh.core.ids import NodeId, check_name, make_name
from mesh.core.plan import Plan, PlanOptions
from mesh.errors import MissingExtra, NoNodes, UsageError
from mesh.runtime.coordinator import NO_NODES_HINT
from nodes import render
from nodes.output import print_json, say
from nodes.variants import read_folder
from nodes.wishes import Wishes, make_options

if TYPE_CHECKING:
    from mesh.runtime.offline_plan import OfflinePlan


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


def plan_document(plan: Plan) -> dict[str, Any]:
    from mesh.planning.document import plan_to_json

    return dict(plan_to_json(plan))


async def show_plan(connection: Mesh, model: Path, wishes: Wishes, as_json: bool) -> None:
    data = await asyncio.to_thread(read_model_file, model)
    options = options_without_nodes(wishes, data)
    async with connection as mesh:
        if options is None:
            options = make_options(wishes, data, await names_of_nodes(mesh))
        plan = await mesh.coordinator.plan(data, options, say)
        names = await names_of_nodes(mesh)
    print_plan(plan, names, wishes.explain, as_json)


def options_without_nodes(wishes: Wishes, model: bytes) -> PlanOptions | None:
    """What is wrong in them is told before anybody is asked; None where a wish names a node."""
    return None if wishes.names_nodes else make_options(wishes, model, {})


async def names_of_nodes(mesh: Mesh) -> dict[NodeId, str]:
    return {view.capabilities.node_id: view.capabilities.name for view in await mesh.nodes()}


async def show_offline_plan(model: Path, fleet: Path, wishes: Wishes, as_json: bool) -> None:
    """As `show_plan`, for the devices of a fleet file instead of a mesh."""
    planned = await plan_for_fleet(model, fleet, wishes)
    print_plan(planned.plan, planned.names, wishes.explain, as_json)


async def plan_for_fleet(model: Path, fleet: Path, wishes: Wishes, core_seconds: float | None = None) -> OfflinePlan:
    """`core_seconds`: of the model on one core; None times it here."""
    from mesh.core.fleet_file import parse_fleet
    from nodes.lab_commands import read_fleet_file

    devices = parse_fleet(read_fleet_file(fleet))
    data = await asyncio.to_thread(read_model_file, model)
    try:
        from mesh.planning.fleet_costs import plannable
        from mesh.runtime.offline_plan import plan_offline
    except ImportError as error:
        raise MissingExtra(
            f"planning needs the package {error.name!r}, which is not installed here",
            hint="install the extra infermesh[coordinator]: pip install '.[coordinator]' in a clone",
        ) from None
    known = plannable(devices)
    names = {node: device.name for node, device in known.items()}
    trusted = [node for node, device in known.items() if device.trusted]
    return await plan_offline(data, devices, make_options(wishes, data, names, trusted), say, core_seconds)


def print_plan(plan: Plan, names: Mapping[NodeId, str], explain: bool, as_json: bool) -> None:
    if as_json:
        print_json({**plan_document(plan), "names": {device: names.get(device, "") for device in plan.devices}})
        return
    print(render.plan_table(plan, names))
    if explain:
        from mesh.planning.explain import describe

        print(describe(plan, lambda device: names.get(device, device[:8])))


async def deploy(
    connection: Mesh,
    model: Path,
    name: str | None,
    wishes: Wishes,
    as_json: bool,
) -> None:
    chosen = check_name(name, "deployment") if name is not None else make_name(model.stem, "model")
    folder = await asyncio.to_thread(read_folder, model)
    if folder is not None and wishes.plan is not None:
        raise UsageError("a plan is for one model file", hint=f"name the variant: {folder.variants[0].path}")
    if folder is None:
        data = await asyncio.to_thread(read_model_file, model)
        options = options_without_nodes(wishes, data)
    choice: dict[str, Any] = {}
    async with connection as mesh:
        if folder is not None:
            known = await names_of_nodes(mesh)
            options_for = partial(make_options, wishes, names=known)
            choosing = _load_choosing()
            found, admissions = await choosing.choose_variant(mesh, folder, options_for, wishes.measure, say)
            data, options = await asyncio.to_thread(read_model_file, found.variant.path), found.options
            choice = {"variant": found.variant.name, "admission": choosing.admission_document(admissions)}
        elif options is None:
            options = make_options(wishes, data, await names_of_nodes(mesh))
        deployment = await mesh.coordinator.deploy(data, chosen, options, say)
        names = await names_of_nodes(mesh)
    if as_json:
        print_json(
            {
                "name": deployment.name,
                "term": deployment.fence.term,
                "generation": deployment.fence.generation,
                "plan": plan_document(deployment.plan),
                **choice,
            }
        )
        return
    print(render.plan_table(deployment.plan, names))
    wanted = wishes.stages
    if wanted is not None and len(deployment.plan.stages) < wanted:
        say(f"warning: {wanted} stages were asked for, the model has cuts for {len(deployment.plan.stages)}")
    print(
        f"{deployment.name} is active (generation {deployment.fence}); try: mesh infer {deployment.name} --input X.npz"
    )


def _load_choosing() -> ModuleType:
    try:
        from nodes import choosing
    except ImportError as error:
        raise MissingExtra(
            f"judging variants needs the package {error.name!r}, which is not installed here",
            hint="install the extra infermesh[coordinator]: pip install '.[coordinator]' in a clone, "
            "or deploy one file of the folder",
        ) from None
    return choosing


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
                print(f"  {render.wall_time(happening.time)}  {happening.text}")


async def undeploy(connection: Mesh, name: str, as_json: bool) -> None:
    async with connection as mesh:
        await mesh.undeploy(name)
    if as_json:
        print_json({"undeployed": name})
    else:
        print(f"{name} is gone")
