"""Stages in a row, over links in memory: order, outcomes, relays, back-pressure, and who is closed for what."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count

import pytest

from mesh.core.frame import Frame, Outcome, StreamClass
from mesh.core.ids import NodeId
from mesh.core.messages import OpenStream
from mesh.core.tensor import Tensor
from mesh.engines.fake import FakeModel, Operation
from mesh.errors import (
    DeploymentNotFound,
    ModelInvalid,
    Overloaded,
    ProtocolViolation,
    Refused,
    RunFailed,
)
from mesh.runtime import edge_receiver
from mesh.runtime.frame_stream import Answer, FrameStream, StreamOptions
from mesh.runtime.stage import (
    MAX_QUEUED_FRAMES,
    MAX_SMALL_SLOTS,
    MAX_STREAMS,
    Stage,
)
from tests.runtime.fake_models import (
    GatedEngine,
    add_one,
    chain,
    copy,
    lease_alone,
    make_deployment,
    spec,
    until,
    values_of,
    vector,
    zeros,
)
from tests.runtime.loopback_link import MemoryChain, open_memory_chain
from tests.runtime.played_ends import Consumer, Sender

LIVE = StreamOptions(StreamClass.LIVE)

ENGINE_DEPTH = 2
"""Of one lane."""


async def send_all(stream: FrameStream, frames: int) -> list[Answer]:
    """Send 0, 1, 2, ... and take every answer."""

    async def feed() -> None:
        for number in range(frames):
            await stream.send([vector(number)])
        stream.finish()

    async with asyncio.TaskGroup() as group:
        group.create_task(feed())
        return [answer async for answer in stream.answers()]


# --- several stages -------------------------------------------------------------------------------


async def test_frames_pass_every_stage_in_order() -> None:
    async with open_memory_chain(chain(3)) as mesh, mesh.stream() as stream:
        answers = await send_all(stream, 30)
    assert [answer.sequence for answer in answers] == list(range(30))
    assert [values_of(answer.tensors) for answer in answers] == [[number + 3.0] for number in range(30)]
    assert all([hop.stage for hop in answer.hops] == [0, 1, 2] for answer in answers)
    assert all(answer.outcome is Outcome.OK and (answer.latency_s or 0) > 0 for answer in answers)


async def test_a_frame_that_an_engine_refuses_costs_that_frame_only() -> None:
    models = [add_one("x", "a"), add_one("a", "b", failing_runs=(1, 3)), add_one("b", "y")]
    async with open_memory_chain(models) as mesh, mesh.stream() as stream:
        answers = await send_all(stream, 6)
        assert [stage.statistics.failed for stage in mesh.stages] == [0, 2, 0]
        assert [stage.statistics.frames for stage in mesh.stages] == [6, 4, 4]
    assert [answer.outcome for answer in answers] == [
        Outcome.OK if number not in (1, 3) else Outcome.FAILED for number in range(6)
    ]
    for answer in answers:
        assert isinstance(answer.error, RunFailed) == (answer.outcome is Outcome.FAILED)
        assert bool(answer.tensors) == (answer.outcome is Outcome.OK)


async def test_a_tensor_that_skips_stages_is_relayed() -> None:
    models = [
        add_one("x", "a"),
        add_one("a", "b"),
        FakeModel((spec("x"), spec("b")), (spec("y"),), Operation.SUM),
    ]
    boundaries = [("x",), ("a", "x"), ("x", "b"), ("y",)]
    async with open_memory_chain(models, boundaries=boundaries) as mesh, mesh.stream() as stream:
        answers = await send_all(stream, 5)
    assert [values_of(answer.tensors) for answer in answers] == [[2.0 * number + 2] for number in range(5)]


async def test_a_stage_that_lacks_a_tensor_is_refused_when_it_is_made() -> None:
    for boundaries in ([("z",), ("y",)], [("x",), ("z",)]):
        with pytest.raises(ModelInvalid, match=r"'[xz]'"):
            async with open_memory_chain([add_one("x", "y")], boundaries=boundaries):
                pytest.fail("it was made")


async def test_streams_share_a_stage_fairly() -> None:
    async with open_memory_chain(chain(2)) as mesh, mesh.stream() as greedy, mesh.stream() as modest:
        mesh.engines[1].gate.close()
        taken = {greedy: 0, modest: 0}

        async def feed(stream: FrameStream) -> None:
            for number in count():
                await stream.send([vector(number)])

        async def take(stream: FrameStream) -> None:
            async for _ in stream.answers():
                taken[stream] += 1

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(feed(greedy))]
            await until(lambda: mesh.engines[1].gate.begun > 0)
            tasks += [group.create_task(feed(modest)), *(group.create_task(take(each)) for each in taken)]
            for total in range(1, 41):
                mesh.engines[1].gate.allow()
                await until(lambda: sum(taken.values()) >= total)  # noqa: B023
            for task in tasks:
                task.cancel()
    assert min(taken.values()) >= 12, taken


async def test_a_consumer_that_takes_nothing_stalls_its_own_stream_only() -> None:
    async with open_memory_chain(chain(2)) as mesh, mesh.stream() as stalled, mesh.stream() as other:
        for number in range(4):
            await stalled.send([vector(number)])
        blocked = asyncio.ensure_future(stalled.send([vector(4)]))
        answers = await send_all(other, 60)
        assert len(answers) == 60
        assert not blocked.done(), "the window of the stalled stream is full"
        await anext(stalled.answers())
        await blocked


@pytest.mark.parametrize("stages", [1, 3])
async def test_nothing_is_left_of_a_closed_stream(stages: int) -> None:
    async with open_memory_chain(chain(stages)) as mesh:
        async with mesh.stream() as stream:
            mesh.engines[-1].gate.close()
            for number in range(4):
                await stream.send([vector(number)])
        mesh.engines[-1].gate.open()
        for stage in mesh.stages:
            await until(lambda: not (stage._streams or stage._sinks or stage._slots or len(stage._inbox)))  # noqa: B023
        await until(lambda: mesh.calls == stages - 1, "only the edges between stages stay")
        async with mesh.stream() as stream:
            assert len(await send_all(stream, 5)) == 5


# --- live -----------------------------------------------------------------------------------------


def arrived(stage: Stage) -> int:
    """Frames that came to a stage whose engine is shut, so that none has left."""
    return len(stage._inbox) + len(stage._slots)


async def test_of_a_live_stream_the_newest_frame_is_computed() -> None:
    async with open_memory_chain(chain(1), window=8, answer_shape=(1,)) as mesh, mesh.stream(LIVE) as stream:
        mesh.engines[0].gate.close()
        for number in range(8):
            await stream.send([vector(number)])
            await until(lambda: arrived(mesh.stages[0]) > number)  # noqa: B023
        assert mesh.stages[0].statistics.dropped == 7 - ENGINE_DEPTH
        stream.finish()
        mesh.engines[0].gate.open()
        answers = [answer async for answer in stream.answers()]
    assert [answer.sequence for answer in answers] == list(range(8))
    dropped = [answer for answer in answers if answer.outcome is Outcome.DROPPED]
    assert [answer.sequence for answer in dropped] == list(range(ENGINE_DEPTH, 7)), "all but the newest that waited"
    assert all(isinstance(answer.error, Overloaded) and not answer.tensors for answer in dropped)


async def test_frames_that_others_superseded_do_not_keep_their_bytes() -> None:
    async with open_memory_chain([copy()], window=64, answer_shape=(1024,)) as mesh, mesh.stream(LIVE) as stream:
        mesh.engines[0].gate.close()
        payloads: list[weakref.ref[memoryview]] = []
        for number in range(40):
            tensor = zeros(4096)
            payloads.append(weakref.ref(tensor.data))
            await stream.send([tensor])
            del tensor
            await until(lambda: arrived(mesh.stages[0]) > number)  # noqa: B023
        gc.collect()
        alive = sum(payload() is not None for payload in payloads)
        assert alive <= ENGINE_DEPTH + 3, f"{alive} payloads, although credit for all was given back"


@dataclass
class Alone:
    """One stage between a made-up sender and made-up consumers, by a clock that is set by hand."""

    stage: Stage
    engine: GatedEngine
    now: list[float]
    sender: Sender = field(default_factory=Sender)
    consumers: dict[int, Consumer] = field(default_factory=dict)

    async def open(self, stream: int, window: int = 8, stream_class: StreamClass = StreamClass.LOSSLESS) -> Consumer:
        consumer = self.consumers[stream] = Consumer()
        self.stage.attach_sink(stream, consumer)
        await self.stage.open_stream(OpenStream(stream, stream_class, True, window), self.sender)
        return consumer

    def offer(self, stream: int, sequence: int, budget_us: int = 0, tensor: Tensor | None = None) -> None:
        frame = Frame(stream, sequence, 1, 1, (tensor or vector(sequence),), budget_us)
        self.stage.offer(frame, self.sender)


@asynccontextmanager
async def alone(model: FakeModel | None = None) -> AsyncIterator[Alone]:
    used = model or copy()
    deployment = make_deployment([used], {NodeId("0" * 32): "memory:0"})
    engine, now = GatedEngine(), [0.0]
    async with lease_alone(engine, used) as lease, asyncio.TaskGroup() as group:
        stage = Stage(deployment, 0, lease, None, lambda: now[0])
        stage.activate()
        sending = group.create_task(stage.run())
        try:
            yield Alone(stage, engine, now)
        finally:
            sending.cancel()
            await stage.close()


async def test_a_frame_whose_time_was_up_in_the_queue_is_answered_late() -> None:
    async with alone() as one:
        consumer = await one.open(1)
        one.engine.gate.close()
        for sequence in range(ENGINE_DEPTH + 2):
            one.offer(1, sequence, budget_us=1_000_000)
        one.offer(1, ENGINE_DEPTH + 2)
        one.now[0] = 2.0
        one.engine.gate.open()
        await until(lambda: len(consumer.frames) == ENGINE_DEPTH + 3)
        outcomes = [frame.outcome for frame in consumer.frames]
        assert [frame.sequence for frame in consumer.frames] == list(range(ENGINE_DEPTH + 3))
        assert outcomes == [*[Outcome.OK] * ENGINE_DEPTH, Outcome.LATE, Outcome.LATE, Outcome.OK]
        assert consumer.frames[ENGINE_DEPTH].tensors == ()
        assert one.sender.consumed_bytes == 4 * (ENGINE_DEPTH + 3)


async def test_a_slow_engine_takes_no_more_than_its_depth_and_gives_no_credit_for_the_rest() -> None:
    async with alone() as one:
        await one.open(1, window=20)
        one.engine.gate.close()
        for sequence in range(20):
            one.offer(1, sequence, tensor=zeros(100))
        await until(lambda: one.engine.gate.begun == 1)
        assert one.sender.consumed_bytes == 100 * ENGINE_DEPTH
        assert len(one.stage._inbox) == 20 - ENGINE_DEPTH
        one.engine.gate.allow(3)
        await until(lambda: len(one.consumers[1].frames) == 3)
        assert one.sender.consumed_bytes == 100 * (ENGINE_DEPTH + 3)
        assert len(one.stage._slots) == ENGINE_DEPTH


async def test_a_stream_that_passes_its_window_is_closed_alone() -> None:
    async with alone() as one:
        greedy, modest = await one.open(1, window=3), await one.open(2, window=3)
        one.engine.gate.close()
        one.offer(2, 0)
        for sequence in range(4):
            one.offer(1, sequence)
        assert isinstance(one.sender.closed[1], ProtocolViolation)
        assert isinstance(greedy.end[0], ProtocolViolation)
        one.offer(1, 4)  # was under way
        one.engine.gate.open()
        await until(lambda: len(modest.frames) == 1)
        assert (greedy.frames, modest.end) == ([], [])
        await until(lambda: one.stage.statistics.discarded == 5)
        assert one.sender.consumed_bytes == 4 * 6, "credit comes back for what is thrown away"


async def test_frames_of_closed_and_unknown_streams_are_thrown_away_with_their_credit() -> None:
    async with alone() as one:
        consumer = await one.open(1)
        one.stage.close_stream(1, one.sender, None)
        one.offer(1, 0)
        one.offer(77, 0)
        assert (one.sender.consumed_bytes, one.stage.statistics.discarded) == (8, 2)
        assert (consumer.frames, consumer.end) == ([], [None])
        with pytest.raises(ProtocolViolation, match="another edge"):
            await one.open(2)
            one.stage.offer(Frame(2, 0, 1, 1, (vector(0),)), Sender())


async def test_numbers_may_jump_because_the_window_counts_frames() -> None:
    """A live stream leaves some out, and a lossless one sends again what was lost elsewhere, behind newer ones."""
    async with alone() as one:
        consumer = await one.open(1, window=2)
        numbers = [0, 5, (1 << 64) - 1, 3]
        for count, sequence in enumerate(numbers, 1):
            one.offer(1, sequence, tensor=vector(0))
            await until(lambda: len(consumer.frames) == count)  # noqa: B023
        assert [frame.sequence for frame in consumer.frames] == numbers
        one.engine.gate.close()
        for sequence in (3, 1 << 63, 3):
            one.offer(1, sequence, tensor=vector(0))
        assert isinstance(one.sender.closed[1], ProtocolViolation)
        one.engine.gate.open()


async def test_limits_of_streams_and_consumers() -> None:
    async with alone() as one:
        await one.open(1, window=MAX_QUEUED_FRAMES - 1)
        with pytest.raises(ProtocolViolation, match="open already"):
            await one.stage.open_stream(OpenStream(1, StreamClass.LIVE, True, 1), one.sender)
        with pytest.raises(ProtocolViolation, match="being read already"):
            one.stage.attach_sink(1, Consumer())
        with pytest.raises(ProtocolViolation, match="no consumer"):
            await one.stage.open_stream(OpenStream(2, StreamClass.LIVE, True, 1), one.sender)
        with pytest.raises(Overloaded, match="windows"):
            await one.open(2, window=2)
        one.stage.close_stream(1, one.sender, None)
        for stream in range(3, MAX_STREAMS + 2):
            await one.open(stream, window=1)
        with pytest.raises(Overloaded, match="consumers"):
            await one.open(999, window=1)


async def test_draining_lets_streams_end_and_closes_those_that_do_not() -> None:
    async with alone() as one:
        consumer = await one.open(1)
        draining = asyncio.ensure_future(one.stage.drain(grace_s=60))
        one.offer(1, 0)
        await until(lambda: len(consumer.frames) == 1)
        with pytest.raises(Refused, match="no new streams"):
            one.stage.attach_sink(2, Consumer())
        assert not draining.done()
        one.stage.close_stream(1, one.sender, None)
        await draining
        assert (consumer.end, one.sender.closed) == ([None], {})
    async with alone() as one:
        consumer = await one.open(1)
        await one.stage.drain(grace_s=0.01)
        assert isinstance(consumer.end[0], DeploymentNotFound)
        assert isinstance(one.sender.closed[1], DeploymentNotFound)
        assert not one.stage.streams_of(one.sender)


async def test_closing_ends_an_engine_that_hangs_with_work_queued() -> None:
    async with alone() as one:
        await one.open(1)
        one.engine.gate.close()
        for sequence in range(4):
            one.offer(1, sequence)
        await until(lambda: one.engine.gate.begun == 1)
    assert one.engine.gate.begun == 1, "what waited was dropped"


async def test_credits_bound_the_bytes_that_wait_between_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edge_receiver, "EDGE_CREDIT_BYTES", 1000)
    models = [copy("x", "a"), copy("a", "y")]

    def waiting_bytes(mesh: MemoryChain) -> int:
        return sum(item.size_bytes for item in mesh.stages[1]._inbox._items)

    async with open_memory_chain(models, window=64, answer_shape=(100,)) as mesh, mesh.stream() as stream:
        mesh.engines[1].gate.close()

        async def feed() -> None:
            for _ in range(40):
                await stream.send([zeros(400)])
            stream.finish()

        feeding = asyncio.ensure_future(feed())
        await until(lambda: waiting_bytes(mesh) == 800 and len(mesh.stages[0]._slots) == MAX_SMALL_SLOTS)
        for _ in range(100):  # turns of the loop in which more would come if it could
            await asyncio.sleep(0)
        assert waiting_bytes(mesh) == 800, "as many whole frames as the credit of the edge holds"
        assert sum(item.size_bytes for item in mesh.stages[0]._inbox._items) <= 1000
        assert not feeding.done(), "the client waits as well"
        mesh.engines[1].gate.open()
        answers = [answer async for answer in stream.answers()]
        await feeding
    assert len(answers) == 40
    assert all(answer.outcome is Outcome.OK for answer in answers)
