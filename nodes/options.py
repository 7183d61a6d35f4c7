"""Options that several commands share; `nodes.connection` makes a connection of them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from nodes.connection import open_mesh as open_mesh

CoordinatorOption = Annotated[
    str | None,
    typer.Option(
        "--coordinator",
        metavar="HOST:PORT",
        envvar="MESH_COORDINATOR",
        help="Use this coordinator instead of looking for one, or planning here.",
    ),
]
PeerOption = Annotated[
    list[str] | None,
    typer.Option(
        "--peer",
        metavar="HOST:PORT",
        envvar="MESH_PEER",
        help="A node to ask where multicast does not reach; repeat for more.",
    ),
]
InterfaceOption = Annotated[
    list[str] | None,
    typer.Option(
        "--interface",
        metavar="NAME",
        envvar="MESH_INTERFACE",
        help="Network interface (name or address) for mDNS; repeat for more. Default: all that carry multicast.",
    ),
]
MdnsOption = Annotated[bool, typer.Option("--mdns/--no-mdns", envvar="MESH_MDNS", help="Look for nodes by mDNS.")]
DataDirOption = Annotated[
    Path | None,
    typer.Option("--data-dir", metavar="FOLDER", help="Key, content and deployments live here; one daemon per folder."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")]
ModelArgument = Annotated[Path, typer.Argument(metavar="MODEL", help="An ONNX model file.", show_default=False)]
NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="A deployment.", show_default=False)]

StagesOption = Annotated[
    int | None, typer.Option("--stages", metavar="K", min=1, help="Force exactly K stages instead of the best plan.")
]
PlanOption = Annotated[
    Path | None, typer.Option("--plan", metavar="FILE", help="Carry out this plan (from `mesh plan --json`).")
]
ObjectiveOption = Annotated[
    str, typer.Option("--objective", metavar="WHAT", help="throughput, latency, memory or energy.")
]
FirstOnOption = Annotated[
    str | None,
    typer.Option("--first-on", metavar="NODE", help="Frames are made on this node: it runs the first stage."),
]
ExcludeOption = Annotated[
    list[str] | None, typer.Option("--exclude", metavar="NODE", help="Do not use this node; repeat for more.")
]
TrustedOnlyOption = Annotated[
    bool, typer.Option("--trusted-only", help="Use only devices that the fleet file calls trusted.")
]
MeasureOption = Annotated[
    bool,
    typer.Option("--measure", help="Measure devices and links again instead of using what was measured before."),
]
ReplicasOption = Annotated[
    int, typer.Option("--replicas", metavar="K", min=1, max=64, help="Let up to K devices share a stage, or the model.")
]


CodecOption = Annotated[
    str,
    typer.Option(
        "--codec",
        metavar="WHAT",
        help="What may make tensors between stages smaller: none; zstd, which loses nothing; fp16 or int8, which "
        "round; auto for any. Used only where it pays.",
    ),
]
MaxChangeOption = Annotated[
    float | None,
    typer.Option(
        "--max-change",
        metavar="PERCENT",
        min=0.001,
        max=100,
        help="By how much rounding codecs may change answers, against what tells them apart.  [default: 10]",
        show_default=False,
    ),
]


def default_data_dir(kind: str) -> Path:
    """Where a daemon of this kind keeps its key and content, unless told otherwise."""
    named = os.environ.get("MESH_DATA_DIR")
    if named:
        return Path(named)
    from platformdirs import user_state_path

    return user_state_path("infermesh", appauthor=False) / kind


def cost_file() -> Path:
    """What commands have measured where they plan by themselves; a coordinator keeps its own."""
    folder = default_data_dir("commands")
    return (folder / "commands" if os.environ.get("MESH_DATA_DIR") else folder) / "costs"
