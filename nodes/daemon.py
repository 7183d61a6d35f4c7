"""`mesh node`: the daemon in the foreground."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from mesh.discovery import DiscoverySettings, make_discovery
from mesh.discovery.contract import Discovery
from mesh.errors import UsageError
from mesh.hardware.allocator import keep_freed_memory
from mesh.runtime.coordinator_daemon import CoordinatorDaemon, CoordinatorReady, CoordinatorSettings
from mesh.runtime.node import Node, NodeReady, NodeSettings
from nodes.output import say

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


def run_node(
    settings: NodeSettings, discovery: Discovery, is_insecure: bool, stops_with_parent: bool, as_json: bool
) -> None:
    """Run until SIGTERM or SIGINT, or until the parent is gone where that is asked for; then drain."""

    keep_freed_memory()

    async def main() -> None:
        stop = stop_on_signals()
        if stops_with_parent:
            stop_with_parent(stop)
        await Node(settings, discovery).run(
            stop, lambda ready: announce("node", ready, settings.data_dir, is_insecure, as_json)
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


def run_coordinator(settings: CoordinatorSettings, discovery: Discovery, is_insecure: bool, as_json: bool) -> None:
    """Run until SIGTERM or SIGINT. Streams go on without it."""

    async def main() -> None:
        daemon = CoordinatorDaemon(settings, discovery)
        await daemon.run(
            stop_on_signals(), lambda ready: announce("coordinator", ready, settings.data_dir, is_insecure, as_json)
        )

    asyncio.run(main())


def stop_on_signals() -> asyncio.Event:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    return stop


def announce(role: str, ready: NodeReady | CoordinatorReady, data_dir: Path, is_insecure: bool, as_json: bool) -> None:
    if as_json:
        document = {"id": ready.identity.node_id, "name": ready.identity.name, "address": ready.address}
        print(json.dumps(document), flush=True)
    say(f"{role} {ready.identity.name} ({ready.identity.node_id[:8]}) listens on {ready.address}, data in {data_dir}")
    for damage in ready.damages if isinstance(ready, NodeReady) else ():
        say(f"warning: deployment {damage.name} is not loaded, its file is set aside: {damage.reason} ({damage.path})")
    if isinstance(ready, CoordinatorReady) and ready.damage:
        say(f"warning: {ready.damage}")
    if is_insecure:
        say(f"warning: --insecure: anyone who reaches this address can use this {role} and read what passes through it")
