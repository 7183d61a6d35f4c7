"""Control groups of a lab: cores, memory, freezing, and who is in them. Both versions; version 2 is untried.

A group is named by its path below a folder of our own, "LAB/device-1". Under version 1 that is a folder in
each controller's hierarchy, under version 2 a single one. Cores are granted in periods of 10 ms: a board of
0.4 cores shall compute 4 ms of every 10, not stall for 60 ms of every 100.
Sources: Linux `Documentation/admin-guide/cgroup-v1`, `cgroup-v2.rst`, `scheduler/sched-bwc.rst`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from mesh.errors import LabError
from mesh.hardware.limits import CgroupMount, parse_cgroup_mounts, parse_key_values

OUR_FOLDER = "mesh-lab"

PERIOD_US = 10_000
MIN_QUOTA_US = 1_000
"""The kernel grants no less than a millisecond per period; smaller shares get a longer period."""

URGENT_SHARES_V1, URGENT_WEIGHT_V2 = 16 * 1024, 1600
"""Sixteen times the default, for labs as a whole (a board has its cores, also while its host does something
else) and for what stands for hardware in them."""

EMPTY_TIMEOUT_S = 10.0
"""For killed processes to be gone; one that sits in the kernel (a dead disk) is reported, not waited for."""

FREEZE_TIMEOUT_S = 5.0
POLL_S = 0.01

MOUNTS = Path("/proc/self/mountinfo")
NEEDED_V1 = ("cpu", "memory", "freezer")


def cpu_period_and_quota(cores: float) -> tuple[int, int]:
    """(period, quota) in microseconds that grant `cores`."""
    period = max(PERIOD_US, round(MIN_QUOTA_US / cores))
    return period, max(MIN_QUOTA_US, round(period * cores))


class ControlGroups(ABC):
    """What a lab asks of either version. Paths are relative to our folder; every group may hold groups."""

    version: int

    @abstractmethod
    def folders(self, group: str) -> list[Path]:
        """Every folder that a group consists of."""

    @abstractmethod
    def create(
        self, group: str, cores: float | None = None, memory_bytes: int | None = None, *, is_urgent: bool = False
    ) -> None:
        """A leaf group and the groups above it; None limits nothing. Urgent ones come before their neighbours."""

    @abstractmethod
    def freeze(self, group: str) -> None:
        """Stop all processes of a group; returns when they stand still."""

    @abstractmethod
    def thaw(self, group: str) -> None: ...

    @abstractmethod
    def is_frozen(self, group: str) -> bool: ...

    @abstractmethod
    def cpu_seconds(self, group: str) -> float | None:
        """Computed by the group since it exists; None where the kernel does not count it."""

    @abstractmethod
    def memory_bytes(self, group: str) -> int: ...

    @abstractmethod
    def memory_kills(self, group: str) -> int:
        """How many processes died for the memory limit."""

    def membership_files(self, group: str) -> list[Path]:
        """Where a process writes its id to join a group."""
        return [folder / "cgroup.procs" for folder in self.folders(group)]

    def processes(self, group: str) -> list[int]:
        found: set[int] = set()
        for file in self.membership_files(group):
            found.update(int(word) for word in _read(file).split())
        return sorted(found)

    def exists(self, group: str) -> bool:
        return any(folder.is_dir() for folder in self.folders(group))

    def children(self, group: str) -> list[str]:
        """Names of the groups directly in this one."""
        names: set[str] = set()
        for folder in self.folders(group):
            with contextlib.suppress(FileNotFoundError):
                names.update(path.name for path in folder.iterdir() if path.is_dir())
        return sorted(names)

    def kill(self, group: str, processes: Sequence[int] | None = None) -> None:
        """Kill -9 all of a group, or those `processes` of it. It stands still meanwhile, so that none forks away."""
        if not self.exists(group):
            return
        self.freeze(group)
        try:
            present = self.processes(group)
            for process in present if processes is None else [each for each in processes if each in present]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
        finally:
            self.thaw(group)

    def wait_until_empty(self, group: str) -> None:
        """Raises `LabError` naming the processes that do not go."""
        deadline = time.monotonic() + EMPTY_TIMEOUT_S
        while left := self.processes(group):
            if time.monotonic() > deadline:
                raise LabError(f"the processes {left} in {group} do not end although they were killed")
            time.sleep(POLL_S)

    def remove(self, group: str) -> None:
        """A group that is empty of processes, with all groups in it; fine if there is none."""
        for child in self.children(group):
            self.remove(f"{group}/{child}")
        for folder in self.folders(group):
            _remove_folder(folder)

    def remove_ours(self) -> None:
        """Our own folder, if no lab is left in it."""
        if not self.children(""):
            for folder in self.folders(""):
                with contextlib.suppress(OSError):  # a lab that is being built at this moment has come first
                    folder.rmdir()


class ControlGroupsV1(ControlGroups):
    """One folder per hierarchy; controllers that are mounted together share one."""

    version = 1

    def __init__(self, mount_points: Mapping[str, str]) -> None:
        self._roots = {controller: Path(point) / OUR_FOLDER for controller, point in mount_points.items()}

    def folders(self, group: str) -> list[Path]:
        return list(dict.fromkeys(root / group for root in self._roots.values()))

    def create(
        self, group: str, cores: float | None = None, memory_bytes: int | None = None, *, is_urgent: bool = False
    ) -> None:
        for folder in self.folders(group):
            _make_folder(folder)
        for urgent in ("", group.partition("/")[0], *([group] if is_urgent else [])):
            _write(self._file("cpu", urgent, "cpu.shares"), URGENT_SHARES_V1)
        if cores is not None:
            period, quota = cpu_period_and_quota(cores)
            _write(self._file("cpu", group, "cpu.cfs_period_us"), period)
            _write(self._file("cpu", group, "cpu.cfs_quota_us"), quota)
        if memory_bytes is not None:
            _write(self._file("memory", group, "memory.limit_in_bytes"), memory_bytes)
            with_swap = self._file("memory", group, "memory.memsw.limit_in_bytes")
            if with_swap.exists():
                _write(with_swap, memory_bytes)

    def freeze(self, group: str) -> None:
        state = self._file("freezer", group, "freezer.state")
        _write(state, "FROZEN")
        _wait_for(lambda: _read(state).strip() == "FROZEN", f"{group} does not freeze")

    def thaw(self, group: str) -> None:
        _write(self._file("freezer", group, "freezer.state"), "THAWED")

    def is_frozen(self, group: str) -> bool:
        return _read(self._file("freezer", group, "freezer.state")).strip() not in ("", "THAWED")

    def cpu_seconds(self, group: str) -> float | None:
        if "cpuacct" not in self._roots:
            return None
        return int(_read(self._file("cpuacct", group, "cpuacct.usage")) or 0) / 1e9

    def memory_bytes(self, group: str) -> int:
        return int(_read(self._file("memory", group, "memory.usage_in_bytes")) or 0)

    def memory_kills(self, group: str) -> int:
        return parse_key_values(_read(self._file("memory", group, "memory.oom_control"))).get("oom_kill", 0)

    def _file(self, controller: str, group: str, name: str) -> Path:
        return self._roots[controller] / group / name


class ControlGroupsV2(ControlGroups):
    """The unified hierarchy. Written after its documentation; the machines it was made on have version 1."""

    version = 2

    def __init__(self, mount_point: Path) -> None:
        self._mount_point = mount_point

    def folders(self, group: str) -> list[Path]:
        return [self._mount_point / OUR_FOLDER / group]

    def create(
        self, group: str, cores: float | None = None, memory_bytes: int | None = None, *, is_urgent: bool = False
    ) -> None:
        folder = self._mount_point / OUR_FOLDER / group
        _make_folder(folder)
        ours = self._mount_point / OUR_FOLDER
        above = [each for each in reversed(folder.parents) if each == ours or ours in each.parents]
        for each in [self._mount_point, *above]:
            # Controllers are handed down level by level; only then have the groups below the files.
            _write(each / "cgroup.subtree_control", "+cpu +memory")
        for each in [*above, *([folder] if is_urgent else [])]:
            _write(each / "cpu.weight", URGENT_WEIGHT_V2)
        if cores is not None:
            period, quota = cpu_period_and_quota(cores)
            _write(folder / "cpu.max", f"{quota} {period}")
        if memory_bytes is not None:
            _write(folder / "memory.max", memory_bytes)
            if (folder / "memory.swap.max").exists():
                _write(folder / "memory.swap.max", 0)

    def freeze(self, group: str) -> None:
        folder = self.folders(group)[0]
        _write(folder / "cgroup.freeze", 1)
        events = folder / "cgroup.events"
        _wait_for(lambda: parse_key_values(_read(events)).get("frozen") == 1, f"{group} does not freeze")

    def thaw(self, group: str) -> None:
        _write(self.folders(group)[0] / "cgroup.freeze", 0)

    def is_frozen(self, group: str) -> bool:
        return _read(self.folders(group)[0] / "cgroup.freeze").strip() == "1"

    def cpu_seconds(self, group: str) -> float | None:
        used = parse_key_values(_read(self.folders(group)[0] / "cpu.stat")).get("usage_usec")
        return None if used is None else used / 1e6

    def memory_bytes(self, group: str) -> int:
        return int(_read(self.folders(group)[0] / "memory.current") or 0)

    def memory_kills(self, group: str) -> int:
        return parse_key_values(_read(self.folders(group)[0] / "memory.events")).get("oom_kill", 0)


def find_control_groups(mountinfo: str | None = None) -> ControlGroups:
    """This machine's version; raises `LabError` saying which controller is missing."""
    mounts = parse_cgroup_mounts(MOUNTS.read_text() if mountinfo is None else mountinfo)
    first = {name: mount for mount in reversed(mounts) if mount.version == 1 for name in mount.controllers}
    if all(name in first for name in NEEDED_V1):
        wanted = (*NEEDED_V1, "cpuacct") if "cpuacct" in first else NEEDED_V1
        return ControlGroupsV1({name: first[name].mount_point for name in wanted})
    unified = [mount for mount in mounts if mount.version == 2]
    if unified and not any(name in first for name in ("cpu", "memory")):
        return _unified(unified[0])
    missing = ", ".join(name for name in NEEDED_V1 if name not in first)
    raise LabError(
        f"a lab needs control groups, and there is no controller {missing} here",
        hint="mount the cgroup file systems (in a container: start it privileged)",
    )


def _unified(mount: CgroupMount) -> ControlGroupsV2:
    point = Path(mount.mount_point)
    present = _read(point / "cgroup.controllers").split()
    missing = [name for name in ("cpu", "memory") if name not in present]
    if missing:
        raise LabError(f"the control groups in {point} have no controller {', '.join(missing)}")
    return ControlGroupsV2(point)


def _wait_for(is_so: Callable[[], bool], otherwise: str) -> None:
    deadline = time.monotonic() + FREEZE_TIMEOUT_S
    while not is_so():
        if time.monotonic() > deadline:
            raise LabError(f"{otherwise} within {FREEZE_TIMEOUT_S:g} s")
        time.sleep(POLL_S)


def _make_folder(folder: Path) -> None:
    """With those above it, which another lab that goes down may take away at this very moment."""
    deadline = time.monotonic() + EMPTY_TIMEOUT_S
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            return
        except OSError as error:
            if not isinstance(error, FileNotFoundError) or time.monotonic() > deadline:
                raise LabError(f"the control group {folder} cannot be made: {error.strerror}") from None
        time.sleep(POLL_S)


def _remove_folder(folder: Path) -> None:
    deadline = time.monotonic() + EMPTY_TIMEOUT_S
    while True:
        try:
            folder.rmdir()
            return
        except FileNotFoundError:
            return
        except OSError as error:
            # A process that has just ended keeps its group busy for an instant.
            if error.errno != errno.EBUSY or time.monotonic() > deadline:
                raise LabError(f"the control group {folder} cannot be removed: {error.strerror}") from None
        time.sleep(POLL_S)


def _write(file: Path, value: object) -> None:
    try:
        # Not Path.write_text, which would make a file where a controller lacks it.
        descriptor = os.open(file, os.O_WRONLY)
        try:
            os.write(descriptor, str(value).encode())
        finally:
            os.close(descriptor)
    except OSError as error:
        raise LabError(f"{value!r} cannot be written to {file}: {error.strerror}") from None


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except (FileNotFoundError, NotADirectoryError, ProcessLookupError):
        return ""  # the group is gone, or the kernel does not count this
    except OSError as error:
        if error.errno == errno.ENODEV:  # removed while it was being read
            return ""
        raise LabError(f"{file} cannot be read: {error.strerror}") from None
