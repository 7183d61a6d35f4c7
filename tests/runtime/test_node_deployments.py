"""Deployments on real nodes, over gRPC: from preparing to gone, restarts, failures, and an orderly stop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from dataclasses import replace
from functools import partialmethod
from pathlib import Path

import pytest

from mesh.control.deployments import key_of
from mesh.core.frame import Outcome
from mesh.core.ids import DeploymentName, NodeId
from mesh.core.plan import Deployment, Fence
from mesh.engines.fake import FakeModel
from mesh.errors import (
    DeploymentNotFound,
    LoadFailed,
    MeshError,
    Refused,
    StaleGeneration,
    StorageFull,
)
from mesh.runtime import deployment_driver as driver_module
from mesh.runtime.stage import Stage
from mesh.storage.deployments import DeploymentStore
from mesh.storage.folder import DataFolder
from tests.runtime.fake_mesh import FakeMesh, FakeNode, open_mesh
from tests.runtime.fake_models import add_one, chain, copy, digest_of, make_deployment, until, values_of, vector

MODEL = add_one("x", "y")


@pytest.fixture
async def mesh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FakeMesh]:
    async with open_mesh(tmp_path, monkeypatch, 1) as opened:
        yield opened


def generation(deployment: Deployment, number: int) -> Deployment:
    return replace(deployment, fence=replace(deployment.fence, generation=number))


def on(node: FakeNode) -> Deployment:
    return make_deployment([MODEL], {node.node_id: node.address})


async def add(mesh: FakeMesh, deployment: Deployment, number: float) -> list[float]:
    async with mesh.stream(deployment) as stream:
        await stream.send([vector(number)])
        return values_of((await anext(stream.answers())).tensors)


def engine_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("engine-")]


def pins(node: FakeNode) -> int:
    return sum(item.pins for item in node.driver._content._items.values())


# --- preparing, activating, draining --------------------------------------------------------------


async def test_a_deployment_is_prepared_activated_served_and_drained(mesh: FakeMesh) -> None:
    (node,) = mesh.nodes
    deployment, key = on(node), key_of(on(node))
    await node.client.put_content(digest_of(MODEL), MODEL.to_bytes())
    assert await node.client.prepare(deployment) >= 0
    assert await node.states() == {key: "ready"}
    with pytest.raises(Refused, match="ready on this node, not active"):
        await add(mesh, deployment, 1)
    await node.client.activate(key)
    for _ in range(2):  # asked again after a lost answer
        await node.client.activate(key)
        await node.client.prepare(deployment)
    assert await node.states() == {key: "active"}
    assert len(node.engine.sessions) == 1, "it was loaded once"
    assert await add(mesh, deployment, 1) == [2]
    assert (engine_threads(), pins(node)) == (["engine-chain-0"], 1)
    await node.client.drain(key)
    assert (await node.states(), engine_threads(), pins(node)) == ({}, [], 0)
    for ask in (node.client.drain, node.client.activate):
        with pytest.raises(DeploymentNotFound):
            await ask(key)
    with pytest.raises(DeploymentNotFound):
        await add(mesh, deployment, 1)
    with pytest.raises(StaleGeneration):
        await node.client.prepare(deployment)


async def test_generations_overlap_and_older_ones_are_refused(mesh: FakeMesh) -> None:
    (node,) = mesh.nodes
    second = await mesh.deploy([MODEL], mesh.nodes, fence=Fence(1, 2))
    async with mesh.stream(second) as running:
        third = await mesh.deploy([MODEL], mesh.nodes, fence=Fence(1, 3))
        assert await add(mesh, third, 5) == [6]
        await running.send([vector(7)])
        assert values_of((await anext(running.answers())).tensors) == [8], "the old one goes on"
        draining = asyncio.ensure_future(node.client.drain(key_of(second)))
        await until(lambda: not node.stage(second)._is_accepting)
        with pytest.raises(Refused, match="no new streams"):
            await add(mesh, second, 1)
        running.finish()
        assert [answer async for answer in running.answers()] == []
        await draining
    assert await node.states() == {key_of(third): "active"}
    for older in (generation(third, 1), generation(third, 2), replace(third, fence=Fence(0, 99))):
        with pytest.raises(StaleGeneration):
            await node.client.prepare(older)
    with pytest.raises(StaleGeneration, match="was replaced by"):
        await add(mesh, second, 1)


async def test_another_content_under_the_same_generation_and_a_foreign_plan_are_refused(mesh: FakeMesh) -> None:
    (node,) = mesh.nodes
    deployment = await mesh.deploy([MODEL], mesh.nodes)
    with pytest.raises(Refused, match="another content"):
        await node.client.prepare(replace(deployment, plan=replace(deployment.plan, window=9)))
    foreign = make_deployment([MODEL], {NodeId("f" * 32): node.address}, name="foreign")
    with pytest.raises(Refused, match="no stage for this node"):
        await node.client.prepare(foreign)
    assert await node.states() == {key_of(deployment): "active"}


# --- failures -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "is_sent", "text"),
    [
        (MODEL, False, "is not on this node"),
        (replace(MODEL, load_failure="an operator of tomorrow"), True, "an operator of tomorrow"),
        (add_one("another", "y"), True, "no edge carries"),
    ],
)
async def test_what_cannot_be_loaded_is_failed_with_its_reason(
    mesh: FakeMesh, model: FakeModel, is_sent: bool, text: str
) -> None:
    (node,) = mesh.nodes
    deployment = make_deployment([model], {node.node_id: node.address}, boundaries=[("x",), ("y",)])
    if is_sent:
        await node.client.put_content(digest_of(model), model.to_bytes())
    with pytest.raises(LoadFailed, match=text):
        await node.client.prepare(deployment)
    reports, _ = await node.client.list_deployments()
    assert [(report.state, text in report.reason) for report in reports] == [("failed", True)]
    assert any(text in happening.text for happening in reports[0].happenings)
    assert (pins(node), engine_threads()) == (0, [])
    with pytest.raises(Refused, match="has failed"):
        await node.client.prepare(deployment)
    await node.client.drain(key_of(deployment))
    assert await mesh.deploy([MODEL], mesh.nodes, fence=Fence(1, 2))
    assert len(await node.states()) == 1


async def test_a_full_disk_leaves_everything_as_it_was(mesh: FakeMesh, monkeypatch: pytest.MonkeyPatch) -> None:
    (node,) = mesh.nodes
    deployment = await mesh.deploy([MODEL], mesh.nodes)
    before = node.driver.state

    def store(*_: object) -> None:
        raise StorageFull("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(DeploymentStore, "raise_fence", store)
        with pytest.raises(StorageFull):
            await node.client.prepare(generation(deployment, 2))
        assert node.driver.state is before
        _, term = await node.client.list_deployments()
        assert term == 1
    second = key_of(generation(deployment, 2))
    await node.client.prepare(generation(deployment, 2))
    with monkeypatch.context() as patch:
        patch.setattr(DeploymentStore, "store", store)
        with pytest.raises(StorageFull):
            await node.client.activate(second)
    assert await node.states() == {key_of(deployment): "active", second: "ready"}
    await node.client.activate(second)
    assert await node.states() == {key_of(deployment): "active", second: "active"}


async def test_nobody_sees_a_deployment_before_it_is_on_disk(mesh: FakeMesh, monkeypatch: pytest.MonkeyPatch) -> None:
    (node,) = mesh.nodes
    storing, release, store = threading.Event(), threading.Event(), DeploymentStore.raise_fence

    def slow(self: DeploymentStore, *arguments: object) -> None:
        storing.set()
        assert release.wait(10)
        store(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(DeploymentStore, "raise_fence", slow)
    deployment = on(node)
    await node.client.put_content(digest_of(MODEL), MODEL.to_bytes())
    preparing = asyncio.ensure_future(node.client.prepare(deployment))
    assert await asyncio.to_thread(storing.wait, 10)
    assert await node.client.list_deployments() == ([], 0)
    release.set()
    await preparing
    assert await node.states() == {key_of(deployment): "ready"}


async def test_a_drain_overtakes_loading(mesh: FakeMesh) -> None:
    (node,) = mesh.nodes
    deployment = on(node)
    await node.client.put_content(digest_of(MODEL), MODEL.to_bytes())
    node.engine.loading.close()
    preparing = asyncio.ensure_future(node.client.prepare(deployment))
    await until(lambda: node.engine.loading.begun == 1)
    assert await node.states() == {key_of(deployment): "loading"}
    await node.client.drain(key_of(deployment))
    with pytest.raises(Refused, match="removed while it was loading"):
        await preparing
    node.engine.loading.open()
    await until(lambda: len(node.engine.sessions) == 1)
    await until(lambda: not engine_threads(), "the end of the engine that nobody wants any more")
    assert (await node.states(), pins(node)) == ({}, 0)


# --- stopping and starting ------------------------------------------------------------------------


async def test_a_restarted_node_serves_what_it_served_and_knows_its_fences(mesh: FakeMesh) -> None:
    (node,) = mesh.nodes
    gone = await mesh.deploy([MODEL], mesh.nodes, name="gone", fence=Fence(3, 3))
    await node.client.drain(key_of(gone))
    deployment = await mesh.deploy([MODEL], mesh.nodes, fence=Fence(2, 2))
    await node.end()
    again = await mesh.start("n0")
    assert again.node_id == node.node_id
    for stale in (generation(deployment, 1), gone, replace(gone, fence=Fence(3, 2))):
        with pytest.raises(StaleGeneration):
            await again.client.prepare(stale)
    key = key_of(deployment)
    await until(lambda: again.driver.state.records[key].state.value == "active")
    moved = replace(deployment, addresses={again.node_id: again.address})
    assert await add(mesh, moved, 3) == [4]
    reports, term = await again.client.list_deployments()
    assert term == 3
    assert any("restored after a restart" in each.text for each in reports[0].happenings)
    assert await again.states() == {key: "active"}


async def test_what_was_never_activated_does_not_survive_a_restart_and_what_it_was_to_replace_does(
    mesh: FakeMesh,
) -> None:
    (node,) = mesh.nodes
    in_force = await mesh.deploy([MODEL], mesh.nodes)
    await node.client.prepare(generation(in_force, 2))
    only_prepared = replace(on(node), name=DeploymentName("other"))
    await node.client.prepare(only_prepared)
    await node.end()
    again = await mesh.start("n0")
    key = key_of(in_force)
    await until(lambda: again.driver.state.records[key].state.value == "active")
    assert await again.states() == {key: "active"}
    for stale in (generation(in_force, 2), only_prepared):
        with pytest.raises(StaleGeneration):
            await again.client.prepare(stale)


async def test_what_is_not_activated_in_time_is_removed(mesh: FakeMesh, monkeypatch: pytest.MonkeyPatch) -> None:
    (node,) = mesh.nodes
    in_force = await mesh.deploy([MODEL], mesh.nodes, name="other")
    monkeypatch.setattr(driver_module, "ACTIVATION_TIMEOUT_S", 0.0)
    await node.client.prepare(generation(in_force, 2))
    await until(lambda: list(node.driver.state.records) == [key_of(in_force)])
    assert await node.states() == {key_of(in_force): "active"}
    assert pins(node) == 1


async def test_what_is_not_wanted_any_more_when_it_is_loaded_is_removed(
    mesh: FakeMesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver_module, "ABANDONED_TIMEOUT_S", 0.0)
    (node,) = mesh.nodes
    await node.client.put_content(digest_of(MODEL), MODEL.to_bytes())
    node.engine.loading.close()
    preparing = asyncio.ensure_future(node.client.prepare(on(node)))
    await until(lambda: node.engine.loading.begun == 1)
    preparing.cancel()
    await until(lambda: not node.driver.state.records)
    node.engine.loading.open()
    await until(lambda: len(node.engine.sessions) == 1 and not engine_threads())
    assert (await node.states(), pins(node)) == ({}, 0)


async def test_a_stored_deployment_that_cannot_be_read_is_set_aside_and_told(mesh: FakeMesh) -> None:
    (node,) = mesh.nodes
    deployment = await mesh.deploy([MODEL], mesh.nodes)
    other = await mesh.deploy([MODEL], mesh.nodes, name="other")
    await node.end()
    with DataFolder.open(mesh.folder / "n0") as folder:
        store = DeploymentStore(folder)
        store.store(deployment.name, b"\xff of another version", deployment.fence)
        store.store(DeploymentName("twin"), store.load_all()[other.name], Fence(5, 1))
    again = await mesh.start("n0")
    await until(lambda: again.driver.state.records[key_of(other)].state.value == "active")
    assert await again.states() == {key_of(other): "active"}
    assert [(damage.name, damage.path.exists()) for damage in again.damages] == [("chain", True), ("twin", True)]
    with pytest.raises(StaleGeneration):
        await again.client.prepare(deployment)
    newer = make_deployment([MODEL], {again.node_id: again.address}, fence=Fence(1, 2))
    await again.client.prepare(newer)
    reports, _ = await again.client.list_deployments("chain")
    assert any("set aside" in happening.text for happening in reports[0].happenings)


async def test_a_drain_during_the_restart_wins(mesh: FakeMesh) -> None:
    (node,) = mesh.nodes
    deployment = await mesh.deploy([MODEL], mesh.nodes)
    await node.end()
    mesh.loads_on_start = False
    again = await mesh.start("n0")
    await until(lambda: again.engine.loading.begun == 1)
    await again.client.drain(key_of(deployment))
    again.engine.loading.open()
    await until(lambda: len(again.engine.sessions) == 1)
    assert await again.states() == {}
    mesh.loads_on_start = True
    await again.end()
    once_more = await mesh.start("n0")
    assert await once_more.states() == {}


async def test_a_stop_answers_what_is_in_flight(mesh: FakeMesh) -> None:
    (node,) = mesh.nodes
    deployment = await mesh.deploy([MODEL], mesh.nodes)
    node.engine.gate.close()
    async with mesh.stream(deployment) as stream:
        for number in range(4):
            await stream.send([vector(number)])
        stream.finish()
        node.stop.set()
        await until(lambda: not node.stage(deployment)._is_accepting)
        with pytest.raises(Refused, match="shutting down"):
            await node.client.prepare(generation(deployment, 2))
        node.engine.gate.open()
        answers = [answer async for answer in stream.answers()]
    assert [answer.outcome for answer in answers] == [Outcome.OK] * 4
    await asyncio.wait({node.task})
    assert node.task.exception() is None


async def test_a_stop_ends_streams_that_do_not_end_themselves(mesh: FakeMesh, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Stage, "drain", partialmethod(Stage.drain, 0.1))
    (node,) = mesh.nodes
    deployment = await mesh.deploy([MODEL], mesh.nodes)
    async with mesh.stream(deployment) as stream:
        node.stop.set()
        with pytest.raises(DeploymentNotFound, match="was removed"):
            await anext(stream.answers())
    await asyncio.wait({node.task})
    assert node.task.exception() is None
    assert engine_threads() == []


async def test_a_node_that_is_cancelled_leaves_nothing_behind(mesh: FakeMesh) -> None:
    (node,) = mesh.nodes
    deployment = await mesh.deploy([copy()], mesh.nodes)
    node.engine.gate.close()
    async with mesh.stream(deployment) as stream:
        for number in range(4):
            await stream.send([vector(number)])
        await until(lambda: node.engine.gate.begun == 1)
        node.task.cancel()
        outcomes: list[Outcome] = []
        with pytest.raises(MeshError):
            async for answer in stream.answers():
                outcomes.append(answer.outcome)
        assert outcomes == [Outcome.UNKNOWN] * 4
        await asyncio.wait({node.task})
    assert engine_threads() == []


async def test_a_chain_of_nodes_computes_and_ends_clean(mesh: FakeMesh) -> None:
    for name in ("n1", "n2"):
        await mesh.start(name)
    deployment = await mesh.deploy(chain(3), mesh.nodes)
    async with mesh.stream(deployment) as stream:

        async def feed() -> None:
            for number in range(50):
                await stream.send([vector(number)])
            stream.finish()

        feeding = asyncio.ensure_future(feed())
        answers = [answer async for answer in stream.answers()]
        await feeding
    assert [values_of(answer.tensors) for answer in answers] == [[number + 3.0] for number in range(50)]
    await mesh.is_clean(deployment)
    for node in mesh.nodes:
        await node.client.drain(key_of(deployment))
    assert engine_threads() == []
