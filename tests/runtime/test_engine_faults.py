"""A node whose engines are children: they crash, are killed and given up, and the daemon serves on."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from mesh.control.deployments import DeploymentState, key_of
from mesh.core.frame import Outcome
from mesh.core.plan import Deployment
from mesh.engines.child_process import ChildEngine, ChildSession
from mesh.engines.fake import FakeModel
from mesh.errors import EngineDied, EngineQuarantined, MeshError, Refused, RunFailed
from tests.runtime.fake_mesh import FakeMesh, FakeNode, open_mesh
from tests.runtime.fake_models import add_one, digest_of, spec, until, values_of, vector

POISON = 13.0
FRAGILE = FakeModel((spec("x"),), (spec("y"),), crashes_at=POISON)
STEADY = add_one("x", "y", delay_seconds=0.01)


@pytest.fixture
async def mesh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FakeMesh]:
    async with open_mesh(tmp_path, monkeypatch) as opened:
        await opened.start("n0", ChildEngine("fake"))
        yield opened


def child_of(node: FakeNode, deployment: Deployment) -> int:
    (lane,) = node.stage(deployment).engine.engine.lanes
    assert isinstance(lane.session, ChildSession)
    return lane.session.pid


async def ask(mesh: FakeMesh, deployment: Deployment, *values: float) -> list[float | type[MeshError]]:
    """Send all, then say what came back for each, in order."""
    async with mesh.stream(deployment) as stream:

        async def send() -> None:
            for value in values:
                await stream.send([vector(value)])
            stream.finish()

        sending = asyncio.ensure_future(send())
        answers = [answer async for answer in stream.answers()]
        await sending
    return [
        values_of(answer.tensors)[0] if answer.outcome is Outcome.OK else type(answer.error or MeshError("none"))
        for answer in answers
    ]


async def test_a_killed_engine_loses_nothing(mesh: FakeMesh) -> None:
    (node,) = mesh.nodes
    deployment = await mesh.deploy([STEADY], [node])
    asking = asyncio.ensure_future(ask(mesh, deployment, *range(40)))
    await until(lambda: node.stage(deployment).statistics.frames > 5)
    before = child_of(node, deployment)
    os.kill(before, signal.SIGKILL)
    assert await asking == [value + 1 for value in range(40)]
    assert child_of(node, deployment) != before
    ((report,), _) = await node.client.list_deployments()
    assert any("started again" in happening.text for happening in report.happenings)


async def test_an_engine_that_is_given_up_fails_its_deployment_and_no_other(mesh: FakeMesh) -> None:
    (node,) = mesh.nodes
    bad = await mesh.deploy([FRAGILE], [node], name="bad")
    good = await mesh.deploy([STEADY], [node], name="good")
    of_bad, of_good = await asyncio.gather(ask(mesh, bad, 1, *[POISON] * 4), ask(mesh, good, *range(30)))
    assert of_bad == [1, RunFailed, RunFailed, RunFailed, EngineQuarantined]
    assert of_good == [value + 1 for value in range(30)]
    await until(lambda: node.driver.state.records[key_of(bad)].state is DeploymentState.FAILED)
    assert await node.states() == {key_of(bad): "failed", key_of(good): "active"}
    reports, _ = await node.client.list_deployments("bad")
    assert "died again" in reports[0].reason
    with pytest.raises(Refused, match="failed on this node"):
        await ask(mesh, bad, 1)
    await node.client.drain(key_of(bad))
    again = replace(bad, fence=replace(bad.fence, generation=2))
    await mesh.put(again, [FRAGILE])
    assert await ask(mesh, again, 1) == [1]


async def test_a_new_generation_takes_the_engine_that_is_loaded(mesh: FakeMesh) -> None:
    (node,) = mesh.nodes
    first = await mesh.deploy([STEADY], [node])
    second = replace(first, fence=replace(first.fence, generation=2))
    await mesh.put(second, [STEADY])
    assert child_of(node, first) == child_of(node, second)
    await node.client.drain(key_of(first))
    assert await ask(mesh, second, 1) == [2]
    child = child_of(node, second)
    await node.client.drain(key_of(second))
    assert not (Path("/proc") / str(child)).is_dir()


async def test_a_model_that_kills_its_engine_while_it_is_measured_costs_an_error(mesh: FakeMesh) -> None:
    (node,) = mesh.nodes
    deadly = FakeModel((spec("x"),), (spec("y"),), crashes_at=0.0)
    await node.client.put_content(digest_of(deadly), deadly.to_bytes())
    with pytest.raises(EngineDied, match="SIGABRT"):
        await node.client.measure_model(digest_of(deadly), 1.0)
    await node.client.put_content(digest_of(STEADY), STEADY.to_bytes())
    measured = await node.client.measure_model(digest_of(STEADY), 0.1)
    assert measured.run_seconds >= 0.01
