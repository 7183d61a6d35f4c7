"""Who may exist: implementations of the discovery port and the table that makes them.

Nothing is imported until it is made: seeds work where zeroconf does not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mesh.errors import UsageError

if TYPE_CHECKING:
    from mesh.discovery.contract import Discovery
    from mesh.discovery.memory import MemoryNetwork


@dataclass(frozen=True, slots=True)
class DiscoverySettings:
    """What the factories choose from."""

    interfaces: Sequence[str] = ()
    """Names or IPv4 addresses of interfaces for mDNS; empty chooses by itself."""
    seeds: Sequence[str] = ()
    """"host:port" of peers for the static discovery."""
    broker: str = ""
    """"host:port" of the MQTT broker for the discovery through one."""
    network: MemoryNetwork | None = None
    """For the in-memory discovery."""


def _make_mdns(settings: DiscoverySettings) -> Discovery:
    from mesh.discovery.mdns import MdnsDiscovery

    return MdnsDiscovery(settings.interfaces)


def _make_static(settings: DiscoverySettings) -> Discovery:
    from mesh.discovery.static import StaticDiscovery

    return StaticDiscovery(settings.seeds)


def _make_mqtt(settings: DiscoverySettings) -> Discovery:
    from mesh.discovery.mqtt import MqttDiscovery

    return MqttDiscovery(settings.broker)


def _make_memory(settings: DiscoverySettings) -> Discovery:
    from mesh.discovery.memory import MemoryDiscovery, MemoryNetwork

    return MemoryDiscovery(settings.network if settings.network is not None else MemoryNetwork())


FACTORIES: Mapping[str, Callable[[DiscoverySettings], Discovery]] = {
    "mdns": _make_mdns,
    "static": _make_static,
    "mqtt": _make_mqtt,
    "memory": _make_memory,
}


def make_discovery(names: Sequence[str], settings: DiscoverySettings) -> Discovery:
    """The discovery of that name, or several as one. Raises `UsageError` for an unknown name or bad settings."""
    unknown = [name for name in names if name not in FACTORIES]
    if unknown or not names:
        raise UsageError(f"unknown discovery {', '.join(unknown) or '(none)'}", hint=f"one of {', '.join(FACTORIES)}")
    members = [FACTORIES[name](settings) for name in names]
    if len(members) == 1:
        return members[0]
    from mesh.discovery.combined import CombinedDiscovery

    return CombinedDiscovery(members)
