"""Going on after a loss: real nodes on loopback, a stage moved to a stand-by by whoever notices first."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from mesh.control.deployments import Key, key_of
from mesh.control.repair import choose_standbys
from mesh.control.timing import DRAIN_TIMEOUT_S
from mesh.core.plan import Deployment, Fence
from mesh.errors import DeploymentNotFound, NodeLost, Timeout
from mesh.runtime import repairing
from mesh.runtime.frame_stream import FrameStream, StreamOptions
from mesh.runtime.repairing import ASK_TIMEOUT_S, PATIENT_ASK_TIMEOUT_S, SUSPECT_ASK_TIMEOUT_S, Repairer
from mesh.wire.channel import NodeClient
from tests.runtime.fake_mesh import FakeMesh, FakeNode, open_mesh
from tests.runtime.fake_models import FIRST, chain, digest_of, make_deployment, until, values_of, vector

MODELS = chain(3)


@pytest.fixture
async def fleet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FakeMesh]:
    async with open_mesh(tmp_path, monkeypatch, 4) as fleet:
        yield fleet


async def put(fleet: FakeMesh, nodes: Sequence[FakeNode], fence: Fence = FIRST) -> Deployment:
    """A chain over `nodes`, with all other nodes of the fleet as stand-bys, which hold nothing yet."""
    everyone = {node.node_id: node.address for node in fleet.nodes}
    made = make_deployment(MODELS, {node.node_id: node.address for node in nodes}, name="chain", fence=fence)
    standbys = choose_standbys(made.plan, [tuple(everyone)] * len(MODELS))
    deployment = replace(made, addresses=everyone, standbys=standbys)
    await fleet.put(deployment, MODELS)
    return deployment


def make_repairer(fleet: FakeMesh) -> Repairer:
    return Repairer(fleet.client, None, fleet.tasks.spawn)


async def crash(node: FakeNode) -> None:
    node.task.cancel()
    await asyncio.wait({node.task})


async def compute(fleet: FakeMesh, deployment: Deployment, value: float) -> list[float]:
    async with fleet.stream(deployment) as stream:
        await stream.send([vector(value)])
        stream.finish()
        return [number async for answer in stream.answers() for number in values_of(answer.tensors)]


async def hold_content(fleet: FakeMesh, deployment: Deployment) -> None:
    """As deploying does: the first stand-by of each stage has its segment."""
    for model, spare in zip(MODELS, deployment.standbys, strict=True):
        await fleet.client(deployment.addresses[spare[0]]).put_content(digest_of(model), model.to_bytes())


@pytest.mark.parametrize("lost", [0, 1, 2])
async def test_a_stage_of_a_lost_node_moves_to_its_standby(fleet: FakeMesh, lost: int) -> None:
    deployment = await put(fleet, fleet.nodes[:3])
    await hold_content(fleet, deployment)
    await crash(fleet.nodes[lost])
    repaired = await make_repairer(fleet).recover(deployment, NodeLost("gone"))
    assert repaired.fence == Fence(deployment.fence.term, deployment.fence.generation + 1)
    assert repaired.plan.stages[lost].devices == (fleet.nodes[3].node_id,)
    assert await compute(fleet, repaired, 1.0) == [4.0]
    survivors = [node for index, node in enumerate(fleet.nodes) if index != lost]
    for node in survivors:
        await until(lambda node=node: list(node.driver.state.records) == [key_of(repaired)], "only the new generation")
    told = [happening.text for happening in fleet.nodes[3].driver.reports("chain")[0].happenings]
    assert any(f"stage {lost} moved from" in text for text in told)


async def test_everybody_who_repairs_at_once_ends_with_the_same(fleet: FakeMesh) -> None:
    deployment = await put(fleet, fleet.nodes[:3])
    await hold_content(fleet, deployment)
    await crash(fleet.nodes[1])
    found = await asyncio.gather(*(make_repairer(fleet).recover(deployment, NodeLost("gone")) for _ in range(4)))
    assert len({repaired.fence for repaired in found}) == 1
    assert await compute(fleet, found[0], 1.0) == [4.0]


async def test_losses_one_after_the_other_until_nobody_is_left(fleet: FakeMesh) -> None:
    deployment = await put(fleet, fleet.nodes[:3])
    await hold_content(fleet, deployment)
    repairer = make_repairer(fleet)
    for index in (0, 2):
        await crash(fleet.nodes[index])
        deployment = await repairer.recover(deployment, NodeLost("gone"))
        assert await compute(fleet, deployment, 2.0) == [5.0]
        alive = [node for node in fleet.nodes if not node.task.done()]
        await until(partial(all_have_their_parts, deployment, alive), "stand-bys that hold their segments")
    await crash(fleet.nodes[1])
    await crash(fleet.nodes[3])
    with pytest.raises(NodeLost, match="nobody can take over"):
        await repairer.recover(deployment, NodeLost("gone"))


def all_have_their_parts(deployment: Deployment, nodes: Sequence[FakeNode]) -> bool:
    return all(has_its_part(deployment, node) for node in nodes)


def has_its_part(deployment: Deployment, node: FakeNode) -> bool:
    """Whether it holds what the deployment wants it to hold ahead of time."""
    wanted = [m for m, spare in zip(MODELS, deployment.standbys, strict=True) if node.node_id in spare[:1]]
    return all(node.driver._content.has(digest_of(model)) for model in wanted)


async def test_a_generation_that_is_in_force_is_taken_not_repaired(fleet: FakeMesh) -> None:
    old = await put(fleet, fleet.nodes[:3])
    assert await make_repairer(fleet).recover(old, NodeLost("a connection broke")) == old
    new = await put(fleet, fleet.nodes[1:], Fence(FIRST.term, FIRST.generation + 1))
    assert await make_repairer(fleet).recover(old, None) == new


async def test_a_node_that_only_its_neighbour_cannot_reach_is_left_out_the_second_time(fleet: FakeMesh) -> None:
    deployment = await put(fleet, fleet.nodes[:3])
    await hold_content(fleet, deployment)
    lost = NodeLost("no way from one to the other")
    lost.address = fleet.nodes[1].address
    repairer = make_repairer(fleet)
    assert await repairer.recover(deployment, lost) == deployment
    repaired = await repairer.recover(deployment, lost)
    assert fleet.nodes[1].node_id not in repaired.plan.devices
    assert await compute(fleet, repaired, 1.0) == [4.0]


class _Slow:
    """The connection to a node that needs so long for its answer."""

    def __init__(self, client: NodeClient, asked: list[float], needs_s: float = ASK_TIMEOUT_S) -> None:
        self._client = client
        self._asked = asked
        self._needs_s = needs_s

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    async def list_deployments(self, name: str, timeout_s: float) -> Any:
        self._asked.append(timeout_s)
        if timeout_s < self._needs_s:
            raise Timeout("slow")
        return await self._client.list_deployments(name, timeout_s)


@pytest.mark.parametrize("has_standbys", [True, False])
async def test_who_broke_the_path_is_waited_for_only_where_nobody_can_take_over(
    fleet: FakeMesh, has_standbys: bool
) -> None:
    deployment = await put(fleet, fleet.nodes[:3])
    await hold_content(fleet, deployment)
    if not has_standbys:
        deployment = replace(deployment, standbys=((),) * len(MODELS), fence=Fence(FIRST.term, FIRST.generation + 1))
        await fleet.put(deployment, MODELS)
    suspect, asked = fleet.nodes[1].address, list[float]()

    def connect(address: str) -> Any:
        client = fleet.client(address)
        return _Slow(client, asked) if address == suspect else client

    repairer = Repairer(connect, None, fleet.tasks.spawn)
    lost = NodeLost("silent")
    lost.address = suspect
    recovered = await repairer.recover(deployment, lost)
    assert (recovered.fence == deployment.fence) == (not has_standbys)
    assert asked == [SUSPECT_ASK_TIMEOUT_S, *([] if has_standbys else [ASK_TIMEOUT_S])]
    assert (fleet.nodes[1].node_id in recovered.plan.devices) == (not has_standbys)
    assert await compute(fleet, recovered, 1.0) == [4.0]


@pytest.mark.parametrize("is_told", [True, False])
async def test_busy_nodes_are_waited_for_where_nobody_can_take_over_without_them(
    fleet: FakeMesh, is_told: bool
) -> None:
    deployment = await put(fleet, fleet.nodes[:3])
    await hold_content(fleet, deployment)
    await crash(fleet.nodes[1])
    asked: list[float] = []

    def connect(address: str) -> Any:
        client = fleet.client(address)
        is_dead = address == fleet.nodes[1].address
        return client if is_dead else _Slow(client, asked, PATIENT_ASK_TIMEOUT_S)

    lost = NodeLost("gone")
    lost.address = fleet.nodes[1].address if is_told else ""
    repaired = await Repairer(connect, None, fleet.tasks.spawn).recover(deployment, lost)
    assert repaired.plan.stages[1].devices == (fleet.nodes[3].node_id,)
    assert max(asked) == PATIENT_ASK_TIMEOUT_S
    assert await compute(fleet, repaired, 1.0) == [4.0]


async def test_silence_for_good_is_given_up(fleet: FakeMesh, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repairing, "PATIENCE_S", 0.05)
    deployment = await put(fleet, fleet.nodes[:3])
    repairer = Repairer(lambda address: _Slow(fleet.client(address), [], 60.0), None, fleet.tasks.spawn)  # type: ignore[arg-type,return-value]
    with pytest.raises(NodeLost, match="nobody can take over"):
        await repairer.recover(deployment, NodeLost("gone"))


async def test_who_was_too_busy_to_take_its_part_is_asked_once_more(fleet: FakeMesh) -> None:
    deployment = await put(fleet, fleet.nodes[:3])
    await hold_content(fleet, deployment)
    await crash(fleet.nodes[1])
    busy = [fleet.nodes[index].address for index in (0, 2, 3)]

    class Busy:
        def __init__(self, client: NodeClient) -> None:
            self._client = client

        def __getattr__(self, name: str) -> Any:
            return getattr(self._client, name)

        async def activate(self, key: Key) -> None:
            if self._client is fleet.nodes[3].client and busy:
                busy.clear()
                raise Timeout("busy")
            await self._client.activate(key)

    standbys = ((), (fleet.nodes[3].node_id,), ())
    deployment = replace(deployment, standbys=standbys, fence=Fence(FIRST.term, FIRST.generation + 1))
    alive = [fleet.nodes[index] for index in (0, 2)]
    for node in alive:
        await node.client.prepare(deployment)
        await node.client.activate(key_of(deployment))
    repairer = Repairer(lambda address: Busy(fleet.client(address)), None, fleet.tasks.spawn)  # type: ignore[arg-type,return-value]
    repaired = await repairer.recover(deployment, NodeLost("gone"))
    assert not busy
    assert repaired.plan.stages[1].devices == (fleet.nodes[3].node_id,)
    assert await compute(fleet, repaired, 1.0) == [4.0]


async def test_what_was_removed_is_not_brought_back(fleet: FakeMesh) -> None:
    deployment = await put(fleet, fleet.nodes[:3])
    for node in fleet.nodes[:2]:
        await node.client.drain(key_of(deployment))
    with pytest.raises(DeploymentNotFound, match="was removed"):
        await make_repairer(fleet).recover(deployment, DeploymentNotFound("removed"))


async def test_without_the_content_anywhere_the_reason_is_told(fleet: FakeMesh) -> None:
    deployment = await put(fleet, fleet.nodes[:3])
    await crash(fleet.nodes[1])
    with pytest.raises(NodeLost):
        await make_repairer(fleet).recover(deployment, NodeLost("gone"))


@pytest.mark.parametrize("how", ["crashes", "leaves"])
@pytest.mark.parametrize("index", [0, 1, 2])
async def test_a_stream_goes_on_when_a_node_of_it_goes(fleet: FakeMesh, index: int, how: str) -> None:
    deployment = await put(fleet, fleet.nodes[:3])
    await hold_content(fleet, deployment)
    recover = make_repairer(fleet).recover
    stream = FrameStream(deployment, StreamOptions(window=4), fleet.client, fleet.tasks, recover=recover)
    await stream.open()
    try:
        answers = stream.answers()
        for number in range(60):
            await stream.send([vector(float(number))])
            if number == 20:
                ending = crash(fleet.nodes[index]) if how == "crashes" else fleet.nodes[index].end()
                going = fleet.tasks.spawn(ending, "a node goes")
            answer = await anext(answers)
            assert (answer.sequence, values_of(answer.tensors)) == (number, [number + 3.0])
        async with asyncio.timeout(2 * DRAIN_TIMEOUT_S):
            await going
        for number in range(60, 80):
            await stream.send([vector(float(number))])
            assert values_of((await anext(answers)).tensors) == [number + 3.0]
        assert stream.deployment.fence.generation == deployment.fence.generation + 1
        assert stream.counters.recoveries == (1 if how == "crashes" else 0), stream.counters
    finally:
        await stream.close()
