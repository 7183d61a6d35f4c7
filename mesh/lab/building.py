"""Builds labs and takes them down, so that there is a whole lab or none.

`build` writes down what it is about to make, makes it, and takes all of it down again if anything fails or
interrupts it. What a killed builder left is taken down by the next `build` of any lab, or by `take_down`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

from mesh.core.fleet_file import parse_fleet
from mesh.core.ids import check_name
from mesh.errors import LabError, NotFound, Refused, UsageError
from mesh.hardware.limits import read_limits
from mesh.lab import commands, state
from mesh.lab.cgroups import ControlGroups, find_control_groups
from mesh.lab.launch import await_daemon, start_daemon, start_wire
from mesh.lab.state import DeviceState, LabRecord, Phase
from mesh.lab.topology import SWITCH, Topology, device_batch, namespace_prefix, rate_batches, switch_batch
from mesh.lab.wire import TUN_DEVICE

MAX_HOST_SHARE = 0.8
"""Of the machine's cores that a lab's devices may have together: what is left carries their packets."""

KILL_ROUNDS = 50
KILL_PAUSE_S = 0.02
"""Processes that entered a namespace by themselves may start more; each round kills all that are there."""

Say = Callable[[str], None]


def build(fleet_text: str, name: str, *, mdns: bool = True, say: Say = lambda _text: None) -> LabRecord:
    """Build a lab and return when all of its daemons listen.

    Raises `UsageError` for a bad fleet file or name and `LabError` where labs cannot be, both before anything
    is made; `Refused` if a lab of this name is up; `LabError` or `Timeout` if a part fails. Interrupted or
    failed, it leaves nothing.
    """
    fleet = parse_fleet(fleet_text)
    check_name(name, "lab name")
    groups = check_machine()
    if any(device.latency_seconds for device in fleet.devices) and not Path(TUN_DEVICE).exists():
        raise LabError(f"latency needs {TUN_DEVICE}, which is not here", hint="modprobe tun, or take latency out")
    _warn_of_overbooking(sum(device.cores or 0.0 for device in fleet.devices), say)
    sweep_unfinished(groups, say, besides=name)
    with state.lock_lab(name):
        _refuse_second(name)
        _sweep(groups, name)  # what a killed builder of this very name left
        record = LabRecord(name, Phase.UNFINISHED, fleet_text, mdns, sys.executable)
        try:
            with _interruptible():
                state.write_record(record)
                _make(groups, record, say)
                record = LabRecord(name, Phase.UP, fleet_text, mdns, sys.executable)
                state.write_record(record)
        except BaseException:
            _remove(groups, name)
            raise
    return record


def take_down(name: str | None, say: Say = lambda _text: None) -> list[str]:
    """Take a lab down, and whatever killed builders left; returns the names of what was there.

    Without a name: the only lab that is up. Raises `NotFound` if a lab was named that is not there.
    """
    groups = check_machine()
    swept = sweep_unfinished(groups, say, besides=name)
    if name is None and not find_labs(groups):
        return swept
    chosen = choose_lab(groups, name)
    with state.lock_lab(chosen):
        _remove(groups, chosen)
    return [*swept, chosen]


def check_machine() -> ControlGroups:
    """The machine's control groups; raises `LabError` saying why there can be no lab here."""
    if not sys.platform.startswith("linux"):
        raise LabError("a lab needs Linux: it is made of network namespaces and control groups")
    if os.geteuid() != 0:
        raise LabError("a lab needs root, to make network namespaces and control groups", hint="run it with sudo")
    missing = commands.find_missing_tools()
    if missing:
        raise LabError(
            f"a lab needs the program{'s' if len(missing) > 1 else ''} {', '.join(missing)}",
            hint="Debian, Ubuntu: apt install iproute2 util-linux",
        )
    reason = commands.why_no_namespaces()
    if reason:
        raise LabError(
            f"a lab needs network namespaces, which cannot be made here: {reason}",
            hint="in a container: start it privileged",
        )
    return find_control_groups()


def find_labs(groups: ControlGroups) -> list[str]:
    """Names of all labs that have left a trace: a record, data, a control group or a namespace."""
    names = state.list_recorded() | set(groups.children(""))
    start = namespace_prefix("")[:-1]
    names.update(each.removeprefix(start).rpartition("_")[0] for each in commands.list_namespaces(start))
    return sorted(names)


def choose_lab(groups: ControlGroups, name: str | None) -> str:
    """The lab that is meant: the one named, else the only one there is. Raises `NotFound` or `UsageError`."""
    present = find_labs(groups)
    hint = f"there is {', '.join(present)}" if present else "build one: mesh lab up FLEET.toml"
    if name is not None and name not in present:
        raise NotFound(f"there is no lab {name[:80]!r}", hint=hint)
    if name is None and not present:
        raise NotFound("no lab is up", hint=hint)
    if name is None and len(present) > 1:
        raise UsageError(f"several labs are up: {', '.join(present)}", hint="say which one by --name")
    return present[0] if name is None else name


def sweep_unfinished(groups: ControlGroups, say: Say, besides: str | None) -> list[str]:
    """Take down what killed builders left. One that is still at work keeps its lock, and is left alone."""
    swept = []
    for name in find_labs(groups):
        if name == besides:
            continue
        with contextlib.suppress(Refused), state.lock_lab(name, timeout_s=0.0):
            if not _is_up(name):
                say(f"sweeping lab {name}, which was left unfinished")
                _remove(groups, name)
                swept.append(name)
    return swept


def _is_up(name: str) -> bool:
    try:
        record = state.read_record(name)
    except LabError:
        return False  # damaged: nobody can use it any more
    return record is not None and record.phase is Phase.UP


def _refuse_second(name: str) -> None:
    if _is_up(name):
        raise Refused(f"lab {name!r} is up", hint=f"take it down first: mesh lab down --name {name}")


def _make(groups: ControlGroups, record: LabRecord, say: Say) -> None:
    topology = record.topology
    for device in topology.devices:
        groups.create(f"{record.name}/{device.group}", device.fleet.cores, device.fleet.memory_bytes)
    groups.create(f"{record.name}/{SWITCH}", is_urgent=True)
    _make_network(topology)
    if topology.wired:
        start_wire(groups, record)
    started = {}
    for device in topology.devices:
        if device.listen_port is not None:
            started[device.name] = start_daemon(groups, record, device)
    say(f"lab {record.name}: starting {len(started)} daemons")
    state.write_devices(
        record.name, {device.name: DeviceState(started.get(device.name)) for device in topology.devices}
    )
    for device in topology.devices:
        if device.name in started:
            await_daemon(groups, record, device, started[device.name])


def _make_network(topology: Topology) -> None:
    commands.add_namespaces(topology.namespaces)
    commands.run(switch_batch(topology))
    for device in topology.devices:
        commands.run(device_batch(device))
        if device.fleet.bits_per_second is not None:
            for batch in rate_batches(topology, device, device.fleet.bits_per_second):
                commands.run(batch)


def _remove(groups: ControlGroups, name: str) -> None:
    """The lab and its record, which is last: with it goes the lock that the caller holds."""
    with _undisturbed():
        _sweep(groups, name)
        state.remove_record(name)


def _sweep(groups: ControlGroups, name: str) -> None:
    """Take down everything that bears the lab's name. Whoever calls holds the lock; may be repeated."""
    record = None
    with contextlib.suppress(LabError):  # a damaged record is replaced by nothing in a moment
        record = state.read_record(name)
    _refuse_from_inside(groups, name)
    if record is not None and record.phase is Phase.UP:
        state.write_record(LabRecord(name, Phase.UNFINISHED, record.fleet_text, record.mdns, record.interpreter))
    for child in groups.children(name):
        groups.kill(f"{name}/{child}")
    for namespace in commands.list_namespaces(namespace_prefix(name)):
        _kill_all(namespace)
        commands.delete_namespace(namespace)
    for child in groups.children(name):
        groups.wait_until_empty(f"{name}/{child}")
    groups.remove(name)
    groups.remove_ours()


def _kill_all(namespace: str) -> None:
    for _ in range(KILL_ROUNDS):
        present = commands.find_processes(namespace)
        if not present:
            return
        for process in present:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        time.sleep(KILL_PAUSE_S)
    raise LabError(f"processes in the namespace {namespace} do not end although they were killed: {present}")


def _refuse_from_inside(groups: ControlGroups, name: str) -> None:
    inside = {process for child in groups.children(name) for process in groups.processes(f"{name}/{child}")}
    if os.getpid() in inside:
        raise Refused(f"this command runs inside lab {name!r}, which cannot be taken down from there")


def _warn_of_overbooking(cores: float, say: Say) -> None:
    present = read_limits().cores
    if cores > present * MAX_HOST_SHARE:
        say(
            f"warning: the devices have {cores:g} cores together, this machine {present:g}: "
            "they will be slower than the fleet file says"
        )


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """SIGTERM and a closed terminal end a build as Ctrl-C does: in order."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    with _handling((signal.SIGTERM, signal.SIGHUP), interrupt):
        yield


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Nobody's impatience leaves half a lab behind; taking down takes a second."""
    with _handling((signal.SIGINT, signal.SIGTERM, signal.SIGHUP), signal.SIG_IGN):
        yield


@contextlib.contextmanager
def _handling(
    numbers: tuple[signal.Signals, ...], handler: Callable[[int, FrameType | None], object] | signal.Handlers
) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are the main thread's affair
        return
    before = {number: signal.getsignal(number) for number in numbers}
    for number in numbers:
        if before[number] is not signal.SIG_IGN:  # as nohup has it
            signal.signal(number, handler)
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)
