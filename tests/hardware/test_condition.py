"""The condition of machines that are folders of files."""

from __future__ import annotations

from pathlib import Path

from mesh.doctor.facts import Throttling
from mesh.hardware.condition import clock_is_set, read_disk, read_throttling


def write(root: Path, **files: str) -> None:
    """`files`: path with "/" as "__" -> content."""
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")


def zone(root: Path, number: int, celsius: float, **trips: float) -> None:
    folder = root / f"sys/class/thermal/thermal_zone{number}"
    folder.mkdir(parents=True)
    (folder / "temp").write_text(f"{int(celsius * 1000)}\n")
    for place, (kind, limit) in enumerate(trips.items()):
        (folder / f"trip_point_{place}_type").write_text(f"{kind}\n")
        (folder / f"trip_point_{place}_temp").write_text(f"{int(limit * 1000)}\n")


def test_a_machine_that_tells_nothing(tmp_path: Path) -> None:
    assert read_throttling(tmp_path) == Throttling()


def test_the_zone_nearest_to_its_limit_counts(tmp_path: Path) -> None:
    zone(tmp_path, 0, 70.0, active=40.0, critical=110.0)
    zone(tmp_path, 1, 62.0, passive=65.0, critical=110.0)
    zone(tmp_path, 2, 95.0)
    zone(tmp_path, 3, -273.0, passive=10.0)
    state = read_throttling(tmp_path)
    assert (state.hottest_celsius, state.critical_celsius) == (62.0, 65.0)


def test_zones_without_limits_tell_the_hottest(tmp_path: Path) -> None:
    zone(tmp_path, 0, 40.0)
    zone(tmp_path, 1, 55.5, active=50.0)
    state = read_throttling(tmp_path)
    assert (state.hottest_celsius, state.critical_celsius) == (55.5, None)


def test_a_capped_clock(tmp_path: Path) -> None:
    cpufreq = {"cpuinfo_max_freq": "1500000", "scaling_max_freq": "600000", "scaling_governor": "ondemand"}
    write(tmp_path, **{f"sys__devices__system__cpu__cpu0__cpufreq__{name}": text for name, text in cpufreq.items()})
    state = read_throttling(tmp_path)
    assert (state.frequency_limit_share, state.governor) == (0.4, "ondemand")


def test_powersave_is_the_lowest_clock_but_with_intels_driver(tmp_path: Path) -> None:
    for driver, share in (("acpi-cpufreq", 0.25), ("intel_pstate", 1.0)):
        cpufreq = {
            "cpuinfo_max_freq": "4000000",
            "scaling_max_freq": "4000000",
            "scaling_min_freq": "1000000",
            "scaling_governor": "powersave",
            "scaling_driver": driver,
        }
        write(tmp_path, **{f"sys__devices__system__cpu__cpu0__cpufreq__{name}": text for name, text in cpufreq.items()})
        assert read_throttling(tmp_path).frequency_limit_share == share


def test_counters_firmware_and_quota(tmp_path: Path) -> None:
    write(
        tmp_path,
        sys__devices__system__cpu__cpu0__thermal_throttle__core_throttle_count="3",
        sys__devices__system__cpu__cpu1__thermal_throttle__core_throttle_count="7",
        sys__devices__platform__soc__get_throttled="",
        proc__self__cgroup="0::/board",
        proc__self__mountinfo="30 20 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw",
        sys__fs__cgroup__board__cpu="",
    )
    firmware = tmp_path / "sys/devices/platform/soc/soc:firmware"
    firmware.mkdir()
    (firmware / "get_throttled").write_text("50005\n")
    (tmp_path / "sys/fs/cgroup/board/cpu.stat").write_text("nr_periods 200\nnr_throttled 50\n")
    state = read_throttling(tmp_path)
    assert (state.throttled_events, state.firmware_flags, state.quota_stopped_share) == (7, 0x50005, 0.25)


def test_this_machine_answers() -> None:
    assert clock_is_set() in (True, False, None)


def test_the_disk_of_a_folder_that_is_not_there_yet(tmp_path: Path) -> None:
    disk = read_disk(tmp_path / "not" / "yet")
    assert disk.folder == str(tmp_path / "not" / "yet")
    assert disk.is_writable and 0 < disk.available_bytes <= disk.total_bytes
