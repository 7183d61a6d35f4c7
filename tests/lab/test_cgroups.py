"""Control groups: what is written where, on folders that stand for the kernel's. The real ones: test_lab_root.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from mesh.errors import LabError
from mesh.lab import cgroups
from mesh.lab.cgroups import ControlGroupsV1, ControlGroupsV2, cpu_period_and_quota, find_control_groups

V1_FILES = {
    "cpu": ("cpu.shares", "cpu.cfs_period_us", "cpu.cfs_quota_us"),
    "memory": ("memory.limit_in_bytes", "memory.oom_control", "memory.usage_in_bytes"),
    "freezer": ("freezer.state",),
    "cpuacct": ("cpuacct.usage",),
}
V2_FILES = ("cgroup.subtree_control", "cpu.weight", "cpu.max", "memory.max", "cgroup.freeze", "memory.events")


@pytest.mark.parametrize(
    ("cores", "expected"),
    [(0.4, (10_000, 4_000)), (1.0, (10_000, 10_000)), (2.5, (10_000, 25_000)), (0.05, (20_000, 1_000))],
)
def test_periods_are_short(cores: float, expected: tuple[int, int]) -> None:
    assert cpu_period_and_quota(cores) == expected


@pytest.mark.parametrize("hundredths", range(1, 1000, 7))
def test_quotas_are_what_the_kernel_takes(hundredths: int) -> None:
    period, quota = cpu_period_and_quota(hundredths / 100)
    assert quota >= 1_000
    assert 1_000 <= period <= 1_000_000
    assert quota / period == pytest.approx(hundredths / 100, rel=0.01)


def make_v1(root: Path, group: str) -> ControlGroupsV1:
    for controller, names in V1_FILES.items():
        for folder in (root / controller / "mesh-lab", *_levels(root / controller / "mesh-lab", group)):
            folder.mkdir(parents=True, exist_ok=True)
            for name in (*names, "cgroup.procs"):
                (folder / name).touch()
    return ControlGroupsV1({controller: str(root / controller) for controller in V1_FILES})


def _levels(top: Path, group: str) -> list[Path]:
    parts = group.split("/")
    return [top.joinpath(*parts[:depth]) for depth in range(1, len(parts) + 1)]


def test_version_1_limits(tmp_path: Path) -> None:
    groups = make_v1(tmp_path, "x/device-1")
    groups.create("x/device-1", 0.3, 256_000_000)
    folder = tmp_path / "cpu/mesh-lab/x/device-1"
    assert (folder / "cpu.cfs_period_us").read_text() == "10000"
    assert (folder / "cpu.cfs_quota_us").read_text() == "3000"
    assert (tmp_path / "memory/mesh-lab/x/device-1/memory.limit_in_bytes").read_text() == "256000000"
    assert (folder / "cpu.shares").read_text() == ""
    assert (folder.parent / "cpu.shares").read_text() == str(cgroups.URGENT_SHARES_V1)


def test_version_1_tells(tmp_path: Path) -> None:
    groups = make_v1(tmp_path, "x/device-1")
    (tmp_path / "cpu/mesh-lab/x/device-1/cgroup.procs").write_text("12\n7\n")
    (tmp_path / "memory/mesh-lab/x/device-1/cgroup.procs").write_text("7\n9\n")
    (tmp_path / "memory/mesh-lab/x/device-1/memory.oom_control").write_text("oom_kill_disable 0\noom_kill 3\n")
    (tmp_path / "cpuacct/mesh-lab/x/device-1/cpuacct.usage").write_text("1500000000\n")
    (tmp_path / "freezer/mesh-lab/x/device-1/freezer.state").write_text("FREEZING\n")
    assert groups.processes("x/device-1") == [7, 9, 12], "whoever is in any of the hierarchies"
    assert groups.memory_kills("x/device-1") == 3
    assert groups.cpu_seconds("x/device-1") == 1.5
    assert groups.is_frozen("x/device-1")
    assert groups.children("x") == ["device-1"]


def test_what_is_not_there_is_empty(tmp_path: Path) -> None:
    groups = ControlGroupsV1({controller: str(tmp_path / controller) for controller in V1_FILES})
    assert groups.children("") == []
    assert groups.processes("x/device-1") == []
    assert not groups.exists("x")
    groups.kill("x/device-1")
    groups.remove("x")
    groups.remove_ours()


def test_a_missing_controller_file_is_named(tmp_path: Path) -> None:
    groups = ControlGroupsV1({controller: str(tmp_path / controller) for controller in V1_FILES})
    with pytest.raises(LabError, match=r"cpu.shares"):
        groups.create("x/device-1", 0.5, None)


def test_version_2_limits(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "mesh-lab", *_levels(tmp_path / "mesh-lab", "x/device-1")):
        folder.mkdir(exist_ok=True)
        for name in V2_FILES:
            (folder / name).touch()
    groups = ControlGroupsV2(tmp_path)
    groups.create("x/device-1", 0.3, 256_000_000)
    folder = tmp_path / "mesh-lab/x/device-1"
    assert (folder / "cpu.max").read_text() == "3000 10000"
    assert (folder / "memory.max").read_text() == "256000000"
    for above in (tmp_path, tmp_path / "mesh-lab", tmp_path / "mesh-lab/x"):
        assert (above / "cgroup.subtree_control").read_text() == "+cpu +memory"
    assert (folder / "cgroup.subtree_control").read_text() == "", "a group with processes hands nothing down"
    (folder / "memory.events").write_text("low 0\noom_kill 2\n")
    assert groups.memory_kills("x/device-1") == 2


MOUNT_V1 = "30 25 0:26 / {root}/{name} rw - cgroup cgroup rw,{name}\n"
MOUNT_V2 = "31 25 0:27 / {root} rw - cgroup2 cgroup2 rw\n"


def test_version_1_is_found(tmp_path: Path) -> None:
    text = "".join(MOUNT_V1.format(root=tmp_path, name=name) for name in ("cpu", "memory", "freezer"))
    found = find_control_groups(text + MOUNT_V2.format(root=tmp_path))
    assert found.version == 1
    assert found.cpu_seconds("x") is None, "cpuacct is not mounted"


def test_version_2_is_found(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").write_text("cpuset cpu io memory pids\n")
    assert find_control_groups(MOUNT_V2.format(root=tmp_path)).version == 2


@pytest.mark.parametrize(
    ("text", "controllers", "complaint"),
    [
        ("", "", "no controller cpu, memory, freezer"),
        (MOUNT_V1.format(root="/x", name="cpu"), "", "no controller memory, freezer"),
        (MOUNT_V2, "io pids", "no controller cpu, memory"),
    ],
)
def test_a_missing_controller_is_the_reason(tmp_path: Path, text: str, controllers: str, complaint: str) -> None:
    (tmp_path / "cgroup.controllers").write_text(controllers)
    with pytest.raises(LabError, match=complaint):
        find_control_groups(text.format(root=tmp_path, name=""))
