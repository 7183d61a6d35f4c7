"""A client's stream: order, window, deadlines, breaks, and that closing leaves nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from mesh.core.frame import Outcome, StreamClass
from mesh.core.messages import (
    CloseStream,
    Credit,
    Heartbeat,
    OpenEdge,
    ResultsAccepted,
)
from mesh.core.tensor import DType, Tensor
from mesh.errors import (
    MeshError,
    NodeLost,
    Overloaded,
    ProtocolViolation,
    Refused,
    RunFailed,
    TensorMismatch,
    Timeout,
)
from mesh.runtime import edge_sender, results_link
from mesh.runtime.frame_stream import Answer, FrameStream, StreamOptions
from mesh.runtime.own_node import make_pair
from mesh.runtime.supervise import Supervisor
from tests.runtime import played_server
from tests.runtime.fake_models import chain, until, values_of, vector
from tests.runtime.loopback_link import open_memory_chain
from tests.runtime.played_server import Played, Server

SQUARE = Tensor.from_bytes(DType.FLOAT32, (1, 1), bytes(4))


@pytest.fixture
async def played() -> AsyncIterator[Played]:
    async with Supervisor() as tasks:
        yield Played(Server(tasks), tasks)


async def collect(stream: FrameStream) -> tuple[list[Answer], MeshError | None]:
    """All answers, and the error that came after them."""
    answers: list[Answer] = []
    try:
        async with asyncio.timeout(10):
            async for answer in stream.answers():
                answers.append(answer)
    except MeshError as error:
        return answers, error
    return answers, None


def told(answers: list[Answer]) -> list[tuple[int, Outcome]]:
    return [(answer.sequence, answer.outcome) for answer in answers]


# --- order and window -----------------------------------------------------------------------------


@pytest.mark.parametrize("is_ordered", [True, False])
async def test_answers_come_in_order_unless_order_is_not_wanted(played: Played, is_ordered: bool) -> None:
    stream = played.make(StreamOptions(is_ordered=is_ordered))
    await stream.open()
    for number in range(4):
        assert await stream.send([vector(number)]) == number
    stream.finish()
    for sequence in (2, 0, 3, 1):
        await played.server.answer(sequence)
    answers, error = await collect(stream)
    assert error is None
    assert [answer.sequence for answer in answers] == ([0, 1, 2, 3] if is_ordered else [2, 0, 3, 1])
    assert all(values_of(answer.tensors) == [answer.sequence] for answer in answers)
    await stream.close()


async def test_a_frame_leaves_the_window_when_its_answer_is_taken(played: Played) -> None:
    stream = played.make(window=2)
    await stream.open()
    await stream.send([vector(0)])
    await stream.send([vector(1)])
    third = asyncio.ensure_future(stream.send([vector(2)]))
    await played.server.answer(0)
    await until(lambda: stream._control.ready_runs == 1)
    assert not third.done(), "the answer is there, but nobody took it"
    await anext(stream.answers())
    assert await third == 2
    await until(lambda: set(played.server.frames) == {1, 2})
    assert played.server.most == 2
    await stream.close()


async def test_nodes_never_hold_more_than_the_window() -> None:
    async with open_memory_chain(chain(3), window=5) as mesh, mesh.stream() as stream:

        async def feed() -> None:
            for number in range(100):
                await stream.send([vector(number)])
                assert stream._control.in_flight <= 5
            stream.finish()

        feeding = asyncio.ensure_future(feed())
        async for _ in stream.answers():
            assert sum(len(stage._inbox) + len(stage._slots) for stage in mesh.stages) <= 5
        await feeding


async def test_frames_that_do_not_fit_the_model_are_refused_before_they_are_numbered(played: Played) -> None:
    stream = played.make()
    await stream.open()
    for frame in ([], [vector(1), vector(2)], [SQUARE]):
        with pytest.raises(TensorMismatch):
            await stream.send(frame)
    assert await stream.send([vector(0)]) == 0
    stream.finish()
    with pytest.raises(Refused, match="finished"):
        await stream.send([vector(1)])
    await stream.close()


async def test_outcomes_of_the_mesh_are_passed_on(played: Played) -> None:
    stream = played.make()
    await stream.open()
    for number in range(3):
        await stream.send([vector(number)])
    stream.finish()
    await played.server.answer(0, Outcome.FAILED, RunFailed("no"))
    await played.server.answer(1, Outcome.LATE, Overloaded("slow"))
    await played.server.answer(2)
    answers, error = await collect(stream)
    assert (told(answers), error) == ([(0, Outcome.FAILED), (1, Outcome.LATE), (2, Outcome.OK)], None)
    assert isinstance(answers[0].error, RunFailed)
    await until(lambda: played.server.is_closed, "the end of the stream at its head")
    await stream.close()


# --- live and deadlines ---------------------------------------------------------------------------


async def test_a_live_stream_never_waits_and_every_frame_is_answered_once(played: Played) -> None:
    stream = played.make(StreamOptions(StreamClass.LIVE), window=2)
    await stream.open()
    for number in range(2):
        await stream.send([vector(number)])
        await until(lambda: number in played.server.frames)  # noqa: B023
    for number in range(2, 10):
        await stream.send([vector(number)])
    stream.finish()
    assert set(played.server.frames) == {0, 1}
    await played.server.answer(0)
    await played.server.answer(1)
    collecting = asyncio.ensure_future(collect(stream))
    await played.server.answer(9)
    answers, error = await collecting
    assert error is None
    assert told(answers) == [(number, Outcome.OK if number in (0, 1, 9) else Outcome.DROPPED) for number in range(10)]
    assert played.server.most == 2
    await stream.close()


@pytest.mark.parametrize("stream_class", StreamClass)
async def test_a_late_frame_is_answered_at_its_deadline_and_holds_its_place_until_the_mesh_lets_go(
    played: Played, stream_class: StreamClass
) -> None:
    stream = played.make(StreamOptions(stream_class, deadline_s=0.03), window=1)
    await stream.open()
    await stream.send([vector(0)])
    first = await anext(stream.answers())
    assert (first.sequence, first.outcome, first.latency_s) == (0, Outcome.LATE, None)
    assert isinstance(first.error, Timeout)
    second = asyncio.ensure_future(stream.send([vector(1)]))
    await asyncio.sleep(0.05)  # nothing may happen in it
    assert set(played.server.frames) == {0}
    await played.server.answer(0)
    await second
    answer = await anext(stream.answers())
    assert (answer.sequence, answer.outcome) in ((1, Outcome.LATE), (1, Outcome.OK))
    assert played.server.most == 1
    await stream.close()


async def test_a_frame_carries_the_time_that_it_has_left(played: Played) -> None:
    stream = played.make(StreamOptions(StreamClass.LIVE, deadline_s=5.0), window=1)
    await stream.open()
    await stream.send([vector(0)])
    await until(lambda: 0 in played.server.frames)
    await stream.send([vector(1)])
    await asyncio.sleep(0.02)  # time that the frame loses
    await played.server.answer(0)
    await anext(stream.answers())
    await until(lambda: 1 in played.server.frames)
    assert 0 < played.server.frames[1].budget_us <= 4_980_000
    await stream.close()


async def test_live_frames_add_up_over_a_slow_chain() -> None:
    options = StreamOptions(StreamClass.LIVE, deadline_s=0.1)
    models = chain(3)
    async with open_memory_chain(models, window=6) as mesh, mesh.stream(options) as stream:
        gate = mesh.engines[1].gate

        async def feed() -> None:
            for number in range(150):
                await stream.send([vector(number)])
                if number == 40:
                    gate.close()
                if number == 110:
                    gate.open()
                await asyncio.sleep(0.001)
            stream.finish()

        feeding = asyncio.ensure_future(feed())
        answers, error = await collect(stream)
        await feeding
    assert error is None
    assert [answer.sequence for answer in answers] == list(range(150))
    tally = Counter(answer.outcome for answer in answers)
    assert tally[Outcome.OK] > 0
    assert tally[Outcome.DROPPED] + tally[Outcome.LATE] > 0
    assert tally[Outcome.UNKNOWN] == 0
    assert all(values_of(a.tensors) == [a.sequence + 3.0] for a in answers if a.outcome is Outcome.OK)


# --- breaks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_ordered", [True, False])
async def test_after_a_break_come_answers_then_unknown_ones_then_the_error(played: Played, is_ordered: bool) -> None:
    stream = played.make(StreamOptions(is_ordered=is_ordered), window=6)
    await stream.open()
    for number in range(6):
        await stream.send([vector(number)])
    for sequence in (0, 1, 4):
        await played.server.answer(sequence)
    await played.server.tell(CloseStream(played.server.stream, NodeLost("node b is gone")))
    answers, error = await collect(stream)
    ok = {(0, Outcome.OK), (1, Outcome.OK), (4, Outcome.OK)}
    unknown = {(2, Outcome.UNKNOWN), (3, Outcome.UNKNOWN), (5, Outcome.UNKNOWN)}
    assert set(told(answers)) == ok | unknown
    assert len(answers) == 6
    assert told(answers)[:2] == [(0, Outcome.OK), (1, Outcome.OK)]
    assert [answer.sequence for answer in answers] == (list(range(6)) if is_ordered else [0, 1, 4, 2, 3, 5])
    assert isinstance(error, NodeLost)
    assert all(answer.error is error for answer in answers if answer.outcome is Outcome.UNKNOWN)
    with pytest.raises(NodeLost, match="node b is gone"):
        await stream.send([vector(6)])
    await stream.close()


async def test_a_sender_that_waits_for_room_hears_of_the_break(played: Played) -> None:
    stream = played.make(window=1)
    await stream.open()
    await stream.send([vector(0)])
    waiting = asyncio.ensure_future(stream.send([vector(1)]))
    await until(lambda: 0 in played.server.frames)
    assert played.server.edge is not None
    await played.server.edge.send(CloseStream(played.server.stream, Overloaded("enough")))
    with pytest.raises(Overloaded, match="enough"):
        await waiting
    await stream.close()


async def test_what_breaks_after_the_last_answer_is_no_error(played: Played) -> None:
    stream = played.make()
    await stream.open()
    await stream.send([vector(0)])
    stream.finish()
    await played.server.answer(0)
    await played.server.tell(CloseStream(played.server.stream, NodeLost("gone")))
    await until(lambda: not stream._paths)
    answers, error = await collect(stream)
    assert (told(answers), error) == ([(0, Outcome.OK)], None)
    await stream.close()


async def test_an_abandoned_stream_ends_with_the_error_of_its_source(played: Played) -> None:
    stream = played.make()
    await stream.open()
    await stream.send([vector(0)])
    stream.abandon(Refused("the sensor broke"))
    answers, error = await collect(stream)
    assert told(answers) == [(0, Outcome.UNKNOWN)]
    assert isinstance(error, Refused)
    await stream.close()


@pytest.mark.parametrize("silent", ["head", "tail"])
async def test_a_silent_node_is_a_lost_node(played: Played, monkeypatch: pytest.MonkeyPatch, silent: str) -> None:
    for module in (edge_sender, results_link):
        monkeypatch.setattr(module, "HEARTBEAT_INTERVAL_S", 0.02)
    monkeypatch.setattr("mesh.control.timing.HEARTBEAT_INTERVAL_S", 0.02)
    monkeypatch.setattr("mesh.control.timing.SILENCE_LIMIT_S", 0.1)
    stream = played.make()
    await stream.open()
    speaking = played.server.results if silent == "head" else played.server.edge
    assert speaking is not None

    async def beat() -> None:
        with contextlib.suppress(NodeLost):
            while True:
                await speaking.send(Heartbeat())
                await asyncio.sleep(0.02)

    beating = asyncio.ensure_future(beat())
    await stream.send([vector(0)])
    answers, error = await collect(stream)
    assert told(answers) == [(0, Outcome.UNKNOWN)]
    assert isinstance(error, NodeLost)
    assert "node aaaaaaaa at played:1 has gone silent" in error.message
    await stream.close()
    await beating


async def test_an_answer_that_makes_no_sense_breaks_the_stream(played: Played) -> None:
    stream = played.make()
    await stream.open()
    await played.server.tell(ResultsAccepted())
    _, error = await collect(stream)
    assert isinstance(error, ProtocolViolation)
    await stream.close()


@pytest.mark.parametrize("size_bytes", [0, 5, 1 << 63, (1 << 64) - 1])
async def test_a_credit_for_what_was_not_sent_breaks_the_stream(played: Played, size_bytes: int) -> None:
    """The last one is what -1 becomes on the wire."""
    stream = played.make()
    await stream.open()
    await stream.send([vector(0)])
    await until(lambda: 0 in played.server.frames)
    assert played.server.edge is not None
    await played.server.edge.send(Credit(size_bytes))
    answers, error = await collect(stream)
    assert told(answers) == [(0, Outcome.UNKNOWN)]
    assert isinstance(error, ProtocolViolation)
    assert "for 4 outstanding" in error.message
    await stream.close()


async def test_a_first_credit_without_sense_is_refused(played: Played, monkeypatch: pytest.MonkeyPatch) -> None:
    for size_bytes in (0, 1 << 63):
        monkeypatch.setattr(played_server, "CREDIT_BYTES", size_bytes)
        stream = played.make()
        with pytest.raises(ProtocolViolation, match="credit"):
            await stream.open()
        await stream.close()


@pytest.mark.parametrize("sequence", [1, 7, (1 << 64) - 1])
async def test_an_answer_whose_number_jumps_breaks_the_stream(played: Played, sequence: int) -> None:
    stream = played.make()
    await stream.open()
    await stream.send([vector(0)])
    await until(lambda: 0 in played.server.frames)
    await played.server.tell(replace(played.server.frames[0], sequence=sequence))
    answers, error = await collect(stream)
    assert told(answers) == [(0, Outcome.UNKNOWN)]
    assert isinstance(error, ProtocolViolation)
    assert f"frame {sequence}, which was not sent" in error.message
    await stream.close()


# --- opening and closing --------------------------------------------------------------------------


async def test_a_head_that_does_not_answer_is_a_lost_node(played: Played, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edge_sender, "DIAL_TIMEOUT_S", 0.05)
    silent, far = make_pair()
    monkeypatch.setattr(played.server, "open_edge", lambda: silent)
    stream = played.make()
    with pytest.raises(NodeLost, match="did not answer"):
        await stream.open()
    await stream.close()
    assert await far.receive() == OpenEdge(stream.deployment.name, stream.deployment.fence, 0)


async def test_closing_leaves_no_task_and_ends_what_others_wait_for(played: Played) -> None:
    before = asyncio.all_tasks()
    stream = played.make(StreamOptions(StreamClass.LIVE, deadline_s=5.0))
    await stream.open()
    await stream.send([vector(0)])
    collecting = asyncio.ensure_future(collect(stream))
    await until(lambda: 0 in played.server.frames)
    await stream.close()
    answers, error = await collecting
    assert told(answers) == [(0, Outcome.UNKNOWN)]
    assert isinstance(error, Refused)
    await until(lambda: asyncio.all_tasks() == before, "the end of all tasks")
