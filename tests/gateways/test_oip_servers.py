"""Both servers on loopback before a played mesh: what a client of the protocol sees, and what errors become."""

from __future__ import annotations

import asyncio
import base64
import json
import socket
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from mesh.errors import EngineQuarantined, Infeasible, ListenError, MeshError, NodeLost, Overloaded, RunFailed, Timeout
from mesh.gateways import oip_rest
from mesh.gateways.http_server import HttpServer
from mesh.gateways.inference import InferenceGateway
from mesh.gateways.oip_grpc import OipGrpcServer
from mesh.gateways.oip_rest import OipRest
from mesh.gateways.public_messages import SERVICE, method_types
from mesh.gateways.repository import ModelRepository
from tests.gateways.served import ModelInferRequest, Served, request_for
from tests.runtime.fake_models import vector


async def test_a_request_is_answered_over_grpc(served: Served) -> None:
    response = await served.call("ModelInfer", **request_for(vector(1, 2), id="seven"))
    assert (response.model_name, response.model_version, response.id) == ("echo", "1", "seven")
    assert list(response.raw_output_contents) == [bytes(vector(1, 2).data)]


async def test_a_request_is_answered_over_http(served: Served) -> None:
    entry = {"name": "x", "datatype": "FP32", "shape": [2], "data": [1, 2.5]}
    status, body, _ = await served.fetch("POST", "/v2/models/echo/infer", {"id": "seven", "inputs": [entry]})
    assert status == 200
    assert json.loads(body) == {
        "model_name": "echo",
        "model_version": "1",
        "id": "seven",
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [2], "data": [1.0, 2.5]}],
    }


async def test_a_large_binary_request_is_answered_over_http(served: Served) -> None:
    payload = bytes(range(256)) * 4096
    entry = {
        "name": "x",
        "datatype": "FP32",
        "shape": [len(payload) // 4],
        "parameters": {"binary_data_size": len(payload)},
    }
    head = json.dumps({"inputs": [entry], "outputs": [{"name": "y", "parameters": {"binary_data": True}}]}).encode()
    header = "Inference-Header-Content-Length"
    status, body, headers = await served.fetch(
        "POST", "/v2/models/echo/versions/1/infer", head + payload, {header: str(len(head))}
    )
    length = int({name.lower(): value for name, value in headers.items()}[header.lower()])
    assert status == 200
    assert body[length:] == payload
    assert json.loads(body[:length])["outputs"][0]["parameters"] == {"binary_data_size": len(payload)}


async def test_the_mesh_and_its_models_are_described(served: Served) -> None:
    assert (await served.call("ServerLive")).live
    assert not (await served.call("ServerReady")).ready, "no node answers"
    assert (await served.call("ModelReady", name="echo")).ready
    assert not (await served.call("ModelReady", name="none")).ready
    assert (await served.call("ServerMetadata")).name == "infermesh"
    assert [entry.name for entry in (await served.call("ModelMetadata", name="echo")).inputs] == ["x"]
    assert (await served.call("ModelConfig", name="echo")).config.platform == "onnxruntime_onnx"
    assert [entry.state for entry in (await served.call("RepositoryIndex")).models] == ["READY"]
    await served.call("ModelInfer", **request_for(vector(1)))
    (counted,) = (await served.call("ModelStatistics", name="echo")).model_stats
    assert (counted.inference_count, counted.inference_stats.success.count) == (1, 1)
    for path, status in (
        ("/v2", 200),
        ("/v2/health/live", 200),
        ("/v2/health/ready", 503),
        ("/v2/models/echo", 200),
        ("/v2/models/echo/ready", 200),
        ("/v2/models/echo/config", 200),
        ("/v2/models/echo/stats", 200),
        ("/v2/models/stats", 200),
        ("/v2/models/none", 404),
        ("/v2/models/none/ready", 503),
        ("/v2/models/echo/versions/2", 404),
        ("/v3", 404),
        ("/v2/models/echo/infer", 405),
    ):
        found, body, _ = await served.fetch("GET", path)
        assert found == status, path
        assert ("error" in json.loads(body)) == (status in (404, 405)), path


async def test_a_model_is_loaded_and_unloaded(served: Served) -> None:
    files = {"file:1/model.onnx": {"bytes_param": b"model"}, "config": {"string_param": "{}"}}
    await served.call("RepositoryModelLoad", model_name="new", parameters=files)
    encoded = base64.b64encode(b"other").decode()
    load = {"parameters": {"file:1/model.onnx": encoded, "config": "{}"}}
    status, _, _ = await served.fetch("POST", "/v2/repository/models/more/load", load)
    assert status == 200
    assert served.mesh.uploads == [b"model", b"other"]
    _, body, _ = await served.fetch("POST", "/v2/repository/index")
    assert [entry["name"] for entry in json.loads(body)] == ["echo", "more", "new"]
    await served.call("RepositoryModelUnload", model_name="new")
    status, _, _ = await served.fetch("POST", "/v2/repository/models/more/unload")
    assert (status, list(served.mesh.deployments)) == (200, ["echo"])


async def test_uploads_that_make_no_sense_are_refused(served: Served) -> None:
    for parameters in ({"file:1/model.onnx": {"string_param": "x"}}, {"other": {"bool_param": True}}):
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            await served.call("RepositoryModelLoad", model_name="new", parameters=parameters)
        assert refusal.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    for told in ({"file:1/model.onnx": "%"}, {"file:1/model.onnx": 3}, {"other": "x"}, []):
        status, _, _ = await served.fetch("POST", "/v2/repository/models/new/load", {"parameters": told})
        assert status == 400
    assert not served.mesh.uploads


ERRORS: list[tuple[MeshError, grpc.StatusCode, int]] = [
    (RunFailed("r"), grpc.StatusCode.INTERNAL, 500),
    (NodeLost("r"), grpc.StatusCode.UNAVAILABLE, 503),
    (EngineQuarantined("r"), grpc.StatusCode.UNAVAILABLE, 503),
    (Infeasible("r"), grpc.StatusCode.UNAVAILABLE, 503),
    (Overloaded("r"), grpc.StatusCode.RESOURCE_EXHAUSTED, 429),
    (Timeout("r"), grpc.StatusCode.DEADLINE_EXCEEDED, 504),
]


@pytest.mark.parametrize(("error", "code", "status"), ERRORS, ids=lambda value: type(value).__name__)
async def test_errors_have_the_protocols_status(
    served: Served, error: MeshError, code: grpc.StatusCode, status: int
) -> None:
    served.mesh.compute = lambda tensors: error
    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        await served.call("ModelInfer", **request_for(vector(1)))
    assert (refusal.value.code(), refusal.value.details()) == (code, "r")
    entry = {"name": "x", "datatype": "FP32", "shape": [1], "data": [1]}
    found, body, _ = await served.fetch("POST", "/v2/models/echo/infer", {"inputs": [entry]})
    assert (found, json.loads(body)) == (status, {"error": "r"})


async def test_an_unknown_model_is_not_found_and_a_bad_request_invalid(served: Served) -> None:
    for change, code in (
        ({"model_name": "none"}, grpc.StatusCode.NOT_FOUND),
        ({"model_version": "3"}, grpc.StatusCode.NOT_FOUND),
        ({"raw_input_contents": [b"abc"]}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"outputs": [{"name": "z"}]}, grpc.StatusCode.INVALID_ARGUMENT),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            await served.call("ModelInfer", **{**request_for(vector(1)), **change})
        assert refusal.value.code() is code
    for body, status in ((b"{", 400), (b"{}", 400), (b'{"inputs":[]}', 400)):
        found, _, _ = await served.fetch("POST", "/v2/models/echo/infer", body)
        assert found == status


async def test_extensions_that_are_not_served_are_unimplemented(served: Served) -> None:
    method = served.channel.unary_unary(f"/{SERVICE}/TraceSetting")
    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        await method(b"")
    assert refusal.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_the_callers_deadline_holds_and_frees_the_place(served: Served) -> None:
    served.mesh.gate.clear()
    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        await served.call("ModelInfer", timeout=0.2, **request_for(vector(1)))
    assert refusal.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    timeout = {"timeout": {"int64_param": 1000}}
    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        await served.call("ModelInfer", **request_for(vector(1), parameters=timeout))
    assert refusal.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    served.mesh.gate.set()
    await served.call("ModelInfer", **request_for(vector(1)))


async def test_what_nobody_meant_to_raise_is_told_by_an_id_and_the_gateway_goes_on(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    await served.call("ModelInfer", **request_for(vector(1)))

    def fail(tensors: object) -> Any:
        raise ZeroDivisionError("secret")

    served.mesh.streams[0].compute = fail
    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        await served.call("ModelInfer", **request_for(vector(1)))
    assert refusal.value.code() is grpc.StatusCode.INTERNAL
    assert "secret" not in str(refusal.value.details())
    assert "secret" in caplog.text
    entry = {"name": "x", "datatype": "FP32", "shape": [1], "data": [1]}
    status, body, _ = await served.fetch("POST", "/v2/models/echo/infer", {"inputs": [entry]})
    assert status == 500
    assert b"internal error" in body
    stream = served.stream()
    await stream.write(ModelInferRequest(**request_for(vector(1))))
    assert "internal error" in (await stream.read()).error_message
    await stream.done_writing()
    assert await stream.read() is grpc.aio.EOF
    assert (await served.call("ServerLive")).live


TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


async def test_the_trace_context_goes_with_the_frame(served: Served) -> None:
    entry = {"name": "x", "datatype": "FP32", "shape": [1], "data": [1]}
    body = {"inputs": [entry]}
    for sent in (TRACE, TRACE.upper(), "00-" + "0" * 32 + TRACE[35:]):
        await served.fetch("POST", "/v2/models/echo/infer", body, {"traceparent": sent})
    request, response = method_types()["ModelInfer"]
    method = served.channel.unary_unary(
        f"/{SERVICE}/ModelInfer",
        request_serializer=request.SerializeToString,
        response_deserializer=response.FromString,
    )
    await method(request(**request_for(vector(1))), metadata=(("traceparent", TRACE),))
    stream = served.stream(metadata=(("traceparent", TRACE),))
    await stream.write(request(**request_for(vector(1))))
    await stream.read()
    await stream.done_writing()
    assert await stream.read() is grpc.aio.EOF
    assert served.mesh.streams[0].traceparents == [TRACE, "", "", TRACE, TRACE], "a broken one counts as none"


# The doors ----------------------------------------------------------------------------------------


async def test_bodies_beyond_the_limits_are_refused(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oip_rest, "MAX_BODY_BYTES", 100)
    status, body, _ = await served.fetch("POST", "/v2/models/echo/infer", b" " * 101)
    assert (status, "larger than" in json.loads(body)["error"]) == (413, True)
    monkeypatch.setattr(oip_rest, "MAX_BODIES_BYTES", 50)
    status, body, _ = await served.fetch("POST", "/v2/models/echo/infer", b" " * 60)
    assert (status, "too many large requests" in json.loads(body)["error"]) == (429, True)
    status, _, _ = await served.fetch("POST", "/v2/models/echo/infer", b"", {"Content-Encoding": "gzip"})
    assert status == 415
    entry = {"name": "x", "datatype": "FP32", "shape": [1], "data": [1]}
    monkeypatch.undo()
    status, _, _ = await served.fetch("POST", "/v2/models/echo/infer", {"inputs": [entry]})
    assert status == 200


async def test_who_comes_at_once_is_served(served: Served) -> None:
    gateway = InferenceGateway(served.mesh, ModelRepository(None, False))
    server = HttpServer(OipRest(gateway).application(), served.mesh.tasks)
    host, _, port = (await server.start("127.0.0.1:0")).rpartition(":")
    with socket.create_connection((host, int(port)), timeout=10) as early:  # before the loop has turned once
        early.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n")
        early.settimeout(10)
        assert (await asyncio.to_thread(early.recv, 15)) == b"HTTP/1.1 200 OK"
    await server.stop()


async def test_a_port_that_is_taken_is_told(served: Served) -> None:
    gateway = InferenceGateway(served.mesh, ModelRepository(None, False))
    with pytest.raises(ListenError, match="cannot listen"):
        await HttpServer(OipRest(gateway).application(), served.mesh.tasks).start(served.http)
    other = OipGrpcServer(gateway, served.mesh.tasks)
    with pytest.raises(ListenError, match="cannot listen"):
        await other.start(served.grpc)
    await other.stop(0)


async def test_health_and_reflection_answer(served: Served) -> None:
    check = served.channel.unary_unary(
        "/grpc.health.v1.Health/Check",
        request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
        response_deserializer=health_pb2.HealthCheckResponse.FromString,
    )
    for service in ("", SERVICE):
        assert (await check(health_pb2.HealthCheckRequest(service=service))).status == 1
    reflect = served.channel.stream_stream(
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )()
    await reflect.write(reflection_pb2.ServerReflectionRequest(list_services=""))
    listed = (await reflect.read()).list_services_response
    assert SERVICE in [service.name for service in listed.service]
    await reflect.write(reflection_pb2.ServerReflectionRequest(file_containing_symbol=SERVICE))
    assert (await reflect.read()).file_descriptor_response.file_descriptor_proto
    await reflect.done_writing()
    assert await reflect.read() is grpc.aio.EOF


def test_the_protocols_names_stay_out_of_the_default_pool() -> None:
    """Else no process could import this package beside another one that speaks the protocol."""
    from google.protobuf import descriptor_pool

    with pytest.raises(KeyError):
        descriptor_pool.Default().FindMessageTypeByName("inference.ModelInferRequest")
