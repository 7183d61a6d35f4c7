"""Collects the facts that `mesh.doctor` judges: this device's network, ports, time, runtime and disk, and who is there.

Nodes are looked for in every way at once, so that what one way misses shows: by mDNS, by the seeds that were named,
among the hosts that this one has talked with lately (on the default port), and by what nodes tell of each other. Used
by `mesh doctor`; nothing is kept.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mesh.control.clock import ClockOffset, RoundTrip, estimate_offset
from mesh.core.fleet import Capabilities, Peer
from mesh.core.ids import NodeId
from mesh.discovery import DiscoverySettings, make_discovery
from mesh.discovery.addresses import parse_address
from mesh.discovery.contract import Discovery, PeerSeen
from mesh.discovery.roster import key_of
from mesh.discovery.trial import read_interfaces, read_neighbours, try_multicast
from mesh.doctor.facts import Facts, FoundNode, InterfaceFacts, Listener, SilentPeer
from mesh.doctor.mesh_checks import is_one_process
from mesh.doctor.port_checks import PORTS
from mesh.errors import ListenError, MeshError, NodeLost, Timeout
from mesh.hardware.condition import clock_is_set, read_disk, read_throttling
from mesh.hardware.listeners import find_listeners
from mesh.hardware.probe import ProbeResult, run_probe
from mesh.wire.channel import NodeClient
from mesh.wire.ended_calls import await_ended_calls

NODE_PORT = next(port for port, (command, _, _) in PORTS.items() if command == "node")

LISTEN_S = 3.0
"""mDNS repeats its question after 1 s and 3 s; who has not answered then is not heard."""

ASK_TIMEOUT_S = 2.0
CLOCK_ROUNDS = 5
TWIN_ROUNDS = 3
"""Each address is asked so often, in turns, whether one process is behind all of them."""

MAX_ADDRESSES = 8
"""Of one announced peer; a cloned one lists those of its twins as well."""


@dataclass(frozen=True, slots=True)
class Examined:
    """What is looked at."""

    data_dir: Path
    interfaces: tuple[str, ...] = ()
    """Names or addresses for mDNS; empty lets it choose, as daemons do."""
    seeds: tuple[str, ...] = ()


@dataclass(slots=True)
class _Asked:
    """Everyone who was asked so far, by address; None for those that did not answer."""

    clients: dict[str, NodeClient] = field(default_factory=dict)
    told: dict[str, Capabilities | None] = field(default_factory=dict)
    heard_of: set[str] = field(default_factory=set)

    async def ask(self, addresses: Sequence[str]) -> None:
        await asyncio.gather(*(self._ask(address) for address in dict.fromkeys(addresses) if address not in self.told))

    async def _ask(self, address: str) -> None:
        client = self.clients.setdefault(address, NodeClient(address))
        try:
            self.told[address], introduced = await client.describe(ASK_TIMEOUT_S)
        except (NodeLost, Timeout):
            self.told[address] = None
        except MeshError:
            return  # something else answers there: no node, and not silent
        else:
            self.heard_of.update(other for peer in introduced for other in peer.addresses[:1])

    async def close(self) -> None:
        for client in self.clients.values():
            await client.close()
        await await_ended_calls()


async def collect_facts(what: Examined) -> Facts:
    """Takes about six seconds. Raises `UsageError` for an interface that is not there, or a seed that is no address."""
    for seed in what.seeds:
        parse_address(seed)
    interfaces = read_interfaces(what.interfaces)
    listeners = await asyncio.to_thread(find_listeners, set(PORTS))
    given_up = threading.Event()
    try:
        tried, probe, (peers, mdns_error), throttling = await asyncio.gather(
            asyncio.to_thread(try_multicast, interfaces),
            asyncio.to_thread(run_probe, stop=given_up, measure=False),
            _hear(what, interfaces),
            asyncio.to_thread(read_throttling),
        )
    finally:
        given_up.set()
    nodes, silent = await _visit(peers, [*what.seeds, *_guess_addresses(interfaces, listeners)], what.seeds)
    return Facts(
        interfaces=tried,
        mdns_error=mdns_error,
        listeners=listeners,
        nodes=tuple(nodes),
        silent=tuple(silent),
        clock_is_set=clock_is_set(),
        runtime_version=probe.runtime_version,
        providers=probe.providers if _is_installed(probe) else (),
        throttling=throttling,
        disk=read_disk(what.data_dir),
    )


def _is_installed(probe: ProbeResult) -> bool:
    return bool(probe.runtime_version) or not any("No module named" in each.detail for each in probe.providers)


def _guess_addresses(interfaces: Sequence[InterfaceFacts], listeners: Sequence[Listener]) -> list[str]:
    """Where a node may be that nobody named: here, and on hosts that this one has talked with."""
    wildcards = ("", "0.0.0.0", "::")  # noqa: S104 - compared, not bound
    here = ["127.0.0.1" if each.address in wildcards else each.address for each in listeners if each.port == NODE_PORT]
    return [f"{host}:{NODE_PORT}" for host in [*here, *read_neighbours(interfaces)] if ":" not in host]


async def _hear(what: Examined, interfaces: Sequence[InterfaceFacts]) -> tuple[list[Peer], str]:
    """Who announces itself, and why mDNS cannot listen."""
    used = [one.address for one in interfaces if one.is_used]
    if not what.interfaces:
        used += [one.address for one in interfaces if one.is_loopback and not one.is_used]
    try:
        discovery = make_discovery(["mdns"], DiscoverySettings(used))
        async with discovery:
            return await _watch(discovery), ""
    except ListenError as error:
        return [], error.message


async def _watch(discovery: Discovery) -> list[Peer]:
    heard: dict[tuple[str, str], Peer] = {}
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LISTEN_S):
            async for event in discovery.watch():
                if isinstance(event, PeerSeen):
                    heard[key_of(event.peer)] = event.peer
                else:
                    heard.pop(key_of(event.peer), None)
    return [peer for peer in heard.values() if peer.role == "node"]


async def _visit(
    peers: Sequence[Peer], others: Sequence[str], seeds: Sequence[str]
) -> tuple[list[FoundNode], list[SilentPeer]]:
    asked = _Asked()
    try:
        announced = {address for peer in peers for address in peer.addresses[:MAX_ADDRESSES]}
        await asked.ask([*announced, *others])
        await asked.ask(sorted(asked.heard_of))
        by_id: dict[NodeId, list[str]] = {}
        for address, told in asked.told.items():
            if told is not None:
                by_id.setdefault(told.node_id, []).append(address)
        found = [node for addresses in by_id.values() for node in await _tell_apart(asked, addresses, announced)]
    finally:
        await asked.close()
    silent = [
        SilentPeer(peer.name, peer.addresses, True)
        for peer in peers
        if peer.node_id not in by_id and not any(address not in asked.told for address in peer.addresses)
    ]
    silent += [SilentPeer(seed, (seed,), False) for seed in seeds if asked.told.get(seed, ...) is None]
    return sorted(found, key=lambda node: (node.name, node.address)), silent


async def _tell_apart(asked: _Asked, addresses: Sequence[str], announced: set[str]) -> list[FoundNode]:
    """One entry for each daemon behind addresses that all say the same node id."""
    groups: list[list[str]] = []
    for address in sorted(addresses, key=lambda each: (each not in announced, each)):
        for group in groups:
            if await _is_same_daemon(asked.clients[group[0]], asked.clients[address]):
                group.append(address)
                break
        else:
            groups.append([address])
    found = []
    for place, group in enumerate(groups):
        told = asked.told[group[0]]
        if told is None:
            continue
        offset = await _read_wall_offset(asked.clients[group[0]])
        found.append(
            FoundNode(
                told.node_id,
                told.name,
                group[0],
                is_announced=any(address in announced for address in group),
                version=told.software_version,
                providers=told.providers,
                clock_ahead_s=offset.seconds if offset is not None else None,
                clock_error_s=offset.error_s if offset is not None else 0.0,
                twin_of=groups[place - 1][0] if len(groups) > 1 else "",
            )
        )
    return found


async def _is_same_daemon(one: NodeClient, other: NodeClient) -> bool:
    """True also where it cannot be told, as of one that has just gone: nobody is accused on a guess."""
    readings: list[float] = []
    try:
        for _ in range(TWIN_ROUNDS):
            for client in (one, other):
                readings.append((await client.echo(b"")).process_seconds)
    except MeshError:
        return True
    return is_one_process(readings)


async def _read_wall_offset(client: NodeClient) -> ClockOffset | None:
    trips = []
    for _ in range(CLOCK_ROUNDS):
        sent = time.time()
        try:
            _, unix = await client.read_clocks()
        except MeshError:
            return None
        if not unix:
            return None
        trips.append(RoundTrip(sent, unix, time.time()))
    return estimate_offset(trips)
