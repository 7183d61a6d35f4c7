"""Joules that the processor has taken, by its own counters (RAPL), where the kernel lets one read them.

Linux shows them below /sys/class/powercap, one folder per package, in microjoules that begin anew at a limit; since
2020 (CVE-2020-8694) only root reads them unless told otherwise. Files are read below a root folder, so that tests hand
in machines that they do not have. Source: Linux Documentation/power/powercap/powercap.rst.
"""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

from mesh.core.measurement import EnergyReading
from mesh.hardware.processor_time import processor_seconds

MAX_PACKAGES = 64


class RaplMeter:
    """The sum over all packages. Ask more often than a counter takes to begin anew, a minute or so."""

    source = "RAPL"

    def __init__(self, folders: list[Path]) -> None:
        """Raises `OSError` and `ValueError` where a counter cannot be read."""
        self._counters = [(folder / "energy_uj", _number(folder / "max_energy_range_uj")) for folder in folders]
        self._last = [_number(counter) for counter, _ in self._counters]
        self._microjoules = 0

    def joules(self) -> float:
        """Since this object was made; never falls. Raises `OSError` and `ValueError`."""
        for index, (counter, limit) in enumerate(self._counters):
            now = _number(counter)
            self._microjoules += now - self._last[index] + (limit if now < self._last[index] else 0)
            self._last[index] = now
        return self._microjoules / 1e6


def open_energy_meter(root: Path = Path("/")) -> RaplMeter | None:
    """None where the machine has no such counters, or does not let this process read them."""
    found = []
    for folder in sorted((root / "sys/class/powercap").glob("intel-rapl:*"))[:MAX_PACKAGES]:
        if folder.name.count(":") == 1 and _text(folder / "name").startswith("package"):
            found.append(folder)
    try:
        return RaplMeter(found) if found else None
    except (OSError, ValueError):
        return None  # there, and only for root


class PowerReader:
    """What this process and its machine have taken; the meter is opened when somebody asks for the first time."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root
        self._meter: RaplMeter | None = None
        self._is_open = False
        self._lock = threading.Lock()
        """Readings come from any thread, and a meter remembers the last one."""

    def read(self) -> EnergyReading:
        with self._lock:
            if not self._is_open:
                self._meter, self._is_open = open_energy_meter(self._root), True
            joules: float | None = None
            try:
                joules = None if self._meter is None else self._meter.joules()
            except (OSError, ValueError):
                self._meter = None  # it was readable before: told as a device without one from now on
            source = "" if self._meter is None else self._meter.source
            return EnergyReading(time.monotonic(), processor_seconds(os.getpid()), joules, source)


def _number(path: Path) -> int:
    return int(path.read_text(encoding="ascii"))


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
