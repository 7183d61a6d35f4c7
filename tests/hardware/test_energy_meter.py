"""Energy counters of made-up machines: packages are added, counters begin anew, what is not readable is no meter."""

from __future__ import annotations

from pathlib import Path

import pytest

from mesh.hardware.energy_meter import open_energy_meter

LIMIT = 1_000_000_000


def write_package(root: Path, name: str, microjoules: int, kind: str = "package-0") -> Path:
    folder = root / "sys/class/powercap" / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "name").write_text(kind + "\n")
    (folder / "max_energy_range_uj").write_text(f"{LIMIT}\n")
    (folder / "energy_uj").write_text(f"{microjoules}\n")
    return folder


def test_packages_are_added_and_their_parts_are_not(tmp_path: Path) -> None:
    for name, kind in (("intel-rapl:0", "package-0"), ("intel-rapl:1", "package-1"), ("intel-rapl:2", "psys")):
        write_package(tmp_path, name, 500, kind)
    write_package(tmp_path, "intel-rapl:0:0", 500, "core")
    meter = open_energy_meter(tmp_path)
    assert meter is not None
    assert meter.joules() == 0
    for name in ("intel-rapl:0", "intel-rapl:1", "intel-rapl:2", "intel-rapl:0:0"):
        write_package(tmp_path, name, 2_000_500, "package-0" if name.count(":") == 1 else "core")
    assert meter.joules() == 4


def test_a_counter_that_begins_anew_goes_on(tmp_path: Path) -> None:
    write_package(tmp_path, "intel-rapl:0", LIMIT - 1_000_000)
    meter = open_energy_meter(tmp_path)
    assert meter is not None
    write_package(tmp_path, "intel-rapl:0", 2_000_000)
    assert meter.joules() == 3
    assert meter.joules() == 3


@pytest.mark.parametrize("broken", ["energy_uj", "max_energy_range_uj"])
def test_counters_that_cannot_be_read_are_no_meter(tmp_path: Path, broken: str) -> None:
    folder = write_package(tmp_path, "intel-rapl:0", 1)
    (folder / broken).write_text("unknown")
    assert open_energy_meter(tmp_path) is None
    (folder / broken).unlink()
    assert open_energy_meter(tmp_path) is None


def test_machines_without_counters_have_no_meter(tmp_path: Path) -> None:
    assert open_energy_meter(tmp_path) is None
    write_package(tmp_path, "intel-rapl:0", 1, "psys")
    assert open_energy_meter(tmp_path) is None
