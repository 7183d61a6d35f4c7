"""What is done with a lab that is up: run a program on a device, break a device, heal it."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from mesh.core.fleet_file import Role
from mesh.errors import LabError, NotFound, Refused, UsageError
from mesh.lab import commands, state
from mesh.lab.building import check_machine, choose_lab
from mesh.lab.cgroups import ControlGroups
from mesh.lab.faults import Fault, Faults, add_fault, filter_batches
from mesh.lab.launch import (
    await_daemon,
    device_environment,
    enter_device,
    is_running,
    session_of,
    spell_out,
    start_daemon,
    start_thaw,
)
from mesh.lab.state import Daemon, DeviceState, LabRecord, Phase
from mesh.lab.topology import LabDevice, rate_batches

Say = Callable[[str], None]


def open_lab(groups: ControlGroups, name: str | None) -> LabRecord:
    """The lab that is meant, which must be up; raises `NotFound`, `UsageError` or `Refused`."""
    chosen = choose_lab(groups, name)
    record = state.read_record(chosen)
    if record is None or record.phase is not Phase.UP:
        raise Refused(f"lab {chosen!r} is not up", hint="it is being built, or was left unfinished: mesh lab down")
    return record


def find_device(lab: LabRecord, name: str) -> LabDevice:
    for device in lab.topology.devices:
        if device.name == name:
            return device
    names = ", ".join(device.name for device in lab.topology.devices)
    raise NotFound(f"lab {lab.name!r} has no device {name[:80]!r}", hint=f"there are {names}")


def execute(lab_name: str | None, device_name: str, command: Sequence[str]) -> NoReturn:
    """Become `command` on the device: within its limits and its network, with our terminal and exit code."""
    if not command:
        raise UsageError("there is no command to run", hint="mesh lab exec DEVICE -- mesh nodes")
    groups = check_machine()
    lab = open_lab(groups, lab_name)
    device = find_device(lab, device_name)
    if groups.is_frozen(f"{lab.name}/{device.group}"):
        raise Refused(f"{device.name} is frozen", hint=f"wait, or heal it: mesh lab fault {device.name} heal")
    environment = device_environment(lab, device)
    line = enter_device(groups, lab.name, device, spell_out(command, lab, environment), str(Path.cwd()))
    try:
        os.execve(line[0], line, environment)  # noqa: S606 - what was asked for
    except OSError as error:
        raise LabError(f"{command[0][:200]!r} cannot be run: {error.strerror}") from None


def inflict(lab_name: str | None, device_name: str, fault: Fault, number: float | None) -> Faults:
    """Make the device faulty, or heal it; returns all that is wrong with it now.

    `heal` takes everything back and starts a daemon that is gone, on the folder that it had; it returns when
    the daemon listens, and raises as building does if that fails.
    """
    groups = check_machine()
    lab = open_lab(groups, lab_name)
    device = find_device(lab, device_name)
    with state.lock_lab(lab.name):
        devices = state.read_devices(lab.name)
        before = devices[device.name]
        faults = add_fault(before.faults, fault, number, time.monotonic())
        after = dataclasses.replace(before, faults=faults)
        # Written first: what a killed command leaves undone is seen, and healed.
        state.write_devices(lab.name, {**devices, device.name: after})
        _apply(groups, lab, device, fault, after)
        if fault is Fault.HEAL and device.listen_port is not None:
            after = _revive(groups, lab, device, after)
            state.write_devices(lab.name, {**devices, device.name: after})
    return after.faults


def thaw_when_due(lab_name: str, device_name: str) -> None:
    """Wait until the device's freeze is over and end it; a later freeze has a process of its own."""
    groups = check_machine()
    while True:
        with state.lock_lab(lab_name):
            lab = open_lab(groups, lab_name)
            device = find_device(lab, device_name)
            devices = state.read_devices(lab_name)
            faults = devices[device_name].faults
            if faults.frozen_until is None:
                return
            left_s = faults.frozen_until - time.monotonic()
            if left_s <= 0:
                groups.thaw(f"{lab_name}/{device.group}")
                healed = dataclasses.replace(faults, frozen_until=None)
                devices[device_name] = dataclasses.replace(devices[device_name], faults=healed)
                state.write_devices(lab_name, devices)
                return
        time.sleep(left_s)


def _apply(groups: ControlGroups, lab: LabRecord, device: LabDevice, fault: Fault, after: DeviceState) -> None:
    group = f"{lab.name}/{device.group}"
    if fault is Fault.KILL:
        groups.kill(group, None if after.daemon is None else _processes_of(groups, group, after.daemon))
    if fault in (Fault.FREEZE, Fault.HEAL, Fault.KILL) and after.faults.frozen_until is None:
        groups.thaw(group)
    if fault is Fault.FREEZE:
        groups.freeze(group)
        start_thaw(groups, lab, device)
    if fault in (Fault.CUT, Fault.CUT_IN, Fault.CUT_OUT, Fault.LOSS, Fault.HEAL):
        for batch in filter_batches(lab.topology, device, after.faults):
            commands.run(batch)
    if fault in (Fault.RATE, Fault.HEAL):
        for batch in rate_batches(lab.topology, device, after.faults.bits_per_second or device.fleet.bits_per_second):
            commands.run(batch)


def _processes_of(groups: ControlGroups, group: str, daemon: Daemon) -> list[int]:
    """The daemon and its children: everything in the device's group that is of its session."""
    return [process for process in groups.processes(group) if session_of(process) == daemon.process]


def _revive(groups: ControlGroups, lab: LabRecord, device: LabDevice, after: DeviceState) -> DeviceState:
    if device.fleet.role is Role.CLIENT or (after.daemon is not None and is_running(after.daemon)):
        return after
    daemon = start_daemon(groups, lab, device)
    await_daemon(groups, lab, device, daemon)
    return dataclasses.replace(after, daemon=daemon)
