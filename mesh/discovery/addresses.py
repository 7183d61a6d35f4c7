"""Network addresses as text: "host:port" from people, IP addresses from the network. Pure."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Sequence

from mesh.errors import UsageError

MAX_HOST_CHARACTERS = 253
"""Longest DNS name in its textual form (RFC 1035)."""

MAX_PORT = 65535

MAX_ADDRESSES = 16
"""Per peer: more than a board has interfaces; a record may carry hundreds."""

EXAMPLE = "write host:port, e.g. 192.168.1.20:50071 or [fd00::20]:50071"

_LABEL = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IpNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network


def parse_address(text: str) -> tuple[str, int]:
    """(host, port) of "host:port"; an IPv6 address stands in brackets, which the host is without.

    Raises `UsageError` for anything else, and for addresses that nobody can be reached at (0.0.0.0,
    multicast).
    """
    shown = repr(text[:80])
    host, separator, port_text = text.strip().rpartition(":")
    if not separator or not host:
        raise UsageError(f"{shown} is not an address with a port", hint=EXAMPLE)
    if not port_text.isascii() or not port_text.isdecimal() or not 1 <= int(port_text[:6]) <= MAX_PORT:
        raise UsageError(f"{shown}: the port must be a number from 1 to {MAX_PORT}", hint=EXAMPLE)
    bracketed = host.startswith("[") and host.endswith("]")
    host = host[1:-1] if bracketed else host
    if bracketed != (":" in host):
        raise UsageError(f"{shown}: an IPv6 address, and nothing else, stands in brackets", hint=EXAMPLE)
    _check_host(host, shown)
    return host, int(port_text)


def format_address(host: str, port: int) -> str:
    """ "host:port", an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def rank_addresses(addresses: Iterable[str], own_networks: Sequence[IpNetwork], on_loopback: bool) -> list[str]:
    """The IP addresses worth dialling, best first, `MAX_ADDRESSES` at most.

    Those in one of our own networks come first, then IPv4 before IPv6, link-local last. Dropped:
    unspecified, multicast and reserved ones, IPv6 link-local ones without a zone, what is no IP address,
    and loopback ones unless we are on loopback ourselves (`on_loopback`): another machine's 127.0.0.1
    is not ours.
    """
    usable = []
    for text in dict.fromkeys(addresses):
        try:
            address = ipaddress.ip_address(text)
        except ValueError:
            continue
        if _is_dialable(address) and (on_loopback or not address.is_loopback):
            usable.append((_distance(address, own_networks), text))
    return [text for _, text in sorted(usable, key=lambda pair: pair[0])][:MAX_ADDRESSES]


def _distance(address: IpAddress, own_networks: Sequence[IpNetwork]) -> tuple[bool, bool, int]:
    near = any(address in network for network in own_networks)
    return address.is_link_local, not near, address.version


def _is_dialable(address: IpAddress) -> bool:
    if address.is_unspecified or address.is_multicast:
        return False
    if isinstance(address, ipaddress.IPv6Address):
        return not (address.is_link_local and address.scope_id is None)
    return not address.is_reserved


def _check_host(host: str, shown: str) -> None:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        labels = host.removesuffix(".").split(".")
        numeric = all(label.isdecimal() for label in labels)
        if ":" in host or numeric or len(host) > MAX_HOST_CHARACTERS or not all(map(_LABEL.fullmatch, labels)):
            raise UsageError(f"{shown}: the host is neither a name nor an IP address", hint=EXAMPLE) from None
        return
    if address.is_unspecified or address.is_multicast:
        raise UsageError(f"{shown}: nobody can be reached at {host}", hint=EXAMPLE)
