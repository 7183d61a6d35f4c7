"""Independent calls over one stream: each gets its own answer, and one that was given up leaves nothing behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import pytest

from mesh.control.deployments import key_of
from mesh.core.frame import Outcome
from mesh.core.plan import Deployment
from mesh.core.tensor import Tensor
from mesh.errors import DeploymentNotFound, MeshError, NodeLost, Refused, RunFailed
from mesh.runtime.calls import Calls
from mesh.runtime.frame_stream import Answer, FrameStream, StreamOptions
from mesh.runtime.stage import Stage
from tests.runtime.fake_mesh import open_mesh
from tests.runtime.fake_models import chain, until, values_of, vector


class ScriptedStream:
    """Numbers what is sent; answers are put by the test. `is_held` keeps frames from leaving."""

    def __init__(self) -> None:
        self.sent = 0
        self.may_leave = asyncio.Event()
        self.may_leave.set()
        self.queue: asyncio.Queue[Answer | MeshError | None] = asyncio.Queue()
        self.ends_with_its_stages = asyncio.Event()

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
            if answer is None:
                return
            yield answer

    def finish(self) -> None:
        self.queue.put_nowait(None)


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


async def test_the_stream_of_what_is_removed_ends_with_its_last_call() -> None:
    stream = ScriptedStream()
    calls = Calls(stream)  # type: ignore[arg-type]
    collecting = asyncio.ensure_future(calls.collect())
    running = asyncio.ensure_future(calls.run(()))
    await turn_over()
    stream.ends_with_its_stages.set()
    await turn_over()
    assert calls.is_broken, "the next call is made elsewhere"
    assert not collecting.done()
    stream.queue.put_nowait(Answer(0, Outcome.OK))
    assert (await running).sequence == 0
    await collecting


async def test_calls_hold_up_nobody_who_removes_their_deployment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Stage.drain, "__defaults__", (1000.0,))  # for who waits for open streams to be given up

    async def recover(deployment: Deployment, lost: MeshError | None) -> Deployment:
        raise DeploymentNotFound("it was removed")

    async with open_mesh(tmp_path, monkeypatch, 1) as mesh:
        (node,) = mesh.nodes
        deployment = await mesh.deploy(chain(1), [node])
        stream = FrameStream(deployment, StreamOptions(is_ordered=False), mesh.client, mesh.tasks, recover=recover)
        await stream.open()
        calls = Calls(stream)
        collecting = mesh.tasks.spawn(calls.collect(), "collect")
        assert values_of((await calls.run([vector(1)])).tensors) == [2]
        await node.client.drain(key_of(deployment))
        await asyncio.wait({collecting})
        await until(lambda: not node.driver.stages(key_of(deployment)), "the stage is gone")
        await stream.close()
