"""Stages on several devices: who gets which frame, that answers come in order, and what the loss of a replica costs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from mesh.control.deployments import key_of
from mesh.core.frame import Outcome, StreamClass
from mesh.core.ids import NodeId
from mesh.core.measurement import SourceRequest
from mesh.core.plan import Deployment
from mesh.engines.contract import LoadOptions
from mesh.engines.fake import FakeEngine, FakeModel, FakeSession
from mesh.runtime.frame_stream import Answer, FrameStream, StreamOptions
from mesh.runtime.measure_deployment import run_sources
from mesh.runtime.repairing import Repairer
from tests.runtime.fake_mesh import FakeMesh, FakeNode, open_mesh
from tests.runtime.fake_models import chain, make_deployment, until, values_of, vector

PLACES = {
    "head": ((0, 1), (2,), (3,)),
    "middle": ((0,), (1, 2), (3,)),
    "tail": ((0,), (1,), (2, 3)),
    "ends": ((0, 1), (2, 3)),
    "neighbours": ((0,), (1, 2), (3, 4)),
    "copies": ((0, 1),),
}
"""Which nodes each stage is on."""

NODES = 5


class PacedEngine(FakeEngine):
    """Takes its own time, whatever the model says."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self._seconds = seconds

    def load(self, model: bytes | Path, options: LoadOptions) -> FakeSession:
        data = model.read_bytes() if isinstance(model, Path) else model
        return super().load(replace(FakeModel.from_bytes(data), delay_seconds=self._seconds).to_bytes(), options)


@pytest.fixture
async def mesh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FakeMesh]:
    async with open_mesh(tmp_path, monkeypatch) as opened:
        yield opened


async def put(
    mesh: FakeMesh, place: str, paces: Sequence[float] = (), window: int = 8
) -> tuple[Deployment, list[list[FakeNode]]]:
    """A chain with replicas, each stage of which adds one; and the nodes of each stage. `paces` of the first nodes."""
    layout = PLACES[place]
    for index in range(max(max(stage) for stage in layout) + 1):
        await mesh.start(f"n{index}", PacedEngine(paces[index]) if index < len(paces) else None)
    nodes = [[mesh.nodes[index] for index in stage] for stage in layout]
    models = chain(len(layout))
    made = make_deployment(models, {stage[0].node_id: stage[0].address for stage in nodes}, window=window)
    devices: list[tuple[NodeId, ...]] = [tuple(node.node_id for node in stage) for stage in nodes]
    stages = tuple(replace(stage, devices=on) for stage, on in zip(made.plan.stages, devices, strict=True))
    addresses = {node.node_id: node.address for node in mesh.nodes}
    deployment = replace(made, plan=replace(made.plan, stages=stages), addresses=addresses)
    await mesh.put(deployment, models)
    return deployment, nodes


async def exchange(stream: FrameStream, frames: int) -> list[Answer]:
    """Send 0, 1, 2, ... and take every answer."""

    async def feed() -> None:
        for number in range(frames):
            await stream.send([vector(number)])
        stream.finish()

    async with asyncio.timeout(30), asyncio.TaskGroup() as group:
        group.create_task(feed())
        return [answer async for answer in stream.answers()]


def computed(deployment: Deployment, nodes: Sequence[FakeNode]) -> list[int]:
    return [node.stage(deployment).statistics.frames for node in nodes]


@pytest.mark.parametrize("place", PLACES)
async def test_replicas_share_the_frames_and_answers_come_in_order(mesh: FakeMesh, place: str) -> None:
    deployment, nodes = await put(mesh, place)
    async with mesh.stream(deployment) as stream:
        answers = await exchange(stream, 100)
        assert [answer.sequence for answer in answers] == list(range(100))
        assert [values_of(answer.tensors) for answer in answers] == [[n + float(len(nodes))] for n in range(100)]
        assert all([hop.stage for hop in answer.hops] == list(range(len(nodes))) for answer in answers)
    for stage, after in zip(nodes, [*nodes[1:], []], strict=True):
        counts = computed(deployment, stage)
        assert sum(counts) == 100
        assert min(counts) > 0, counts  # in which shares, tests/control/test_dispatch.py says in virtual time
        sent = [node.stage(deployment).sent_bytes for node in stage]
        assert sum(count for each in sent for count in each.values()) == 100 * len(vector(0).data), sent
        assert {peer for each in sent for peer in each} == ({node.node_id for node in after} or {""})
    assert stream.counters.duplicates == 0
    await mesh.is_clean(deployment)


@pytest.mark.parametrize(
    ("place", "paces", "faster", "slower"), [("copies", (0.01, 0.03), 0, 1), ("middle", (0.0, 0.03, 0.01), 2, 1)]
)
async def test_the_faster_replica_gets_more(
    mesh: FakeMesh, place: str, paces: tuple[float, ...], faster: int, slower: int
) -> None:
    deployment, _ = await put(mesh, place, paces, window=10)
    async with mesh.stream(deployment) as stream:
        answers = await exchange(stream, 120)
    assert [answer.sequence for answer in answers] == list(range(120))
    more, fewer = computed(deployment, [mesh.nodes[faster], mesh.nodes[slower]])
    assert more > fewer  # by how much, tests/control/test_dispatch.py says in virtual time


@pytest.mark.parametrize("place", ["head", "middle", "tail", "copies"])
async def test_a_replica_that_stands_still_stalls_nobody_else(mesh: FakeMesh, place: str) -> None:
    deployment, nodes = await put(mesh, place)
    stuck = next(stage for stage in nodes if len(stage) > 1)[0]
    async with mesh.stream(deployment, StreamOptions(is_ordered=False)) as stream:
        stuck.engine.gate.close()
        exchanging = asyncio.ensure_future(exchange(stream, 60))
        other = next(stage for stage in nodes if len(stage) > 1)[1]
        await until(lambda: other.stage(deployment).statistics.frames >= 50, "the rest, by the other replica")
        assert not exchanging.done()
        stuck.engine.gate.open()
        answers = await exchanging
    assert sorted(answer.sequence for answer in answers) == list(range(60))
    assert [answer.sequence for answer in answers] != list(range(60)), "they come as they are done"
    await mesh.is_clean(deployment)


@pytest.mark.parametrize("is_ordered", [True, False])
@pytest.mark.parametrize("place", ["head", "middle", "tail", "copies"])
async def test_the_loss_of_a_replica_costs_the_replica_only(mesh: FakeMesh, place: str, is_ordered: bool) -> None:
    deployment, nodes = await put(mesh, place)
    gone, left = next(stage for stage in nodes if len(stage) > 1)
    recover = Repairer(mesh.client, None, mesh.tasks.spawn).recover
    options = StreamOptions(is_ordered=is_ordered)
    stream = FrameStream(deployment, options, mesh.client, mesh.tasks, recover=recover)
    await stream.open()

    gone.engine.gate.close()  # it goes with frames in its hands

    async def crash() -> None:
        await until(lambda: gone.engine.gate.begun > gone.stage(deployment).statistics.frames, "a frame for who goes")
        gone.task.cancel()
        await asyncio.wait({gone.task})

    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(crash())
            answers = await exchange(stream, 200)
        numbers = [answer.sequence for answer in answers]
        assert sorted(numbers) == list(range(200))
        assert not is_ordered or numbers == list(range(200))
        assert all(values_of(answer.tensors) == [answer.sequence + float(len(nodes))] for answer in answers)
        assert stream.counters.recoveries == 1
        assert stream.counters.replays > 0
        index = next(index for index, stage in enumerate(nodes) if len(stage) > 1)
        assert stream.deployment.plan.stages[index].devices == (left.node_id,)
        others = [stage.devices for at, stage in enumerate(stream.deployment.plan.stages) if at != index]
        assert others == [stage.devices for at, stage in enumerate(deployment.plan.stages) if at != index]
    finally:
        await stream.close()


@pytest.mark.parametrize("place", ["head", "middle", "tail", "copies"])
async def test_a_stream_is_opened_without_a_replica_that_is_gone(mesh: FakeMesh, place: str) -> None:
    deployment, nodes = await put(mesh, place)
    gone = next(stage for stage in nodes if len(stage) > 1)[1]
    gone.task.cancel()
    await asyncio.wait({gone.task})
    recover = Repairer(mesh.client, None, mesh.tasks.spawn).recover
    stream = FrameStream(deployment, StreamOptions(), mesh.client, mesh.tasks, recover=recover)
    try:
        async with asyncio.timeout(10):
            await stream.open()
        answers = await exchange(stream, 20)
        assert [values_of(answer.tensors) for answer in answers] == [[n + float(len(nodes))] for n in range(20)]
        assert gone.node_id not in stream.deployment.plan.devices
    finally:
        await stream.close()


@pytest.mark.parametrize("place", ["head", "tail", "copies"])
async def test_frames_of_a_live_stream_are_all_accounted_for(mesh: FakeMesh, place: str) -> None:
    deployment, nodes = await put(mesh, place, [0.005] * 4, window=4)
    options = StreamOptions(StreamClass.LIVE, deadline_s=0.5)
    async with mesh.stream(deployment, options) as stream:
        answers: list[Answer] = []

        async def take() -> None:
            answers.extend([answer async for answer in stream.answers()])

        async with asyncio.timeout(20), asyncio.TaskGroup() as group:
            group.create_task(take())
            for number in range(150):
                await stream.send([vector(number)])
                await asyncio.sleep(0.001)
            stream.finish()
    assert [answer.sequence for answer in answers] == list(range(150))
    outcomes = {answer.outcome for answer in answers}
    assert {Outcome.OK, Outcome.DROPPED} <= outcomes <= {Outcome.OK, Outcome.DROPPED, Outcome.LATE}
    assert all(min(computed(deployment, stage)) > 0 for stage in nodes)
    await mesh.is_clean(deployment)


@pytest.mark.parametrize("place", ["copies", "ends", "middle", "neighbours"])
async def test_each_replica_of_the_head_has_a_source_of_its_own(mesh: FakeMesh, place: str) -> None:
    deployment, nodes = await put(mesh, place, [0.004] * NODES, window=4)
    report = await run_sources(deployment, mesh.client, SourceRequest(seconds=0.4, warm_up_seconds=0.1))
    assert report.answered > 0
    assert [figures.stage for figures in report.stages] == list(range(len(nodes)))
    counts = [computed(deployment, stage) for stage in nodes]
    assert all(min(each) > 0 for each in counts), counts
    await mesh.is_clean(deployment)


async def test_streams_and_plans_that_end_leave_nothing(mesh: FakeMesh) -> None:
    deployment, nodes = await put(mesh, "ends")
    async with mesh.stream(deployment) as first, mesh.stream(deployment) as second:
        await first.send([vector(1)])
        assert values_of((await anext(first.answers())).tensors) == [3.0]
        await first.close()
        assert len(await exchange(second, 20)) == 20, "the other stream goes on"
    await mesh.is_clean(deployment)
    for stage in nodes:
        for node in stage:
            await node.client.drain(key_of(deployment))
    assert all(not node.driver.state.records for node in mesh.nodes)
