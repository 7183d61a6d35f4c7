"""What a lab consists of: names, addresses, and the commands that make its network. Pure.

Every device is a network namespace with one interface, `eth0`. Its other end is a port of a bridge, which
stands in a namespace of its own (the switch), so that the host's interfaces see nothing of the lab. A device
without latency hangs on a veth pair; one with latency on two TAP devices, between which the wire process
(`mesh.lab.wire`) carries each packet after its delay. Rates are token buckets on both ends: what the device
sends leaves through `eth0`, what it receives leaves through its port.

Everything that is made has a name that follows from the lab's: whoever knows the fleet file knows what to
take down, however far the building got. Links go with their namespaces.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from mesh.core.fleet_file import Fleet, FleetDevice, Role

INTERFACE = "eth0"
BRIDGE = "br0"
SWITCH = "switch"
"""Name of the switch's namespace and control group; a device's begins with "device-"."""

NETWORK = ipaddress.IPv4Network("10.77.0.0/24")
"""Inside of the namespaces only, so that any number of labs may use it."""

NODE_PORT, COORDINATOR_PORT = 50071, 50070
"""The default ports, as on real devices."""

PACKET_BYTES, FRAME_BYTES = 1500, 1514
"""A full IP packet, and the Ethernet frame around it as a queue counts it. A fleet file's rate is that of packets."""

BURST_SECONDS = 0.001
"""What a token bucket lets pass at once: a millisecond keeps the shaping close to that of a real link."""

MIN_BURST_BYTES = 2 * FRAME_BYTES

QUEUE_SECONDS = 0.05
"""What an interface holds back before it drops; with `MIN_QUEUE_BYTES`, what small switches have."""

MIN_QUEUE_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class LabDevice:
    fleet: FleetDevice
    namespace: str
    group: str
    """Its control group below the lab's."""
    address: str
    port: str
    """The switch's interface that leads to it."""
    hardware_address: str

    @property
    def name(self) -> str:
        return self.fleet.name

    @property
    def has_wire(self) -> bool:
        return self.fleet.latency_seconds > 0

    @property
    def listen_port(self) -> int | None:
        """Where its daemon listens; None for a client, which has none."""
        return {Role.NODE: NODE_PORT, Role.COORDINATOR: COORDINATOR_PORT, Role.CLIENT: None}[self.fleet.role]


@dataclass(frozen=True, slots=True)
class Topology:
    lab: str
    switch_namespace: str
    devices: tuple[LabDevice, ...]

    @property
    def namespaces(self) -> list[str]:
        return [self.switch_namespace, *(device.namespace for device in self.devices)]

    @property
    def wired(self) -> list[LabDevice]:
        return [device for device in self.devices if device.has_wire]

    @property
    def seed(self) -> str:
        """Where everyone asks for the others when there is no mDNS."""
        first = next(device for device in self.devices if device.fleet.role is Role.NODE)
        return f"{first.address}:{NODE_PORT}"


def lay_out(fleet: Fleet, lab: str) -> Topology:
    prefix = namespace_prefix(lab)
    devices = []
    for number, device in enumerate(fleet.devices, start=1):
        devices.append(
            LabDevice(
                fleet=device,
                namespace=f"{prefix}{number}",
                group=f"device-{number}",
                address=str(NETWORK[number]),
                port=f"port{number}",
                hardware_address=f"02:00:00:00:00:{number:02x}",
            )
        )
    return Topology(lab, f"{prefix}{SWITCH}", tuple(devices))


def namespace_prefix(lab: str) -> str:
    """All of a lab's namespaces begin so, and no other lab's do: an underscore is in no lab's name."""
    return f"mesh-lab_{lab}_"


@dataclass(frozen=True, slots=True)
class Batch:
    """Lines for one run of `ip` or `tc` in a namespace."""

    tool: str
    namespace: str
    lines: tuple[str, ...]


def switch_batch(topology: Topology) -> Batch:
    """The bridge and all ports; run in the switch's namespace, once all namespaces exist."""
    lines = [f"link add {BRIDGE} type bridge stp_state 0 forward_delay 0 mcast_snooping 0"]
    lines += [f"link set dev {BRIDGE} addrgenmode none", f"link set dev {BRIDGE} up"]
    for device in topology.devices:
        if device.has_wire:
            lines.append(f"tuntap add dev {device.port} mode tap vnet_hdr")
        else:
            lines.append(f"link add {device.port} type veth peer name {INTERFACE} netns {device.namespace}")
        lines += [
            f"link set dev {device.port} addrgenmode none",
            f"link set dev {device.port} master {BRIDGE}",
            f"link set dev {device.port} up",
        ]
    return Batch("ip", topology.switch_namespace, tuple(lines))


def device_batch(device: LabDevice) -> Batch:
    """The device's own interface; run in its namespace, after the switch's batch. No IPv6: the mesh has none."""
    lines = [f"tuntap add dev {INTERFACE} mode tap vnet_hdr"] if device.has_wire else []
    lines += [
        f"link set dev {INTERFACE} addrgenmode none",
        f"link set dev {INTERFACE} address {device.hardware_address}",
        "link set dev lo up",
        f"address add {device.address}/{NETWORK.prefixlen} broadcast {NETWORK.broadcast_address} dev {INTERFACE}",
        f"link set dev {INTERFACE} up",
        f"route add default dev {INTERFACE}",
    ]
    return Batch("ip", device.namespace, tuple(lines))


def rate_batches(topology: Topology, device: LabDevice, bits_per_second: int | None) -> list[Batch]:
    """Both ends of the device's link at this rate, whatever it was before; None for as fast as it goes."""
    ends = [(device.namespace, INTERFACE), (topology.switch_namespace, device.port)]
    if bits_per_second is None:
        # Replacing first: deleting fails where there is none, and the default one cannot be deleted.
        return [
            Batch("tc", namespace, (f"qdisc replace dev {link} root pfifo", f"qdisc delete dev {link} root"))
            for namespace, link in ends
        ]
    bytes_per_second = bits_per_second / 8
    burst = max(MIN_BURST_BYTES, round(bytes_per_second * BURST_SECONDS))
    limit = burst + max(MIN_QUEUE_BYTES, round(bytes_per_second * QUEUE_SECONDS))
    bucket = f"tbf rate {round(bits_per_second * FRAME_BYTES / PACKET_BYTES)}bit burst {burst} limit {limit}"
    return [Batch("tc", namespace, (f"qdisc replace dev {link} root {bucket}",)) for namespace, link in ends]
