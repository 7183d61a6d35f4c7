"""`mesh gateway`: the Open Inference Protocol in front of a mesh, in the foreground."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Annotated

import typer

from nodes.gateway_service import (
    AllowLoadOption,
    GatewaySettings,
    GrpcOption,
    HttpOption,
    MetricsOption,
    RepositoryOption,
    in_words,
    read_gateway_settings,
    serving,
)
from nodes.options import CoordinatorOption, InterfaceOption, JsonOption, MdnsOption, PeerOption, cost_file, open_mesh
from nodes.output import command, say

if TYPE_CHECKING:
    from mesh.client.mesh_client import Mesh


@command
def gateway(
    grpc: GrpcOption = None,
    http: HttpOption = None,
    metrics: MetricsOption = None,
    repository: RepositoryOption = None,
    allow_load: AllowLoadOption = False,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Serve beyond this machine, in plaintext: on a network of your own.")
    ] = False,
    peer: PeerOption = None,
    interface: InterfaceOption = None,
    mdns: MdnsOption = True,
    coordinator: CoordinatorOption = None,
    as_json: JsonOption = False,
) -> None:
    """Serve deployed models to clients of the Open Inference Protocol (Triton, KServe), over gRPC and HTTP."""
    from mesh.hardware.allocator import keep_freed_memory

    settings = read_gateway_settings(grpc, http, metrics, repository, allow_load, insecure)
    opened = open_mesh(coordinator, peer, interface, mdns, cost_file())
    if insecure:
        say("warning: --insecure: anyone who reaches this gateway can use it, and read what passes through it")
    keep_freed_memory()
    asyncio.run(_serve(opened, settings, as_json))


async def _serve(opened: Mesh, settings: GatewaySettings, as_json: bool) -> None:
    """Until SIGTERM or SIGINT."""
    from mesh.runtime.service_manager import ServiceManager
    from nodes.daemon import stop_on_signals

    service_manager = ServiceManager.from_environment()
    stop = stop_on_signals()
    async with opened as mesh, serving(mesh, settings) as addresses:
        if as_json:
            print(json.dumps(addresses), flush=True)
        say(f"the gateway serves {in_words(addresses)}")
        service_manager.ready(mesh.tasks, f"serves {in_words(addresses)}")
        await stop.wait()
        service_manager.stopping()
