"""`mesh --version`, `mesh nodes` and `mesh status` without the command-line library.

Importing it and what it checks arguments with takes longer than the rest of such a command on a small board, and these
are asked often. Whatever is not plainly one of them (help, a typing error, settings from the environment that need
parsing) is left to `nodes.cli`, which declares the same commands.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field

from mesh import __version__
from nodes.output import exit_code_of, run_async, survive_output_errors

PARSED_SETTINGS = ("MESH_PEER", "MESH_INTERFACE", "MESH_MDNS")
"""Environment variables that are options of these commands. MESH_COORDINATOR is one too, and plain text."""


@dataclass(slots=True)
class Look:
    """What a command that only looks was asked for."""

    command: str
    name: str = ""
    as_json: bool = False
    mdns: bool = True
    coordinator: str | None = None
    peers: list[str] = field(default_factory=list)
    interfaces: list[str] = field(default_factory=list)


def parse_look(arguments: Sequence[str]) -> Look | None:
    """None for anything that is not plainly `nodes` or `status` with options that are spelled out."""
    if not arguments or arguments[0] not in ("nodes", "status") or any(name in os.environ for name in PARSED_SETTINGS):
        return None
    look = Look(arguments[0], coordinator=os.environ.get("MESH_COORDINATOR") or None)
    rest = list(arguments[1:])
    while rest:
        argument = rest.pop(0)
        if argument == "--json":
            look.as_json = True
        elif argument in ("--mdns", "--no-mdns"):
            look.mdns = argument == "--mdns"
        elif argument in ("--peer", "--interface", "--coordinator"):
            if not rest or rest[0].startswith("-") or not rest[0]:
                return None
            if argument == "--coordinator":
                look.coordinator = rest.pop(0)
            else:
                (look.peers if argument == "--peer" else look.interfaces).append(rest.pop(0))
        elif look.command == "status" and argument and not argument.startswith("-") and not look.name:
            look.name = argument
        else:
            return None
    return look


def run_quickly(arguments: Sequence[str]) -> int | None:
    """The exit code; None where this is for `nodes.cli`, and nothing has been done."""
    if list(arguments) == ["--version"]:
        return survive_output_errors(_show_version)
    look = parse_look(arguments)
    if look is None:
        return None
    return survive_output_errors(lambda: exit_code_of(lambda: _look(look), look.as_json))


def _show_version() -> int:
    print(f"infermesh {__version__}")
    return 0


def _look(look: Look) -> None:
    from nodes.connection import open_mesh
    from nodes.fleet_commands import show_nodes, show_status

    connection = open_mesh(look.coordinator, look.peers, look.interfaces, look.mdns)
    if look.command == "nodes":
        run_async(show_nodes(connection, look.as_json))
    else:
        run_async(show_status(connection, look.name, look.as_json))
