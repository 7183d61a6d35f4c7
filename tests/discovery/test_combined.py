from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from mesh.core.fleet import Peer
from mesh.core.ids import NodeId
from mesh.discovery import DiscoverySettings, make_discovery
from mesh.discovery.combined import CombinedDiscovery
from mesh.discovery.contract import Advertisement, DiscoveryEvent, PeerGone, PeerSeen
from mesh.discovery.memory import MemoryDiscovery, MemoryNetwork
from mesh.discovery.roster import Roster

NODE = NodeId("0a" * 16)


class RosterDiscovery:
    """A member whose findings the test decides."""

    def __init__(self) -> None:
        self.roster = Roster()
        self.advertised: list[Advertisement] = []
        self.entered = 0

    async def __aenter__(self) -> RosterDiscovery:
        self.entered += 1
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self.entered -= 1

    async def advertise(self, advertisement: Advertisement) -> None:
        self.advertised.append(advertisement)

    def watch(self) -> AsyncIterator[DiscoveryEvent]:
        return self.roster.watch()


class BrokenDiscovery(RosterDiscovery):
    async def __aenter__(self) -> BrokenDiscovery:
        raise OSError("no network")


def found(source: str, *addresses: str) -> Peer:
    return Peer(NODE, "board", "node", addresses, source)


async def next_event(source: AsyncIterator[DiscoveryEvent]) -> DiscoveryEvent:
    async with asyncio.timeout(5):
        return await anext(source)


async def test_findings_of_one_peer_are_merged_and_unmerged() -> None:
    first, second = RosterDiscovery(), RosterDiscovery()
    async with CombinedDiscovery([first, second]) as combined:
        events = combined.watch()
        second.roster.put(found("second", "10.0.0.2:1", "10.0.0.3:1"))
        assert await next_event(events) == PeerSeen(found("second", "10.0.0.2:1", "10.0.0.3:1"))
        first.roster.put(found("first", "10.0.0.1:1", "10.0.0.2:1"))
        both = found("first", "10.0.0.1:1", "10.0.0.2:1", "10.0.0.3:1")
        assert await next_event(events) == PeerSeen(both)
        second.roster.remove((NODE, "node"))
        assert await next_event(events) == PeerSeen(found("first", "10.0.0.1:1", "10.0.0.2:1"))
        first.roster.remove((NODE, "node"))
        assert await next_event(events) == PeerGone(found("first", "10.0.0.1:1", "10.0.0.2:1"))


async def test_seeds_pass_through_beside_what_is_found() -> None:
    network = MemoryNetwork()
    settings = DiscoverySettings(seeds=("192.0.2.1:50071",), network=network)
    async with make_discovery(["memory", "static"], settings) as combined, MemoryDiscovery(network) as other:
        await other.advertise(Advertisement(NODE, "board", "node", 50071, (), {}))
        events = combined.watch()
        peers = [(await next_event(events)).peer for _ in range(2)]
        assert {(peer.node_id, peer.source) for peer in peers} == {(NODE, "memory"), (None, "static")}


async def test_all_members_announce_and_are_left_again() -> None:
    members = [RosterDiscovery(), RosterDiscovery()]
    advertisement = Advertisement(NODE, "board", "node", 50071, (), {})
    async with CombinedDiscovery(members) as combined:
        await combined.advertise(advertisement)
        assert [member.entered for member in members] == [1, 1]
    assert [member.entered for member in members] == [0, 0]
    assert [member.advertised for member in members] == [[advertisement], [advertisement]]


async def test_a_member_that_cannot_start_is_told_and_the_others_are_left() -> None:
    good = RosterDiscovery()
    with pytest.raises(OSError, match="no network"):
        async with CombinedDiscovery([good, BrokenDiscovery()]):
            pytest.fail("entered")
    assert good.entered == 0


async def test_a_member_that_fails_later_ends_the_whole_with_its_error() -> None:
    class FailingDiscovery(RosterDiscovery):
        def watch(self) -> AsyncIterator[DiscoveryEvent]:
            return self

        def __aiter__(self) -> FailingDiscovery:
            return self

        async def __anext__(self) -> DiscoveryEvent:
            raise OSError("network gone")

    good = RosterDiscovery()
    with pytest.raises(ExceptionGroup) as failed:
        async with CombinedDiscovery([good, FailingDiscovery()]):
            await asyncio.sleep(5)
    assert failed.group_contains(OSError, match="network gone")
    assert good.entered == 0


async def test_a_slow_watcher_gets_the_latest_state_only() -> None:
    roster = Roster()
    events = roster.watch()
    for number in range(1000):
        roster.put(found("test", f"10.0.0.1:{number + 1}"))
    assert await next_event(events) == PeerSeen(found("test", "10.0.0.1:1000"))
    roster.remove((NODE, "node"))
    roster.put(Peer(None, "seed", "", ("h:1",), "static"))
    roster.remove(("h:1", ""))
    assert isinstance(await next_event(events), PeerGone)
    waiting = asyncio.create_task(next_event(events))
    await asyncio.sleep(0)
    assert not waiting.done()
    roster.put(found("test", "10.0.0.1:7"))
    assert await waiting == PeerSeen(found("test", "10.0.0.1:7"))
