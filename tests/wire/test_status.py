"""Errors across a real gRPC call on the loopback interface, and what becomes of statuses without them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import pytest

from mesh.errors import (
    BY_CODE,
    EngineError,
    MeshError,
    NodeLost,
    NotFound,
    Overloaded,
    Refused,
    StaleGeneration,
    Timeout,
    from_code,
)
from mesh.wire.status import (
    ERROR_METADATA,
    abort,
    answer_errors,
    from_rpc_error,
    status_code_for,
    translate_rpc_errors,
)

Behaviour = Callable[[Any], Awaitable[bytes]]
Call = Callable[[], Awaitable[bytes]]
METHOD = "/mesh.test.Service/Call"


@contextlib.asynccontextmanager
async def serving(behave: Behaviour) -> AsyncIterator[grpc.aio.Channel]:
    """A server with one method that does what `behave` does, within `answer_errors`."""

    async def handle(_: bytes, context: Any) -> bytes:
        async with answer_errors(context):
            return await behave(context)

    server = grpc.aio.server()
    handlers = {"Call": grpc.unary_unary_rpc_method_handler(handle)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("mesh.test.Service", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield channel
    finally:
        await server.stop(None)


async def call_and_fail(behave: Behaviour, method: str = METHOD, timeout: float = 20) -> MeshError:
    async with serving(behave) as channel:
        with pytest.raises(MeshError) as caught, translate_rpc_errors("pi-1"):
            await channel.unary_unary(method)(b"", timeout=timeout)
    return caught.value


def raising(error: BaseException) -> Behaviour:
    async def behave(_: Any) -> bytes:
        raise error

    return behave


async def test_every_error_arrives_as_itself() -> None:
    codes = iter(sorted(BY_CODE))

    async def behave(_: Any) -> bytes:
        raise from_code(next(codes), "größer als 1\nline two", "try this")

    async with serving(behave) as channel:
        for code in sorted(BY_CODE):
            with pytest.raises(MeshError) as caught, translate_rpc_errors("pi-1"):
                await channel.unary_unary(METHOD)(b"")
            assert type(caught.value) is BY_CODE[code]
            assert (caught.value.message, caught.value.hint) == ("größer als 1\nline two", "try this")
            assert isinstance(caught.value.__cause__, grpc.aio.AioRpcError)
            assert caught.value.__cause__.code() is status_code_for(caught.value)


async def test_longest_texts_fit_the_metadata() -> None:
    error = await call_and_fail(raising(Refused("ß" * 10_000, hint="ß" * 10_000)))
    assert type(error) is Refused
    assert set(error.message) == set(error.hint) == {"ß"}


async def test_unexpected_exceptions_keep_their_details_at_home(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        error = await call_and_fail(raising(ValueError("password=hunter2 in /home/user/key")))
    assert type(error) is MeshError
    assert "hunter2" not in str(error) + repr(error.__cause__)
    assert "/home" not in str(error) + repr(error.__cause__)
    (record,) = [record for record in caplog.records if record.name == "mesh.wire.status"]
    assert record.exc_info is not None
    assert "hunter2" in str(record.exc_info[1])
    incident = record.getMessage().split()[-1]
    assert incident in error.message


async def test_answers_pass_untouched() -> None:
    async def behave(_: Any) -> bytes:
        return b"fine"

    async with serving(behave) as channel:
        with translate_rpc_errors("pi-1"):
            assert await channel.unary_unary(METHOD)(b"") == b"fine"


async def test_abort_within_a_handler_is_not_wrapped_again() -> None:
    async def behave(context: Any) -> bytes:
        await abort(context, StaleGeneration("generation 2 is in force"))

    assert type(await call_and_fail(behave)) is StaleGeneration


async def test_unknown_method_hints_at_versions() -> None:
    error = await call_and_fail(raising(AssertionError()), method="/mesh.test.Service/Newer")
    assert type(error) is Refused
    assert "version" in error.hint
    assert error.message.startswith("pi-1 does not know this call")


async def test_deadline_is_a_timeout() -> None:
    entered = asyncio.Event()

    async def behave(_: Any) -> bytes:
        entered.set()
        await asyncio.Event().wait()
        return b""

    assert type(await call_and_fail(behave, timeout=0.2)) is Timeout
    assert entered.is_set()


async def test_peer_that_is_not_there_is_lost() -> None:
    async with grpc.aio.insecure_channel("127.0.0.1:1") as channel:
        with pytest.raises(NodeLost, match=r"^pi-1 cannot be reached"), translate_rpc_errors("pi-1"):
            await channel.unary_unary(METHOD)(b"", timeout=20)


async def test_own_exceptions_pass_the_translation() -> None:
    with pytest.raises(ZeroDivisionError), translate_rpc_errors("pi-1"):
        raise ZeroDivisionError


def rpc_error(code: grpc.StatusCode, details: str | None = None, *metadata: tuple[str, Any]) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(*metadata), details)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (grpc.StatusCode.UNAVAILABLE, NodeLost),
        (grpc.StatusCode.CANCELLED, NodeLost),
        (grpc.StatusCode.DEADLINE_EXCEEDED, Timeout),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, Overloaded),
        (grpc.StatusCode.NOT_FOUND, NotFound),
        (grpc.StatusCode.UNIMPLEMENTED, Refused),
        (grpc.StatusCode.INVALID_ARGUMENT, Refused),
        (grpc.StatusCode.FAILED_PRECONDITION, Refused),
        (grpc.StatusCode.PERMISSION_DENIED, Refused),
        (grpc.StatusCode.UNAUTHENTICATED, Refused),
        (grpc.StatusCode.INTERNAL, MeshError),
        (grpc.StatusCode.UNKNOWN, MeshError),
        (grpc.StatusCode.DATA_LOSS, MeshError),
    ],
)
def test_status_alone_decides_where_nothing_is_attached(code: grpc.StatusCode, expected: type[MeshError]) -> None:
    error = from_rpc_error(rpc_error(code, "some\nreason"), "pi-1")
    assert type(error) is expected
    assert error.message.startswith("pi-1 ")
    assert error.message.endswith(": some reason")


@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK])
def test_every_status_has_a_meaning_without_details(code: grpc.StatusCode) -> None:
    assert "None" not in str(from_rpc_error(rpc_error(code), "pi-1"))


@pytest.mark.parametrize("value", [b"\xff\xff", b"\x0a\x7f", b"x" * 9000, "text", b"\x12\x89\x27" + b"x" * 5001])
def test_broken_metadata_falls_back_to_the_status(value: Any) -> None:
    error = from_rpc_error(rpc_error(grpc.StatusCode.UNAVAILABLE, "gone", (ERROR_METADATA, value)), "pi-1")
    assert type(error) is NodeLost


def test_subclasses_have_the_status_of_the_nearest_class_above() -> None:
    class HotEngine(EngineError):
        pass

    assert status_code_for(HotEngine("x")) is grpc.StatusCode.INTERNAL
    assert status_code_for(StaleGeneration("x")) is grpc.StatusCode.ABORTED
    assert status_code_for(MeshError("x")) is grpc.StatusCode.UNKNOWN
