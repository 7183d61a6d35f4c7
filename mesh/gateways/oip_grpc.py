"""The Open Inference Protocol, version 2, over gRPC: messages to `inference`, its errors to the protocol's statuses.

Serves what the protocol's own clients call, and gRPC's health and reflection services; `oip_stream` has the streams.
Extensions that are not served are answered UNIMPLEMENTED by gRPC itself. One per gateway, started by its command.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2

from mesh import __version__
from mesh.gateways.contract import trace_context
from mesh.gateways.inference import InferenceGateway
from mesh.gateways.oip_messages import (
    config_message,
    message_from_answer,
    metadata_message,
    request_from_message,
    statistics_message,
)
from mesh.gateways.oip_stream import InferenceStream
from mesh.gateways.public_messages import SERVICE, make_pool, method_types, parse_message
from mesh.gateways.repository import load_files
from mesh.gateways.statuses import abort_with
from mesh.runtime.supervise import Supervisor
from mesh.wire.options import MAX_METADATA_BYTES
from mesh.wire.server import bind

EXTENSIONS = ("model_repository", "model_configuration", "statistics", "sequence", "binary_tensor_data", "parameters")

MAX_MESSAGE_BYTES = 256 << 20
"""A request, an answer, or an uploaded model; what is larger can be deployed with `mesh deploy`."""

MAX_CALLS_AT_ONCE = 512
"""Above what `inference` accepts, so that its refusal, which says why, is what callers see first."""

KEEPALIVE_MS = 60_000
KEEPALIVE_TIMEOUT_MS = 20_000
"""A client that the network lost without a word gives its place back; by default that takes two hours."""

PING_INTERVAL_MS = 5_000
"""Clients that ask after us more often are sent away; the default of five minutes sends many away that mean well."""

STREAM_METHOD = "ModelStreamInfer"


class OipGrpcServer:
    """`await start(listen)`, and `stop` in any case."""

    def __init__(self, gateway: InferenceGateway, tasks: Supervisor) -> None:
        self._gateway = gateway
        self._tasks = tasks
        self._server: grpc.aio.Server | None = None

    async def start(self, listen: str, credentials: grpc.ServerCredentials | None = None) -> str:
        """Listen; returns "host:port" with the port that was bound. Raises `ListenError`."""
        self._server = grpc.aio.server(
            maximum_concurrent_rpcs=MAX_CALLS_AT_ONCE,
            options=[
                ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
                ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
                ("grpc.max_metadata_size", MAX_METADATA_BYTES),
                ("grpc.so_reuseport", 0),
                ("grpc.keepalive_time_ms", KEEPALIVE_MS),
                ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
                ("grpc.http2.ping_timeout_ms", KEEPALIVE_TIMEOUT_MS),
                ("grpc.keepalive_permit_without_calls", 1),
                ("grpc.http2.max_pings_without_data", 0),
                ("grpc.http2.min_ping_interval_without_data_ms", PING_INTERVAL_MS),
            ],
        )
        self._server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(SERVICE, self._handlers())])
        servicer = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(servicer, self._server)
        for service in ("", SERVICE):
            await servicer.set(service, health_pb2.HealthCheckResponse.SERVING)
        names = (SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server, pool=_reflected_pool())
        address = await bind(self._server, listen, credentials)
        await self._server.start()
        return address

    async def stop(self, grace_s: float) -> None:
        if self._server is not None:
            await self._server.stop(grace_s)

    def _handlers(self) -> dict[str, grpc.RpcMethodHandler[Any, Any]]:
        handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}
        for name, (request, response) in method_types().items():
            # Requests come as bytes: what is no message is answered in the protocol's way, not by gRPC's own.
            coding = {"response_serializer": response.SerializeToString}
            if name == STREAM_METHOD:
                handlers[name] = grpc.stream_stream_rpc_method_handler(self._stream_infer, **coding)
            else:
                method = _answering(getattr(self, f"_{_snake_case(name)}"), request, response)
                handlers[name] = grpc.unary_unary_rpc_method_handler(method, **coding)
        return handlers

    # Health and metadata --------------------------------------------------------------------------

    async def _server_live(self, request: Any, context: Any) -> dict[str, Any]:
        return {"live": True}

    async def _server_ready(self, request: Any, context: Any) -> dict[str, Any]:
        return {"ready": await self._gateway.is_mesh_ready()}

    async def _model_ready(self, request: Any, context: Any) -> dict[str, Any]:
        return {"ready": await self._gateway.is_ready(request.name, request.version)}

    async def _server_metadata(self, request: Any, context: Any) -> dict[str, Any]:
        return {"name": "infermesh", "version": __version__, "extensions": EXTENSIONS}

    async def _model_metadata(self, request: Any, context: Any) -> Any:
        return metadata_message(await self._gateway.describe(request.name, request.version))

    async def _model_config(self, request: Any, context: Any) -> Any:
        return config_message(await self._gateway.describe(request.name, request.version))

    async def _model_statistics(self, request: Any, context: Any) -> dict[str, Any]:
        counted = await self._gateway.statistics(request.name, request.version)
        return {"model_stats": [statistics_message(name, counters) for name, counters in counted.items()]}

    # The repository -------------------------------------------------------------------------------

    async def _repository_index(self, request: Any, context: Any) -> dict[str, Any]:
        entries = [entry for entry in await self._gateway.index() if not request.ready or entry.state == "READY"]
        return {
            "models": [
                {"name": entry.name, "version": "1", "state": entry.state, "reason": entry.reason} for entry in entries
            ]
        }

    async def _repository_model_load(self, request: Any, context: Any) -> dict[str, Any]:
        def read(parameter: Any) -> bytes | None:
            is_bytes = parameter.WhichOneof("parameter_choice") == "bytes_param"
            return parameter.bytes_param if is_bytes else None

        await self._gateway.load(request.model_name, load_files(request.parameters, read))
        return {}

    async def _repository_model_unload(self, request: Any, context: Any) -> dict[str, Any]:
        await self._gateway.unload(request.model_name)
        return {}

    # Inference ------------------------------------------------------------------------------------

    async def _model_infer(self, request: Any, context: Any) -> Any:
        metadata = dict(context.invocation_metadata() or ())
        traceparent = trace_context(metadata.get("traceparent"))
        answer = await self._gateway.infer(request_from_message(request, context.time_remaining(), traceparent))
        return message_from_answer(answer, request)

    async def _stream_infer(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[Any]:
        async for response in InferenceStream(self._gateway, self._tasks, context).answers(requests):
            yield response


def _answering(
    method: Callable[[Any, Any], Awaitable[Any]], request: Any, response: Any
) -> Callable[[Any, Any], Awaitable[Any]]:
    """`method` with its errors as statuses; what it tells as a mapping becomes a `response`."""

    async def handle(data: bytes, context: Any) -> Any:
        try:
            told = await method(parse_message(request, data), context)
        except Exception as error:
            await abort_with(context, error)
        return response(**told) if isinstance(told, dict) else told

    return handle


def _snake_case(name: str) -> str:
    """ "ModelInfer" as "model_infer"."""
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name).lstrip("_")


def _reflected_pool() -> DescriptorPool:
    """Every service that is served here, in one pool for reflection."""
    pool = make_pool()
    for module in (health_pb2, reflection_pb2):
        pool.AddSerializedFile(module.DESCRIPTOR.serialized_pb)
    return pool
