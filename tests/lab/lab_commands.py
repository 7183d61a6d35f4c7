"""How the tests of real labs call `mesh lab`, and what they look at to see that nothing is left."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from mesh.errors import MeshError
from mesh.lab.building import check_machine
from tests.architecture.source_tree import ROOT

MESH = [sys.executable, "-m", "nodes"]
COMMAND_TIMEOUT_S = 50.0


def need_lab() -> None:
    """Skip, saying why, where there can be no lab."""
    try:
        check_machine()
    except MeshError as error:
        pytest.skip(f"NO LAB ON THIS MACHINE: {error}")


def environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MESH_")}
    return {**kept, "PYTHONPATH": str(ROOT)}


def mesh(*words: str, prefix: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*prefix, *MESH, *words],
        env=environment(),
        cwd=ROOT,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=COMMAND_TIMEOUT_S,
    )


def start_mesh(*words: str) -> subprocess.Popen[str]:
    """In a process group of its own, so that a test can press Ctrl-C."""
    return subprocess.Popen(
        [*MESH, *words],
        env=environment(),
        cwd=ROOT,
        text=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        process_group=0,
    )


def good(*words: str) -> str:
    """What a command prints that must succeed."""
    done = mesh(*words)
    assert done.returncode == 0, f"{words}: exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def document(*words: str) -> Any:
    return json.loads(good(*words, "--json"))


def device_of(lab: str, name: str) -> dict[str, Any]:
    (found,) = document("lab", "status", "--name", lab)["labs"]
    (device,) = [each for each in found["devices"] if each["name"] == name]
    return dict(device)


def find_traces(lab: str) -> list[str]:
    """Everything on this machine that bears the lab's name."""
    folders = [Path("/run/mesh-lab"), Path("/var/lib/mesh-lab"), *Path("/sys/fs/cgroup").glob("**/mesh-lab")]
    traces = [str(folder / lab) for folder in folders if (folder / lab).exists()]
    traces += [str(path) for path in Path("/run/netns").glob(f"mesh-lab_{lab}_*")]
    return traces + [f"process {process}" for process in find_lab_processes(lab)]


def find_lab_processes(lab: str) -> list[int]:
    """Processes with the lab's name in their environment: those on its devices, however they were started."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                variables = (folder / "environ").read_bytes().split(b"\0")
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue
            if f"MESH_LAB={lab}".encode() in variables:
                found.append(int(folder.name))
    return found


def list_host_links() -> str:
    ip = shutil.which("ip", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    assert ip is not None
    return subprocess.run([ip, "-brief", "link"], capture_output=True, text=True, check=True).stdout
