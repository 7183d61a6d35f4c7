"""A gateway as a part of a process: of `mesh gateway`, or beside the daemon of `mesh node` and `mesh coordinator`.

Arguments become a `GatewaySettings`; `serving` is the gateway itself, for as long as its block runs.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mesh.errors import MissingExtra, UsageError

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

GatewayOption = Annotated[
    bool,
    typer.Option("--gateway", help="Also serve deployed models from this process, as `mesh gateway` does."),
]
GrpcOption = Annotated[
    str | None,
    typer.Option("--grpc", metavar="HOST:PORT", help=f"Where to serve gRPC; default: port {GRPC_PORT}; or {OFF}."),
]
HttpOption = Annotated[
    str | None,
    typer.Option("--http", metavar="HOST:PORT", help=f"Where to serve HTTP; default: port {HTTP_PORT}; or {OFF}."),
]
MetricsOption = Annotated[
    str | None,
    typer.Option(
        "--metrics",
        metavar="HOST:PORT",
        help=f"Where Prometheus finds this gateway and every node; default: port {METRICS_PORT}; or {OFF}.",
    ),
]
RepositoryOption = Annotated[
    Path | None,
    typer.Option("--repository", metavar="FOLDER", help="Models that may be loaded: NAME/1/model.onnx."),
]
AllowLoadOption = Annotated[
    bool, typer.Option("--allow-load", help="Let clients load, upload and unload models of the whole mesh.")
]


@dataclass(frozen=True, slots=True)
class GatewaySettings:
    """ "HOST:PORT" of each service; None for those that are off."""

    grpc: str | None
    http: str | None
    metrics: str | None
    models: ModelRepository


def read_gateway_settings(
    grpc: str | None,
    http: str | None,
    metrics: str | None,
    repository: Path | None,
    allow_load: bool,
    insecure: bool,
) -> GatewaySettings:
    """Raises `UsageError` for addresses that are none, and `MissingExtra` where a gateway's packages are not there."""
    from nodes.daemon import check_listen

    try:
        import mesh.gateways.http_server
        import mesh.gateways.oip_grpc
        import mesh.gateways.oip_rest  # noqa: F401 - to know before anything is started
        from mesh.gateways.repository import ModelRepository
    except ImportError as error:
        raise MissingExtra(
            f"a gateway needs the package {error.name!r}, which is not installed here",
            hint="install the extra infermesh[gateway]: pip install '.[gateway]' in a clone",
        ) from None
    chosen = ((grpc, GRPC_PORT), (http, HTTP_PORT), (metrics, METRICS_PORT))
    for_grpc, for_http, for_metrics = (
        None if where == OFF else check_listen(where, port, insecure) for where, port in chosen
    )
    if for_grpc is None and for_http is None:
        raise UsageError("with both --grpc off and --http off there is nothing to serve")
    return GatewaySettings(for_grpc, for_http, for_metrics, ModelRepository(repository, allow_load))


def read_companion_settings(
    is_wanted: bool,
    grpc: str | None,
    http: str | None,
    metrics: str | None,
    repository: Path | None,
    allow_load: bool,
    insecure: bool,
) -> GatewaySettings | None:
    """As `read_gateway_settings`, for a daemon that serves only if it is told to by `--gateway`."""
    if is_wanted:
        return read_gateway_settings(grpc, http, metrics, repository, allow_load, insecure)
    given = {"--grpc": grpc, "--http": http, "--metrics": metrics, "--repository": repository}
    names = [name for name, value in given.items() if value is not None] + (["--allow-load"] if allow_load else [])
    if names:
        raise UsageError(f"{' and '.join(names)}: there is no gateway in this process", hint="add --gateway")
    return None


@contextlib.asynccontextmanager
async def serving(mesh: Mesh, settings: GatewaySettings) -> AsyncIterator[dict[str, str]]:
    """Serve until the block ends, then answer what is running, for some seconds. Gives where each kind is served.

    `mesh` is open, and stays the caller's to close. Raises `ListenError` for a port that is taken.
    """
    from mesh.gateways.http_server import HttpServer
    from mesh.gateways.inference import InferenceGateway
    from mesh.gateways.metrics_server import MetricsPages
    from mesh.gateways.oip_grpc import OipGrpcServer
    from mesh.gateways.oip_rest import OipRest

    async with contextlib.AsyncExitStack() as stack:
        meaning = InferenceGateway(mesh, settings.models)
        addresses: dict[str, str] = {}
        if settings.grpc is not None:
            grpc_server = OipGrpcServer(meaning, mesh.tasks)
            stack.push_async_callback(grpc_server.stop, GRACE_S)
            addresses["grpc"] = await grpc_server.start(settings.grpc)
        pages = {
            "http": (settings.http, OipRest(meaning).application),
            "metrics": (settings.metrics, MetricsPages(meaning, mesh.directory).application),
        }
        for kind, (address, make_application) in pages.items():
            if address is not None:
                server = HttpServer(make_application(), mesh.tasks)
                stack.push_async_callback(server.stop)
                addresses[kind] = await server.start(address)
        yield addresses


def own_address(listens_on: str) -> str:
    """How a daemon that listens there is called from its own process."""
    host, _, port = listens_on.rpartition(":")
    return f"{ {'0.0.0.0': '127.0.0.1', '[::]': '[::1]'}.get(host, host) }:{port}"  # noqa: S104 - compared, not bound


def in_words(addresses: dict[str, str]) -> str:
    return " and ".join(f"{kind} on {address}" for kind, address in addresses.items())
