"""The condition of this device right now: heat, clock frequency, firmware warnings, quota, time, disk.

Reads files below a root folder, so that tests hand in machines that they do not have; what a system does not tell is
None. Sources: Linux Documentation/ABI/testing/sysfs-class-thermal, admin-guide/pm/cpufreq.rst,
ABI/testing/sysfs-devices-system-cpu, adjtimex(2).
"""

from __future__ import annotations

import ctypes
import os
import shutil
import sys
from pathlib import Path

from mesh.doctor.facts import DiskFacts, Throttling
from mesh.hardware.limits import cgroup_folders, parse_cgroup_mounts, parse_key_values, parse_membership

LIMITING_TRIPS = frozenset({"passive", "hot", "critical"})
"""Kinds of trip points; an active one only starts a fan."""

SANE_CELSIUS = range(-40, 200)
"""Outside, a sensor is not connected."""

MAX_FILE_BYTES = 64 << 10
TIME_ERROR = 5
"""What adjtimex answers while nothing keeps the clock."""

TIMEX_BYTES = 512
"""More than `struct timex` has on any machine (208 bytes with 64-bit longs)."""


def read_throttling(root: Path = Path("/")) -> Throttling:
    hottest, limit = _read_heat(root / "sys/class/thermal")
    cpus = root / "sys/devices/system/cpu"
    throttled = [int(_read_number(path) or 0) for path in cpus.glob("cpu[0-9]*/thermal_throttle/core_throttle_count")]
    return Throttling(
        hottest_celsius=hottest,
        critical_celsius=limit,
        frequency_limit_share=_read_frequency_share(cpus / "cpu0/cpufreq"),
        governor=read_governor(root),
        throttled_events=max(throttled, default=0),
        firmware_flags=_read_firmware_flags(root),
        quota_stopped_share=_read_stopped_share(root),
    )


def read_governor(root: Path = Path("/")) -> str:
    """What decides the clock frequency, such as "ondemand"; empty where the system does not tell."""
    return _read(root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")


def _read_heat(thermal: Path) -> tuple[float | None, float | None]:
    """The zone that is nearest to its limit, or else the hottest: (temperature, limit) in degrees Celsius."""
    zones: list[tuple[float, float | None]] = []
    for zone in thermal.glob("thermal_zone*"):
        temperature = _read_celsius(zone / "temp")
        if temperature is None:
            continue
        kinds = [(path, _read(path)) for path in zone.glob("trip_point_*_type")]
        trips = [
            _read_celsius(Path(str(path).removesuffix("_type") + "_temp"))
            for path, kind in kinds
            if kind in LIMITING_TRIPS
        ]
        zones.append((temperature, min((trip for trip in trips if trip is not None and trip > 0), default=None)))
    limited = [(temperature, limit) for temperature, limit in zones if limit is not None]
    if limited:
        return min(limited, key=lambda zone: zone[1] - zone[0])
    return max(zones, key=lambda zone: zone[0], default=(None, None))


def _read_celsius(path: Path) -> float | None:
    number = _read_number(path)
    if number is None or int(number / 1000) not in SANE_CELSIUS:
        return None
    return number / 1000


def _read_frequency_share(cpufreq: Path) -> float | None:
    most, allowed = _read_number(cpufreq / "cpuinfo_max_freq"), _read_number(cpufreq / "scaling_max_freq")
    if not most or allowed is None:
        return None
    if _read(cpufreq / "scaling_governor") == "powersave" and _read(cpufreq / "scaling_driver") != "intel_pstate":
        allowed = _read_number(cpufreq / "scaling_min_freq") or allowed  # which this governor never leaves
    return allowed / most


def _read_firmware_flags(root: Path) -> int | None:
    for path in (root / "sys/devices/platform").glob("soc*/soc*firmware/get_throttled"):
        try:
            return int(_read(path), 16)
        except ValueError:
            return None
    return None


def _read_stopped_share(root: Path) -> float | None:
    membership = parse_membership(_read(root / "proc/self/cgroup"))
    mounts = parse_cgroup_mounts(_read(root / "proc/self/mountinfo"))
    shares = []
    for _, folder in cgroup_folders("cpu", membership, mounts):
        told = parse_key_values(_read(root / folder.lstrip("/") / "cpu.stat"))
        periods = told.get("nr_periods", 0)
        if periods:
            shares.append(told.get("nr_throttled", 0) / periods)
    return max(shares, default=None)


def clock_is_set() -> bool | None:
    """Whether the kernel says that a server keeps the clock; None where it cannot be asked."""
    if sys.platform != "linux":
        return None
    adjtimex = getattr(ctypes.CDLL(None), "adjtimex", None)
    if adjtimex is None:
        return None
    answer = int(adjtimex(ctypes.create_string_buffer(TIMEX_BYTES)))  # all zero: asks, and changes nothing
    return None if answer < 0 else answer != TIME_ERROR


def read_disk(folder: Path) -> DiskFacts:
    """Of the disk that holds (or will hold) `folder`."""
    folder = folder.expanduser().absolute()
    existing = next(each for each in (folder, *folder.parents) if each.exists())
    usage = shutil.disk_usage(existing)
    inodes = os.statvfs(existing)
    is_writable = os.access(existing, os.W_OK | os.X_OK) and not inodes.f_flag & os.ST_RDONLY
    # Some file systems make inodes as they need them, and say that there are none.
    return DiskFacts(str(folder), usage.free, usage.total, is_writable, inodes.f_favail if inodes.f_files else None)


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(MAX_FILE_BYTES).decode("utf-8", "replace").strip()
    except OSError:
        return ""  # the system does not tell this


def _read_number(path: Path) -> float | None:
    try:
        return float(_read(path))
    except ValueError:
        return None
