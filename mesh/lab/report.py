"""How a lab does: what `mesh lab status` shows."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from mesh.lab import state
from mesh.lab.building import check_machine, find_labs
from mesh.lab.cgroups import ControlGroups
from mesh.lab.launch import LOG_FILE, is_running
from mesh.lab.state import DeviceState, LabRecord, Phase
from mesh.lab.topology import LabDevice


@dataclass(frozen=True, slots=True)
class DeviceReport:
    device: LabDevice
    state: str
    """"running", "dead" (its daemon is gone), "frozen"; "idle" for a client without processes."""
    process: int | None
    """Its daemon."""
    log: Path | None
    """What its daemon says."""
    faults: tuple[str, ...]
    frozen_seconds_left: float | None
    cpu_seconds: float | None
    """Computed since the lab was built."""
    memory_bytes: int
    memory_kills: int
    """Processes that died for the memory limit."""


@dataclass(frozen=True, slots=True)
class LabReport:
    name: str
    phase: str
    """"up", "busy" (being built, changed or taken down) or "unfinished" (left by a builder that was killed)."""
    devices: tuple[DeviceReport, ...]


def report_labs(name: str | None = None) -> list[LabReport]:
    """Every lab, or the one named (none, if there is none of that name)."""
    groups = check_machine()
    return [_report(groups, each) for each in find_labs(groups) if name in (None, each)]


def _report(groups: ControlGroups, name: str) -> LabReport:
    is_busy = state.is_locked(name)
    record = state.read_record(name)
    if record is None or record.phase is not Phase.UP:
        return LabReport(name, "busy" if is_busy else "unfinished", ())
    states = state.read_devices(name)
    devices = [_report_device(groups, record, device, states[device.name]) for device in record.topology.devices]
    return LabReport(name, "busy" if is_busy else "up", tuple(devices))


def _report_device(groups: ControlGroups, lab: LabRecord, device: LabDevice, now: DeviceState) -> DeviceReport:
    group = f"{lab.name}/{device.group}"
    until = now.faults.frozen_until
    return DeviceReport(
        device=device,
        state=_name_state(groups, group, now),
        process=now.daemon.process if now.daemon is not None else None,
        log=None if device.listen_port is None else state.data_folder(lab.name) / device.name / LOG_FILE,
        faults=tuple(now.faults.describe()),
        frozen_seconds_left=None if until is None else max(0.0, until - time.monotonic()),
        cpu_seconds=groups.cpu_seconds(group),
        memory_bytes=groups.memory_bytes(group),
        memory_kills=groups.memory_kills(group),
    )


def _name_state(groups: ControlGroups, group: str, now: DeviceState) -> str:
    if now.daemon is not None and not is_running(now.daemon):
        return "dead"
    if groups.is_frozen(group):
        return "frozen"
    return "running" if groups.processes(group) else "idle"
