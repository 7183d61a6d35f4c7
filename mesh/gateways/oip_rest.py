"""The Open Inference Protocol, version 2, over HTTP: JSON and binary tensors to `inference`, its errors to statuses.

A Starlette application. Bodies are bounded one by one and together; what is larger is refused as it comes. One per
gateway, made by its command.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from mesh import __version__
from mesh.errors import Overloaded, UsageError
from mesh.gateways.contract import trace_context
from mesh.gateways.inference import InferenceGateway
from mesh.gateways.oip_grpc import EXTENSIONS
from mesh.gateways.oip_json import (
    body_of_answer,
    config_document,
    json_length,
    metadata_document,
    read_document,
    request_from_document,
    split_body,
    statistics_document,
)
from mesh.gateways.repository import load_files
from mesh.gateways.statuses import http_status_of, line_of, told_of

JSON_LENGTH_HEADER = "Inference-Header-Content-Length"

MAX_BODY_BYTES = 256 << 20
"""A request, or an uploaded model in base64."""

MAX_BODIES_BYTES = 384 << 20
"""Of all requests that are being received at once."""

LARGE_BYTES = 256 << 10
"""JSON from this size on is read and written in a thread: it takes milliseconds, which others need not wait for."""

SILENCE_LIMIT_S = 30.0
"""Between two parts of a body: a device without power says nothing, and what it sent counts against the limits."""

CLIENT_GONE = 499
"""As proxies write it down; never sent to anybody."""

_Handler = Callable[[Request], Awaitable[Response]]


class OipRest:
    """The application; `http_server` serves it."""

    def __init__(self, gateway: InferenceGateway) -> None:
        self._gateway = gateway
        self._receiving_bytes = 0

    def application(self) -> Starlette:
        model = "/v2/models/{model}"
        routes: list[tuple[str, str, _Handler]] = [
            ("GET", "/v2", self._server_metadata),
            ("GET", "/v2/health/live", self._live),
            ("GET", "/v2/health/ready", self._ready),
            ("GET", "/v2/models/stats", self._statistics),
            ("POST", "/v2/repository/index", self._index),
            ("POST", "/v2/repository/models/{model}/load", self._load),
            ("POST", "/v2/repository/models/{model}/unload", self._unload),
        ]
        for prefix in (model, model + "/versions/{version}"):
            routes += [
                ("GET", prefix, self._metadata),
                ("GET", prefix + "/ready", self._model_ready),
                ("GET", prefix + "/config", self._config),
                ("GET", prefix + "/stats", self._statistics),
                ("POST", prefix + "/infer", self._infer),
            ]
        return Starlette(
            routes=[Route(path, _answering(handler), methods=[method]) for method, path, handler in routes],
            exception_handlers={HTTPException: _tell_http_error},
        )

    # Health and metadata --------------------------------------------------------------------------

    async def _live(self, request: Request) -> Response:
        return JSONResponse({"live": True})

    async def _ready(self, request: Request) -> Response:
        return _readiness({}, await self._gateway.is_mesh_ready())

    async def _model_ready(self, request: Request) -> Response:
        name, version = _model(request)
        return _readiness({"name": name}, await self._gateway.is_ready(name, version))

    async def _server_metadata(self, request: Request) -> Response:
        return JSONResponse({"name": "infermesh", "version": __version__, "extensions": list(EXTENSIONS)})

    async def _metadata(self, request: Request) -> Response:
        return JSONResponse(metadata_document(await self._gateway.describe(*_model(request))))

    async def _config(self, request: Request) -> Response:
        return JSONResponse(config_document(await self._gateway.describe(*_model(request))))

    async def _statistics(self, request: Request) -> Response:
        counted = await self._gateway.statistics(*_model(request))
        return JSONResponse({"model_stats": [statistics_document(name, stats) for name, stats in counted.items()]})

    # The repository -------------------------------------------------------------------------------

    async def _index(self, request: Request) -> Response:
        with self._body_budget() as budget:
            only_ready = bool(read_document(await _receive(request, budget)).get("ready", False))
        return JSONResponse(
            [
                {"name": entry.name, "version": "1", "state": entry.state, "reason": entry.reason}
                for entry in await self._gateway.index()
                if entry.state == "READY" or not only_ready
            ]
        )

    async def _load(self, request: Request) -> Response:
        with self._body_budget() as budget:
            document = read_document(await _receive(request, budget))
            await self._gateway.load(_model(request)[0], _files(document.get("parameters", {})))
        return Response()

    async def _unload(self, request: Request) -> Response:
        await self._gateway.unload(_model(request)[0])
        return Response()

    # Inference ------------------------------------------------------------------------------------

    async def _infer(self, request: Request) -> Response:
        name, version = _model(request)
        traceparent = trace_context(request.headers.get("traceparent"))
        with self._body_budget() as budget:
            body = await _receive(request, budget)
            length = json_length(request.headers.get(JSON_LENGTH_HEADER), len(body))
            document, binary = await _maybe_in_thread(length, split_body, body, length)
            asked = await _maybe_in_thread(length, request_from_document, name, version, document, binary, traceparent)
            answer = await self._gateway.infer(asked.request)
        size = sum(len(tensor.data) for _, tensor in answer.outputs)
        content, json_bytes = await _maybe_in_thread(size, body_of_answer, answer, asked)
        if json_bytes is None:
            return Response(content, media_type="application/json")
        return Response(content, media_type="application/octet-stream", headers={JSON_LENGTH_HEADER: str(json_bytes)})

    @contextlib.contextmanager
    def _body_budget(self) -> Iterator[Callable[[int], None]]:
        """Told of bytes as they come; gives them back at the end. Raises `Overloaded` where they are too many."""
        taken = 0

        def take(count: int) -> None:
            nonlocal taken
            taken += count
            self._receiving_bytes += count
            if self._receiving_bytes > MAX_BODIES_BYTES:
                raise Overloaded("too many large requests at once", hint="send fewer at once, or try again later")

        try:
            yield take
        finally:
            self._receiving_bytes -= taken


def _model(request: Request) -> tuple[str, str]:
    return request.path_params.get("model", ""), request.path_params.get("version", "")


def _readiness(document: dict[str, Any], is_ready: bool) -> Response:
    return JSONResponse({**document, "ready": is_ready}, status_code=200 if is_ready else 503)


async def _receive(request: Request, budget: Callable[[int], None]) -> bytes:
    encoding = request.headers.get("Content-Encoding", "identity")
    if encoding != "identity":
        raise HTTPException(415, f"content encoding {encoding[:40]!r} is not taken here: send the body as it is")
    chunks: list[bytes] = []
    size = 0
    stream = request.stream()
    while (chunk := await _next_chunk(stream)) is not None:
        size += len(chunk)
        if size > MAX_BODY_BYTES:
            raise HTTPException(413, f"the body is larger than {MAX_BODY_BYTES >> 20} MiB")
        budget(len(chunk))
        chunks.append(chunk)
    return b"".join(chunks)


async def _next_chunk(stream: AsyncGenerator[bytes, None]) -> bytes | None:
    try:
        async with asyncio.timeout(SILENCE_LIMIT_S):
            return await anext(stream, None)
    except TimeoutError:
        told = f"nothing came of the body for {SILENCE_LIMIT_S:g} s"
        raise HTTPException(408, told, {"Connection": "close"}) from None


async def _maybe_in_thread(size: int, work: Callable[..., Any], *arguments: Any) -> Any:
    return await asyncio.to_thread(work, *arguments) if size >= LARGE_BYTES else work(*arguments)


def _files(parameters: Any) -> dict[str, bytes]:
    if not isinstance(parameters, dict):
        raise UsageError("'parameters' must be an object")
    return load_files(parameters, _read_base64)


def _read_base64(value: Any) -> bytes | None:
    if not isinstance(value, str):
        return None
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError) as error:
        raise UsageError(f"a file is not base64: {error}") from None


def _answering(handler: _Handler) -> _Handler:
    """`handler` with its errors as the protocol's JSON."""

    async def answer(request: Request) -> Response:
        try:
            return await handler(request)
        except HTTPException:
            raise
        except ClientDisconnect:
            return Response(status_code=CLIENT_GONE)  # nobody reads it, and the log need not have a word of it
        except Exception as error:
            told = told_of(error)
            return _error(http_status_of(told), line_of(told))

    return answer


def _error(status: int, line: str, headers: Mapping[str, str] | None = None) -> Response:
    return Response(json.dumps({"error": line}), status_code=status, headers=headers, media_type="application/json")


def _tell_http_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    return _error(error.status_code, str(error.detail), error.headers)
