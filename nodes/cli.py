"""`mesh`: the command line. Declares commands and options; the work is in the modules beside this one."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from mesh import __version__
from mesh.errors import UsageError
from mesh.wire.experiments import read_in_larger_pieces
from nodes.doctor_command import doctor
from nodes.gateway_command import gateway
from nodes.gateway_service import (
    AllowLoadOption,
    GatewayOption,
    GrpcOption,
    HttpOption,
    MetricsOption,
    RepositoryOption,
    read_companion_settings,
)
from nodes.lab_commands import lab_app
from nodes.measuring_commands import bench, trace
from nodes.optimize_command import optimize
from nodes.options import (
    CoordinatorOption,
    DataDirOption,
    InterfaceOption,
    JsonOption,
    MdnsOption,
    ModelArgument,
    NameArgument,
    PeerOption,
    PlanOption,
    StagesOption,
    cost_file,
    default_data_dir,
    open_mesh,
)
from nodes.output import command, leave, print_json, run_async, survive_output_errors
from nodes.pipeline_command import pipeline_app
from nodes.planning_commands import deploy, plan
from nodes.simulate_command import simulate

app = typer.Typer(
    name="mesh",
    help="Make the small computers you own one inference machine for ONNX models.",
    epilog="Exit codes: 0 ok, 1 failure, 2 usage, 3 not found or no nodes, 4 timeout, 5 no plan, 130 interrupt.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(lab_app)
app.add_typer(pipeline_app)

USAGE_ERROR: Any = typer.BadParameter.__bases__[0]
"""What Typer raises for arguments that it cannot parse; it exports only this one kind of them by name."""

ListenOption = Annotated[
    str | None, typer.Option("--listen", metavar="HOST:PORT", help="Where to listen; port 0 takes any free one.")
]
InsecureOption = Annotated[
    bool, typer.Option("--insecure", help="Accept plaintext from beyond this machine: only on a network of your own.")
]


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"infermesh {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Options that come before the command."""


@app.command()
@command
def demo(
    nodes: Annotated[int, typer.Option("--nodes", min=2, max=8, help="How many local daemons to start.")] = 3,
    rate: Annotated[
        float | None,
        typer.Option("--rate", metavar="HZ", help="Frames per second; default: as fast as they are taken."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Start a mesh of local daemons, split a real model over them and stream sensor data through it. Offline."""
    from nodes.demo import run_demo

    run_demo(nodes, rate, as_json)


@app.command()
@command
def node(
    data_dir: DataDirOption = None,
    listen: ListenOption = None,
    interface: InterfaceOption = None,
    peer: PeerOption = None,
    mdns: MdnsOption = True,
    name: Annotated[
        str | None, typer.Option("--name", help="How people call this node; default: from the host name.")
    ] = None,
    insecure: InsecureOption = False,
    threads: Annotated[
        int, typer.Option("--threads", min=0, max=256, help="Engine threads; 0 takes the cores that this process has.")
    ] = 0,
    runs: Annotated[
        int, typer.Option("--runs", min=1, max=64, help="Runs at once of one model, each with that many threads.")
    ] = 1,
    engine: Annotated[
        str,
        typer.Option(
            "--engine",
            metavar="NAME",
            help="onnxruntime; openvino, which needs the extra of that name and leaves what it cannot compile to ONNX "
            "Runtime; or auto: openvino where it is installed.",
        ),
    ] = "onnxruntime",
    engine_mode: Annotated[
        str | None,
        typer.Option(
            "--engine-mode",
            metavar="WHERE",
            help="process: engines in child processes, which cannot take the daemon with them; thread: in the daemon. "
            "Default: process where there is memory for it.",
        ),
    ] = None,
    content_mib: Annotated[
        int, typer.Option("--content-mib", min=16, help="Disk that stored models may take, in MiB.")
    ] = 2048,
    watts_busy: Annotated[
        float | None,
        typer.Option("--watts-busy", metavar="W", help="Of this device at full load: for energy without a meter."),
    ] = None,
    watts_idle: Annotated[
        float | None, typer.Option("--watts-idle", metavar="W", help="Of this device at rest; goes with --watts-busy.")
    ] = None,
    gateway_beside: GatewayOption = False,
    grpc: GrpcOption = None,
    http: HttpOption = None,
    metrics: MetricsOption = None,
    repository: RepositoryOption = None,
    allow_load: AllowLoadOption = False,
    stop_with_parent: Annotated[
        bool, typer.Option("--stop-with-parent", hidden=True, help="Stop when standard input is closed.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Run the node daemon of this device in the foreground, until Ctrl-C or SIGTERM."""
    read_in_larger_pieces()

    from mesh.runtime.engine_mode import choose_engine, parse_engine_mode
    from mesh.runtime.node import NodeSettings
    from nodes.daemon import NODE_PORT, GatewayBeside, check_listen, discovery_for, read_watts, run_node

    served = read_companion_settings(gateway_beside, grpc, http, metrics, repository, allow_load, insecure)
    where = check_listen(listen, NODE_PORT, insecure)
    settings = NodeSettings(
        data_dir or default_data_dir("node"),
        where,
        name,
        content_capacity_bytes=content_mib << 20,
        seeds=tuple(peer or ()),
        engine=choose_engine(engine),
        threads=threads,
        runs=runs,
        engine_mode=None if engine_mode is None else parse_engine_mode(engine_mode),
        watts=read_watts(watts_busy, watts_idle),
    )
    beside = None if served is None else GatewayBeside(served, interface or (), peer or (), mdns, cost_file())
    discovery = discovery_for(where, interface or (), peer or (), mdns)
    run_node(settings, discovery, insecure, stop_with_parent, as_json, beside)


@app.command()
@command
def coordinator(
    data_dir: DataDirOption = None,
    listen: ListenOption = None,
    interface: InterfaceOption = None,
    peer: PeerOption = None,
    mdns: MdnsOption = True,
    name: Annotated[str | None, typer.Option("--name", help="How people call it; default: from the host name.")] = None,
    insecure: InsecureOption = False,
    gateway_beside: GatewayOption = False,
    grpc: GrpcOption = None,
    http: HttpOption = None,
    metrics: MetricsOption = None,
    repository: RepositoryOption = None,
    allow_load: AllowLoadOption = False,
    as_json: JsonOption = False,
) -> None:
    """Run a coordinator in the foreground: plans for everyone, so that clients need no planning packages."""
    from mesh.discovery.interfaces import interfaces_to_browse
    from mesh.runtime.coordinator_daemon import CoordinatorSettings
    from nodes.daemon import COORDINATOR_PORT, GatewayBeside, check_listen, discovery_for, run_coordinator

    served = read_companion_settings(gateway_beside, grpc, http, metrics, repository, allow_load, insecure)
    where = check_listen(listen, COORDINATOR_PORT, insecure)
    settings = CoordinatorSettings(data_dir or default_data_dir("coordinator"), where, name, settles=mdns)
    # It looks for nodes on every network, also where it lets nobody but this machine call it.
    interfaces = interface or (interfaces_to_browse() if mdns else ())
    beside = None if served is None else GatewayBeside(served, interface or (), peer or (), mdns, None)
    run_coordinator(settings, discovery_for(where, interfaces, peer or (), mdns), insecure, as_json, beside)


@app.command("nodes")
@command
def list_nodes(
    peer: PeerOption = None,
    interface: InterfaceOption = None,
    mdns: MdnsOption = True,
    coordinator: CoordinatorOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the nodes of the mesh and what they can do."""
    from nodes.fleet_commands import show_nodes

    run_async(show_nodes(open_mesh(coordinator, peer, interface, mdns), as_json))


app.command()(plan)
app.command()(deploy)


@app.command()
@command
def status(
    name: Annotated[str, typer.Argument(metavar="[NAME]", help="A deployment; default: all.", show_default=False)] = "",
    peer: PeerOption = None,
    interface: InterfaceOption = None,
    mdns: MdnsOption = True,
    coordinator: CoordinatorOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what is deployed, where, and how it does."""
    from nodes.fleet_commands import show_status

    run_async(show_status(open_mesh(coordinator, peer, interface, mdns), name, as_json))


@app.command()
@command
def undeploy(
    name: NameArgument,
    peer: PeerOption = None,
    interface: InterfaceOption = None,
    mdns: MdnsOption = True,
    coordinator: CoordinatorOption = None,
    as_json: JsonOption = False,
) -> None:
    """Remove a deployment from all its nodes."""
    from nodes.fleet_commands import undeploy as run

    run_async(run(open_mesh(coordinator, peer, interface, mdns), name, as_json))


@app.command()
@command
def infer(
    name: NameArgument,
    source: Annotated[Path, typer.Option("--input", metavar="X.npz", help="Arrays named as the model's inputs.")],
    output: Annotated[Path | None, typer.Option("--output", metavar="Y.npz", help="Write the outputs here.")] = None,
    peer: PeerOption = None,
    interface: InterfaceOption = None,
    mdns: MdnsOption = True,
    coordinator: CoordinatorOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run a deployment on arrays; one axis more than the model's holds frames."""
    from nodes.sensor import infer as run

    run_async(run(open_mesh(coordinator, peer, interface, mdns), name, source, output, as_json))


@app.command()
@command
def stream(
    name: NameArgument,
    source: Annotated[str, typer.Option("--source", metavar="URL", help="Where frames come from; see `mesh sources`.")],
    sink: Annotated[str, typer.Option("--sink", metavar="URL", help="Where answers go; see `mesh sources`.")] = "-",
    rate: Annotated[float | None, typer.Option("--rate", metavar="HZ", help="Frames per second.")] = None,
    live: Annotated[
        bool,
        typer.Option("--live/--lossless", help="Newest frame wins, or every frame is answered and the source waits."),
    ] = False,
    deadline: Annotated[
        float | None, typer.Option("--deadline", metavar="SECONDS", help="Answers later than this count as late.")
    ] = None,
    peer: PeerOption = None,
    interface: InterfaceOption = None,
    mdns: MdnsOption = True,
    coordinator: CoordinatorOption = None,
    as_json: JsonOption = False,
) -> None:
    """Be a sensor: send frames to a deployment and take its answers."""
    from nodes.sensor import stream as run

    run_async(run(open_mesh(coordinator, peer, interface, mdns), name, source, sink, rate, live, deadline, as_json))


@app.command()
@command
def sources() -> None:
    """Describe the sources and sinks that `mesh stream` knows."""
    from mesh.client.sinks import describe_sinks
    from mesh.client.sources import describe_sources

    typer.echo(f"{describe_sources()}\n\n{describe_sinks()}")


@app.command()
@command
def split(
    model: ModelArgument,
    out: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="Where segments and manifest.json go.")],
    stages: StagesOption = None,
    plan: PlanOption = None,
    as_json: JsonOption = False,
) -> None:
    """Cut MODEL into parts that are models of their own."""
    from nodes.model_commands import split as run

    run(model, stages, plan, out, as_json)


@app.command()
@command
def verify(
    model: ModelArgument,
    stages: StagesOption = None,
    plan: PlanOption = None,
    source: Annotated[
        Path | None, typer.Option("--input", metavar="X.npz", help="Compare on these arrays instead of made-up ones.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Run MODEL whole and in parts on this machine, and compare."""
    from nodes.model_commands import verify as run

    run(model, 2 if stages is None and plan is None else stages, plan, source, as_json)


app.command()(simulate)
app.command()(optimize)
app.command()(gateway)
app.command()(bench)
app.command()(trace)
app.command()(doctor)


def main() -> None:
    """`mesh` without the short cut of `nodes.quick`."""
    leave(run_command(sys.argv[1:]))


def run_command(arguments: Sequence[str]) -> int:
    """Run `mesh ARGUMENTS`; returns the exit code."""
    return survive_output_errors(lambda: _run(arguments))


def _run(arguments: Sequence[str]) -> int:
    try:
        return int(app(arguments, prog_name="mesh", standalone_mode=False) or 0)
    except Exception as error:
        if not isinstance(error, USAGE_ERROR):
            raise
        error.show()
        if "--json" in arguments:
            print_json({"error": {"code": UsageError.code, "message": error.format_message(), "hint": ""}})
        return int(error.exit_code)
