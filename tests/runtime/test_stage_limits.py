"""Limits of a stage that hold where no other one holds before them."""

from __future__ import annotations

import asyncio

import pytest

from mesh.core.frame import StreamClass
from mesh.core.messages import OpenEdge, OpenStream
from mesh.errors import Overloaded
from mesh.runtime import edge_receiver, stage
from tests.runtime.fake_models import chain, copy, until, values_of, vector, zeros
from tests.runtime.loopback_link import open_memory_chain
from tests.runtime.played_ends import Consumer, Sender

ENGINE_DEPTH = 2
"""Of one lane."""


async def test_a_stage_before_others_takes_no_more_than_its_streams_either(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has no consumers, whose limit would hold them."""
    monkeypatch.setattr(stage, "MAX_STREAMS", 3)
    async with open_memory_chain(chain(2)) as mesh:
        head, tail = mesh.stages
        sender = Sender()
        for stream in range(3):
            tail.attach_sink(stream, Consumer())
            await head.open_stream(OpenStream(stream, StreamClass.LOSSLESS, True, 1), sender)
        with pytest.raises(Overloaded, match="3 streams"):
            await head.open_stream(OpenStream(3, StreamClass.LOSSLESS, True, 1), sender)
        head.close_stream(0, sender, None)
        await until(lambda: 0 not in tail._sinks)
        tail.attach_sink(4, Consumer())
        await head.open_stream(OpenStream(4, StreamClass.LOSSLESS, True, 1), sender)


async def test_a_sender_that_reads_nothing_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it is told, here that there are no such streams, may not pile up."""
    monkeypatch.setattr(edge_receiver, "MAX_OUTGOING_MESSAGES", 50)
    async with open_memory_chain([copy()]) as mesh, mesh.stream() as honest:
        link = mesh.nodes["memory:0"].open_edge()
        await link.send(OpenEdge(mesh.deployment.name, mesh.deployment.fence, 0))
        with pytest.raises(Overloaded, match="does not read"):
            for stream in range(1000):
                await link.send(OpenStream(stream, StreamClass.LOSSLESS, True, 1))
        await honest.send([vector(5)])
        assert values_of((await anext(honest.answers())).tensors) == [5.0]


async def test_large_results_that_wait_to_leave_stop_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    size = stage.MAX_SMALL_LEAVING_BYTES + 4
    monkeypatch.setattr(edge_receiver, "EDGE_CREDIT_BYTES", 2 * size)
    models, answer_shape = [copy("x", "a"), copy("a", "y")], (size // 4,)
    async with open_memory_chain(models, window=64, answer_shape=answer_shape) as mesh, mesh.stream() as stream:
        mesh.engines[1].gate.close()

        async def feed() -> None:
            for _ in range(20):
                await stream.send([zeros(size)])
            stream.finish()

        feeding = asyncio.ensure_future(feed())
        slots = mesh.stages[0]._slots
        await until(
            lambda: len(slots) == ENGINE_DEPTH + stage.MAX_LEAVING and all(slot.result is not None for slot in slots)
        )
        begun = mesh.engines[0].gate.begun
        for _ in range(100):  # turns of the loop in which more would begin if it could
            await asyncio.sleep(0)
        assert len(slots) == ENGINE_DEPTH + stage.MAX_LEAVING
        assert mesh.engines[0].gate.begun == begun
        mesh.engines[1].gate.open()
        assert len([answer async for answer in stream.answers()]) == 20
        await feeding
