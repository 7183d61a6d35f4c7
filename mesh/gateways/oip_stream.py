"""One `ModelStreamInfer` call: requests run at once, are told apart by their `id`, and fail each for itself.

An error is a message of its own and the stream goes on, unless the client asked (metadata `triton_grpc_error: true`) to
have the stream end with a status. Requests of one sequence (`sequence_id`) are answered in their order, others as they
are done. Made by `oip_grpc` for each call; its tasks belong to the supervisor that is handed in and end with the call.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc

from mesh.errors import MeshError, UsageError
from mesh.gateways.contract import trace_context
from mesh.gateways.inference import InferenceGateway
from mesh.gateways.oip_messages import message_from_answer, parameter_value, request_from_message
from mesh.gateways.public_messages import message_class, parse_message
from mesh.gateways.statuses import abort_with, line_of, told_of
from mesh.runtime.supervise import Supervisor

ModelInferRequest = message_class("ModelInferRequest")
ModelStreamInferResponse = message_class("ModelStreamInferResponse")

MAX_REQUESTS_AT_ONCE = 64
"""Of one stream; its further requests wait unread, so that HTTP/2 slows the client."""

STRICT_METADATA = "triton_grpc_error"
FINAL_PARAMETER = "triton_final_response"


class InferenceStream:
    """Iterate `answers` once."""

    def __init__(self, gateway: InferenceGateway, tasks: Supervisor, context: Any) -> None:
        self._gateway = gateway
        self._tasks = tasks
        self._context = context
        metadata = dict(context.invocation_metadata() or ())
        self._is_strict = metadata.get(STRICT_METADATA) == "true"
        self._traceparent = trace_context(metadata.get("traceparent"))
        self._responses: asyncio.Queue[Any] = asyncio.Queue(MAX_REQUESTS_AT_ONCE)
        self._running: set[asyncio.Task[None]] = set()
        self._last_of_sequence: dict[int | str, asyncio.Task[None]] = {}
        """By sequence, the newest request that is not answered yet."""

    async def answers(self, requests: AsyncIterator[bytes]) -> AsyncIterator[Any]:
        """A `ModelStreamInferResponse` for each of `requests`."""
        reading = self._tasks.spawn(self._read(requests), "gateway: requests of a stream")
        try:
            while (told := await self._responses.get()) is not None:
                if isinstance(told, MeshError):
                    await abort_with(self._context, told)
                yield told
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)

    async def _read(self, requests: AsyncIterator[bytes]) -> None:
        """Start each request, and tell `answers` of the end when all are answered."""
        room = asyncio.Semaphore(MAX_REQUESTS_AT_ONCE)
        try:
            async for data in requests:
                await room.acquire()
                task = self._start(parse_message(ModelInferRequest, data))
                task.add_done_callback(lambda _: room.release())
            while self._running:
                await asyncio.wait(self._running)
            await self._responses.put(None)
        except UsageError as error:
            await self._responses.put(error)  # whoever sends bytes that are no message is not talked to any longer
        except (asyncio.InvalidStateError, grpc.aio.BaseError, grpc.RpcError):
            return  # the client hung up, which gRPC tells `answers` as well
        finally:
            for task in self._running:
                task.cancel()

    def _start(self, request: Any) -> asyncio.Task[None]:
        key = _sequence_of(request)
        before = self._last_of_sequence.get(key) if key is not None else None
        task = self._tasks.spawn(self._answer(request, before), "gateway: a request of a stream")
        self._running.add(task)
        if key is not None:
            self._last_of_sequence[key] = task

        def ended(_: asyncio.Task[None]) -> None:
            self._running.discard(task)
            if key is not None and self._last_of_sequence.get(key) is task:
                del self._last_of_sequence[key]

        task.add_done_callback(ended)
        return task

    async def _answer(self, request: Any, before: asyncio.Task[None] | None) -> None:
        try:
            asked = request_from_message(request, self._context.time_remaining(), self._traceparent)
            answer = await self._gateway.infer(asked)
            told: Any = ModelStreamInferResponse(infer_response=message_from_answer(answer, request))
            told.infer_response.parameters[FINAL_PARAMETER].bool_param = True
        except Exception as error:  # whatever it is ends this request alone
            told = told_of(error)
            if not self._is_strict:
                told = _error_response(told, request)
        if before is not None:
            await asyncio.wait({before})
        await self._responses.put(told)


def _sequence_of(request: Any) -> int | str | None:
    """What the request says is its sequence; None for none, which the protocol also writes as 0 or an empty text."""
    if "sequence_id" not in request.parameters:
        return None
    value = parameter_value(request.parameters["sequence_id"])
    return value if isinstance(value, int | str) and value else None


def _error_response(error: MeshError, request: Any) -> Any:
    """Clients tell answers apart by the `id` within, which an error carries as well."""
    response = ModelStreamInferResponse(error_message=line_of(error))
    response.infer_response.id = request.id
    response.infer_response.model_name = request.model_name
    response.infer_response.parameters[FINAL_PARAMETER].bool_param = True
    return response
