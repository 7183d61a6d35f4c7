"""`mesh gateway`: the Open Inference Protocol in front of a mesh, in the foreground."""

from __future__ import annotations

import asyncio
import contextlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mesh.errors import MissingExtra, UsageError
from nodes.options import CoordinatorOption, InterfaceOption, JsonOption, MdnsOption, PeerOption, cost_file, open_mesh
from nodes.output import command, say

if TYPE_CHECKING:
    from mesh.client.mesh_client import Mesh
    from mesh.gateways.repository import ModelRepository

GRPC_PORT = 8001
HTTP_PORT = 8000
METRICS_PORT = 8002
"""Where clients of the protocol look by default."""

OFF = "off"

GRACE_S = 5.0
"""For requests that are running when the gateway is told to end."""


@dataclass(frozen=True, slots=True)
class Listen:
    """ "HOST:PORT" of each service; None for those that are off."""

    grpc: str | None
    http: str | None
    metrics: str | None


@command
def gateway(
    grpc: Annotated[
        str | None,
        typer.Option("--grpc", metavar="HOST:PORT", help=f"Where to serve gRPC; default: port {GRPC_PORT}; or {OFF}."),
    ] = None,
    http: Annotated[
        str | None,
        typer.Option("--http", metavar="HOST:PORT", help=f"Where to serve HTTP; default: port {HTTP_PORT}; or {OFF}."),
    ] = None,
    metrics: Annotated[
        str | None,
        typer.Option(
            "--metrics",
            metavar="HOST:PORT",
            help=f"Where Prometheus finds this gateway and every node; default: port {METRICS_PORT}; or {OFF}.",
        ),
    ] = None,
    repository: Annotated[
        Path | None,
        typer.Option("--repository", metavar="FOLDER", help="Models that may be loaded: NAME/1/model.onnx."),
    ] = None,
    allow_load: Annotated[
        bool, typer.Option("--allow-load", help="Let clients load, upload and unload models of the whole mesh.")
    ] = False,
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
    from mesh.gateways.repository import ModelRepository
    from mesh.hardware.allocator import keep_freed_memory
    from nodes.daemon import check_listen

    chosen = ((grpc, GRPC_PORT), (http, HTTP_PORT), (metrics, METRICS_PORT))
    listen = Listen(*(None if where == OFF else check_listen(where, port, insecure) for where, port in chosen))
    if listen.grpc is None and listen.http is None:
        raise UsageError("with both --grpc off and --http off there is nothing to serve")
    models = ModelRepository(repository, allow_load)
    opened = open_mesh(coordinator, peer, interface, mdns, cost_file())
    if insecure:
        say("warning: --insecure: anyone who reaches this gateway can use it, and read what passes through it")
    keep_freed_memory()
    asyncio.run(_serve(opened, models, listen, as_json))


async def _serve(opened: Mesh, models: ModelRepository, listen: Listen, as_json: bool) -> None:
    """Until SIGTERM or SIGINT; then running requests are answered, for some seconds."""
    try:
        from mesh.gateways.http_server import HttpServer
        from mesh.gateways.inference import InferenceGateway
        from mesh.gateways.metrics_server import MetricsPages
        from mesh.gateways.oip_grpc import OipGrpcServer
        from mesh.gateways.oip_rest import OipRest
    except ImportError as error:
        raise _missing(error) from None
    from mesh.runtime.service_manager import ServiceManager
    from nodes.daemon import stop_on_signals

    service_manager = ServiceManager.from_environment()
    stop = stop_on_signals()
    async with opened as mesh, contextlib.AsyncExitStack() as stack:
        meaning = InferenceGateway(mesh, models)
        addresses: dict[str, str] = {}
        if listen.grpc is not None:
            grpc_server = OipGrpcServer(meaning, mesh.tasks)
            stack.push_async_callback(grpc_server.stop, GRACE_S)
            addresses["grpc"] = await grpc_server.start(listen.grpc)
        pages = {
            "http": (listen.http, OipRest(meaning).application),
            "metrics": (listen.metrics, MetricsPages(meaning, mesh.directory).application),
        }
        for kind, (address, make_application) in pages.items():
            if address is not None:
                server = HttpServer(make_application(), mesh.tasks)
                stack.push_async_callback(server.stop)
                addresses[kind] = await server.start(address)
        told = " and ".join(f"{kind} on {address}" for kind, address in addresses.items())
        if as_json:
            print(json.dumps(addresses), flush=True)
        say(f"the gateway serves {told}")
        service_manager.ready(mesh.tasks, f"serves {told}")
        await stop.wait()
        service_manager.stopping()


def _missing(error: ImportError) -> MissingExtra:
    return MissingExtra(
        f"a gateway needs the package {error.name!r}, which is not installed here",
        hint="install the extra infermesh[gateway]: pip install '.[gateway]' in a clone",
    )
