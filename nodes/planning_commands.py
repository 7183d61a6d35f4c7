"""`mesh plan` and `mesh deploy`: what is wished for on the command line, handed to `nodes.fleet_commands`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nodes.options import (
    CodecOption,
    CoordinatorOption,
    ExcludeOption,
    FirstOnOption,
    InterfaceOption,
    JsonOption,
    MaxChangeOption,
    MdnsOption,
    MeasureOption,
    ModelArgument,
    ObjectiveOption,
    PeerOption,
    PlanOption,
    ReplicasOption,
    StagesOption,
    TrustedOnlyOption,
    cost_file,
    open_mesh,
)
from nodes.output import command, run_async
from nodes.wishes import Wishes


@command
def plan(
    model: ModelArgument,
    objective: ObjectiveOption = "throughput",
    stages: StagesOption = None,
    first_on: FirstOnOption = None,
    exclude: ExcludeOption = None,
    trusted_only: TrustedOnlyOption = False,
    replicas: ReplicasOption = 1,
    codec: CodecOption = "none",
    max_change: MaxChangeOption = None,
    explain: Annotated[bool, typer.Option("--explain", help="Say why, and what else was considered.")] = False,
    fleet: Annotated[
        Path | None, typer.Option("--fleet", metavar="FILE", help="Plan for this fleet file, without any daemon.")
    ] = None,
    measure: MeasureOption = False,
    peer: PeerOption = None,
    interface: InterfaceOption = None,
    mdns: MdnsOption = True,
    coordinator: CoordinatorOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure the mesh with MODEL, or take a fleet file, and show the plan that would be carried out."""
    from nodes.fleet_commands import show_offline_plan, show_plan

    chosen = tuple(exclude or ())
    wishes = Wishes(
        objective, stages, None, first_on, chosen, trusted_only, replicas, explain, measure, codec, max_change
    )
    if fleet is not None:
        run_async(show_offline_plan(model, fleet, wishes, as_json))
        return
    run_async(show_plan(open_mesh(coordinator, peer, interface, mdns, cost_file()), model, wishes, as_json))


@command
def deploy(
    model: Annotated[
        Path,
        typer.Argument(metavar="MODEL", help="An ONNX model file, or a folder of `mesh optimize`.", show_default=False),
    ],
    name: Annotated[
        str | None, typer.Option("--name", help="Name of the deployment; default: from the file name.")
    ] = None,
    objective: ObjectiveOption = "throughput",
    stages: StagesOption = None,
    plan: PlanOption = None,
    first_on: FirstOnOption = None,
    exclude: ExcludeOption = None,
    replicas: ReplicasOption = 1,
    codec: CodecOption = "none",
    max_change: MaxChangeOption = None,
    measure: MeasureOption = False,
    peer: PeerOption = None,
    interface: InterfaceOption = None,
    mdns: MdnsOption = True,
    coordinator: CoordinatorOption = None,
    as_json: JsonOption = False,
) -> None:
    """Plan MODEL (of a folder the best variant), prove its parts equal the whole, load and activate them."""
    from nodes.fleet_commands import deploy as run

    wishes = Wishes(
        objective,
        stages,
        plan,
        first_on,
        tuple(exclude or ()),
        replicas=replicas,
        measure=measure,
        codec=codec,
        max_change=max_change,
    )
    run_async(run(open_mesh(coordinator, peer, interface, mdns, cost_file()), model, name, wishes, as_json))
