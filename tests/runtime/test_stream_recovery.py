"""A client's stream whose path is lost or replaced: what is sent again, who is asked, and how it ends otherwise."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import cast

import pytest

from mesh.core.frame import Outcome, StreamClass
from mesh.core.ids import NodeId
from mesh.core.messages import CloseStream, Draining
from mesh.core.plan import Deployment, Fence
from mesh.errors import DeploymentNotFound, MeshError, NodeLost, Overloaded, Refused, TensorMismatch
from mesh.runtime import frame_stream
from mesh.runtime.frame_stream import Answer, FrameStream, StreamOptions
from mesh.runtime.own_node import OwnLink
from mesh.runtime.supervise import Supervisor
from mesh.wire.channel import NodeClient
from tests.runtime.fake_models import copy, make_deployment, until, values_of, vector
from tests.runtime.played_server import Server

GONE = NodeLost("node a is gone")


class Unreachable(Server):
    def open_results(self, boundary: object) -> OwnLink:
        raise NodeLost("nobody listens there")


@dataclass
class Generations:
    """Generation N of one deployment is played by the server at `played:N`; `newest` is in force."""

    tasks: Supervisor
    servers: dict[str, Server] = field(default_factory=dict)
    newest: int = 1
    asked: list[tuple[int, MeshError | None]] = field(default_factory=list)
    refusal: MeshError | None = None
    may_answer: asyncio.Event = field(default_factory=asyncio.Event)

    def server(self, generation: int) -> Server:
        return self.servers.setdefault(f"played:{generation}", Server(self.tasks))

    def deployment(self, generation: int) -> Deployment:
        addresses = {NodeId("a" * 32): f"played:{generation}"}
        return make_deployment([copy()], addresses, window=4, fence=Fence(1, generation))

    async def recover(self, deployment: Deployment, error: MeshError | None) -> Deployment:
        self.asked.append((deployment.fence.generation, error))
        await self.may_answer.wait()
        if self.refusal is not None:
            raise self.refusal
        return self.deployment(self.newest)

    def stream(self, options: StreamOptions | None = None) -> FrameStream:
        for generation in (1, 2, 3):
            self.server(generation)
        return FrameStream(
            self.deployment(1),
            options or StreamOptions(),
            lambda address: cast(NodeClient, self.servers[address]),
            self.tasks,
            self.recover,
        )

    async def lose(self, generation: int, error: MeshError = GONE) -> None:
        server = self.server(generation)
        await server.tell(CloseStream(server.stream, error))


@pytest.fixture
async def mesh(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Generations]:
    monkeypatch.setattr(frame_stream, "RECOVERY_PAUSE_S", 0.01)
    async with Supervisor() as tasks:
        generations = Generations(tasks)
        generations.may_answer.set()
        yield generations


async def take(stream: FrameStream, count: int) -> list[Answer]:
    answers = stream.answers()
    async with asyncio.timeout(10):
        return [await anext(answers) for _ in range(count)]


async def error_of(stream: FrameStream) -> tuple[list[Outcome], MeshError]:
    outcomes: list[Outcome] = []
    with pytest.raises(MeshError) as raised:
        async with asyncio.timeout(10):
            async for answer in stream.answers():
                outcomes.append(answer.outcome)
    return outcomes, raised.value


@pytest.mark.parametrize("is_ordered", [True, False])
async def test_what_was_on_a_lost_path_is_answered_by_the_next(mesh: Generations, is_ordered: bool) -> None:
    stream = mesh.stream(StreamOptions(is_ordered=is_ordered))
    await stream.open()
    for number in range(4):
        await stream.send([vector(number)])
    await mesh.server(1).answer(1)
    mesh.newest = 2
    await mesh.lose(1)
    await until(lambda: list(mesh.server(2).frames) == [0, 2, 3], "the replay, in order")
    assert mesh.asked == [(1, GONE)]
    assert {(frame.term, frame.generation) for frame in mesh.server(2).frames.values()} == {(1, 2)}
    assert mesh.server(2).stream != mesh.server(1).stream
    assert stream.deployment.fence == Fence(1, 2)
    for sequence in (3, 2, 0):
        await mesh.server(2).answer(sequence)
    answers = await take(stream, 4)
    assert sorted(answer.sequence for answer in answers) == [0, 1, 2, 3]
    assert not is_ordered or [answer.sequence for answer in answers] == [0, 1, 2, 3]
    assert all(values_of(answer.tensors) == [answer.sequence] for answer in answers)
    assert (stream.counters.replays, stream.counters.recoveries, stream.counters.duplicates) == (3, 1, 0)
    assert await stream.send([vector(4)]) == 4
    await stream.close()


async def test_a_lossless_sender_waits_while_the_stream_recovers(mesh: Generations) -> None:
    stream = mesh.stream()
    await stream.open()
    await stream.send([vector(0)])
    mesh.may_answer.clear()
    await mesh.lose(1)
    await until(lambda: bool(mesh.asked))
    waiting = asyncio.ensure_future(stream.send([vector(1)]))
    for _ in range(20):
        await asyncio.sleep(0)
    assert not waiting.done()
    mesh.newest = 2
    mesh.may_answer.set()
    assert await waiting == 1
    await until(lambda: list(mesh.server(2).frames) == [0, 1])
    await stream.close()


async def test_a_live_sender_keeps_the_newest_while_the_stream_recovers(mesh: Generations) -> None:
    stream = mesh.stream(StreamOptions(StreamClass.LIVE))
    await stream.open()
    await stream.send([vector(0)])
    await until(lambda: 0 in mesh.server(1).frames)
    mesh.may_answer.clear()
    mesh.newest = 2
    await mesh.lose(1)
    await until(lambda: bool(mesh.asked))
    for number in (1, 2, 3):
        assert await stream.send([vector(number)]) == number
    mesh.may_answer.set()
    await mesh.server(2).answer(3)
    answers = await take(stream, 4)
    assert [answer.outcome for answer in answers] == [Outcome.UNKNOWN, Outcome.DROPPED, Outcome.DROPPED, Outcome.OK]
    assert answers[0].error is GONE
    await stream.close()


async def test_a_deployment_that_cannot_be_opened_is_asked_about_again(mesh: Generations) -> None:
    mesh.servers["played:2"] = Unreachable(mesh.tasks)
    stream = mesh.stream()
    await stream.open()
    await stream.send([vector(0)])
    mesh.newest = 2
    await mesh.lose(1)
    await until(lambda: len(mesh.asked) > 2)
    assert all(isinstance(error, NodeLost) and "nobody listens" in error.message for _, error in mesh.asked[1:])
    mesh.newest = 3
    await mesh.server(3).answer(0)
    assert [answer.sequence for answer in await take(stream, 1)] == [0]
    await stream.close()


async def test_a_stream_that_is_opened_on_what_was_replaced_finds_what_is_in_force(mesh: Generations) -> None:
    mesh.servers["played:1"] = Unreachable(mesh.tasks)
    mesh.newest = 2
    stream = mesh.stream()
    await stream.open()
    await stream.send([vector(0)])
    await mesh.server(2).answer(0)
    assert [answer.outcome for answer in await take(stream, 1)] == [Outcome.OK]
    await stream.close()


# --- no recovery ----------------------------------------------------------------------------------


async def test_where_nobody_helps_both_reasons_are_told(mesh: Generations) -> None:
    stream = mesh.stream()
    await stream.open()
    await stream.send([vector(0)])
    mesh.refusal = NodeLost("no stand-by has the segment")
    await mesh.lose(1)
    outcomes, error = await error_of(stream)
    assert outcomes == [Outcome.UNKNOWN]
    assert isinstance(error, NodeLost)
    assert "node a is gone" in error.message and "no stand-by has the segment" in error.message
    with pytest.raises(NodeLost):
        await stream.send([vector(1)])
    await stream.close()


async def test_recovery_has_a_limit(mesh: Generations, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frame_stream, "RECOVERY_LIMIT_S", 0.1)
    mesh.servers["played:2"] = Unreachable(mesh.tasks)
    stream = mesh.stream()
    await stream.open()
    await stream.send([vector(0)])
    mesh.newest = 2
    await mesh.lose(1)
    outcomes, error = await error_of(stream)
    assert outcomes == [Outcome.UNKNOWN]
    assert isinstance(error, NodeLost)
    assert "node a is gone" in error.message and "nobody listens there" in error.message
    await stream.close()


async def test_a_removed_deployment_is_told_as_such(mesh: Generations) -> None:
    stream = mesh.stream()
    await stream.open()
    mesh.refusal = DeploymentNotFound("deployment 'chain' was removed")
    await mesh.lose(1, DeploymentNotFound("removed while this stream was open"))
    _, error = await error_of(stream)
    assert error is mesh.refusal
    await stream.close()


async def test_nobody_is_asked_about_what_another_path_does_not_mend(mesh: Generations) -> None:
    stream = mesh.stream()
    await stream.open()
    await stream.send([vector(0)])
    await mesh.lose(1, Overloaded("too much waits for the peer"))
    outcomes, error = await error_of(stream)
    assert (outcomes, mesh.asked) == ([Outcome.UNKNOWN], [])
    assert isinstance(error, Overloaded)
    await stream.close()


async def test_nobody_is_asked_once_everything_is_answered(mesh: Generations) -> None:
    stream = mesh.stream()
    await stream.open()
    await stream.send([vector(0)])
    stream.finish()
    await mesh.server(1).answer(0)
    await mesh.lose(1)
    await until(lambda: not stream._paths)
    assert [answer.outcome async for answer in stream.answers()] == [Outcome.OK]
    assert mesh.asked == []
    await stream.close()


async def test_another_model_under_the_same_name_does_not_take_over(mesh: Generations) -> None:
    stream = mesh.stream()
    other = make_deployment([copy("a", "b")], {NodeId("a" * 32): "played:2"}, window=4, fence=Fence(1, 2))

    async def recover(deployment: Deployment, error: MeshError | None) -> Deployment:
        return other

    stream._recover = recover
    await stream.open()
    await stream.send([vector(0)])
    await mesh.lose(1)
    _, error = await error_of(stream)
    assert "takes or gives other tensors" in error.message
    assert not isinstance(error, TensorMismatch), "the frame was not at fault"
    await stream.close()


@pytest.mark.parametrize("is_late", [False, True])
async def test_closing_while_it_recovers_leaves_nothing(mesh: Generations, is_late: bool) -> None:
    before = asyncio.all_tasks()
    stream = mesh.stream()
    await stream.open()
    await stream.send([vector(0)])
    if is_late:  # between two attempts
        mesh.servers["played:2"] = Unreachable(mesh.tasks)
        mesh.newest = 2
    else:
        mesh.may_answer.clear()
    await mesh.lose(1)
    await until(lambda: bool(mesh.asked))
    await stream.close()
    outcomes, error = await error_of(stream)
    assert outcomes == [Outcome.UNKNOWN]
    assert isinstance(error, Refused)
    await until(lambda: asyncio.all_tasks() == before, "the end of all tasks")


# --- replaced -------------------------------------------------------------------------------------


async def test_a_generation_that_drains_is_replaced_before_it_is_gone(mesh: Generations) -> None:
    stream = mesh.stream()
    await stream.open()
    for number in range(2):
        await stream.send([vector(number)])
    await until(lambda: len(mesh.server(1).frames) == 2)
    mesh.newest = 2
    await mesh.server(1).tell(Draining())
    await until(lambda: stream.deployment.fence == Fence(1, 2))
    for number in (2, 3):
        await stream.send([vector(number)])
    await until(lambda: list(mesh.server(2).frames) == [2, 3])
    assert list(mesh.server(1).frames) == [0, 1], "they stay where they are"
    assert not mesh.server(1).is_closed
    for sequence in (0, 1):
        await mesh.server(1).answer(sequence)
    await until(lambda: mesh.server(1).is_closed, "the end of the older path")
    for sequence in (2, 3):
        await mesh.server(2).answer(sequence)
    assert [answer.sequence for answer in await take(stream, 4)] == [0, 1, 2, 3]
    assert mesh.asked == [(1, None)]
    assert (stream.counters.replacements, stream.counters.replays, stream.counters.recoveries) == (1, 0, 0)
    await stream.close()


async def test_what_is_left_on_a_replaced_path_that_breaks_is_sent_again(mesh: Generations) -> None:
    stream = mesh.stream()
    await stream.open()
    await stream.send([vector(0)])
    mesh.newest = 2
    await mesh.server(1).tell(Draining())
    await until(lambda: stream.deployment.fence == Fence(1, 2))
    await mesh.lose(1)
    await mesh.server(2).answer(0)
    assert [answer.sequence for answer in await take(stream, 1)] == [0]
    assert stream.counters.replays == 1
    await stream.close()


@pytest.mark.parametrize("refuses", [False, True])
async def test_without_a_newer_generation_it_goes_on_until_it_is_closed(mesh: Generations, refuses: bool) -> None:
    stream = mesh.stream()
    await stream.open()
    await stream.send([vector(0)])
    mesh.refusal = DeploymentNotFound("nothing newer") if refuses else None
    await mesh.server(1).tell(Draining())
    await until(lambda: mesh.asked == [(1, None)])
    await mesh.server(1).answer(0)
    await stream.send([vector(1)])
    await mesh.server(1).answer(1)
    assert len(await take(stream, 2)) == 2
    removed = DeploymentNotFound("removed")
    mesh.refusal = removed
    await mesh.lose(1, removed)
    _, error = await error_of(stream)
    assert error is removed
    await stream.close()


async def test_a_draining_path_that_breaks_before_there_is_another_is_asked_about_again(mesh: Generations) -> None:
    stream = mesh.stream()
    await stream.open()
    await stream.send([vector(0)])
    mesh.may_answer.clear()
    mesh.refusal = NodeLost("it does not answer")
    await mesh.server(1).tell(Draining())
    await until(lambda: mesh.asked == [(1, None)])
    await mesh.lose(1)
    await until(lambda: not stream._paths)
    mesh.may_answer.set()
    await until(lambda: len(mesh.asked) == 2)
    assert mesh.asked[1] == (1, GONE)
    _, error = await error_of(stream)
    assert "node a is gone" in error.message
    await stream.close()


async def test_answers_are_acknowledged_to_each_path_in_rising_order(mesh: Generations) -> None:
    """Unordered: what was taken through rises although answers come in any order."""
    stream = mesh.stream(StreamOptions(is_ordered=False, window=2))
    await stream.open()
    for number in range(6):
        await stream.send([vector(number)])
        if number % 2:
            await mesh.server(1).answer(number)
            await mesh.server(1).answer(number - 1)
            await take(stream, 2)
    await until(lambda: mesh.server(1).acknowledged == [1, 3, 5])
    await stream.close()
