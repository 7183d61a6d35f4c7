"""Connections are kept while they are of use, and never closed under somebody's feet."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from mesh.errors import NodeLost, Overloaded
from mesh.runtime.node_clients import IDLE_LIMIT_S, NodeClients
from mesh.runtime.supervise import Supervisor
from tests.runtime.fake_mesh import open_mesh
from tests.runtime.fake_models import add_one, digest_of, make_deployment, until

MODEL = add_one("x", "y")


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


async def test_the_one_that_was_asked_for_longest_ago_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_mesh(tmp_path, monkeypatch, 1) as mesh, Supervisor() as tasks:
        clients = NodeClients(tasks.spawn, 2)
        address = mesh.nodes[0].address
        here, other = clients.get(address), clients.get("127.0.0.1:1")
        assert (await here.echo(b"abc")).received_bytes == 3
        assert clients.get(address) is here
        third = clients.get("127.0.0.1:2")  # closes `other`
        assert (clients.get(address), clients.get("127.0.0.1:2")) == (here, third)
        assert (await here.echo(b"abcd")).received_bytes == 4
        assert clients.get("127.0.0.1:1") is not other  # closes `here`
        await until(lambda: not tasks._running)
        with pytest.raises(NodeLost, match="closed here"):
            await here.echo(b"")
        await clients.close()


async def test_one_with_a_stream_or_a_call_under_way_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_mesh(tmp_path, monkeypatch, 2) as mesh, Supervisor() as tasks:
        clients = NodeClients(tasks.spawn, 2)
        silent = mesh.nodes[1].address
        mesh.nodes[1].engine.loading.close()
        address = mesh.nodes[0].address
        link = clients.get(address).open_edge()
        await mesh.nodes[1].client.put_content(digest_of(MODEL), MODEL.to_bytes())
        deployment = make_deployment([MODEL], {mesh.nodes[1].node_id: silent})
        calling = asyncio.ensure_future(clients.get(silent).prepare(deployment))
        await until(lambda: clients.get(silent).is_busy)
        with pytest.raises(Overloaded, match="connections to 2 nodes"):
            clients.get("127.0.0.1:1")
        link.cancel()
        await until(lambda: not clients.get(address).is_busy)
        clients.get("127.0.0.1:1")
        assert clients.get(silent).is_busy
        calling.cancel()
        await asyncio.wait({calling})
        await clients.close()


async def test_one_that_nobody_asked_for_in_an_hour_is_closed() -> None:
    clock = Clock()
    async with Supervisor() as tasks:
        clients = NodeClients(tasks.spawn, 100, clock)
        old = clients.get("127.0.0.1:1")
        clock.now_s = IDLE_LIMIT_S / 2
        used = clients.get("127.0.0.1:2")
        clock.now_s = IDLE_LIMIT_S + 1
        clients.get("127.0.0.1:3")
        assert clients.get("127.0.0.1:2") is used
        assert clients.get("127.0.0.1:1") is not old
        await clients.close()
