"""Answers that together are more than may wait for one consumer: as many frames are in flight as their answers may."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from mesh.control import flow
from mesh.core.frame import Outcome
from mesh.runtime import edge_receiver
from tests.runtime.fake_mesh import open_mesh
from tests.runtime.fake_models import copy, zeros

FRAMES = 24
WINDOW = 8
MAY_WAIT = 1 << 20
ANSWER = 600 << 10


async def test_a_stream_of_large_answers_is_not_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (flow, edge_receiver):
        monkeypatch.setattr(module, "MAX_UNREAD_BYTES", MAY_WAIT)
    async with open_mesh(tmp_path, monkeypatch, 1) as mesh:
        deployment = await mesh.deploy([copy()], mesh.nodes, window=WINDOW)
        async with mesh.stream(deployment) as stream:

            async def feed() -> None:
                for _ in range(FRAMES):
                    await stream.send([zeros(ANSWER)])
                stream.finish()

            feeding = mesh.tasks.spawn(feed(), "feed")
            outcomes = [answer.outcome async for answer in stream.answers()]
            await asyncio.wait({feeding})
    assert outcomes == [Outcome.OK] * FRAMES
