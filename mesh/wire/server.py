"""The gRPC server of a node: translates calls into `NodeHandlers` and their errors into statuses.

No meaning lives here. Edge and Results are served on raw bytes, everything else on generated
messages. Binding is checked: a busy port is a `ListenError`, never a silent second listener.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Protocol
from urllib.parse import unquote

import grpc

from mesh.core.fleet import Capabilities, Link, Peer
from mesh.core.ids import DeploymentName, NodeId, Sha256, check_name, check_node_id
from mesh.core.measurement import EnergyReading, SourceReport, SourceRequest, StageTrace
from mesh.core.messages import Message
from mesh.core.plan import Deployment, Fence
from mesh.core.report import DeploymentReport, Echo, MeasuredModel, ModelProfile
from mesh.errors import ListenError, ProtocolViolation
from mesh.packing import Piece
from mesh.v1 import node_pb2, node_pb2_grpc
from mesh.wire import convert, convert_measurement
from mesh.wire.door_checks import check_address, check_number
from mesh.wire.ended_calls import await_ended_calls
from mesh.wire.frame_codec import FrameAssembler
from mesh.wire.links import AcceptedLink
from mesh.wire.options import SERVER_OPTIONS
from mesh.wire.status import answer_errors
from mesh.wire.stream_codec import (
    decode_edge_request,
    decode_results_request,
    encode_edge_response,
    encode_results_response,
)


class NodeHandlers(Protocol):
    """What a node answers; see `mesh.runtime.node_service`."""

    async def get_capabilities(self) -> Capabilities: ...
    async def introduced(self) -> Sequence[Peer]: ...
    async def introduce(self, node_id: NodeId, name: str, address: str) -> None: ...
    async def list_deployments(self, name: str) -> tuple[Sequence[DeploymentReport], int]: ...
    async def prepare(self, deployment: Deployment) -> float: ...
    async def activate(self, name: DeploymentName, fence: Fence) -> None: ...
    async def drain(self, name: DeploymentName, fence: Fence) -> None: ...
    async def measure_link(self, address: str) -> Link: ...
    async def echo(self, payload: bytes) -> Echo: ...
    async def measure_model(self, sha256: str, budget_seconds: float) -> MeasuredModel: ...
    async def profile_model(self, sha256: str, parts: Sequence[str], budget_seconds: float) -> ModelProfile: ...
    async def run_source(self, name: DeploymentName, fence: Fence, request: SourceRequest) -> SourceReport: ...
    async def read_clocks(self) -> tuple[float, float]: ...
    async def read_energy(self) -> EnergyReading: ...
    def trace_stage(
        self, name: DeploymentName, fence: Fence, stage: int, seconds: float
    ) -> AsyncGenerator[StageTrace, None]: ...
    async def has_content(self, digests: Sequence[str]) -> list[Sha256]: ...
    async def put_content(self, sha256: str, total_bytes: int, chunks: AsyncIterator[bytes]) -> None: ...
    def get_content(self, sha256: str, may_pack: bool) -> AsyncIterator[tuple[int, Piece]]: ...
    async def fetch_content(self, digests: Sequence[str], addresses: Sequence[str]) -> None: ...
    async def serve_edge(self, link: Any, peer: str) -> None: ...
    async def serve_results(self, link: Any, peer: str) -> None: ...


async def bind(server: grpc.aio.Server, listen: str, credentials: grpc.ServerCredentials | None) -> str:
    """Bind and return the address with its real port; raises `ListenError`."""
    host, _, _ = listen.rpartition(":")
    try:
        add = (
            server.add_insecure_port
            if credentials is None
            else partial(server.add_secure_port, server_credentials=credentials)
        )
        port = add(listen)
    except RuntimeError:
        port = 0
    if port == 0:
        raise ListenError(
            f"cannot listen on {listen}: the port is taken or the address is not this machine's",
            hint="choose another with --listen HOST:PORT; port 0 takes any free one",
        )
    return f"{host}:{port}"


class NodeServer:
    """One server with all services of a node."""

    def __init__(self, handlers: NodeHandlers, credentials: grpc.ServerCredentials | None = None) -> None:
        self._handlers = handlers
        self._credentials = credentials
        self._server: grpc.aio.Server | None = None

    async def start(self, listen: str) -> str:
        """Listen; returns "host:port" with the port that was bound. Raises `ListenError`."""
        self._server = grpc.aio.server(options=SERVER_OPTIONS)
        node_pb2_grpc.add_NodeServiceServicer_to_server(_NodeServicer(self._handlers), self._server)
        node_pb2_grpc.add_ContentServiceServicer_to_server(_ContentServicer(self._handlers), self._server)
        streams: dict[str, Any] = {
            "Edge": grpc.stream_stream_rpc_method_handler(self._serve_edge),
            "Results": grpc.stream_stream_rpc_method_handler(self._serve_results),
        }
        self._server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("mesh.v1.StreamService", streams)])
        address = await bind(self._server, listen, self._credentials)
        await self._server.start()
        return address

    async def stop(self, grace_s: float) -> None:
        if self._server is not None:
            await self._server.stop(grace_s)
            await await_ended_calls()

    async def _serve_edge(self, requests: object, context: Any) -> None:
        link = AcceptedLink(context, encode_edge_response, decode_edge_request)
        await _serve(context, self._handlers.serve_edge(link, context.peer()))

    async def _serve_results(self, requests: object, context: Any) -> None:
        link = AcceptedLink(context, encode_results_response, _decode_results_request)
        await _serve(context, self._handlers.serve_results(link, context.peer()))


def _decode_results_request(data: bytes, assembler: FrameAssembler | None) -> tuple[Message]:
    return (decode_results_request(data),)


async def _serve(context: Any, work: Awaitable[None]) -> None:
    async with answer_errors(context):
        await work


Unary = Callable[[Any, Any, Any], Awaitable[Any]]


def _translated(method: Unary) -> Unary:
    """A unary handler whose `MeshError`s become the call's status."""

    async def handle(self: Any, request: Any, context: Any) -> Any:
        async with answer_errors(context):
            return await method(self, request, context)

    return handle


def _address_of_caller(peer: str, port: int) -> str:
    """Where a caller listens: the host that it calls from ("ipv4:10.0.0.7:4711", "ipv6:[::1]:4711") and its port."""
    family, _, address = peer.partition(":")
    host, _, _ = unquote(address).rpartition(":")
    if family not in ("ipv4", "ipv6") or not host or not 0 < port < 1 << 16:
        raise ProtocolViolation(f"a node cannot be reached at {peer[:80]!r}, port {port}")
    return f"{host}:{port}"


def _key(request: Any) -> tuple[DeploymentName, Fence]:
    name = DeploymentName(check_name(request.name, "deployment"))
    return name, Fence(request.term, request.generation)


class _NodeServicer(node_pb2_grpc.NodeServiceServicer):
    def __init__(self, handlers: NodeHandlers) -> None:
        self._handlers = handlers

    @_translated
    async def GetCapabilities(self, request: Any, context: Any) -> Any:
        capabilities = convert.capabilities_to_proto(await self._handlers.get_capabilities())
        introduced = [convert.introduced_to_proto(peer) for peer in await self._handlers.introduced()]
        return node_pb2.GetCapabilitiesResponse(capabilities=capabilities, introduced=introduced)

    @_translated
    async def Introduce(self, request: Any, context: Any) -> Any:
        node_id = check_node_id(request.node_id)
        check_name(request.name, "node")
        await self._handlers.introduce(node_id, request.name, _address_of_caller(context.peer(), request.port))
        return node_pb2.IntroduceResponse()

    @_translated
    async def ListDeployments(self, request: Any, context: Any) -> Any:
        reports, highest_term = await self._handlers.list_deployments(request.name)
        return node_pb2.ListDeploymentsResponse(
            deployments=[convert.report_to_proto(report) for report in reports], highest_term=highest_term
        )

    @_translated
    async def Prepare(self, request: Any, context: Any) -> Any:
        seconds = await self._handlers.prepare(convert.deployment_from_proto(request.deployment))
        return node_pb2.PrepareResponse(load_seconds=seconds)

    @_translated
    async def Activate(self, request: Any, context: Any) -> Any:
        await self._handlers.activate(*_key(request))
        return node_pb2.ActivateResponse()

    @_translated
    async def Drain(self, request: Any, context: Any) -> Any:
        await self._handlers.drain(*_key(request))
        return node_pb2.DrainResponse()

    @_translated
    async def MeasureLink(self, request: Any, context: Any) -> Any:
        return convert.link_to_proto(await self._handlers.measure_link(request.address))

    @_translated
    async def Echo(self, request: Any, context: Any) -> Any:
        echo = await self._handlers.echo(request.payload)
        return node_pb2.EchoResponse(received_bytes=echo.received_bytes, process_seconds=echo.process_seconds)

    @_translated
    async def MeasureModel(self, request: Any, context: Any) -> Any:
        measured = await self._handlers.measure_model(request.sha256, request.budget_seconds)
        return node_pb2.MeasureModelResponse(run_seconds=measured.run_seconds, runs=measured.runs)

    @_translated
    async def ProfileModel(self, request: Any, context: Any) -> Any:
        profile = await self._handlers.profile_model(request.sha256, list(request.parts), request.budget_seconds)
        return convert_measurement.profile_to_proto(profile)

    @_translated
    async def RunSource(self, request: Any, context: Any) -> Any:
        report = await self._handlers.run_source(*convert_measurement.source_request_from_proto(request))
        return convert_measurement.source_report_to_proto(report)

    @_translated
    async def ReadClock(self, request: Any, context: Any) -> Any:
        monotonic, unix = await self._handlers.read_clocks()
        return node_pb2.ReadClockResponse(monotonic_seconds=monotonic, unix_seconds=unix)

    @_translated
    async def ReadEnergy(self, request: Any, context: Any) -> Any:
        return convert_measurement.energy_to_proto(await self._handlers.read_energy())

    async def TraceStage(self, request: Any, context: Any) -> AsyncIterator[Any]:
        async with answer_errors(context):
            seconds = check_number(request.seconds, "seconds")
            async with contextlib.aclosing(
                self._handlers.trace_stage(*_key(request), request.stage, seconds)
            ) as traces:
                async for trace in traces:
                    yield convert_measurement.trace_to_proto(trace)


class _ContentServicer(node_pb2_grpc.ContentServiceServicer):
    def __init__(self, handlers: NodeHandlers) -> None:
        self._handlers = handlers

    @_translated
    async def HasContent(self, request: Any, context: Any) -> Any:
        return node_pb2.HasContentResponse(sha256=await self._handlers.has_content(list(request.sha256)))

    @_translated
    async def PutContent(self, requests: Any, context: Any) -> Any:
        iterator = aiter(requests)
        first = await anext(iterator, None)
        if first is None:
            raise ProtocolViolation("content was announced and none came")

        async def chunks() -> AsyncIterator[bytes]:
            yield Piece(first.chunk, first.unpacked_bytes).unpack()
            async for request in iterator:
                yield Piece(request.chunk, request.unpacked_bytes).unpack()

        await self._handlers.put_content(first.sha256, first.total_bytes, chunks())
        return node_pb2.PutContentResponse()

    async def GetContent(self, request: Any, context: Any) -> AsyncIterator[Any]:
        async with answer_errors(context):
            async for total_bytes, piece in self._handlers.get_content(request.sha256, request.accepts_packed):
                yield node_pb2.GetContentResponse(
                    total_bytes=total_bytes, unpacked_bytes=piece.plain_bytes, chunk=piece.data
                )

    async def FetchContent(self, request: Any, context: Any) -> Any:
        async with answer_errors(context):
            addresses = [check_address(address, "addresses") for address in request.addresses]
            await self._handlers.fetch_content(list(request.sha256), addresses)
            return node_pb2.FetchContentResponse()
