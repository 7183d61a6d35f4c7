"""Tries multicast on each interface: asks the mDNS group who is there, and notes who is heard. Used by `mesh doctor`.

Sockets of its own beside the daemon's, one for each interface: what a library hears on all of them together does not
tell which one is broken. A question comes back to its sender by the kernel itself, and answers of any mDNS responder
count, not only those of this mesh. Blocks; for a thread.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from mesh.discovery.interfaces import LOOPBACK, MDNS_GROUP, choose_interfaces, is_skipped, list_interfaces
from mesh.discovery.records import SERVICE_TYPE
from mesh.doctor.facts import InterfaceFacts, MulticastTrial

MDNS_PORT = 5353
ASKED = (SERVICE_TYPE, "_services._dns-sd._udp.local.")
"""Names that are asked for: our own, and the one to which every responder answers (RFC 6763 section 9)."""

ROUNDS = 2
ROUND_S = 1.1
"""A responder that told the network within the last second does not say it again (RFC 6762 section 6)."""

MAX_PACKET_BYTES = 9000
IP_MULTICAST_ALL = 49
"""From linux/in.h: without it a socket hears the groups that others have joined, on every interface."""

ARP_COMPLETE = 0x2
"""ATF_COM in linux/if_arp.h: the host has answered."""

MAX_NEIGHBOURS = 64
"""More than the boards of a home; whoever has more names them by seeds."""

SYSFS = Path("/sys")


def read_interfaces(wanted: Sequence[str] = (), sysfs: Path = SYSFS) -> tuple[InterfaceFacts, ...]:
    """Every IPv4 address, without trials. Raises `UsageError` for one of `wanted` that is not there."""
    present = list_interfaces()
    used = set(choose_interfaces(present, wanted))
    return tuple(
        InterfaceFacts(
            name=one.name,
            address=one.address,
            prefix_bits=one.prefix_bits,
            is_up=one.up,
            carries_multicast=one.multicast,
            is_used=one in used,
            is_skipped=is_skipped(one.name),
            is_inner_bridge=is_inner_bridge(one.name, sysfs),
        )
        for one in present
    )


def is_inner_bridge(name: str, sysfs: Path = SYSFS) -> bool:
    """Whether it is a bridge between parts of this machine, without any network card in it."""
    ports = sysfs / "class" / "net" / name / "brif"
    return ports.is_dir() and not any(
        (sysfs / "class" / "net" / port.name / "device").exists() for port in ports.iterdir()
    )


def try_multicast(interfaces: Sequence[InterfaceFacts]) -> tuple[InterfaceFacts, ...]:
    """The same with trials where mDNS uses them; takes about two seconds."""
    with contextlib.ExitStack() as stack:
        trials: dict[str, MulticastTrial] = {}
        opened: dict[str, socket.socket] = {}
        for one in interfaces:
            if (
                one.is_used and one.is_up and (one.carries_multicast or one.is_loopback)
            ):  # which says it does not, and does
                try:
                    opened[one.address] = stack.enter_context(_open(one.address))
                except OSError as error:
                    trials[one.address] = MulticastTrial(error.strerror or str(error))
        trials |= _ask(opened, {one.address for one in interfaces})
    return tuple(replace(one, trial=trials.get(one.address)) for one in interfaces)


def read_neighbours(interfaces: Sequence[InterfaceFacts], table: Path = Path("/proc/net/arp")) -> list[str]:
    """Addresses of hosts that this one has talked with lately, on networks of boards; none where that is unknown."""
    used = {one.name for one in interfaces if one.is_used or not one.is_skipped}
    try:
        lines = table.read_text().splitlines()[1:]
    except OSError:
        return []
    fields = [line.split() for line in lines]
    known = [each[0] for each in fields if len(each) >= 6 and each[5] in used and int(each[2], 16) & ARP_COMPLETE]
    return known[:MAX_NEIGHBOURS]


def question(number: int) -> bytes:
    """An mDNS question; `number` stands where ordinary DNS has its id, and tells our packets from those of others."""
    names = b"".join(_encode_name(name) + struct.pack("!2H", 12, 1) for name in ASKED)  # PTR, IN
    return struct.pack("!6H", number, 0, len(ASKED), 0, 0, 0) + names


def _encode_name(name: str) -> bytes:
    return b"".join(bytes([len(label)]) + label.encode() for label in name.split(".") if label) + b"\0"


def _open(address: str) -> socket.socket:
    found = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if hasattr(socket, "SO_REUSEPORT"):
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if sys.platform == "linux":
            found.setsockopt(socket.IPPROTO_IP, IP_MULTICAST_ALL, 0)
        found.bind((MDNS_GROUP if sys.platform == "linux" else "", MDNS_PORT))
        member = socket.inet_aton(MDNS_GROUP) + socket.inet_aton(address)
        found.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, member)
        found.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(address))
        found.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 255)
        found.setblocking(False)
    except OSError:
        found.close()
        raise
    return found


def _ask(opened: Mapping[str, socket.socket], own: set[str]) -> dict[str, MulticastTrial]:
    number = os.getpid() & 0xFFFF or 1
    asked = question(number)
    errors: dict[str, str] = {}
    heard_itself: set[str] = set()
    others: dict[str, set[str]] = {address: set() for address in opened}
    for _ in range(ROUNDS):
        for address, each in opened.items():
            try:
                each.sendto(asked, (MDNS_GROUP, MDNS_PORT))
            except OSError as error:
                errors[address] = error.strerror or str(error)
        deadline = time.monotonic() + ROUND_S
        while (left_s := deadline - time.monotonic()) > 0 and opened:
            readable, _, _ = select.select(list(opened.values()), [], [], left_s)
            for address, each in opened.items():
                if each not in readable:
                    continue
                packet, (host, _) = each.recvfrom(MAX_PACKET_BYTES)
                if packet == asked and host == address:
                    heard_itself.add(address)
                elif host not in own and host != LOOPBACK:
                    others[address].add(host)
    return {
        address: MulticastTrial(errors.get(address, ""), address in heard_itself, frozenset(others[address]))
        for address in opened
    }
