"""Interfaces, multicast, bridges: whether this device can hear of others, and they of it. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network
from itertools import combinations

from mesh.doctor.facts import Facts, FoundNode, InterfaceFacts
from mesh.doctor.findings import Finding, Severity

NAME_PEERS = "name nodes by --peer HOST:PORT until then"

SWITCH_FIX = (
    "allow UDP port 5353 to 224.0.0.251 in firewalls, switch off client isolation and IGMP snooping without a querier "
    f"on access points and switches; {NAME_PEERS}"
)


def check_multicast(facts: Facts) -> Iterator[Finding]:
    """Every interface that mDNS should use, by itself; and what keeps mDNS off the whole machine."""
    if facts.mdns_error:
        fix = f"let other responders share port 5353 (avahi: disallow-other-stacks=no); {NAME_PEERS}"
        yield Finding("multicast", Severity.BROKEN, "mDNS", facts.mdns_error, fix)
    outward = [one for one in facts.interfaces if not one.is_loopback]
    if not any(one.is_used for one in outward):
        message = "no interface beyond loopback is used: this device hears of no other, and none of it"
        fix = f"connect a network, or give one by --interface; {NAME_PEERS}"
        yield Finding("multicast", Severity.WARNING, "interfaces", message, fix)
    for one in facts.interfaces:
        if one.trial is not None or not (one.is_skipped or one.is_loopback):
            yield _judge_interface(one, facts)


def _judge_interface(one: InterfaceFacts, facts: Facts) -> Finding:
    subject = f"{one.name} ({one.address})"

    def broken(message: str, fix: str) -> Finding:
        return Finding("multicast", Severity.BROKEN, subject, message, fix)

    if not one.is_up:
        fix = f"ip link set {one.name} up, or leave it if it is not needed"
        return Finding("multicast", Severity.NOTE, subject, "has an address and is switched off", fix)
    if not one.carries_multicast and not one.is_loopback:
        return broken(
            "carries no multicast, so that nodes behind it are not found",
            f"ip link set {one.name} multicast on; {NAME_PEERS}",
        )
    if one.trial is None:
        return Finding("multicast", Severity.NOTE, subject, "is not used by mDNS here", f"--interface {one.name} does")
    if one.trial.error:
        fix = f"allow UDP port 5353 to 224.0.0.251 on {one.name} in this machine's firewall; {NAME_PEERS}"
        return broken(f"a question to the mDNS group cannot be sent: {one.trial.error}", fix)
    if not one.trial.heard_itself:
        fix = f"allow incoming UDP port 5353 on {one.name} in this machine's firewall; {NAME_PEERS}"
        return broken("our own question to the mDNS group does not come back: multicast is filtered here", fix)
    return _judge_neighbours(one, subject, facts)


def _judge_neighbours(one: InterfaceFacts, subject: str, facts: Facts) -> Finding:
    """Sending works; whether anything passes the network shows by whom we hear."""
    heard = one.trial.others if one.trial is not None else frozenset()
    missed = [node for node in facts.nodes if _is_behind(node, one, facts) and not node.is_announced]
    silenced = [node for node in missed if _host(node) not in heard]
    if silenced and not one.is_loopback:
        names = ", ".join(f"{node.name} at {node.address}" for node in silenced)
        message = f"multicast is blocked: calls reach {names}, and mDNS does not hear of it"
        return Finding("multicast", Severity.BROKEN, subject, message, SWITCH_FIX)
    if heard:
        message = f"hears itself and {len(heard)} other{'s' * (len(heard) > 1)}"
        return Finding("multicast", Severity.OK, subject, message)
    if one.is_loopback:
        return Finding("multicast", Severity.OK, subject, "hears itself")
    message = "nobody else answers by multicast: either no other node is on, or the network blocks multicast"
    return Finding("multicast", Severity.WARNING, subject, message, SWITCH_FIX)


def _is_behind(node: FoundNode, one: InterfaceFacts, facts: Facts) -> bool:
    """It is another machine of the interface's network."""
    own = {each.address for each in facts.interfaces}
    host = _host(node)
    try:
        return host not in own and IPv4Address(host) in one.network
    except ValueError:
        return False  # a name, or IPv6: no interface is told from it


def _host(node: FoundNode) -> str:
    return node.address.rpartition(":")[0].strip("[]")


def check_bridges(facts: Facts) -> Iterator[Finding]:
    """Bridges and tunnels of container and VPN software, which lead to no other board."""
    for one in facts.interfaces:
        inner = one.is_skipped or one.is_inner_bridge
        if not inner or not one.is_up or one.is_loopback:
            continue
        subject = f"{one.name} ({one.network})"
        if one.is_used:
            message = "looks like a bridge or tunnel of container or VPN software, and mDNS uses it"
            fix = "name the network of the boards by --interface, for daemons and commands"
            yield Finding("bridges", Severity.WARNING, subject, message, fix)
            continue
        message = "a bridge or tunnel of container or VPN software: mDNS skips it, nodes behind it are not found"
        fix = f"run nodes in containers with --network host, or name them by --peer; --interface {one.name} uses it"
        yield Finding("bridges", Severity.NOTE, subject, message, fix)
    yield from _find_overlaps(facts)


def _find_overlaps(facts: Facts) -> Iterator[Finding]:
    """Two interfaces that lead to the same addresses: what is sent to a board may go into the bridge."""
    for one, other in combinations((each for each in facts.interfaces if each.is_up and not each.is_loopback), 2):
        if one.name == other.name or not one.network.overlaps(other.network):
            continue
        message = f"both lead to {_smaller(one.network, other.network)}: calls to boards there may go the wrong way"
        fix = "give one of them other addresses (docker: default-address-pools in daemon.json)"
        yield Finding("bridges", Severity.BROKEN, f"{one.name} and {other.name}", message, fix)


def _smaller(one: IPv4Network, other: IPv4Network) -> IPv4Network:
    return max(one, other, key=lambda network: network.prefixlen)
