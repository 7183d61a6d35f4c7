"""One suite for every implementation of the discovery port."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Callable

import pytest

from mesh.core.fleet import Peer
from mesh.core.ids import NodeId
from mesh.discovery import FACTORIES, DiscoverySettings, make_discovery
from mesh.discovery.contract import Advertisement, Discovery, DiscoveryEvent, PeerGone, PeerSeen
from mesh.discovery.memory import MemoryNetwork
from mesh.errors import UsageError

WAIT_SECONDS = 10.0
Make = Callable[[], Discovery]


RUN = f"{os.getpid():08x}"
"""Begins the ids of this run: daemons of other processes on this machine's loopback are not ours to judge."""


def node_id(number: int) -> NodeId:
    return NodeId(f"{RUN}{number:08x}" * 2)


def advert(number: int, role: str = "node", port: int = 50071, **properties: str) -> Advertisement:
    return Advertisement(node_id(number), f"board-{number}", role, port, (), properties)


class Watcher:
    """What one watch has told so far, and waiting for more."""

    def __init__(self, events: AsyncIterator[DiscoveryEvent]) -> None:
        self.events: list[DiscoveryEvent] = []
        self._source = events

    async def until(self, wanted: Callable[[dict[str, Peer]], bool]) -> dict[str, Peer]:
        """Peers by name once `wanted` holds for them."""
        async with asyncio.timeout(WAIT_SECONDS):
            while not wanted(self.peers()):
                await self.step()
        return self.peers()

    async def step(self) -> None:
        event = await anext(self._source)
        if str(event.peer.node_id).startswith(RUN):
            self.events.append(event)

    def peers(self) -> dict[str, Peer]:
        known: dict[str, Peer] = {}
        for event in self.events:
            if isinstance(event, PeerSeen):
                known[f"{event.peer.name}/{event.peer.role}"] = event.peer
            else:
                assert known.pop(f"{event.peer.name}/{event.peer.role}") == event.peer, "gone as it was last seen"
        return known


IMPLEMENTATIONS = [
    ["memory"],
    ["static", "memory"],
    pytest.param(["mdns"], marks=pytest.mark.network),
]


@pytest.fixture(params=IMPLEMENTATIONS, ids="+".join)
def make(request: pytest.FixtureRequest) -> Make:
    """Makes discoveries that share a network: one process's memory, or mDNS on loopback."""
    settings = DiscoverySettings(interfaces=("127.0.0.1",), network=MemoryNetwork())
    return lambda: make_discovery(request.param, settings)


async def test_three_daemons_and_a_browser_see_each_other(make: Make) -> None:
    async with contextlib.AsyncExitStack() as stack:
        daemons = [await stack.enter_async_context(make()) for _ in range(3)]
        browser = await stack.enter_async_context(make())
        for number, daemon in enumerate(daemons):
            role = "coordinator" if number == 0 else "node"
            await daemon.advertise(advert(number, role, 50070 + number, arch="aarch64", cpu="4"))
        names = {"board-0/coordinator", "board-1/node", "board-2/node"}
        peers = await Watcher(browser.watch()).until(lambda peers: peers.keys() == names)
        for number, name in enumerate(sorted(names)):
            assert peers[name].node_id == node_id(number)
            assert peers[name].addresses == (f"127.0.0.1:{50070 + number}",)
            assert peers[name].properties == {"arch": "aarch64", "cpu": "4"}
        own = await Watcher(daemons[1].watch()).until(lambda peers: len(peers) == 2)
        assert own.keys() == {"board-0/coordinator", "board-2/node"}


async def test_a_peer_that_leaves_is_gone_and_one_that_returns_is_seen(make: Make) -> None:
    async with make() as browser:
        watcher = Watcher(browser.watch())
        for _ in range(2):
            async with make() as daemon:
                await daemon.advertise(advert(7))
                await watcher.until(lambda peers: "board-7/node" in peers)
            await watcher.until(lambda peers: not peers)
        assert [type(event) for event in watcher.events] == [PeerSeen, PeerGone, PeerSeen, PeerGone]


async def test_a_new_peer_is_found_soon(make: Make) -> None:
    async with make() as browser, make() as daemon:
        watcher = Watcher(browser.watch())
        start = time.monotonic()
        await daemon.advertise(advert(8))
        await watcher.until(bool)
        assert time.monotonic() - start < 4.0  # 2 s on an idle machine


async def test_changed_facts_are_told_as_seen_again(make: Make) -> None:
    async with make() as browser, make() as daemon:
        watcher = Watcher(browser.watch())
        await daemon.advertise(advert(9, port=50071, cpu="4"))
        await watcher.until(bool)
        await daemon.advertise(advert(9, port=50072, cpu="2"))
        peers = await watcher.until(lambda peers: any(peer.properties == {"cpu": "2"} for peer in peers.values()))
        assert peers["board-9/node"].addresses == ("127.0.0.1:50072",)


async def test_a_new_name_replaces_the_old_one(make: Make) -> None:
    async with make() as browser, make() as daemon:
        watcher = Watcher(browser.watch())
        await daemon.advertise(advert(10))
        await watcher.until(bool)
        renamed = Advertisement(node_id(10), "kitchen", "node", 50071, (), {})
        await daemon.advertise(renamed)
        async with asyncio.timeout(WAIT_SECONDS):
            while not watcher.events or watcher.events[-1].peer.name != "kitchen":
                await watcher.step()
        assert isinstance(watcher.events[-1], PeerSeen)


async def test_watching_twice_and_late_tells_everything_each_time(make: Make) -> None:
    async with make() as browser, make() as daemon:
        await daemon.advertise(advert(11))
        first = await Watcher(browser.watch()).until(bool)
        second = await Watcher(browser.watch()).until(bool)
        assert first == second


async def test_a_cancelled_watch_ends_and_leaves_the_others(make: Make) -> None:
    async with make() as browser, make() as daemon:
        watcher = Watcher(browser.watch())
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await anext(browser.watch())
        await daemon.advertise(advert(12))
        assert await watcher.until(bool)


async def test_a_node_and_a_coordinator_of_one_identity_are_two_peers(make: Make) -> None:
    async with make() as browser, make() as node, make() as coordinator:
        await node.advertise(advert(13, "node", 50071))
        await coordinator.advertise(advert(13, "coordinator", 50070))
        peers = await Watcher(browser.watch()).until(lambda peers: len(peers) == 2)
        assert peers.keys() == {"board-13/node", "board-13/coordinator"}
        await Watcher(node.watch()).until(lambda peers: peers.keys() == {"board-13/coordinator"})


async def test_an_error_and_a_cancellation_of_the_user_pass_through_as_they_are(make: Make) -> None:
    with pytest.raises(ValueError, match="mine"):
        async with make() as discovery:
            await discovery.advertise(advert(14))
            raise ValueError("mine")
    async with asyncio.timeout(WAIT_SECONDS):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05), make() as discovery:
                async for _ in discovery.watch():
                    pass


async def test_static_seeds_are_told_once_and_stay() -> None:
    settings = DiscoverySettings(seeds=("192.0.2.7:50071", "[fd00::20]:50071", "192.0.2.7:50071"))
    async with make_discovery(["static"], settings) as discovery:
        await discovery.advertise(advert(1))
        for _ in range(2):
            source = discovery.watch()
            peers = [(await anext(source)).peer for _ in range(2)]
            assert [peer.addresses for peer in peers] == [("192.0.2.7:50071",), ("[fd00::20]:50071",)]
            assert {(peer.node_id, peer.role, peer.source) for peer in peers} == {(None, "", "static")}
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await anext(source)


def test_the_table_makes_every_implementation_and_refuses_others() -> None:
    assert set(FACTORIES) == {"mdns", "static", "mqtt", "memory"}
    with pytest.raises(UsageError, match="pigeon"):
        make_discovery(["static", "pigeon"], DiscoverySettings())
    with pytest.raises(UsageError):
        make_discovery([], DiscoverySettings())
