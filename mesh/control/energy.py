"""What the devices of a deployment take above idle while it runs, from readings at two moments. Pure.

Measured where a device has a meter: what it took, less what it takes at rest in the same time. Else estimated, where
its power is stated: a processor second is a core's share of what lies between busy and idle, as `mesh optimize` counts
it.
`mesh.runtime.measure_energy` takes the readings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mesh.core.fleet import Watts
from mesh.core.ids import NodeId
from mesh.core.measurement import EnergyReading


@dataclass(frozen=True, slots=True)
class DevicePower:
    """`watts` above idle, of the daemon and its engines, or of all that the device does where it is measured."""

    device: NodeId
    watts: float | None
    """None where there is neither a meter nor stated power."""
    source: str
    is_measured: bool = False


def rest_watts(first: EnergyReading, second: EnergyReading) -> float | None:
    """What a device takes at rest; None without a meter."""
    if first.joules is None or second.joules is None:
        return None
    return (second.joules - first.joules) / _seconds(first, second)


def judge_power(
    device: NodeId,
    first: EnergyReading,
    second: EnergyReading,
    at_rest: float | None,
    stated: Watts | None,
    cores: float,
) -> DevicePower:
    """What `device` took between two readings under load."""
    seconds = _seconds(first, second)
    if at_rest is not None and first.joules is not None and second.joules is not None:
        above = (second.joules - first.joules) / seconds - at_rest
        return DevicePower(device, max(0.0, above), f"measured by {second.source}", True)
    if stated is None:
        return DevicePower(device, None, "unknown: no meter, and no --watts-busy")
    busy = (second.processor_seconds - first.processor_seconds) / seconds
    watts = (stated.busy - stated.idle) / max(cores, 1e-9) * max(0.0, busy)
    return DevicePower(device, watts, f"estimated from {stated.busy:g} W busy, {stated.idle:g} W idle")


def joules_per_frame(powers: Sequence[DevicePower], frames_per_s: float) -> float | None:
    """Of all devices together; None where it is not known of each."""
    known = [power.watts for power in powers if power.watts is not None]
    return sum(known) / frames_per_s if frames_per_s > 0 and known and len(known) == len(powers) else None


def _seconds(first: EnergyReading, second: EnergyReading) -> float:
    return max(second.monotonic_seconds - first.monotonic_seconds, 1e-9)
