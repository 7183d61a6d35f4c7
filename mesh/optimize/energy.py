"""What one inference takes in joules above an idle machine: measured where a meter is, else estimated from the power
that the user gives, else not told.

Measured: every variant runs without a pause for a while, in turns, between stretches of rest; what the machine takes at
rest in the same time is taken off. Medians over the turns.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from mesh.optimize.contract import Feeds
from mesh.optimize.running import open_session

TURNS = 3
"""Odd, for a median."""

TURN_S = 0.5
"""Counters are renewed every millisecond or so: half a second is exact to a per cent."""


class EnergyMeter(Protocol):
    @property
    def source(self) -> str:
        """Its name, for people."""
        ...

    def joules(self) -> float:
        """Taken since some moment; never falls."""
        ...


@dataclass(frozen=True, slots=True)
class Power:
    """Watts of this machine, all of its cores at work and none. Raises `ValueError` for what makes no sense."""

    busy: float
    idle: float
    cores: int

    def __post_init__(self) -> None:
        if not (0 <= self.idle < self.busy < 1e5 and self.cores > 0):
            raise ValueError(f"{self.busy:g} W busy and {self.idle:g} W idle make no sense")


@dataclass(frozen=True, slots=True)
class Energy:
    joules_per_inference: float
    source: str
    is_measured: bool


def measure_energy(
    models: Mapping[str, bytes],
    samples: Sequence[Feeds],
    meter: EnergyMeter,
    clock: Callable[[], float] = time.perf_counter,
    rest: Callable[[float], None] = time.sleep,
) -> dict[str, Energy]:
    """Of every model, one thread. Raises what the meter raises."""
    sessions = {name: open_session(data, optimised=True, threads=1) for name, data in models.items()}
    feeds = dict(samples[0])
    taken: dict[str, list[float]] = {name: [] for name in models}
    for turn in range(TURNS):
        for name in sessions if turn % 2 else reversed(sessions):
            rest_watts = _watts(meter, clock, lambda: rest(TURN_S))
            began_j, began_s = meter.joules(), clock()
            runs = 0
            while runs == 0 or clock() - began_s < TURN_S:
                sessions[name].run(None, feeds)
                runs += 1
            above = meter.joules() - began_j - rest_watts * (clock() - began_s)
            taken[name].append(max(0.0, above) / runs)
    return {name: Energy(statistics.median(found), meter.source, True) for name, found in taken.items()}


def _watts(meter: EnergyMeter, clock: Callable[[], float], work: Callable[[], None]) -> float:
    began_j, began_s = meter.joules(), clock()
    work()
    return (meter.joules() - began_j) / max(clock() - began_s, 1e-9)


def estimate_energy(power: Power, seconds: float) -> Energy:
    """Of one thread that works for `seconds`, its share of the power that all cores take above idle."""
    above = (power.busy - power.idle) / power.cores
    return Energy(above * seconds, f"estimated from {power.busy:g} W busy, {power.idle:g} W idle", False)
