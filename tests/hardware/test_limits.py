"""Limits read from machines described by their files: what /proc and /sys said there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.hardware.limits import (
    CgroupMount,
    cgroup_folders,
    count_cores,
    parse_cfs_quota,
    parse_cgroup_mounts,
    parse_cpu_max,
    parse_key_values,
    parse_membership,
    parse_memory_limit,
    read_limits,
)

GIB = 1 << 30
MIB = 1 << 20
MEMINFO = (
    "MemTotal:        8388608 kB\nMemFree:          524288 kB\nMemAvailable:    6291456 kB\nHugePages_Total:       0\n"
)
V2_MOUNT = "35 24 0:30 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"
V1_MOUNTS = (
    "36 24 0:31 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:10 - cgroup cgroup rw,cpu,cpuacct\n"
    "37 24 0:32 / /sys/fs/cgroup/memory rw,nosuid shared:11 - cgroup cgroup rw,memory\n"
)


def machine(root: Path, files: dict[str, str]) -> Path:
    """A root folder with these files."""
    for name, text in {"proc/meminfo": MEMINFO, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    ("text", "cores"),
    [("max 100000\n", None), ("max", None), ("20000 100000\n", 0.2), ("150000 100000", 1.5), ("50000", 0.5),
     ("", None), ("x y", None), ("0 100000", None), ("1 0", None), ("-1 100000", None)],
)  # fmt: skip
def test_cpu_max(text: str, cores: float | None) -> None:
    assert parse_cpu_max(text) == cores


def test_cfs_quota() -> None:
    assert parse_cfs_quota("-1\n", "100000\n") is None
    assert parse_cfs_quota("40000\n", "100000\n") == 0.4
    assert parse_cfs_quota("", "") is None


def test_memory_limits_of_both_versions() -> None:
    assert parse_memory_limit("max\n") is None
    assert parse_memory_limit("9223372036854771712\n") is None
    assert parse_memory_limit("536870912\n") == 512 * MIB
    assert parse_memory_limit("0") == 0
    assert parse_memory_limit("") is None


def test_key_values() -> None:
    assert parse_key_values("anon 4096\ninactive_file 8192\nbad\n\n") == {"anon": 4096, "inactive_file": 8192}
    assert parse_key_values(MEMINFO, ":")["MemTotal"] == 8 * GIB


def test_membership_of_a_hybrid() -> None:
    text = "5:cpu,cpuacct:/a\n4:memory:/a:b\n1:name=systemd:/x\n0::/user.slice\nnonsense\n"
    paths = parse_membership(text)
    assert paths == {"cpu": "/a", "cpuacct": "/a", "memory": "/a:b", "name=systemd": "/x", "": "/user.slice"}


def test_mounts_with_escapes_and_optional_fields() -> None:
    text = (
        "1 2 0:3 /docker/ab /sys/fs/my\\040cgroup rw - cgroup2 cgroup rw\n"
        + V1_MOUNTS
        + "9 9 8:1 / / rw - ext4 /dev/x rw\n"
    )
    assert parse_cgroup_mounts(text) == [
        CgroupMount(2, frozenset(), "/docker/ab", "/sys/fs/my cgroup"),
        CgroupMount(1, frozenset({"rw", "cpu", "cpuacct"}), "/", "/sys/fs/cgroup/cpu,cpuacct"),
        CgroupMount(1, frozenset({"rw", "memory"}), "/", "/sys/fs/cgroup/memory"),
    ]


@pytest.mark.parametrize(
    ("path", "root", "folders"),
    [
        ("/a/b", "/", ["/c/a/b", "/c/a", "/c"]),
        ("/", "/", ["/c"]),
        ("/docker/ab/x", "/docker/ab", ["/c/x", "/c"]),
        ("/docker/ab", "/docker/ab", ["/c"]),
        ("/elsewhere", "/docker/ab", ["/c"]),
        ("/../other", "/", ["/c"]),
    ],
)
def test_every_visible_ancestor_is_looked_at(path: str, root: str, folders: list[str]) -> None:
    mounts = [CgroupMount(2, frozenset(), root, "/c")]
    assert cgroup_folders("cpu", {"": path}, mounts) == [(2, folder) for folder in folders]


def test_no_control_groups_means_no_limits(tmp_path: Path) -> None:
    limits = read_limits(machine(tmp_path, {}), affinity_cores=4)
    assert (limits.cores, limits.memory_bytes, limits.memory_available_bytes) == (4.0, 8 * GIB, 6 * GIB)


def test_version_2_takes_the_least_of_all_ancestors(tmp_path: Path) -> None:
    base = "sys/fs/cgroup"
    root = machine(
        tmp_path,
        {
            "proc/self/cgroup": "0::/mesh.slice/node.service\n",
            "proc/self/mountinfo": V2_MOUNT,
            f"{base}/mesh.slice/cpu.max": "50000 100000\n",
            f"{base}/mesh.slice/node.service/cpu.max": "max 100000\n",
            f"{base}/mesh.slice/memory.max": f"{GIB}\n",
            f"{base}/mesh.slice/memory.current": f"{700 * MIB}\n",
            f"{base}/mesh.slice/memory.stat": f"anon 1\ninactive_file {200 * MIB}\n",
            f"{base}/mesh.slice/node.service/memory.max": "max\n",
            f"{base}/mesh.slice/node.service/memory.high": f"{768 * MIB}\n",
            f"{base}/mesh.slice/node.service/memory.current": f"{100 * MIB}\n",
        },
    )
    limits = read_limits(root, affinity_cores=4)
    assert (limits.cores, limits.quota_period_seconds) == (0.5, 0.1)
    assert limits.memory_bytes == 768 * MIB
    assert limits.memory_available_bytes == (1024 - 700 + 200) * MIB


def test_version_1(tmp_path: Path) -> None:
    cpu, memory = "sys/fs/cgroup/cpu,cpuacct", "sys/fs/cgroup/memory"
    root = machine(
        tmp_path,
        {
            "proc/self/cgroup": "3:cpu,cpuacct:/lab/pi4\n2:memory:/lab/pi4\n",
            "proc/self/mountinfo": V1_MOUNTS,
            f"{cpu}/cpu.cfs_quota_us": "-1\n",
            f"{cpu}/lab/pi4/cpu.cfs_quota_us": "4000\n",
            f"{cpu}/lab/pi4/cpu.cfs_period_us": "10000\n",
            f"{memory}/memory.limit_in_bytes": "9223372036854771712\n",
            f"{memory}/lab/pi4/memory.limit_in_bytes": f"{512 * MIB}\n",
            f"{memory}/lab/pi4/memory.usage_in_bytes": f"{600 * MIB}\n",
            f"{memory}/lab/pi4/memory.stat": f"total_inactive_file {50 * MIB}\n",
        },
    )
    limits = read_limits(root, affinity_cores=2)
    assert (limits.cores, limits.quota_period_seconds) == (0.4, 0.01)
    assert limits.memory_bytes == 512 * MIB
    assert limits.memory_available_bytes == 0


def test_a_hybrid_takes_each_controller_where_it_is(tmp_path: Path) -> None:
    root = machine(
        tmp_path,
        {
            "proc/self/cgroup": "3:cpu,cpuacct:/v1\n0::/v2\n",
            "proc/self/mountinfo": V1_MOUNTS + V2_MOUNT.replace("/sys/fs/cgroup ", "/sys/fs/cgroup/unified "),
            "sys/fs/cgroup/cpu,cpuacct/v1/cpu.cfs_quota_us": "150000",
            "sys/fs/cgroup/cpu,cpuacct/v1/cpu.cfs_period_us": "100000",
            "sys/fs/cgroup/unified/v2/memory.max": str(2 * GIB),
        },
    )
    limits = read_limits(root, affinity_cores=4)
    assert (limits.cores, limits.memory_bytes) == (1.5, 2 * GIB)


def test_in_a_container_the_mount_is_the_own_group(tmp_path: Path) -> None:
    root = machine(
        tmp_path,
        {
            "proc/self/cgroup": "0::/docker/abc\n",
            "proc/self/mountinfo": V2_MOUNT.replace("0:30 / ", "0:30 /docker/abc "),
            "sys/fs/cgroup/cpu.max": "200000 100000",
            "sys/fs/cgroup/memory.max": str(GIB),
        },
    )
    limits = read_limits(root, affinity_cores=8)
    assert (limits.cores, limits.memory_bytes) == (2.0, GIB)


def test_affinity_below_the_quota_counts(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "0::/\n",
        "proc/self/mountinfo": V2_MOUNT,
        "sys/fs/cgroup/cpu.max": "300000 100000",
        "sys/fs/cgroup/memory.max": str(99 * GIB),
    }
    limits = read_limits(machine(tmp_path, files), affinity_cores=1)
    assert (limits.cores, limits.memory_bytes, limits.memory_available_bytes) == (1.0, 8 * GIB, 6 * GIB)
    assert limits.quota_period_seconds == 0, "a quota that does not bind stops nobody"


def test_this_machine() -> None:
    limits = read_limits()
    assert 0 < limits.cores <= (os.cpu_count() or 1)
    assert 0 < limits.memory_available_bytes <= limits.memory_bytes
    assert limits.memory_bytes <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system knows no affinity")
def test_the_affinity_of_this_process_counts() -> None:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert count_cores() == 1
        assert read_limits().cores <= 1
    finally:
        os.sched_setaffinity(0, before)


@given(st.text(max_size=200), st.text(max_size=200))
def test_nonsense_limits_nothing_and_raises_nothing(membership: str, mounts: str) -> None:
    parse_cpu_max(membership)
    parse_memory_limit(membership)
    parse_key_values(membership, ":")
    cgroup_folders("cpu", parse_membership(membership), parse_cgroup_mounts(mounts))
