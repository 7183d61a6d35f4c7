"""A client in a node's process: frames are handed over to that node, and sent to every other."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from mesh.core.ids import DeploymentName, NodeId
from mesh.core.messages import Heartbeat, OpenEdge
from mesh.core.plan import Fence
from mesh.errors import DeploymentNotFound, MeshError, NodeLost, ProtocolViolation
from mesh.runtime.edge_receiver import ServerLink
from mesh.runtime.own_node import MAX_UNREAD_MESSAGES, OwnNode, make_pair
from mesh.runtime.supervise import Supervisor
from mesh.wire.frame_codec import payload_copies
from tests.runtime.fake_mesh import open_mesh
from tests.runtime.fake_models import chain, until, values_of, vector

FRAMES = 12


@pytest.mark.parametrize(("stages", "beside", "sent_copies"), [(1, 0, 0), (2, 0, 2), (2, 1, 2), (3, 1, 4)])
async def test_answers_are_the_same_wherever_the_client_lives(
    stages: int, beside: int, sent_copies: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`sent_copies`: of each frame's payload, because it leaves a process; each node of this test is one's own."""
    async with open_mesh(tmp_path, monkeypatch, stages) as mesh:
        deployment = await mesh.deploy(chain(stages), mesh.nodes)
        async with mesh.stream(deployment, own_node=mesh.nodes[beside].own_node) as stream:
            before = payload_copies.sent
            answers = stream.answers()
            for number in range(FRAMES):
                await stream.send([vector(number, -number)])
                answer = await anext(answers)
                assert values_of(answer.tensors) == [number + stages, stages - number]
            assert payload_copies.sent - before == FRAMES * sent_copies
        await mesh.is_clean(deployment)


async def test_a_stream_moves_from_its_own_node_to_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_mesh(tmp_path, monkeypatch, 2) as mesh:
        here, there = mesh.nodes
        deployment = await mesh.deploy(chain(1), [here])
        async with mesh.stream(deployment, own_node=here.own_node) as stream:
            await stream.send([vector(1)])
            assert values_of((await anext(stream.answers())).tensors) == [2]
            newer = await mesh.deploy(chain(1), [there], fence=Fence(1, 2))
            await stream._open_path(newer)
            await stream.send([vector(2)])
            assert values_of((await anext(stream.answers())).tensors) == [3]
        assert here.engine.sessions and there.engine.sessions


async def test_what_the_node_says_against_a_stream_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_mesh(tmp_path, monkeypatch, 1) as mesh:
        (node,) = mesh.nodes
        opened = {DeploymentNotFound: node.own_node.open_edge(), ProtocolViolation: node.own_node.open_results(())}
        for refusal, link in opened.items():
            await link.send(OpenEdge(DeploymentName("nowhere"), Fence(1, 1), 0))
            with pytest.raises(refusal):
                await link.receive()


async def test_a_node_that_stops_ends_what_is_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_mesh(tmp_path, monkeypatch, 1) as mesh:
        (node,) = mesh.nodes
        deployment = await mesh.deploy(chain(1), [node])
        async with mesh.stream(deployment, own_node=node.own_node) as stream:
            await stream.send([vector(1)])
            answers = stream.answers()
            await anext(answers)
            node.stop.set()
            with pytest.raises(MeshError):
                await anext(answers)


class Listener:
    """Reads nothing until it is told to."""

    def __init__(self) -> None:
        self.may_read = asyncio.Event()
        self.ended: MeshError | None = None

    async def serve_edge(self, link: ServerLink, peer: str) -> None:
        await self.may_read.wait()
        try:
            while await link.receive() is not None:
                pass
        except MeshError as error:
            self.ended = error

    serve_results = serve_edge


async def test_what_nobody_reads_is_bounded_and_waits_for_its_reader() -> None:
    async with Supervisor() as tasks:
        listener = Listener()
        link = OwnNode(NodeId("0" * 32), listener, tasks.spawn).open_edge()
        for _ in range(MAX_UNREAD_MESSAGES):
            await link.send(Heartbeat())
        waiting = tasks.spawn(link.send(Heartbeat()), "one more")
        await asyncio.wait({waiting}, timeout=0)
        assert not waiting.done()
        listener.may_read.set()
        await asyncio.wait({waiting})
        link.cancel()
        await until(lambda: isinstance(listener.ended, NodeLost), "the other end's hearing of it")


async def test_giving_up_wakes_a_writer_and_a_reader() -> None:
    asking, answering = make_pair()
    for _ in range(MAX_UNREAD_MESSAGES):
        await asking.send(Heartbeat())
    works = [asyncio.ensure_future(work) for work in (asking.send(Heartbeat()), asking.receive())]
    await asyncio.wait(works, timeout=0)
    asking.cancel()
    assert [type(each) for each in await asyncio.gather(*works, return_exceptions=True)] == [NodeLost, NodeLost]
    assert [await answering.receive() for _ in range(MAX_UNREAD_MESSAGES)] == [Heartbeat()] * MAX_UNREAD_MESSAGES
    with pytest.raises(NodeLost):
        await answering.receive()


async def test_what_was_said_before_an_orderly_end_is_heard() -> None:
    asking, answering = make_pair()
    await answering.send(Heartbeat())
    answering.end(None)
    assert await asking.receive() == Heartbeat()
    assert await asking.receive() is None
    with pytest.raises(NodeLost):
        await asking.send(Heartbeat())
