"""What is known of a device and its mesh before anybody judges it. Collected by `mesh.runtime.examining`.

Where a system does not tell something, the field says so (None, empty) and the checks stay silent about it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network

from mesh.core.fleet import Provider
from mesh.core.ids import NodeId


@dataclass(frozen=True, slots=True)
class MulticastTrial:
    """What came of a question to the mDNS group on one interface."""

    error: str = ""
    """Why it could not be asked; empty where it was sent."""
    heard_itself: bool = False
    """The kernel gave the question back, as it does where nothing filters it."""
    others: frozenset[str] = frozenset()
    """Addresses of other hosts that were heard there."""


@dataclass(frozen=True, slots=True)
class InterfaceFacts:
    """One IPv4 address of one interface."""

    name: str
    address: str
    prefix_bits: int
    is_up: bool = True
    carries_multicast: bool = True
    """It is flagged for multicast, and the mDNS group can be joined on it."""
    is_used: bool = True
    """By mDNS."""
    is_skipped: bool = False
    """Its name is one of those that container and VPN software gives."""
    is_inner_bridge: bool = False
    """A bridge to which no network card belongs."""
    trial: MulticastTrial | None = None
    """None where it was not asked there."""

    @property
    def network(self) -> IPv4Network:
        return IPv4Network((self.address, self.prefix_bits), strict=False)

    @property
    def is_loopback(self) -> bool:
        return IPv4Address(self.address).is_loopback


@dataclass(frozen=True, slots=True)
class Listener:
    """Who listens on a TCP port of this machine."""

    port: int
    address: str
    process: int | None = None
    """None where it belongs to another user."""
    command: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class FoundNode:
    """A node that answered, and how it was found."""

    node_id: NodeId
    name: str
    address: str
    """ "host:port" at which it answered."""
    is_announced: bool
    """Heard by mDNS, rather than asked because somebody named its address."""
    version: str = ""
    providers: tuple[Provider, ...] = ()
    clock_ahead_s: float | None = None
    """Of its wall clock over ours; None where it does not tell."""
    clock_error_s: float = 0.0
    twin_of: str = ""
    """Address of another daemon, not this one, that says the same node id."""


@dataclass(frozen=True, slots=True)
class SilentPeer:
    """Announced, or named by the user, and without an answer at any of its addresses."""

    name: str
    addresses: tuple[str, ...]
    is_announced: bool


@dataclass(frozen=True, slots=True)
class Throttling:
    """Why the processor may run slower than it could."""

    hottest_celsius: float | None = None
    critical_celsius: float | None = None
    """Of the same zone: where it begins to slow down, or to switch off."""
    frequency_limit_share: float | None = None
    """What the clock may reach now over what the processor could; None where the system does not tell."""
    governor: str = ""
    throttled_events: int = 0
    """Times that the processor slowed down for its heat since it was switched on."""
    firmware_flags: int | None = None
    """Of a Raspberry Pi: its `get_throttled` word; None elsewhere."""
    quota_stopped_share: float | None = None
    """Of the periods of a CPU quota, those in which this process was stopped."""


@dataclass(frozen=True, slots=True)
class DiskFacts:
    """Where a node keeps its key and its models."""

    folder: str
    available_bytes: int
    total_bytes: int
    is_writable: bool = True
    available_inodes: int | None = None


@dataclass(frozen=True, slots=True)
class Facts:
    interfaces: tuple[InterfaceFacts, ...] = ()
    mdns_error: str = ""
    """Why the daemon's own mDNS could not begin here; empty where it could."""
    listeners: tuple[Listener, ...] = ()
    """On the ports of `mesh.doctor.port_checks`."""
    nodes: tuple[FoundNode, ...] = ()
    silent: tuple[SilentPeer, ...] = ()
    clock_is_set: bool | None = None
    """Whether the system keeps its clock by a server; None where it does not tell."""
    runtime_version: str = ""
    """ONNX Runtime's; empty where it cannot be imported."""
    providers: tuple[Provider, ...] = ()
    throttling: Throttling = field(default_factory=Throttling)
    disk: DiskFacts | None = None
