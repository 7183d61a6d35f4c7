"""`mesh lab`: a small fleet on one Linux machine, out of real daemons."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mesh.core.ids import make_name
from mesh.errors import NotFound, UsageError
from nodes.options import JsonOption
from nodes.output import command, print_json, say

if TYPE_CHECKING:
    from mesh.lab.report import DeviceReport, LabReport

lab_app = typer.Typer(
    name="lab",
    help="Build a small fleet on this machine out of real daemons, break its devices, take it down. Linux, as root.",
    no_args_is_help=True,
)

LabOption = Annotated[
    str | None, typer.Option("--name", metavar="LAB", envvar="MESH_LAB", help="Which lab; default: the only one.")
]
DeviceArgument = Annotated[str, typer.Argument(metavar="DEVICE", help="A device of the fleet file.")]


@lab_app.command()
@command
def up(
    fleet: Annotated[Path, typer.Argument(metavar="FLEET.toml", help="What devices there are.", show_default=False)],
    name: Annotated[str | None, typer.Option("--name", metavar="LAB", help="Default: from the file name.")] = None,
    mdns: Annotated[
        bool, typer.Option("--mdns/--no-mdns", help="Let daemons find each other by mDNS, or by a seed.")
    ] = True,
    as_json: JsonOption = False,
) -> None:
    """Build a lab and return when all of its daemons listen. It stays until `mesh lab down`."""
    from mesh.lab.building import build
    from mesh.lab.report import report_labs

    record = build(read_fleet_file(fleet), name or make_name(fleet.stem, "lab"), mdns=mdns, say=say)
    if as_json:
        print_json(lab_document(report_labs(record.name)[0]))
        return
    for device in record.topology.devices:
        where = f"{device.address}:{device.listen_port}" if device.listen_port else device.address
        print(f"{device.name:<16} {device.fleet.role.value:<12} {where}")
    print(f"lab {record.name} is up; try: mesh lab exec {record.topology.devices[0].name} -- mesh nodes")


@lab_app.command("exec")
@command
def execute(
    device: DeviceArgument,
    program: Annotated[list[str], typer.Argument(metavar="COMMAND...", help="After --.", show_default=False)],
    name: LabOption = None,
) -> None:
    """Run a command on a device: within its cores and memory, on its network."""
    from mesh.lab.operating import execute as run

    run(name, device, program)


@lab_app.command()
@command
def fault(
    device: DeviceArgument,
    kind: Annotated[
        str, typer.Argument(metavar="FAULT", help="kill, freeze, cut, cut-in, cut-out, rate, loss or heal.")
    ],
    value: Annotated[
        str | None,
        typer.Argument(metavar="[VALUE]", help="freeze: seconds; rate: such as 10Mbit; loss: percent, both ways."),
    ] = None,
    name: LabOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a device faulty; heal takes all back and starts a killed daemon again.

    kill: its daemon dies at once. freeze: all of it stands still for a while. cut, cut-in, cut-out: nothing
    passes, nothing gets in, nothing gets out. Faults add up until they are healed.
    """
    from mesh.lab.faults import parse_fault
    from mesh.lab.operating import inflict

    wanted, number = parse_fault(kind, value)
    faults = inflict(name, device, wanted, number)
    if as_json:
        print_json({"device": device, "fault": wanted.value, "faults": faults.describe()})
    else:
        print(f"{device}: {wanted.value}{f' {value}' if value else ''}")


@lab_app.command()
@command
def status(name: LabOption = None, as_json: JsonOption = False) -> None:
    """Show the labs of this machine and how their devices do."""
    from mesh.lab.report import report_labs

    reports = report_labs(name)
    if name is not None and not reports:
        raise NotFound(f"there is no lab {name[:80]!r}")
    if as_json:
        print_json({"labs": [lab_document(report) for report in reports]})
        return
    if not reports:
        print("no lab is up")
    for report in reports:
        print(f"lab {report.name}: {report.phase}")
        for each in report.devices:
            print(_status_line(each))


@lab_app.command()
@command
def down(name: LabOption = None, as_json: JsonOption = False) -> None:
    """Take a lab down, with everything that runs in it, and whatever a killed one left."""
    from mesh.lab.building import take_down

    gone = take_down(name, say)
    if as_json:
        print_json({"down": gone})
    else:
        print(f"{', '.join(gone)}: down" if gone else "no lab is up")


def read_fleet_file(path: Path) -> str:
    """Its text; raises `NotFound` or `UsageError`."""
    from mesh.core.fleet_file import MAX_FILE_CHARACTERS

    try:
        with path.open(encoding="utf-8") as file:
            return file.read(MAX_FILE_CHARACTERS + 1)
    except FileNotFoundError:
        raise NotFound(f"there is no fleet file {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"the fleet file {path} cannot be read: {error}") from None


def lab_document(report: LabReport) -> dict[str, Any]:
    return {"name": report.name, "phase": report.phase, "devices": [_device_document(each) for each in report.devices]}


def _device_document(report: DeviceReport) -> dict[str, Any]:
    device = report.device
    return {
        "name": device.name,
        "role": device.fleet.role.value,
        "state": report.state,
        "address": device.address,
        "listens": None if device.listen_port is None else f"{device.address}:{device.listen_port}",
        "namespace": device.namespace,
        "process": report.process,
        "log": None if report.log is None else str(report.log),
        "faults": list(report.faults),
        "frozen_seconds_left": report.frozen_seconds_left,
        "cores": device.fleet.cores,
        "cpu_seconds": report.cpu_seconds,
        "memory_limit_bytes": device.fleet.memory_bytes,
        "memory_bytes": report.memory_bytes,
        "memory_kills": report.memory_kills,
        "bits_per_second": device.fleet.bits_per_second,
        "latency_seconds": device.fleet.latency_seconds,
    }


def _status_line(report: DeviceReport) -> str:
    device = report.device
    words = [f"  {device.name:<16} {device.fleet.role.value:<12} {report.state:<8} {device.address:<12}"]
    words.append(f"{report.memory_bytes / 1e6:.0f} MB")
    if report.cpu_seconds is not None:
        words.append(f"{report.cpu_seconds:.1f} s of CPU")
    if report.memory_kills:
        words.append(f"{report.memory_kills} killed for memory")
    return "  ".join([*words, *report.faults])
