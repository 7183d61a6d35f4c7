"""`mesh node` and `mesh coordinator`: the daemons in the foreground, also with a gateway beside them."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mesh.core.fleet import Watts
from mesh.core.fleet_file import MAX_WATTS
from mesh.discovery import DiscoverySettings, make_discovery
from mesh.discovery.contract import Discovery
from mesh.errors import UsageError
from mesh.hardware.allocator import keep_freed_memory
from mesh.runtime.coordinator_daemon import CoordinatorDaemon, CoordinatorReady, CoordinatorSettings
from mesh.runtime.node import Node, NodeReady, NodeSettings
from nodes.output import say

if TYPE_CHECKING:
    from mesh.client.mesh_client import Mesh
    from mesh.runtime.own_node import OwnNode
    from nodes.gateway_service import GatewaySettings

NODE_PORT = 50071
COORDINATOR_PORT = 50070
MAX_PORT = 65535


def check_listen(listen: str | None, default_port: int, is_insecure: bool) -> str:
    """Where to listen. Anything beyond loopback is plaintext for now and must be asked for by `--insecure`."""
    if listen is None:
        listen = f"0.0.0.0:{default_port}" if is_insecure else f"127.0.0.1:{default_port}"
    host = split_listen(listen)
    if not is_insecure and not is_loopback(host):
        raise UsageError(
            f"listening on {listen} would accept anyone on that network, unencrypted",
            hint="add --insecure if that network is yours alone, or listen on 127.0.0.1",
        )
    return listen


def read_watts(busy: float | None, idle: float | None) -> Watts | None:
    """What the owner states; raises `UsageError` for what makes no sense."""
    if busy is None and idle is None:
        return None
    if busy is None or idle is None:
        raise UsageError("--watts-busy and --watts-idle go together")
    if not 0 <= idle < busy <= MAX_WATTS:
        raise UsageError(
            f"{busy:g} W busy and {idle:g} W idle make no sense",
            hint=f"busy is above idle and at most {MAX_WATTS:g}, and idle is not negative",
        )
    return Watts(busy, idle)


def split_listen(listen: str) -> str:
    """The host of "HOST:PORT"; port 0 means any free one."""
    host, _, port = listen.rpartition(":")
    if not host or not port.isascii() or not port.isdecimal() or int(port) > MAX_PORT:
        raise UsageError(f"{listen[:80]!r} is no address to listen on", hint="write HOST:PORT, for example 127.0.0.1:0")
    return host.strip("[]")


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def discovery_for(listen: str, interfaces: Sequence[str], peers: Sequence[str], mdns: bool) -> Discovery:
    """A daemon on loopback is announced there only."""
    host = split_listen(listen)
    if mdns and not interfaces and is_loopback(host):
        interfaces = ("127.0.0.1",)
    broker = os.environ.get("MESH_MQTT", "")
    names = [*(["mdns"] if mdns else []), *(["mqtt"] if broker else [])]
    names += ["static"] if peers or not names else []
    return make_discovery(names, DiscoverySettings(interfaces, peers, broker))


@dataclass(frozen=True, slots=True)
class GatewayBeside:
    """A gateway in a daemon's process, and how it looks for other nodes. Its client is imported only where it runs."""

    settings: GatewaySettings
    interfaces: Sequence[str]
    peers: Sequence[str]
    mdns: bool
    costs: Path | None
    """Where it keeps what it measures when it plans by itself."""
    served: dict[str, str] = field(default_factory=dict)
    """Where each kind is served, once it is."""

    @contextlib.asynccontextmanager
    async def beside_node(self, own_node: OwnNode, listens_on: str) -> AsyncIterator[None]:
        from mesh.client.mesh_client import Mesh
        from nodes.gateway_service import own_address

        peers = (own_address(listens_on), *self.peers)
        async with self._serve(Mesh(peers=peers, own_node=own_node, costs=self.costs, **self._looking())):
            yield

    @contextlib.asynccontextmanager
    async def beside_coordinator(self, listens_on: str) -> AsyncIterator[None]:
        from mesh.client.mesh_client import Mesh
        from nodes.gateway_service import own_address

        async with self._serve(Mesh(peers=self.peers, coordinator=own_address(listens_on), **self._looking())):
            yield

    def _looking(self) -> dict[str, Any]:
        return {"interfaces": self.interfaces, "mdns": self.mdns, "warn": say}

    @contextlib.asynccontextmanager
    async def _serve(self, opened: Mesh) -> AsyncIterator[None]:
        from nodes.gateway_service import serving

        async with opened as mesh, serving(mesh, self.settings) as addresses:
            self.served.update(addresses)
            yield


def run_node(
    settings: NodeSettings,
    discovery: Discovery,
    is_insecure: bool,
    stops_with_parent: bool,
    as_json: bool,
    gateway: GatewayBeside | None = None,
) -> None:
    """Run until SIGTERM or SIGINT, or until the parent is gone where that is asked for; then drain."""

    keep_freed_memory()

    async def main() -> None:
        stop = stop_on_signals()
        if stops_with_parent:
            stop_with_parent(stop)
        await Node(settings, discovery).run(
            stop,
            lambda ready: announce("node", ready, settings.data_dir, is_insecure, as_json, gateway),
            None if gateway is None else gateway.beside_node,
        )

    asyncio.run(main())


def stop_with_parent(stop: asyncio.Event) -> None:
    """Set `stop` when standard input ends: the parent holds its other end and writes nothing."""
    loop = asyncio.get_running_loop()
    descriptor = sys.stdin.fileno()

    def parent_is_gone() -> None:
        loop.remove_reader(descriptor)
        stop.set()

    loop.add_reader(descriptor, parent_is_gone)


def run_coordinator(
    settings: CoordinatorSettings,
    discovery: Discovery,
    is_insecure: bool,
    as_json: bool,
    gateway: GatewayBeside | None = None,
) -> None:
    """Run until SIGTERM or SIGINT. Streams go on without it, but for those of a gateway in it."""

    async def main() -> None:
        daemon = CoordinatorDaemon(settings, discovery)
        await daemon.run(
            stop_on_signals(),
            lambda ready: announce("coordinator", ready, settings.data_dir, is_insecure, as_json, gateway),
            None if gateway is None else gateway.beside_coordinator,
        )

    asyncio.run(main())


def stop_on_signals() -> asyncio.Event:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    return stop


def announce(
    role: str,
    ready: NodeReady | CoordinatorReady,
    data_dir: Path,
    is_insecure: bool,
    as_json: bool,
    gateway: GatewayBeside | None,
) -> None:
    if as_json:
        document: dict[str, object] = {
            "id": ready.identity.node_id,
            "name": ready.identity.name,
            "address": ready.address,
        }
        if gateway is not None:
            document["gateway"] = gateway.served
        print(json.dumps(document), flush=True)
    say(f"{role} {ready.identity.name} ({ready.identity.node_id[:8]}) listens on {ready.address}, data in {data_dir}")
    if gateway is not None:
        from nodes.gateway_service import in_words

        say(f"its gateway serves {in_words(gateway.served)}")
    for damage in ready.damages if isinstance(ready, NodeReady) else ():
        say(f"warning: deployment {damage.name} is not loaded, its file is set aside: {damage.reason} ({damage.path})")
    if isinstance(ready, CoordinatorReady) and ready.damage:
        say(f"warning: {ready.damage}")
    if is_insecure:
        say(f"warning: --insecure: anyone who reaches this address can use this {role} and read what passes through it")
