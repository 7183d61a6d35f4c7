"""Which network interfaces mDNS uses: the one place that asks the system for them.

Chosen by name pattern, never by driver: bridges and tunnels of container and VPN software are skipped,
unless nothing else is left. IPv4 only, as is the mDNS here. `choose_interfaces` is pure.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import struct
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from mesh.errors import UsageError

SKIPPED_PATTERNS = (
    "docker*", "br-*", "virbr*", "veth*", "tun*", "tap*", "wg*", "cni*", "flannel*",
)  # fmt: skip
"""Of interfaces behind which no other board of the LAN is."""

MDNS_GROUP = "224.0.0.251"
LOOPBACK = "127.0.0.1"

SIOCGIFFLAGS = 0x8913
IFF_UP = 0x1
IFF_LOOPBACK = 0x8
IFF_MULTICAST = 0x1000
"""From linux/if.h and linux/sockios.h."""


@dataclass(frozen=True, slots=True)
class Interface:
    """One IPv4 address of one interface."""

    name: str
    address: str
    prefix_bits: int
    up: bool = True
    multicast: bool = True
    """It is flagged for multicast and the mDNS group can be joined on it."""

    @property
    def network(self) -> ipaddress.IPv4Network:
        return ipaddress.IPv4Network((self.address, self.prefix_bits), strict=False)

    @property
    def is_loopback(self) -> bool:
        return ipaddress.IPv4Address(self.address).is_loopback


def choose_interfaces(present: Sequence[Interface], wanted: Sequence[str] = ()) -> list[Interface]:
    """The interfaces to use of those `present`.

    `wanted`: names or IPv4 addresses; raises `UsageError` naming those that are missing. Empty: all that
    are up, carry multicast and are neither loopback nor skipped by name; if there are none, the skipped
    ones as well; if there are none, loopback.
    """
    if wanted:
        missing = [text for text in wanted if not any(text in (one.name, one.address) for one in present)]
        if missing:
            known = ", ".join(f"{one.name} ({one.address})" for one in present)
            raise UsageError(
                f"no network interface {', '.join(missing)} with an IPv4 address", hint=f"there are {known}"
            )
        return [one for one in present if one.name in wanted or one.address in wanted]
    usable = [one for one in present if one.up and one.multicast and not one.is_loopback]
    chosen = [one for one in usable if not is_skipped(one.name)]
    return chosen or usable or [one for one in present if one.is_loopback]


def interfaces_to_browse() -> list[str]:
    """Addresses on which a command looks for daemons: those chosen by itself, and loopback, where daemons
    that are not shown to the network live."""
    present = list_interfaces()
    chosen = choose_interfaces(present)
    return list(dict.fromkeys(one.address for one in [*chosen, *(one for one in present if one.is_loopback)]))


def list_interfaces() -> list[Interface]:
    """Every IPv4 address of this machine, loopback first where it has one."""
    import ifaddr

    found = []
    for adapter in ifaddr.get_adapters():
        for address in adapter.ips:
            if isinstance(address.ip, str):
                flags = _flags(adapter.name)
                found.append(
                    Interface(
                        name=adapter.name,
                        address=address.ip,
                        prefix_bits=address.network_prefix,
                        up=bool(flags & IFF_UP),
                        multicast=bool(flags & IFF_MULTICAST) and _joins(address.ip),
                    )
                )
    return found


def is_skipped(name: str) -> bool:
    """Whether container or VPN software gives such names."""
    return any(fnmatchcase(name, pattern) for pattern in SKIPPED_PATTERNS)


def _flags(name: str) -> int:
    """The interface's flags on Linux; elsewhere, and for one that has just gone, see below."""
    if sys.platform != "linux":
        return IFF_UP | IFF_MULTICAST  # joining the group tells the rest
    import fcntl

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        request = struct.pack("16sH14x", name.encode()[:15], 0)
        try:
            answer = fcntl.ioctl(probe.fileno(), SIOCGIFFLAGS, request)
        except OSError:
            return 0  # gone since it was listed: not up
    return int(struct.unpack("16sH14x", answer)[1])


def _joins(address: str) -> bool:
    """True if the mDNS group can be joined on the interface of this address."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, contextlib.suppress(OSError):
        member = socket.inet_aton(MDNS_GROUP) + socket.inet_aton(address)
        probe.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, member)
        return True
    return False
