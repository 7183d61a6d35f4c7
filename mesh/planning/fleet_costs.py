"""What things would take on a fleet that is only written down: costs estimated from a fleet file.

Pure. One core of some machine is the yardstick: a device with `cpu` cores takes its time divided by them. Messages cost
what they are estimated to cost everywhere, on a core of that share. A link is as fast as the slower of its two ends,
half of that between devices on one radio channel (every frame is on the air twice), and as late as both ends add up to.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import permutations

from mesh.core.costs import Costs
from mesh.core.fleet import BYTE_SECONDS, MESSAGE_SECONDS, Handling, Link, Watts
from mesh.core.fleet_file import Fleet, FleetDevice, Role
from mesh.core.graph import Graph
from mesh.core.ids import NodeId
from mesh.errors import UsageError

NOMINAL_GFLOPS = 4.0
"""Of one core on a whole model, 10^9 operations per second, where there is nothing to measure with: what a Cortex-A72
makes. Other boards differ by a factor of three either way, all alike, so that it does not change which plan is best."""

MIN_MODEL_SECONDS = 1e-6
"""For models without arithmetic: a time must not be 0."""

LINK_SHARE = 0.94
"""Of the line rate, for payload in TCP segments of 1448 bytes over Ethernet."""

LINK_LATENCY_SECONDS = 0.3e-3
"""Of a message between two devices on one switch, besides what the file adds."""

CODING_BYTE_SECONDS = 2e-9
"""Of the slower codecs on a small board: a desktop core takes half a nanosecond to one and a half (measured)."""

LOCAL_BYTES_PER_SECOND = 1e9
"""Where the file limits neither end: about what the mesh moves within one machine."""


@dataclass(frozen=True, slots=True)
class Yardstick:
    """The machine that stands in for what the file leaves open."""

    core_seconds: float
    """One inference of the whole model on one core."""
    cores: float
    memory_bytes: int


def plannable(fleet: Fleet) -> dict[NodeId, FleetDevice]:
    """The devices that compute, under ids made from their names. Raises `UsageError` for what cannot be estimated."""
    devices = [device for device in fleet.devices if device.role is Role.NODE]
    for device in devices:
        if device.like is not None:
            raise UsageError(
                f'device {device.name!r}: like = "{device.like}" is not known to planning yet',
                hint="leave `like` out; say `cpu`, `memory` and `rate` instead",
            )
    return {node_id_for(device.name): device for device in devices}


def node_id_for(name: str) -> NodeId:
    """The same name has the same id in every file, so that plans can be compared."""
    return NodeId(hashlib.sha256(name.encode()).hexdigest()[:32])


def nominal_core_seconds(graph: Graph) -> float:
    """One inference of the whole model on one core, where it cannot be measured."""
    return max(graph.flops / (NOMINAL_GFLOPS * 1e9), MIN_MODEL_SECONDS)


def estimate_costs(graph: Graph, devices: Mapping[NodeId, FleetDevice], yardstick: Yardstick) -> Costs:
    """Costs of `graph`, every figure of them marked estimated."""
    cores = {node: device.cores or yardstick.cores for node, device in devices.items()}
    costs = Costs.from_measurements(
        graph,
        {node: yardstick.core_seconds / cores[node] for node in devices},
        {},
        {(source, target): _link(devices[source], devices[target]) for source, target in permutations(devices, 2)},
        {node: device.memory_bytes or yardstick.memory_bytes for node, device in devices.items()},
        handling={node: _handling(cores[node]) for node in devices},
    )
    estimated = {node: replace(device, measured=False) for node, device in costs.devices.items()}
    return Costs(estimated, costs.links)


def coding_seconds(devices: Mapping[NodeId, FleetDevice], yardstick: Yardstick) -> dict[NodeId, float]:
    """CPU time per byte of tensors to write or to read them in any codec, taken to be spoken everywhere."""
    return {node: CODING_BYTE_SECONDS / min(1.0, device.cores or yardstick.cores) for node, device in devices.items()}


WIRED_BITS_PER_SECOND = 100_000_000
"""What a wire in place of a radio is taken to have: the slowest Ethernet that boards come with."""


def wired(devices: Mapping[NodeId, FleetDevice]) -> dict[NodeId, FleetDevice] | None:
    """The fleet with a wire for every device that is on radio; None where no device is."""
    if all(device.air is None for device in devices.values()):
        return None
    return {node: device if device.air is None else _with_wire(device) for node, device in devices.items()}


def _with_wire(device: FleetDevice) -> FleetDevice:
    rate = max(device.bits_per_second or 0, WIRED_BITS_PER_SECOND)
    return replace(device, air=None, bits_per_second=rate, latency_seconds=0.0)


def watts_of(devices: Mapping[NodeId, FleetDevice]) -> dict[NodeId, Watts]:
    """Of the devices whose power while busy is in the file; idle they draw nothing unless it says so."""
    return {
        node: Watts(device.watts_busy, device.watts_idle or 0.0)
        for node, device in devices.items()
        if device.watts_busy is not None
    }


def _handling(cores: float) -> Handling:
    share = min(1.0, cores)  # one event loop cannot use more than a core
    return Handling(MESSAGE_SECONDS / share, BYTE_SECONDS / share)


def _link(source: FleetDevice, target: FleetDevice) -> Link:
    rates = [device.bits_per_second for device in (source, target) if device.bits_per_second is not None]
    bytes_per_second = min(rates) / 8 * LINK_SHARE if rates else LOCAL_BYTES_PER_SECOND
    if source.air is not None and source.air == target.air:
        bytes_per_second /= 2
    latency = LINK_LATENCY_SECONDS + source.latency_seconds + target.latency_seconds
    return Link(latency, bytes_per_second, measured=False)
