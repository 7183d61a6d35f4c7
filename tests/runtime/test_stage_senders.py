"""A stage whose streams come over several edges: who may open one, when it ends, and when credit goes back."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field, replace

import pytest

from mesh.core.frame import Frame, StreamClass
from mesh.core.ids import NodeId
from mesh.core.messages import OpenStream
from mesh.errors import MeshError, NodeLost, Overloaded, ProtocolViolation
from mesh.runtime.edge_sender import ignore_closed, ignore_draining
from mesh.runtime.stage import Stage
from mesh.runtime.supervise import Supervisor
from tests.runtime.fake_models import GatedEngine, chain, lease_alone, make_deployment, until, vector
from tests.runtime.played_ends import Consumer, Sender

STREAM = OpenStream(1, StreamClass.LOSSLESS, True, 8)
GONE = NodeLost("one of them is gone")


@dataclass
class After:
    """The stage after this one, played: opens streams when it is told to."""

    may_open: asyncio.Event = field(default_factory=asyncio.Event)
    refusal: MeshError | None = None
    opened: list[int] = field(default_factory=list)
    closed: dict[int, MeshError | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.on_stream_closed: Callable[[int, MeshError | None], None] = ignore_closed
        self.on_draining: Callable[[], None] = ignore_draining

    async def open_stream(self, info: OpenStream) -> None:
        self.opened.append(info.stream)
        await self.may_open.wait()
        if self.refusal is not None:
            raise self.refusal

    async def send(self, frames: Sequence[Frame]) -> None:
        """It is not looked at here."""

    def close_stream(self, stream: int, error: MeshError | None) -> None:
        self.closed[stream] = error

    async def close(self) -> None:
        """Nothing to free."""


@contextlib.asynccontextmanager
async def make_stage(
    before: int, here: int = 1, after: After | None = None, engine: GatedEngine | None = None
) -> AsyncIterator[Stage]:
    """Stage 1 on `here` devices, of two stages or (with `after`) three, behind one on `before` devices."""
    models = chain(2 if after is None else 3)
    made = make_deployment(models, {NodeId(f"{index:032x}"): f"memory:{index}" for index in range(len(models))})
    first, second, *rest = made.plan.stages
    spread = (
        replace(first, devices=tuple(NodeId(f"{10 + index:032x}") for index in range(before))),
        replace(second, devices=tuple(NodeId(f"{20 + index:032x}") for index in range(here))),
        *rest,
    )
    deployment = replace(made, plan=replace(made.plan, stages=spread))
    async with lease_alone(engine or GatedEngine(), models[1]) as lease, Supervisor() as tasks:
        stage = Stage(deployment, 1, lease, after)
        stage.activate()
        tasks.spawn(stage.run(), "stage")
        yield stage


def frame(sequence: int) -> Frame:
    return Frame(STREAM.stream, sequence, 1, 1, (vector(sequence),))


async def test_frames_of_one_stream_come_from_all_who_opened_it() -> None:
    async with make_stage(2) as stage:
        left, right, consumer = Sender(), Sender(), Consumer()
        stage.attach_sink(STREAM.stream, consumer)
        await stage.open_stream(STREAM, left)
        await stage.open_stream(STREAM, right)
        stage.offer(frame(0), left)
        stage.offer(frame(1), right)
        await until(lambda: len(consumer.frames) == 2)
        assert left.consumed_bytes == right.consumed_bytes == frame(0).payload_bytes
        with pytest.raises(ProtocolViolation, match="another edge"):
            stage.offer(frame(2), Sender())


async def test_it_ends_when_all_have_ended_it() -> None:
    async with make_stage(2) as stage:
        left, right, consumer = Sender(), Sender(), Consumer()
        stage.attach_sink(STREAM.stream, consumer)
        await stage.open_stream(STREAM, left)
        await stage.open_stream(STREAM, right)
        stage.close_stream(STREAM.stream, left, None)
        stage.close_stream(STREAM.stream, left, None)
        assert consumer.end == []
        assert (stage.streams_of(left), stage.streams_of(right)) == ((), (STREAM.stream,))
        stage.offer(frame(0), left)  # was on its way
        stage.offer(frame(1), right)
        await until(lambda: len(consumer.frames) == 2)
        stage.close_stream(STREAM.stream, right, None)
        assert consumer.end == [None]
        assert (left.closed, right.closed) == ({}, {})


async def test_the_loss_of_one_ends_it_for_all() -> None:
    async with make_stage(2) as stage:
        left, right, consumer = Sender(), Sender(), Consumer()
        stage.attach_sink(STREAM.stream, consumer)
        await stage.open_stream(STREAM, left)
        await stage.open_stream(STREAM, right)
        stage.close_stream(STREAM.stream, left, GONE)
        assert consumer.end == [GONE]
        assert (left.closed, right.closed) == ({}, {STREAM.stream: GONE})
        stage.offer(frame(0), right)  # was on its way; nobody waits for it
        assert right.consumed_bytes == frame(0).payload_bytes
        assert consumer.frames == []


async def test_the_loss_of_the_consumer_is_told_to_all() -> None:
    async with make_stage(2) as stage:
        left, right = Sender(), Sender()
        stage.attach_sink(STREAM.stream, Consumer())
        await stage.open_stream(STREAM, left)
        await stage.open_stream(STREAM, right)
        stage.detach_sink(STREAM.stream, GONE)
        assert left.closed == right.closed == {STREAM.stream: GONE}


async def test_who_may_not_open_it() -> None:
    async with make_stage(2) as stage:
        left = Sender()
        stage.attach_sink(STREAM.stream, Consumer())
        await stage.open_stream(STREAM, left)
        with pytest.raises(ProtocolViolation, match="open already"):
            await stage.open_stream(STREAM, left)
        with pytest.raises(ProtocolViolation, match="two different streams"):
            await stage.open_stream(replace(STREAM, window=4), Sender())
        await stage.open_stream(STREAM, Sender())
        with pytest.raises(ProtocolViolation, match="open already"):
            await stage.open_stream(STREAM, Sender())


@pytest.mark.parametrize("refusal", [None, Overloaded("too many")])
async def test_the_second_waits_for_what_the_first_is_told(refusal: MeshError | None) -> None:
    after = After(refusal=refusal)
    async with make_stage(2, after=after) as stage:
        openings = [asyncio.ensure_future(stage.open_stream(STREAM, Sender())) for _ in range(2)]
        await until(lambda: after.opened == [STREAM.stream])
        assert not any(opening.done() for opening in openings)
        after.may_open.set()
        assert await asyncio.gather(*openings, return_exceptions=True) == [refusal, refusal]
        assert bool(stage._streams) == (refusal is None)
        assert after.opened == [STREAM.stream], "once"


@pytest.mark.parametrize("error", [None, GONE])
async def test_a_stream_may_end_while_it_is_being_opened(error: MeshError | None) -> None:
    after = After()
    async with make_stage(2, after=after) as stage:
        senders = [Sender(), Sender()]
        openings = [asyncio.ensure_future(stage.open_stream(STREAM, sender)) for sender in senders]
        await until(lambda: after.opened == [STREAM.stream])
        for sender in senders:
            stage.close_stream(STREAM.stream, sender, error)
        after.may_open.set()
        outcomes = await asyncio.gather(*openings, return_exceptions=True)
        assert all(isinstance(outcome, MeshError) for outcome in outcomes), outcomes
        assert not stage._streams
        assert STREAM.stream in after.closed


@pytest.mark.parametrize("devices", [1, 2])
async def test_a_replica_gives_credit_for_what_it_has_computed(devices: int) -> None:
    engine = GatedEngine()
    async with make_stage(1, devices, engine=engine) as stage:
        sender, consumer = Sender(), Consumer()
        stage.attach_sink(STREAM.stream, consumer)
        await stage.open_stream(STREAM, sender)
        engine.gate.close()
        stage.offer(frame(0), sender)
        await until(lambda: engine.gate.begun == 1)
        size_bytes = frame(0).payload_bytes
        assert sender.consumed_bytes == (size_bytes if devices == 1 else 0)
        engine.gate.open()
        await until(lambda: len(consumer.frames) == 1)
        assert sender.consumed_bytes == size_bytes
