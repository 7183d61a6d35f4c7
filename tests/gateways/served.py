"""Both servers of the Open Inference Protocol on loopback, before a played mesh."""

from __future__ import annotations

import asyncio
import http.client
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import grpc
import pytest

from mesh.core.tensor import Tensor
from mesh.gateways.http_server import HttpServer
from mesh.gateways.inference import InferenceGateway
from mesh.gateways.oip_grpc import OipGrpcServer
from mesh.gateways.oip_rest import OipRest
from mesh.gateways.public_messages import SERVICE, message_class, method_types
from mesh.gateways.repository import ModelRepository
from mesh.runtime.supervise import Supervisor
from tests.gateways.played_mesh import PlayedMesh
from tests.runtime.fake_models import spec

ModelInferRequest = message_class("ModelInferRequest")


@dataclass
class Served:
    mesh: PlayedMesh
    grpc: str
    http: str
    channel: grpc.aio.Channel

    async def call(self, method: str, /, timeout: float | None = 10, **fields: Any) -> Any:
        request, response = method_types()[method]
        call = self.channel.unary_unary(
            f"/{SERVICE}/{method}",
            request_serializer=request.SerializeToString,
            response_deserializer=response.FromString,
        )
        return await call(request(**fields), timeout=timeout)

    def stream(self, **options: Any) -> Any:
        request, response = method_types()["ModelStreamInfer"]
        return self.channel.stream_stream(
            f"/{SERVICE}/ModelStreamInfer",
            request_serializer=request.SerializeToString,
            response_deserializer=response.FromString,
        )(**options)

    async def fetch(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> tuple[int, bytes, dict[str, str]]:
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()

        def work() -> tuple[int, bytes, dict[str, str]]:
            connection = http.client.HTTPConnection(self.http, timeout=10)
            try:
                connection.request(method, path, data, headers or {})
                response = connection.getresponse()
                return response.status, response.read(), dict(response.getheaders())
            finally:
                connection.close()

        return await asyncio.to_thread(work)


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    async with Supervisor() as tasks:
        mesh = PlayedMesh(tasks)
        mesh.put("echo", [spec("x")], [spec("y")])
        gateway = InferenceGateway(mesh, ModelRepository(None, True))
        grpc_server, http_server = OipGrpcServer(gateway, tasks), HttpServer(OipRest(gateway).application(), tasks)
        try:
            addresses = await grpc_server.start("127.0.0.1:0"), await http_server.start("127.0.0.1:0")
            async with grpc.aio.insecure_channel(addresses[0]) as channel:
                yield Served(mesh, *addresses, channel)
        finally:
            await http_server.stop()
            await grpc_server.stop(0)


def request_for(tensor: Tensor, **more: Any) -> dict[str, Any]:
    entry = {"name": "x", "datatype": "FP32", "shape": tensor.shape}
    return {"model_name": "echo", "inputs": [entry], "raw_input_contents": [bytes(tensor.data)], **more}
