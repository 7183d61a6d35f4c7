"""Streams of the protocol: errors one by one, sequences in order, nothing left behind."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import grpc

from tests.gateways.served import ModelInferRequest, Served, request_for
from tests.runtime.fake_models import until, values_of, vector


async def test_a_stream_tells_errors_one_by_one_and_goes_on(served: Served) -> None:
    stream = served.stream()
    for number in range(6):
        model = "none" if number == 2 else "echo"
        await stream.write(ModelInferRequest(**request_for(vector(number), id=str(number), model_name=model)))
    await stream.done_writing()
    answers = [answer async for answer in stream]
    assert {answer.infer_response.id for answer in answers} == set("012345")
    assert all(answer.infer_response.parameters["triton_final_response"].bool_param for answer in answers)
    failed = [answer.infer_response.id for answer in answers if answer.error_message]
    assert failed == ["2"]


async def test_a_strict_stream_ends_with_a_status(served: Served) -> None:
    stream = served.stream(metadata=(("triton_grpc_error", "true"),))
    await stream.write(ModelInferRequest(**request_for(vector(1), model_name="none")))
    assert await stream.code() is grpc.StatusCode.NOT_FOUND


async def test_answers_overtake_but_not_within_a_sequence(served: Served) -> None:
    waiting: dict[float, Callable[[], None]] = {}
    await served.call("ModelInfer", **request_for(vector(0)))
    played = served.mesh.streams[0]
    send = played.send

    async def send_later(tensors: Any, on_numbered: Any, traceparent: str) -> int:
        """Frames are answered when the test says so, by their value."""
        let_go = asyncio.Event()
        waiting[values_of(tensors)[0]] = let_go.set
        await let_go.wait()
        return await send(tensors, on_numbered, traceparent)

    played.send = send_later  # type: ignore[method-assign]
    stream = served.stream()
    for value, sequence in ((1, 5), (2, 5), (3, 0)):
        parameters = {"sequence_id": {"int64_param": sequence}}
        await stream.write(ModelInferRequest(**request_for(vector(value), id=str(value), parameters=parameters)))
    await until(lambda: len(waiting) == 3)
    waiting[2]()
    waiting[3]()
    assert (await stream.read()).infer_response.id == "3"
    waiting[1]()
    assert [(await stream.read()).infer_response.id for _ in range(2)] == ["1", "2"]
    await stream.done_writing()
    assert await stream.read() is grpc.aio.EOF


async def test_a_client_that_hangs_up_leaves_nothing(served: Served) -> None:
    served.mesh.gate.clear()
    before = asyncio.all_tasks()
    stream = served.stream()
    await stream.write(ModelInferRequest(**request_for(vector(1))))
    await until(lambda: bool(served.mesh.streams) and served.mesh.streams[0].sent == 1)
    stream.cancel()

    def left() -> list[str]:
        names = (task.get_name() for task in asyncio.all_tasks() - before)
        return [name for name in names if "of a stream" in name]

    await until(lambda: not left(), "the stream's tasks have ended")
    served.mesh.gate.set()
