"""The shipped units fit the command line and what the daemons speak. systemd itself: scripts/acceptance."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer

import nodes
from mesh.control.timing import DRAIN_TIMEOUT_S
from nodes.cli import app

FOLDER = Path(nodes.__file__).parent / "systemd"
ROLES = ("node", "coordinator", "gateway", "pipelines")
COMMANDS = {"pipelines": ["pipeline", "run"]}
"""Where the command is not the role."""
KEEPS_NOTHING = ("gateway", "pipelines")
"""Neither a key nor content."""


def read_settings(role: str) -> dict[str, list[str]]:
    """Every value of every setting; one that is given twice has two."""
    settings: dict[str, list[str]] = {}
    for line in (FOLDER / f"infermesh-{role}.service").read_text(encoding="utf-8").splitlines():
        if line and line[0] not in "#[":
            name, _, value = line.partition("=")
            settings.setdefault(name, []).append(value)
    return settings


def test_there_is_one_unit_per_daemon() -> None:
    assert {path.name for path in FOLDER.iterdir()} == {f"infermesh-{role}.service" for role in ROLES}


@pytest.mark.parametrize("role", ROLES)
def test_it_starts_a_command_that_there_is(role: str) -> None:
    (start,) = read_settings(role)["ExecStart"]
    program, *arguments = start.split()
    assert program == "/opt/infermesh/bin/mesh"
    command = typer.main.get_command(app)
    for name in COMMANDS.get(role, [role]):
        assert arguments.pop(0) == name
        command = command.commands[name]  # type: ignore[attr-defined]
    known = {option for parameter in command.params for option in parameter.opts}
    assert {argument for argument in arguments if argument.startswith("--")} <= known
    assert ("${STATE_DIRECTORY}" in arguments) == (role not in KEEPS_NOTHING)


def test_pipelines_find_the_file_that_the_documentation_names() -> None:
    (start,) = read_settings("pipelines")["ExecStart"]
    documentation = Path(nodes.__file__).parents[1] / "docs" / "running-as-a-service.md"
    assert start.split()[3] in documentation.read_text(encoding="utf-8")


@pytest.mark.parametrize("role", ROLES)
def test_it_waits_for_the_daemon_watches_it_and_confines_it(role: str) -> None:
    settings = read_settings(role)
    wanted = {
        "Type": "notify",
        "WatchdogSec": "30",
        "Restart": "on-failure",
        "DynamicUser": "yes",
        "StateDirectory": f"infermesh-{role}",
        "ProtectSystem": "strict",
        "NoNewPrivileges": "yes",
        "CapabilityBoundingSet": "",
    }
    assert {name: settings[name] for name in wanted} == {name: [value] for name, value in wanted.items()}
    # The socket to systemd, TCP, and the list of interfaces.
    assert set(settings["RestrictAddressFamilies"][0].split()) == {"AF_UNIX", "AF_INET", "AF_INET6", "AF_NETLINK"}
    assert float(settings["TimeoutStopSec"][0]) > 2 * DRAIN_TIMEOUT_S, "a node drains that long"


def test_an_engine_that_runs_out_of_memory_does_not_end_the_node() -> None:
    assert read_settings("node")["OOMPolicy"] == ["continue"]
