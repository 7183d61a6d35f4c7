"""Nodes as processes of their own, killed or frozen in the middle of a stream: who is told what, and when."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from mesh.control.deployments import key_of
from mesh.core.frame import Outcome
from mesh.core.plan import Deployment
from mesh.engines.fake import FakeModel
from mesh.errors import MeshError, NodeLost
from mesh.runtime.frame_stream import FrameStream, StreamOptions
from mesh.runtime.supervise import Supervisor
from mesh.wire.channel import NodeClient
from tests.runtime.fake_models import add_one, digest_of, make_deployment, values_of, vector
from tests.runtime.node_process import NodeProcess

PROMISED_S = 4.0
SLOW = 0.005
MODELS = [add_one("x", "t1", delay_seconds=SLOW), add_one("t1", "t2"), add_one("t2", "y")]


@pytest.fixture(scope="module")
def survivors(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[NodeProcess]]:
    with contextlib.ExitStack() as stack:
        nodes = [NodeProcess(tmp_path_factory.mktemp("survivor")) for _ in range(2)]
        for node in nodes:
            stack.callback(node.end)
        for node in nodes:
            node.wait_ready()
        yield nodes


@pytest.fixture
def victim(tmp_path: Path) -> Iterator[NodeProcess]:
    node = NodeProcess(tmp_path)
    try:
        node.wait_ready()
        yield node
    finally:
        node.end()


class Clients:
    """Connections to the nodes, and deployments put on them."""

    def __init__(self, tasks: Supervisor) -> None:
        self.tasks = tasks
        self._clients: dict[str, NodeClient] = {}

    def __call__(self, address: str) -> NodeClient:
        return self._clients.setdefault(address, NodeClient(address))

    async def close(self) -> None:
        for client in self._clients.values():
            await client.close()

    async def deploy(self, models: list[FakeModel], nodes: list[NodeProcess], name: str) -> Deployment:
        deployment = make_deployment(models, {node.node_id: node.address for node in nodes}, name=name, window=8)
        for model, node in zip(models, nodes, strict=True):
            await self(node.address).put_content(digest_of(model), model.to_bytes())
            await self(node.address).prepare(deployment)
        for node in reversed(nodes):
            await self(node.address).activate(key_of(deployment))
        return deployment

    @contextlib.asynccontextmanager
    async def stream(self, deployment: Deployment) -> AsyncIterator[FrameStream]:
        stream = FrameStream(deployment, StreamOptions(), self, self.tasks)
        try:
            await stream.open()
            yield stream
        finally:
            await stream.close()


async def feed(stream: FrameStream) -> int:
    """Send until the stream breaks; how many frames were taken."""
    sent = 0
    with contextlib.suppress(MeshError):
        while True:
            await stream.send([vector(sent)])
            sent += 1
    return sent


async def follow(stream: FrameStream, after: int, act: Callable[[], None]) -> tuple[list[Outcome], MeshError, float]:
    """Outcomes, the error at the end, and the seconds from `act` (after so many answers) to that error."""
    outcomes: list[Outcome] = []
    began = 0.0
    try:
        async for answer in stream.answers():
            assert answer.sequence == len(outcomes), "an answer is missing or came twice"
            if answer.outcome is Outcome.OK:
                assert values_of(answer.tensors) == [answer.sequence + 3.0]
            outcomes.append(answer.outcome)
            if len(outcomes) == after:
                act()
                began = time.monotonic()
    except MeshError as error:
        return outcomes, error, time.monotonic() - began
    raise AssertionError("the stream ended as if nothing had happened")


@pytest.mark.parametrize(
    ("place", "is_frozen"), [(0, False), (1, False), (2, False), (1, True)], ids=["head", "middle", "tail", "frozen"]
)
async def test_a_lost_node_is_named_in_time_and_the_rest_goes_on(
    survivors: list[NodeProcess], victim: NodeProcess, place: int, is_frozen: bool, request: pytest.FixtureRequest
) -> None:
    name = request.node.callspec.id
    async with Supervisor() as tasks:
        clients = Clients(tasks)
        try:
            nodes = [*survivors[:place], victim, *survivors[place:]]
            deployment = await clients.deploy(MODELS, nodes, name)
            other = await clients.deploy([add_one("x", "t"), add_one("t", "y")], survivors, f"{name}-other")
            async with clients.stream(other) as beside, clients.stream(deployment) as stream:
                feeding = asyncio.ensure_future(feed(stream))
                act = victim.freeze if is_frozen else victim.kill
                outcomes, error, seconds = await follow(stream, 20, act)
                assert isinstance(error, NodeLost)
                assert victim.address in error.message or victim.node_id[:8] in error.message, str(error)
                assert seconds < PROMISED_S
                assert len(outcomes) == await feeding, "every frame that was taken is answered"
                assert set(outcomes) <= {Outcome.OK, Outcome.UNKNOWN}
                await beside.send([vector(1)])
                assert values_of((await anext(beside.answers())).tensors) == [3.0]
            async with clients.stream(other) as later:
                await later.send([vector(2)])
                assert values_of((await anext(later.answers())).tensors) == [4.0]
            began = time.monotonic()
            with pytest.raises(MeshError):
                async with clients.stream(deployment):
                    pass
            assert time.monotonic() - began < PROMISED_S
            for node in survivors:
                await clients(node.address).drain(key_of(deployment))
                await clients(node.address).drain(key_of(other))
        finally:
            await clients.close()


async def test_a_long_call_to_a_node_that_freezes_ends_with_its_loss(victim: NodeProcess) -> None:
    """Its kernel still takes the bytes, and the call may last minutes: only an unanswered ping tells."""
    client = NodeClient(victim.address)
    try:
        await client.list_deployments()
        victim.freeze()
        began = time.monotonic()
        with pytest.raises(NodeLost):
            await client.prepare(make_deployment([add_one("x", "y")], {victim.node_id: victim.address}, name="frozen"))
        assert time.monotonic() - began < PROMISED_S
    finally:
        await client.close()
