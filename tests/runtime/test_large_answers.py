"""Answers that together are more than may wait for one consumer: as many frames are in flight as their answers may."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from mesh.control import flow
from mesh.core.frame import Frame, Outcome
from mesh.core.messages import Heartbeat
from mesh.errors import Overloaded
from mesh.runtime import edge_receiver
from tests.runtime.fake_mesh import open_mesh
from tests.runtime.fake_models import copy, zeros

FRAMES = 24
WINDOW = 8
ANSWER = 600 << 10


@pytest.mark.parametrize(
    ("may_wait", "answer_shape"),
    [
        (1 << 20, (ANSWER // 4,)),
        (flow.FRAMES_OF_UNKNOWN_ANSWERS * ANSWER, ("n",)),
    ],
    ids=["known", "unknown"],
)
async def test_a_stream_of_large_answers_is_not_broken(
    may_wait: int, answer_shape: tuple[int | str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (flow, edge_receiver):
        monkeypatch.setattr(module, "MAX_UNREAD_BYTES", may_wait)
    async with open_mesh(tmp_path, monkeypatch, 1) as mesh:
        deployment = await mesh.deploy([copy()], mesh.nodes, window=WINDOW, answer_shape=answer_shape)
        async with mesh.stream(deployment) as stream:

            async def feed() -> None:
                for _ in range(FRAMES):
                    await stream.send([zeros(ANSWER)])
                stream.finish()

            feeding = mesh.tasks.spawn(feed(), "feed")
            outcomes = [answer.outcome async for answer in stream.answers()]
            await asyncio.wait({feeding})
    assert outcomes == [Outcome.OK] * FRAMES


async def test_heartbeats_wait_behind_one_answer_however_large() -> None:
    outgoing = edge_receiver._Outgoing(capacity=4)
    large = Frame(1, 0, 1, 1, (zeros(flow.MAX_UNREAD_BYTES + 4),))
    outgoing.put(large)
    outgoing.put(Heartbeat())
    assert not outgoing._overflowed.is_set()
    outgoing.put(large)
    with pytest.raises(Overloaded):
        await outgoing.watch()
