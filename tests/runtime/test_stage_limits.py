"""Limits of a stage that hold where no other one holds before them."""

from __future__ import annotations

import pytest

from mesh.core.frame import StreamClass
from mesh.core.messages import OpenEdge, OpenStream
from mesh.errors import Overloaded
from mesh.runtime import edge_receiver, stage
from tests.runtime.fake_models import chain, copy, until, values_of, vector
from tests.runtime.loopback_link import open_memory_chain
from tests.runtime.played_ends import Consumer, Sender


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
