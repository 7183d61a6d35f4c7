"""Starts programs in a device: in its control group from the first instruction on, then in its namespace.

A small shell joins the groups and replaces itself by the program, so the program keeps its process id and
nothing of it ever runs outside of its limits. Daemons are children of whoever starts them for as long as that
one lives, and then of the system; they are found again through their group.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import mesh
from mesh.core.fleet_file import Role
from mesh.errors import LabError, Timeout
from mesh.lab.cgroups import ControlGroups
from mesh.lab.commands import enter_namespace
from mesh.lab.state import Daemon, LabRecord, data_folder
from mesh.lab.topology import SWITCH, LabDevice

JOIN_SCRIPT = 'cd "$1" || exit 125; shift; n=$1; shift; while [ "$n" -gt 0 ]; do echo $$ >"$1" || exit 125; shift; n=$((n-1)); done; exec "$@"'  # noqa: E501
"""Arguments: the folder to run in, the number of files, the files that take our process id, the program line."""

START_TIMEOUT_S = 30.0
START_CORE_SECONDS = 20.0
"""A daemon computes for about two seconds before it listens; a tenth of a core takes ten times as long."""

LOG_FILE = "daemon.log"
"""In the device's folder below the lab's data."""

POLL_S = 0.02
LOG_TAIL_CHARACTERS = 600


def enter_device(groups: ControlGroups, lab: str, device: LabDevice, command: Sequence[str], folder: str) -> list[str]:
    """The program line that runs `command` on the device, in place of the process that executes it."""
    return join_group(groups, f"{lab}/{device.group}", enter_namespace(device.namespace, command), folder)


def join_group(groups: ControlGroups, group: str, command: Sequence[str], folder: str) -> list[str]:
    files = [str(file) for file in groups.membership_files(group)]
    return [_shell(), "-c", JOIN_SCRIPT, "mesh-lab", folder, str(len(files)), *files, *command]


def device_environment(lab: LabRecord, device: LabDevice) -> dict[str, str]:
    """What programs on the device find: this very `mesh`, and where to ask when there is no mDNS."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MESH_")}
    ours = str(Path(mesh.__file__).parents[1])
    paths = [path for path in environment.get("PYTHONPATH", "").split(os.pathsep) if path and path != ours]
    environment["PYTHONPATH"] = os.pathsep.join([ours, *paths])
    environment["PATH"] = os.pathsep.join([str(Path(lab.interpreter).parent), environment.get("PATH", os.defpath)])
    environment["MESH_LAB"] = lab.name
    environment["MESH_LAB_DEVICE"] = device.name
    if not lab.mdns:
        environment["MESH_MDNS"] = "0"
        environment["MESH_PEER"] = lab.topology.seed
    return environment


def spell_out(command: Sequence[str], lab: LabRecord, environment: Mapping[str, str]) -> list[str]:
    """`command` with a program that exists; `mesh` is the one that runs the lab, installed or not."""
    if command[0] == "mesh" and shutil.which("mesh", path=environment["PATH"]) is None:
        return [lab.interpreter, "-m", "nodes", *command[1:]]
    return list(command)


def daemon_command(lab: LabRecord, device: LabDevice) -> list[str]:
    role = "coordinator" if device.fleet.role is Role.COORDINATOR else "node"
    folder = data_folder(lab.name) / device.name
    line = [lab.interpreter, "-m", "nodes", role, "--json", "--insecure", "--name", device.name]
    line += ["--listen", f"0.0.0.0:{device.listen_port}", "--data-dir", str(folder / "data")]
    if not lab.mdns:
        line += ["--no-mdns", "--peer", lab.topology.seed]
    return line


def start_daemon(groups: ControlGroups, lab: LabRecord, device: LabDevice) -> Daemon:
    """Start, not wait; see `await_daemon`."""
    folder = data_folder(lab.name) / device.name
    folder.mkdir(parents=True, exist_ok=True)
    _told(folder).unlink(missing_ok=True)  # of an earlier one, which would be taken for this one's
    line = enter_device(groups, lab.name, device, daemon_command(lab, device), str(folder))
    return spawn(line, device_environment(lab, device), _told(folder), _log(folder))


def await_daemon(groups: ControlGroups, lab: LabRecord, device: LabDevice, daemon: Daemon) -> None:
    """Return when it listens; raises `LabError` with its last words if it ends, `Timeout` if it does neither."""
    limit_s = START_TIMEOUT_S + START_CORE_SECONDS / (device.fleet.cores or 1.0)
    folder = data_folder(lab.name) / device.name
    deadline = time.monotonic() + limit_s
    while not _has_spoken(_told(folder)):
        if not is_running(daemon):
            raise LabError(f"the daemon of {device.name} ended before it listened: {_explain(groups, lab, device)}")
        if time.monotonic() > deadline:
            raise Timeout(
                f"the daemon of {device.name} does not listen after {limit_s:.0f} s: {_tail(_log(folder))}",
                hint="give it more cpu in the fleet file",
            )
        time.sleep(POLL_S)


def start_wire(groups: ControlGroups, lab: LabRecord) -> Daemon:
    """The process that carries packets of devices with latency; in the switch, where nothing limits it."""
    topology = lab.topology
    folder = data_folder(lab.name)
    folder.mkdir(parents=True, exist_ok=True)
    wires = [[device.namespace, device.port, device.fleet.latency_seconds] for device in topology.wired]
    program = [lab.interpreter, "-m", "mesh.lab.wire", json.dumps(wires)]
    line = join_group(groups, f"{lab.name}/{SWITCH}", enter_namespace(topology.switch_namespace, program), str(folder))
    daemon = spawn(line, device_environment(lab, topology.devices[0]), _told(folder), _log(folder))
    deadline = time.monotonic() + START_TIMEOUT_S
    while not _has_spoken(_told(folder)):
        if not is_running(daemon) or time.monotonic() > deadline:
            raise LabError(f"the wires (for latency) did not start: {_tail(_log(folder))}")
        time.sleep(POLL_S)
    return daemon


def start_thaw(groups: ControlGroups, lab: LabRecord, device: LabDevice) -> None:
    """A process that ends a freeze when its time has come."""
    folder = data_folder(lab.name)
    program = [lab.interpreter, "-m", "mesh.lab.thaw", lab.name, device.name]
    line = join_group(groups, f"{lab.name}/{SWITCH}", program, str(folder))
    spawn(line, device_environment(lab, device), folder / "thaw.out", folder / "thaw.log")


def spawn(line: Sequence[str], environment: Mapping[str, str], told: Path, log: Path) -> Daemon:
    """A process in a session of its own, out of the reach of this terminal's Ctrl-C.

    What it says on standard output replaces what is in `told`, its standard error is added to `log`.
    """
    write = os.O_WRONLY | os.O_CREAT
    process = os.posix_spawn(
        line[0],
        list(line),
        dict(environment),
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(told), write | os.O_TRUNC, 0o644),
            (os.POSIX_SPAWN_OPEN, 2, str(log), write | os.O_APPEND, 0o644),
        ],
        setsid=True,
        setsigdef=[signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE],
    )
    return Daemon(process, _start_ticks(process) or 0)


def is_running(daemon: Daemon) -> bool:
    """Whether it is there and no zombie; one that is our child is waited for."""
    if _start_ticks(daemon.process) == daemon.started:
        return True
    with contextlib.suppress(ChildProcessError):  # not our child: started by a command that has ended
        os.waitpid(daemon.process, os.WNOHANG)
    return False


def session_of(process: int) -> int | None:
    """The session it belongs to; None if it is gone."""
    words = _stat_words(process)
    return None if words is None else int(words[3])


def _start_ticks(process: int) -> int | None:
    words = _stat_words(process)
    return None if words is None or words[0] in "ZX" else int(words[19])


def _stat_words(process: int) -> list[str] | None:
    """/proc/PID/stat from the third field (state) on: the second, the program's name, may hold anything."""
    try:
        return Path(f"/proc/{process}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None


def _explain(groups: ControlGroups, lab: LabRecord, device: LabDevice) -> str:
    if groups.memory_kills(f"{lab.name}/{device.group}"):
        return f"it needs more than its {(device.fleet.memory_bytes or 0) / 1e6:g} MB of memory"
    return _tail(_log(data_folder(lab.name) / device.name))


def _told(folder: Path) -> Path:
    return folder / "daemon.out"


def _log(folder: Path) -> Path:
    return folder / LOG_FILE


def _has_spoken(told: Path) -> bool:
    """Daemons print one line, when they listen."""
    try:
        return b"\n" in told.read_bytes()
    except FileNotFoundError:
        return False


def _tail(log: Path) -> str:
    try:
        return log.read_text(errors="replace")[-LOG_TAIL_CHARACTERS:].strip() or "it said nothing"
    except FileNotFoundError:
        return "it said nothing"


def _shell() -> str:
    found = shutil.which("sh") or "/bin/sh"
    if not sys.platform.startswith("linux"):
        raise LabError("a lab needs Linux")
    return found
