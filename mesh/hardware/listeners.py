"""Who listens on a TCP port of this machine: /proc on Linux, an attempt to bind elsewhere. Source: proc(5)."""

from __future__ import annotations

import socket
import sys
from collections.abc import Collection, Iterator
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

from mesh.doctor.facts import Listener

LISTEN = "0A"
"""State of a socket in /proc/net/tcp that waits for connections."""

MAX_COMMAND_BYTES = 4096


def find_listeners(ports: Collection[int], root: Path = Path("/")) -> tuple[Listener, ...]:
    """One for each of `ports` that is taken, with its process where that may be seen."""
    proc = root / "proc"
    tables = [path for name in ("tcp", "tcp6") if (path := proc / "net" / name).exists()]
    if not tables:
        return tuple(Listener(port, "") for port in ports if not _can_bind(port))
    found: dict[int, tuple[str, str]] = {}
    for table in tables:
        for port, address, inode in parse_tcp_table(table.read_text()):
            if port in ports:
                found.setdefault(port, (address, inode))
    if not found:
        return ()
    owners = _owners({inode for _, inode in found.values()}, proc)
    return tuple(
        Listener(port, address, *owners.get(inode, (None, ()))) for port, (address, inode) in sorted(found.items())
    )


def parse_tcp_table(text: str) -> Iterator[tuple[int, str, str]]:
    """(port, address, inode) of each listening socket of a /proc/net/tcp or tcp6."""
    for line in text.splitlines()[1:]:
        fields = line.split()
        if len(fields) < 10 or fields[3] != LISTEN:
            continue
        address, _, port = fields[1].partition(":")
        yield int(port, 16), _parse_address(address), fields[9]


def _parse_address(digits: str) -> str:
    """The kernel writes words of 32 bits in the machine's own byte order."""
    words = [
        bytes.fromhex(digits[at : at + 8])[:: -1 if sys.byteorder == "little" else 1] for at in range(0, len(digits), 8)
    ]
    packed = b"".join(words)
    if len(packed) == 4:
        return str(IPv4Address(packed))
    address = IPv6Address(packed)
    return str(address.ipv4_mapped or address)


def _owners(inodes: set[str], proc: Path) -> dict[str, tuple[int, tuple[str, ...]]]:
    """Process and its command by socket inode; those of other users are not to be seen."""
    wanted = {f"socket:[{inode}]": inode for inode in inodes}
    owners: dict[str, tuple[int, tuple[str, ...]]] = {}
    for process in proc.iterdir():
        if not process.name.isdecimal() or len(owners) == len(wanted):
            continue
        try:
            links = {_link(descriptor) for descriptor in (process / "fd").iterdir()}
            found = wanted.keys() & links
            if found:
                command = (process / "cmdline").read_bytes()[:MAX_COMMAND_BYTES].decode("utf-8", "replace")
                words = tuple(command.rstrip("\0").split("\0"))
                owners.update({wanted[link]: (int(process.name), words) for link in found})
        except OSError:
            continue  # it has just ended, or belongs to another user
    return owners


def _link(descriptor: Path) -> str:
    try:
        return str(descriptor.readlink())
    except FileNotFoundError:
        return ""  # closed since it was listed, as that of the listing itself


def _can_bind(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True
