"""What no client of the protocol sends: each is refused with a status, and the gateway answers the next request."""

from __future__ import annotations

import asyncio
import contextlib
import random
import select
import socket
from typing import Any

import grpc
import pytest

from mesh.gateways import http_server, oip_grpc, oip_rest
from mesh.gateways.inference import InferenceGateway
from mesh.gateways.public_messages import SERVICE
from mesh.gateways.repository import ModelRepository
from tests.gateways.served import ModelInferRequest, Served, request_for
from tests.runtime.fake_models import vector

MEBIBYTE = 1 << 20
NOISE = random.Random(7).randbytes(4096)


def delimited(field: int, data: bytes) -> bytes:
    """A field of bytes in protobuf's encoding."""
    return varint(field << 3 | 2) + varint(len(data)) + data


def varint(value: int) -> bytes:
    out = b""
    while value > 0x7F:
        out, value = out + bytes([value & 0x7F | 0x80]), value >> 7
    return out + bytes([value])


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\x04" + bytes(5)
"""What a client of HTTP/2 says first, with settings that are empty (RFC 9113, section 3.4)."""

GOOD = ModelInferRequest(**request_for(vector(1))).SerializeToString()
NESTED = b""
for _ in range(600):
    NESTED = delimited(4, delimited(2, NESTED))  # parameters within parameters, as no message has them

BAD: dict[str, tuple[bytes, set[grpc.StatusCode]]] = {
    "random bytes": (NOISE, {grpc.StatusCode.INVALID_ARGUMENT}),
    "cut in half": (GOOD[: len(GOOD) // 2], {grpc.StatusCode.INVALID_ARGUMENT}),
    "empty": (b"", {grpc.StatusCode.NOT_FOUND}),
    "empty items by the hundred thousand": (GOOD + delimited(5, b"") * 300_000, {grpc.StatusCode.INVALID_ARGUMENT}),
    "nested 600 deep, in fields that nobody reads": (GOOD + NESTED, set()),
    "a length beyond the message": (
        delimited(1, b"echo") + b"\x12" + varint(1 << 31),
        {grpc.StatusCode.INVALID_ARGUMENT},
    ),
    "text that is none": (delimited(1, b"\xff\xfe"), {grpc.StatusCode.INVALID_ARGUMENT}),
    "a name of a megabyte": (delimited(1, b"a" * MEBIBYTE), {grpc.StatusCode.NOT_FOUND}),
    "unknown fields of a megabyte": (GOOD + delimited(900, bytes(MEBIBYTE)), set()),
}


async def call_raw(served: Served, data: bytes, **options: Any) -> grpc.StatusCode:
    """The status of a `ModelInfer` with these bytes."""
    try:
        await served.channel.unary_unary(f"/{SERVICE}/ModelInfer")(data, timeout=10, **options)
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


async def still_answers(served: Served) -> None:
    await served.call("ModelInfer", **request_for(vector(1)))
    assert (await served.fetch("GET", "/v2/health/live"))[0] == 200


@pytest.mark.parametrize("name", BAD)
async def test_bytes_that_are_no_request_are_refused(served: Served, name: str) -> None:
    data, codes = BAD[name]
    assert await call_raw(served, data) in (codes or {grpc.StatusCode.OK})
    await still_answers(served)


async def test_a_stream_of_bytes_that_are_no_request_ends(served: Served) -> None:
    stream = served.channel.stream_stream(f"/{SERVICE}/ModelStreamInfer")()
    await stream.write(GOOD)
    await stream.read()
    await stream.write(delimited(1, b"\xff\xfe"))
    assert await stream.code() is grpc.StatusCode.INVALID_ARGUMENT
    await still_answers(served)


async def test_a_message_above_the_limit_is_refused_packed_or_not(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(oip_grpc, "MAX_MESSAGE_BYTES", MEBIBYTE)
    server = oip_grpc.OipGrpcServer(served_gateway(served), served.mesh.tasks)
    address = await server.start("127.0.0.1:0")
    async with grpc.aio.insecure_channel(address) as channel:
        method = channel.unary_unary(f"/{SERVICE}/ModelInfer")
        for options in ({}, {"compression": grpc.Compression.Gzip}):  # packed it is a thousandth of that
            with pytest.raises(grpc.aio.AioRpcError) as refusal:
                await method(GOOD + delimited(900, bytes(MEBIBYTE)), timeout=10, **options)
            assert refusal.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert await method(GOOD, timeout=10)
    await server.stop(0)


def served_gateway(served: Served) -> Any:
    from mesh.gateways.inference import InferenceGateway
    from mesh.gateways.repository import ModelRepository

    return InferenceGateway(served.mesh, ModelRepository(None, False))


async def test_metadata_of_a_megabyte_is_refused(served: Served) -> None:
    code = await call_raw(served, GOOD, metadata=(("x", "a" * MEBIBYTE),))
    assert code in (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.INTERNAL, grpc.StatusCode.UNAVAILABLE)
    await still_answers(served)


@pytest.mark.parametrize("microseconds", [0, -1, 1 << 62, (1 << 63) - 1])
async def test_times_that_make_no_sense(served: Served, microseconds: int) -> None:
    message = ModelInferRequest(**request_for(vector(1), parameters={"timeout": {"int64_param": microseconds}}))
    code = await call_raw(served, message.SerializeToString())
    assert code is (grpc.StatusCode.INVALID_ARGUMENT if microseconds < 0 else grpc.StatusCode.OK)


async def test_calls_that_are_opened_and_given_up(served: Served) -> None:
    for _ in range(300):
        served.stream().cancel()
        served.channel.unary_unary(f"/{SERVICE}/ModelInfer")(GOOD).cancel()
    await still_answers(served)


async def test_who_hangs_up_within_a_body_leaves_no_trace_in_the_log(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    host, _, port = served.http.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=10) as link:
        link.sendall(b"POST /v2/models/echo/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{")
        await still_answers(served)  # by now the request is being read
    for _ in range(3):
        await still_answers(served)
    assert not caplog.records


async def test_a_body_that_does_not_go_on_gives_back_what_it_held(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(oip_rest, "SILENCE_LIMIT_S", 0.05)
    host, _, port = served.http.rpartition(":")

    def talk() -> bytes:
        with socket.create_connection((host, int(port)), timeout=10) as link:
            link.sendall(b"POST /v2/models/echo/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{")
            return b"".join(iter(lambda: link.recv(65536), b""))  # until it is closed

    said = await asyncio.to_thread(talk)
    assert b"408" in said and b"nothing came of the body" in said
    monkeypatch.undo()
    await still_answers(served)


def connect_to(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    return socket.create_connection((host, int(port)), timeout=10)


async def test_connections_that_say_nothing_shut_nobody_out(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "MAX_CONNECTIONS", 3)
    monkeypatch.setattr(http_server, "QUIET_LEAST_S", 0.0)
    with contextlib.ExitStack() as stack:
        silent = [stack.enter_context(connect_to(served.http)) for _ in range(3)]
        assert (await served.fetch("GET", "/v2/health/live"))[0] == 200
        assert await asyncio.to_thread(silent[0].recv, 1) == b"", "the first has made room"
        monkeypatch.setattr(http_server, "QUIET_LEAST_S", 1000.0)
        late = [stack.enter_context(connect_to(served.http)) for _ in range(3)]
        shut, _, _ = await asyncio.to_thread(select.select, late, [], [], 10)
        assert shut and shut[0].recv(1) == b"", "nobody was quiet for long enough to make room"
        silent[2].sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await asyncio.to_thread(silent[2].recv, 15)) == b"HTTP/1.1 200 OK"


async def test_a_grpc_client_that_is_lost_without_a_word_is_given_up(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(oip_grpc, "KEEPALIVE_MS", 1000)
    monkeypatch.setattr(oip_grpc, "KEEPALIVE_TIMEOUT_MS", 100)
    server = oip_grpc.OipGrpcServer(InferenceGateway(served.mesh, ModelRepository(None, False)), served.mesh.tasks)
    host, _, port = (await server.start("127.0.0.1:0")).rpartition(":")

    def talk() -> bool:
        with socket.create_connection((host, int(port)), timeout=50) as link:
            link.sendall(PREFACE)
            return link.recv(65536) != b"" and b"" in iter(lambda: link.recv(65536), None)

    assert await asyncio.to_thread(talk)
    await server.stop(0)


@pytest.mark.parametrize(
    "data",
    [
        NOISE,
        b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * 100_000,
        b"POST /v2/models/echo/infer HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST /v2/models/echo/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\nzz",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + NOISE[:100],
    ],
    ids=["random", "headers without end", "negative length", "two lengths", "another protocol"],
)
async def test_bytes_that_are_no_http_end_their_connection_alone(served: Served, data: bytes) -> None:
    for address in (served.http, served.grpc):
        host, _, port = address.rpartition(":")

        def talk(place: tuple[str, int] = (host, int(port))) -> bytes:
            with socket.create_connection(place, timeout=10) as link:
                try:
                    link.sendall(data)
                    link.shutdown(socket.SHUT_WR)
                    return link.recv(65536)
                except OSError:  # it has hung up already, at whatever moment
                    return b""

        said = await asyncio.to_thread(talk)
        assert b"200 OK" not in said
    await still_answers(served)


PING = (8).to_bytes(3, "big") + b"\x06" + bytes(5) + b"pingping"
MAX_PINGS = 10_000


async def test_a_flood_of_pings_ends_its_connection(served: Served) -> None:
    """gRPC counts strikes, says GOAWAY and hangs up; else each ping costs a turn and an answer."""

    def flood() -> int:
        with connect_to(served.grpc) as connection:
            connection.sendall(PREFACE)
            for number in range(MAX_PINGS):
                try:
                    connection.sendall(PING)
                    if select.select([connection], [], [], 0)[0] and not connection.recv(MEBIBYTE):
                        return number
                except ConnectionError:
                    return number
        return MAX_PINGS

    assert await asyncio.to_thread(flood) < MAX_PINGS
    await still_answers(served)
