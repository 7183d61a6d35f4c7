"""Independent calls over one stream: each gets its own answer, and one that was given up leaves nothing behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence

import pytest

from mesh.core.frame import Outcome
from mesh.core.tensor import Tensor
from mesh.errors import MeshError, NodeLost, Refused, RunFailed
from mesh.runtime.calls import Calls
from mesh.runtime.frame_stream import Answer


class ScriptedStream:
    """Numbers what is sent; answers are put by the test. `is_held` keeps frames from leaving."""

    def __init__(self) -> None:
        self.sent = 0
        self.may_leave = asyncio.Event()
        self.may_leave.set()
        self.queue: asyncio.Queue[Answer | MeshError] = asyncio.Queue()

    async def send(self, tensors: Sequence[Tensor], on_numbered: Callable[[int], None], traceparent: str) -> int:
        sequence = self.sent
        self.sent += 1
        on_numbered(sequence)
        await self.may_leave.wait()
        return sequence

    async def answers(self) -> AsyncIterator[Answer]:
        while True:
            answer = await self.queue.get()
            if isinstance(answer, MeshError):
                raise answer
            yield answer


async def turn_over() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


@pytest.mark.parametrize("may_leave", [True, False])
async def test_a_call_that_is_given_up_keeps_nothing(may_leave: bool) -> None:
    stream = ScriptedStream()
    calls = Calls(stream)  # type: ignore[arg-type]
    collecting = asyncio.ensure_future(calls.collect())
    if not may_leave:
        stream.may_leave.clear()
    given_up = asyncio.ensure_future(calls.run(()))
    await turn_over()
    given_up.cancel()
    await asyncio.gather(given_up, return_exceptions=True)
    stream.queue.put_nowait(Answer(0, Outcome.OK))
    stream.may_leave.set()
    await turn_over()
    assert calls._waiting == {}
    later = asyncio.ensure_future(calls.run(()))
    await turn_over()
    stream.queue.put_nowait(Answer(1, Outcome.OK))
    assert (await later).sequence == 1
    stream.queue.put_nowait(NodeLost("gone"))
    await collecting


async def test_answers_find_their_calls_in_any_order() -> None:
    stream = ScriptedStream()
    calls = Calls(stream)  # type: ignore[arg-type]
    collecting = asyncio.ensure_future(calls.collect())
    running = [asyncio.ensure_future(calls.run(())) for _ in range(3)]
    await turn_over()
    for sequence, outcome in ((2, Outcome.OK), (0, Outcome.FAILED)):
        stream.queue.put_nowait(Answer(sequence, outcome))
    assert (await running[2]).sequence == 2
    with pytest.raises(RunFailed):
        await running[0]
    stream.queue.put_nowait(NodeLost("gone"))
    with pytest.raises(NodeLost):
        await running[1]
    await collecting
    assert calls.is_broken and calls._waiting == {}


async def test_a_call_that_waits_when_the_connection_is_closed_is_told() -> None:
    stream = ScriptedStream()
    calls = Calls(stream)  # type: ignore[arg-type]
    collecting = asyncio.ensure_future(calls.collect())
    running = asyncio.ensure_future(calls.run(()))
    await turn_over()
    collecting.cancel()
    with pytest.raises(Refused, match="closed"):
        await running
    assert calls.is_broken
