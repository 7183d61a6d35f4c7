"""The short cut of commands that only look asks for exactly what Typer would, or leaves it to Typer."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mesh.errors import NoNodes
from nodes import fleet_commands
from nodes.cli import run_command
from nodes.quick import run_quickly

ROOT = Path(__file__).parents[2]
QUICK = [
    ["nodes"],
    ["nodes", "--json"],
    ["nodes", "--peer", "a:1", "--peer", "b:2", "--no-mdns", "--json"],
    ["nodes", "--coordinator", "c:1"],
    ["nodes", "--no-mdns"],
    ["nodes", "--no-mdns", "--mdns", "--interface", "lo"],
    ["status"],
    ["status", "camera"],
    ["status", "--json", "camera", "--interface", "lo", "--interface", "eth0"],
]
NOT_QUICK = [
    [],
    ["nodes", "--help"],
    ["nodes", "camera"],
    ["nodes", "--peer"],
    ["nodes", "--peer=a:1"],
    ["nodes", "--peer", "--json"],
    ["nodes", "--jsn"],
    ["status", "a", "b"],
    ["status", ""],
    ["status", "--", "a"],
    ["--version", "nodes"],
    ["undeploy", "camera"],
]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What commands ask for, instead of a mesh."""
    found: list[object] = []

    class Recorded:
        def __init__(self, **settings: Any) -> None:
            settings.pop("warn")
            found.append({key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()})

    async def show_nodes(mesh: object, as_json: bool) -> None:
        found.append(("nodes", as_json))
        raise NoNodes("nobody is there")

    async def show_status(mesh: object, name: str, as_json: bool) -> None:
        found.append(("status", name, as_json))

    for name in [name for name in os.environ if name.startswith("MESH_")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr("mesh.client.mesh_client.Mesh", Recorded)
    monkeypatch.setattr(fleet_commands, "show_nodes", show_nodes)
    monkeypatch.setattr(fleet_commands, "show_status", show_status)
    return found


@pytest.mark.parametrize("coordinator", [None, "c:2"])
@pytest.mark.parametrize("arguments", QUICK, ids=" ".join)
def test_both_ways_ask_for_the_same_and_end_the_same(
    arguments: list[str],
    coordinator: str | None,
    asked: list[object],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if coordinator is not None:
        monkeypatch.setenv("MESH_COORDINATOR", coordinator)
    quick, quick_output = run_quickly(arguments), capsys.readouterr()
    quickly_asked = list(asked)
    asked.clear()
    assert (quick, quick_output) == (run_command(arguments), capsys.readouterr())
    assert quickly_asked == asked
    assert quick == (3 if asked and arguments[0] == "nodes" else 0 if asked else 2)


@pytest.mark.parametrize("arguments", NOT_QUICK, ids=" ".join)
def test_whatever_else_is_left_to_the_command_line(arguments: list[str], asked: list[object]) -> None:
    assert run_quickly(arguments) is None
    assert asked == []


@pytest.mark.parametrize("name", ["MESH_PEER", "MESH_INTERFACE", "MESH_MDNS"])
def test_settings_that_need_parsing_are_left_to_the_command_line(
    name: str, asked: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "1")
    assert run_quickly(["nodes"]) is None
    assert asked == []


@pytest.mark.parametrize(
    ("arguments", "unneeded"),
    [
        (["--version"], {"grpc", "zeroconf", "typer", "google.protobuf"}),
        (["nodes", "--no-mdns", "--peer", "127.0.0.1:1"], {"typer", "pydantic", "zeroconf", "mesh.core.messages"}),
    ],
)
def test_a_look_imports_only_what_it_uses(arguments: list[str], unneeded: set[str]) -> None:
    code = "import json, sys; from nodes.quick import run_quickly; run_quickly(sys.argv[1:]); print(*sys.modules)"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MESH_")}
    result = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 0, result.stderr
    assert not unneeded & set(result.stdout.split())


def test_declaring_the_commands_imports_nothing_that_only_some_of_them_use() -> None:
    code = "import sys; import nodes.cli; print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    assert not {"grpc", "zeroconf", "google.protobuf", "mesh.client.mesh_client"} & set(result.stdout.split())


def test_a_shell_completes_commands_and_options_and_leaves_file_names_to_itself() -> None:
    def complete(*words: str) -> list[str]:
        environment = {**os.environ, "_MESH_COMPLETE": "complete_bash"}
        environment |= {"COMP_WORDS": " ".join(words), "COMP_CWORD": str(len(words) - 1)}
        command = [sys.executable, "-c", "import sys; sys.argv = ['mesh']; from nodes.__main__ import main; main()"]
        result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
        assert result.returncode == 0, result.stderr
        return result.stdout.split()

    assert complete("mesh", "st") == ["status", "stream"]
    assert complete("mesh", "infer", "--inp") == ["--input"]
    assert complete("mesh", "plan", "mod") == []
