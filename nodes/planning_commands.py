"""`mesh plan` and `mesh deploy`: what is wished for on the command line, handed to `nodes.fleet_commands`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mesh.core.ids import make_name
from mesh.errors import UsageError
from nodes.optimize_command import DEFAULT_MAX_DROP, LabelsOption, MaxDropOption, write_variants
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
from nodes.output import command, run_async, say
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


def optimize_first(
    model: Path, calibration: Path | None, labels: Path | None, max_drop: float, plan: Path | None
) -> Path:
    """The folder of variants that is then deployed, beside the model."""
    if calibration is None:
        raise UsageError("--optimize needs samples", hint="give some with --calibration X.npz, better 200 and more")
    if plan is not None:
        raise UsageError("a plan is for one model file", hint="leave --plan or --optimize out")
    if model.is_dir():
        raise UsageError(f"{model} is a folder", hint="leave --optimize out where variants are there already")
    folder = model.with_name(f"{model.stem}-variants")
    report = write_variants(model, calibration, labels, max_drop, folder)
    say(f"{len(report.offered)} variants and report.json in {folder}")
    return folder


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
    optimize: Annotated[
        bool, typer.Option("--optimize", help="Make variants of MODEL first, and deploy the best of them.")
    ] = False,
    calibration: Annotated[
        Path | None,
        typer.Option("--calibration", metavar="X.npz", help="With --optimize: as `mesh optimize` takes it."),
    ] = None,
    labels: LabelsOption = None,
    max_drop: MaxDropOption = DEFAULT_MAX_DROP,
    measure: MeasureOption = False,
    peer: PeerOption = None,
    interface: InterfaceOption = None,
    mdns: MdnsOption = True,
    coordinator: CoordinatorOption = None,
    as_json: JsonOption = False,
) -> None:
    """Plan MODEL (of a folder the best variant), prove its parts equal the whole, load and activate them."""
    from nodes.fleet_commands import deploy as run

    if optimize:
        name = name or make_name(model.stem, "model")
        model = optimize_first(model, calibration, labels, max_drop, plan)
    elif calibration is not None or labels is not None:
        raise UsageError("--calibration and --labels go with --optimize")
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
