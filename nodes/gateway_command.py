"""`mesh gateway`: the Open Inference Protocol in front of a mesh, in the foreground."""

from __future__ import annotations

import asyncio
import contextlib
import json
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
"""Where clients of the protocol look by default."""

OFF = "off"

GRACE_S = 5.0
"""For requests that are running when the gateway is told to end."""


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

    listen_grpc = None if grpc == OFF else check_listen(grpc, GRPC_PORT, insecure)
    listen_http = None if http == OFF else check_listen(http, HTTP_PORT, insecure)
    if listen_grpc is None and listen_http is None:
        raise UsageError("with both --grpc off and --http off there is nothing to serve")
    models = ModelRepository(repository, allow_load)
    opened = open_mesh(coordinator, peer, interface, mdns, cost_file())
    if insecure:
        say("warning: --insecure: anyone who reaches this gateway can use it, and read what passes through it")
    keep_freed_memory()
    asyncio.run(_serve(opened, models, listen_grpc, listen_http, as_json))


async def _serve(
    opened: Mesh, models: ModelRepository, listen_grpc: str | None, listen_http: str | None, as_json: bool
) -> None:
    """Until SIGTERM or SIGINT; then running requests are answered, for some seconds."""
    try:
        from mesh.gateways.inference import InferenceGateway
        from mesh.gateways.oip_grpc import OipGrpcServer
        from mesh.gateways.oip_rest import OipRestServer
    except ImportError as error:
        raise _missing(error) from None
    from mesh.runtime.service_manager import ServiceManager
    from nodes.daemon import stop_on_signals

    service_manager = ServiceManager.from_environment()
    stop = stop_on_signals()
    async with opened as mesh, contextlib.AsyncExitStack() as stack:
        meaning = InferenceGateway(mesh, models)
        addresses: dict[str, str] = {}
        if listen_grpc is not None:
            grpc_server = OipGrpcServer(meaning, mesh.tasks)
            stack.push_async_callback(grpc_server.stop, GRACE_S)
            addresses["grpc"] = await grpc_server.start(listen_grpc)
        if listen_http is not None:
            http_server = OipRestServer(meaning, mesh.tasks)
            stack.push_async_callback(http_server.stop)
            addresses["http"] = await http_server.start(listen_http)
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
