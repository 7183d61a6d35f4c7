"""What is known of the labs of this machine: a folder per lab below `/run/mesh-lab`, and a lock on it.

`lab.json` is written before anything of the lab is made and says what it is made from (the fleet file) and how
far it got; all names follow from that, so a lab whose builder was killed is found and taken down by whoever
comes next. `faults.json` says what is wrong with each device on purpose, and which process is its daemon.
The lock is on the folder itself, held while a lab is built, changed or taken down, and gone with its holder.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mesh.core.fleet_file import Fleet, parse_fleet
from mesh.core.ids import NAME_PATTERN
from mesh.errors import LabError, Refused
from mesh.lab.faults import Faults
from mesh.lab.topology import Topology, lay_out

STATE_ROOT = Path("/run/mesh-lab")
DATA_ROOT = Path("/var/lib/mesh-lab")
"""Data folders of the daemons. Not in memory like /run: its pages would count against the devices' limits."""

LOCK_TIMEOUT_S = 15.0
"""For another command on the same lab to end; one that builds it takes longer, and is named instead."""

LOCK_POLL_S = 0.05


class Phase(enum.Enum):
    UNFINISHED = "unfinished"
    """Being built or taken down, or left behind by a builder that was killed."""
    UP = "up"


@dataclass(frozen=True, slots=True)
class Daemon:
    """A process, told apart from a later one with its id by when it started."""

    process: int
    started: int
    """In clock ticks since boot, as /proc tells it."""


@dataclass(frozen=True, slots=True)
class DeviceState:
    """What changes about a device while its lab is up."""

    daemon: Daemon | None = None
    faults: Faults = field(default_factory=Faults)


@dataclass(frozen=True, slots=True)
class LabRecord:
    """One lab as written down."""

    name: str
    phase: Phase
    fleet_text: str
    mdns: bool
    interpreter: str
    """The Python that runs its daemons."""

    @property
    def fleet(self) -> Fleet:
        return parse_fleet(self.fleet_text)

    @property
    def topology(self) -> Topology:
        return lay_out(self.fleet, self.name)


def lab_folder(name: str) -> Path:
    return STATE_ROOT / name


def data_folder(name: str) -> Path:
    return DATA_ROOT / name


def list_recorded() -> set[str]:
    """Names of all labs that have a folder, complete or not."""
    names: set[str] = set()
    for root in (STATE_ROOT, DATA_ROOT):
        with contextlib.suppress(FileNotFoundError):
            names.update(path.name for path in root.iterdir() if NAME_PATTERN.fullmatch(path.name))
    return names


@contextlib.contextmanager
def lock_lab(name: str, timeout_s: float = LOCK_TIMEOUT_S) -> Iterator[None]:
    """Be the only one to change this lab. Makes its folder where there is none.

    Raises `Refused` if another process keeps it for longer than `timeout_s`.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        descriptor = _open_folder(lab_folder(name))
        try:
            if _take(descriptor, lab_folder(name)):
                yield
                return
        finally:
            os.close(descriptor)
        if time.monotonic() >= deadline:
            raise Refused(f"lab {name!r} is being changed by another process", hint="wait for it to end, or end it")
        time.sleep(LOCK_POLL_S)


def _open_folder(folder: Path) -> int:
    while True:
        with contextlib.suppress(FileNotFoundError):  # taken away in between by another lab's end: make it again
            folder.mkdir(parents=True, exist_ok=True)
            return os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def _take(descriptor: int, folder: Path) -> bool:
    """True if the lock is ours and the folder is still the one that has this name."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    try:
        return os.path.samestat(os.fstat(descriptor), folder.stat())
    except FileNotFoundError:
        return False


def is_locked(name: str) -> bool:
    """Whether somebody is at work on the lab at this moment."""
    try:
        descriptor = os.open(lab_folder(name), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        return not _take(descriptor, lab_folder(name))
    finally:
        os.close(descriptor)


def write_record(record: LabRecord) -> None:
    document = dataclasses.asdict(record)
    document["phase"] = record.phase.value
    _write(lab_folder(record.name) / "lab.json", document)


def read_record(name: str) -> LabRecord | None:
    """None where nothing was written yet, so nothing made; raises `LabError` for a file that is damaged."""
    document = _read(lab_folder(name) / "lab.json")
    if document is None:
        return None
    try:
        return LabRecord(**{**document, "phase": Phase(document["phase"])})
    except (KeyError, TypeError, ValueError) as error:
        raise LabError(f"the record of lab {name!r} is damaged: {error}", hint="take it down: mesh lab down") from None


def write_devices(name: str, devices: dict[str, DeviceState]) -> None:
    _write(lab_folder(name) / "devices.json", {device: dataclasses.asdict(state) for device, state in devices.items()})


def read_devices(name: str) -> dict[str, DeviceState]:
    document = _read(lab_folder(name) / "devices.json") or {}
    return {
        device: DeviceState(
            daemon=Daemon(**state["daemon"]) if state["daemon"] else None, faults=Faults(**state["faults"])
        )
        for device, state in document.items()
    }


def remove_record(name: str) -> None:
    """The last step of taking a lab down. The lock's folder goes too, and our roots with the last lab."""
    for folder in (data_folder(name), lab_folder(name)):
        if folder.exists():
            shutil.rmtree(folder)
    for root in (STATE_ROOT, DATA_ROOT):
        with contextlib.suppress(OSError):  # another lab is in it, or has just taken it away
            root.rmdir()


def _write(file: Path, document: dict[str, Any]) -> None:
    """Whole or not at all: a reader, and a builder that is killed, never see half of it."""
    new = file.with_suffix(".new")
    new.write_text(json.dumps(document))
    new.replace(file)


def _read(file: Path) -> dict[str, Any] | None:
    try:
        document = json.loads(file.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise LabError(f"{file} cannot be read: {error}", hint="take the lab down: mesh lab down") from None
    return document if isinstance(document, dict) else None
