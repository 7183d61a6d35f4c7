"""How programs get onto devices. With files that stand for control groups; the real ones: test_lab_root.py."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mesh.lab import commands
from mesh.lab.cgroups import ControlGroupsV1
from mesh.lab.launch import (
    daemon_command,
    device_environment,
    is_running,
    join_group,
    session_of,
    spawn,
    spell_out,
)
from mesh.lab.state import LabRecord, Phase

FLEET = """
[[device]]
name = "camera"
role = "client"
[[device]]
name = "pi"
[[device]]
name = "head"
role = "coordinator"
"""


def make_lab(mdns: bool = True) -> LabRecord:
    return LabRecord("x", Phase.UP, FLEET, mdns, sys.executable)


@pytest.fixture
def groups(tmp_path: Path) -> ControlGroupsV1:
    for controller in ("cpu", "memory", "freezer"):
        (tmp_path / controller / "mesh-lab/x/device-1").mkdir(parents=True)
    return ControlGroupsV1({controller: str(tmp_path / controller) for controller in ("cpu", "memory", "freezer")})


def test_a_program_joins_before_it_begins(groups: ControlGroupsV1, tmp_path: Path) -> None:
    odd = tmp_path / "an odd 'folder'"
    odd.mkdir()
    program = ["sh", "-c", 'echo "$$ $PWD $1"', "name", 'an "argument" $HOME']
    line = join_group(groups, "x/device-1", program, str(odd))
    done = subprocess.run(line, capture_output=True, text=True, check=True)
    process = done.stdout.split()[0]
    assert done.stdout == f'{process} {odd} an "argument" $HOME\n'
    for file in groups.membership_files("x/device-1"):
        assert file.read_text() == f"{process}\n", "the very process that became the program"


def test_a_program_that_cannot_join_does_not_begin(groups: ControlGroupsV1, tmp_path: Path) -> None:
    (tmp_path / "memory/mesh-lab/x/device-1").rmdir()
    line = join_group(groups, "x/device-1", ["echo", "began"], "/")
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (125, "")


def test_the_environment_is_the_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MESH_COORDINATOR", "elsewhere:1")
    monkeypatch.setenv("KEPT", "yes")
    lab = make_lab()
    environment = device_environment(lab, lab.topology.devices[0])
    assert (environment["MESH_LAB"], environment["MESH_LAB_DEVICE"], environment["KEPT"]) == ("x", "camera", "yes")
    assert not environment.keys() & {"MESH_COORDINATOR", "MESH_PEER", "MESH_MDNS"}
    done = subprocess.run(
        [sys.executable, "-c", "import mesh; print(mesh.__file__)"],
        env=environment, cwd="/", capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert Path(done.stdout.strip()).parent.name == "mesh", "found from everywhere"


def test_without_mdns_everyone_knows_the_seed() -> None:
    lab = make_lab(mdns=False)
    camera, pi, head = lab.topology.devices
    assert device_environment(lab, camera)["MESH_PEER"] == f"{pi.address}:50071"
    assert device_environment(lab, camera)["MESH_MDNS"] == "0"
    for device in (pi, head):
        assert daemon_command(lab, device)[-3:] == ["--no-mdns", "--peer", f"{pi.address}:50071"]
    assert "--no-mdns" not in daemon_command(make_lab(), pi)


def test_roles_run_their_daemons() -> None:
    lab = make_lab()
    _, pi, head = lab.topology.devices
    assert "node" in daemon_command(lab, pi)
    assert "0.0.0.0:50071" in daemon_command(lab, pi)
    assert "coordinator" in daemon_command(lab, head)
    assert "0.0.0.0:50070" in daemon_command(lab, head)


def test_mesh_is_found_though_it_is_not_installed(tmp_path: Path) -> None:
    lab = make_lab()
    nowhere = {"PATH": str(tmp_path)}
    assert spell_out(["mesh", "nodes"], lab, nowhere) == [sys.executable, "-m", "nodes", "nodes"]
    assert spell_out(["other", "mesh"], lab, nowhere) == ["other", "mesh"]
    (tmp_path / "mesh").touch(mode=0o755)
    assert spell_out(["mesh", "nodes"], lab, nowhere) == ["mesh", "nodes"]


def test_a_daemon_is_told_from_what_comes_after_it(tmp_path: Path) -> None:
    daemon = spawn(["/bin/sh", "-c", "echo out; echo err >&2; sleep 60"], os.environ, tmp_path / "o", tmp_path / "e")
    deadline = time.monotonic() + 5
    while (tmp_path / "e").read_text() != "err\n":
        assert is_running(daemon)
        assert time.monotonic() < deadline
    assert session_of(daemon.process) == daemon.process, "out of reach of our terminal"
    os.killpg(daemon.process, 9)
    while is_running(daemon):
        assert time.monotonic() < deadline
    assert session_of(daemon.process) is None, "waited for, as a child of ours"
    assert (tmp_path / "o").read_text() == "out\n"


def test_tools_of_root_are_found_whatever_the_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    missing = commands.find_missing_tools()
    assert "sh" in missing
    if Path("/usr/sbin/tc").exists():
        assert "tc" not in missing
