"""What the process *has*: the least of affinity, cgroup quotas and the host, for cores and for memory.

Control groups nest, and every ancestor's limit binds; both versions and hybrids of them (some controllers
on version 1, the rest on version 2) occur on boards in use. `parse_*` are pure functions of file contents;
`read_limits` reads the files below a root folder, so that tests hand in machines that they do not have.
Sources: Linux `Documentation/admin-guide/cgroup-v1` and `cgroup-v2.rst`, proc(5), cgroups(7).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

UNLIMITED_V1_BYTES = 1 << 60
"""Version 1 writes "no limit" as the largest multiple of the page size below 2^63; no board has an exbibyte."""

MAX_PROC_BYTES = 4 << 20
"""Upper bound for what is read of one file under /proc or /sys; a mount table can be long, not that long."""


@dataclass(frozen=True, slots=True)
class CgroupMount:
    """One mounted hierarchy."""

    version: int
    controllers: frozenset[str]
    """Of a version 1 hierarchy; empty for version 2."""
    root: str
    """The cgroup that is visible at the mount point ("/" unless a container sees only its own part)."""
    mount_point: str


@dataclass(frozen=True, slots=True)
class Limits:
    cores: float
    """The least of affinity and all cgroup quotas; fractional under a quota."""
    memory_bytes: int
    """The least of host memory and all cgroup limits."""
    memory_available_bytes: int
    """What may still be taken without swapping, within every limit."""
    quota_period_seconds: float = 0.0
    """Of the quota that binds: who has used it up is stopped until the next period; 0 without one."""


def parse_cpu_max(text: str) -> float | None:
    """Cores that a version 2 `cpu.max` grants ("max 100000", "20000 100000"); None without a limit."""
    quota, _, period = text.strip().partition(" ")
    if quota == "max":
        return None
    return _ratio(_integer(quota), _integer(period or "100000"))


def parse_cfs_quota(quota_us: str, period_us: str) -> float | None:
    """Cores that version 1's `cpu.cfs_quota_us` and `cpu.cfs_period_us` grant; None without a limit (-1)."""
    return _ratio(_integer(quota_us), _integer(period_us))


def parse_memory_limit(text: str) -> int | None:
    """Bytes of `memory.max`, `memory.high` or `memory.limit_in_bytes`; None without a limit."""
    if text.strip() == "max":
        return None
    value = _integer(text)
    return None if value is None or value < 0 or value >= UNLIMITED_V1_BYTES else value


def parse_key_values(text: str, separator: str | None = None) -> dict[str, int]:
    """`memory.stat` ("inactive_file 4096") or, with ":", `/proc/meminfo` ("MemTotal: 4 kB", in bytes)."""
    values = {}
    for line in text.splitlines():
        key, _, rest = line.partition(separator or " ")
        words = rest.split()
        value = _integer(words[0]) if words else None
        if value is not None:
            values[key.strip()] = value * 1024 if words[1:] == ["kB"] else value
    return values


def parse_membership(text: str) -> dict[str, str]:
    """`/proc/self/cgroup`: controller name to cgroup path; the version 2 path under the key ""."""
    paths = {}
    for line in text.splitlines():
        number, _, rest = line.partition(":")
        controllers, separator, path = rest.partition(":")
        if not number.isdecimal() or not separator:
            continue
        for controller in controllers.split(","):
            paths[controller] = path
    return paths


def parse_cgroup_mounts(mountinfo: str) -> list[CgroupMount]:
    """The control group hierarchies in `/proc/self/mountinfo`."""
    mounts = []
    for line in mountinfo.splitlines():
        before, separator, after = line.partition(" - ")
        fields, kind = before.split(" "), after.split(" ")
        if not separator or len(fields) < 5 or kind[0] not in ("cgroup", "cgroup2"):
            continue
        version = 2 if kind[0] == "cgroup2" else 1
        options = frozenset(kind[2].split(",")) if version == 1 and len(kind) > 2 else frozenset[str]()
        mounts.append(CgroupMount(version, options, _unescape(fields[3]), _unescape(fields[4])))
    return mounts


def cgroup_folders(
    controller: str, membership: Mapping[str, str], mounts: Iterable[CgroupMount]
) -> list[tuple[int, str]]:
    """(version, folder) of the process's cgroup and its visible ancestors, innermost first.

    A controller that version 1 has is listed there; the version 2 hierarchy is always listed as well,
    because in a hybrid only the files that exist say which of them rules.
    """
    found: list[tuple[int, str]] = []
    for mount in mounts:
        key = "" if mount.version == 2 else controller
        if key not in membership or (mount.version == 1 and controller not in mount.controllers):
            continue
        inside = _below(membership[key], mount.root)
        ancestors = [inside, *inside.parents]
        found.extend((mount.version, str(PurePosixPath(mount.mount_point) / folder)) for folder in ancestors)
    return list(dict.fromkeys(found))


def read_limits(root: Path = Path("/"), affinity_cores: int | None = None) -> Limits:
    """What this process has. `root` stands for "/"; `affinity_cores` for the scheduler's answer.

    Files that are missing or hold nonsense limit nothing: a system without control groups has none.
    """
    membership = parse_membership(_read(root, "proc/self/cgroup"))
    mounts = parse_cgroup_mounts(_read(root, "proc/self/mountinfo"))
    cores = float(count_cores() if affinity_cores is None else affinity_cores)
    period_seconds = 0.0
    for version, folder in cgroup_folders("cpu", membership, mounts):
        granted = _read_cores(root, version, folder)
        if granted is not None and granted <= cores:
            cores, period_seconds = granted, _read_period(root, version, folder)
    memory_bytes, available_bytes = _read_host_memory(root)
    for version, folder in cgroup_folders("memory", membership, mounts):
        limit, used = _read_memory(root, version, folder)
        if limit is not None:
            memory_bytes = min(memory_bytes, limit)
            available_bytes = min(available_bytes, max(0, limit - used))
    return Limits(cores, memory_bytes, min(available_bytes, memory_bytes), period_seconds)


def count_cores() -> int:
    """Processors that this process may run on; those of the host where the system knows no affinity."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _read_cores(root: Path, version: int, folder: str) -> float | None:
    if version == 2:
        return parse_cpu_max(_read(root, folder, "cpu.max"))
    return parse_cfs_quota(_read(root, folder, "cpu.cfs_quota_us"), _read(root, folder, "cpu.cfs_period_us"))


def _read_period(root: Path, version: int, folder: str) -> float:
    """Seconds; of a folder whose quota has been read."""
    text = _read(root, folder, "cpu.max" if version == 2 else "cpu.cfs_period_us")
    return (_integer(text.split()[-1]) or 0) / 1e6 if text.split() else 0.0


def _read_memory(root: Path, version: int, folder: str) -> tuple[int | None, int]:
    """(limit, bytes in use that could not be dropped at once). Page cache that is not in use does not count."""
    statistics = parse_key_values(_read(root, folder, "memory.stat"))
    if version == 2:
        # Above memory.high the kernel stalls the process: as good as a limit for inference.
        limits = [parse_memory_limit(_read(root, folder, name)) for name in ("memory.max", "memory.high")]
        used, droppable = _read(root, folder, "memory.current"), statistics.get("inactive_file", 0)
    else:
        limits = [parse_memory_limit(_read(root, folder, "memory.limit_in_bytes"))]
        used, droppable = _read(root, folder, "memory.usage_in_bytes"), statistics.get("total_inactive_file", 0)
    limit = min((value for value in limits if value is not None), default=None)
    return limit, max(0, (_integer(used) or 0) - droppable)


def _read_host_memory(root: Path) -> tuple[int, int]:
    """(total, available) bytes of the machine."""
    values = parse_key_values(_read(root, "proc/meminfo"), ":")
    if "MemTotal" in values:
        total = values["MemTotal"]
        return total, min(total, values.get("MemAvailable", values.get("MemFree", total)))
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return total, total


def _read(root: Path, folder: str, name: str = "") -> str:
    path = root / folder.lstrip("/") / name
    try:
        with path.open("rb") as file:
            return file.read(MAX_PROC_BYTES).decode("utf-8", "replace")
    except OSError:
        return ""  # absent here, which is an answer: this file limits nothing


def _below(path: str, mount_root: str) -> PurePosixPath:
    """Where `path` lies under a mount that shows `mount_root`; its top where it lies outside ("/../x")."""
    pure = PurePosixPath(path)
    if ".." in pure.parts:
        return PurePosixPath()
    base = PurePosixPath(mount_root)
    if pure.is_relative_to(base):
        return pure.relative_to(base)
    # A bind-mounted or namespaced view: the path is not visible there, the mount's top is the best known.
    return PurePosixPath()


def _unescape(text: str) -> str:
    """Undo mountinfo's octal escapes of space, tab, newline and backslash."""
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        text = text.replace(code, character)
    return text


def _ratio(quota: int | None, period: int | None) -> float | None:
    if quota is None or period is None or quota <= 0 or period <= 0:
        return None
    return quota / period


def _integer(text: str) -> int | None:
    try:
        return int(text.strip())
    except ValueError:
        return None
