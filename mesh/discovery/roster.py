"""The peers known now, and whoever waits for changes: what the implementations of the port share.

Level-triggered: a watcher compares what it has told with what is known, so that a slow one costs no
memory, never sees a peer go that it has not seen come, and misses nothing but what has ended already.
One event loop; the discovery that owns a roster is the only one to change it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import replace

from mesh.core.fleet import Peer
from mesh.discovery.contract import Advertisement, DiscoveryEvent, PeerGone, PeerSeen

PeerKey = tuple[str, str]
"""(node id, role); a seed that has not answered: (address, "")."""


def key_of(peer: Peer) -> PeerKey:
    """What makes two findings the same peer. A node and a coordinator may share one identity."""
    if peer.node_id is not None:
        return peer.node_id, peer.role
    return (peer.addresses[0] if peer.addresses else peer.name), peer.role


def is_other(peer: Peer, own: Advertisement | None) -> bool:
    """Whether `peer` is not oneself, as one is announced."""
    return own is None or (peer.node_id, peer.role) != (own.node_id, own.role)


def merge_peers(peers: Iterable[Peer]) -> Peer:
    """Findings of one peer as one: facts of the first, the addresses of all in order, each once."""
    findings = list(peers)
    addresses = dict.fromkeys(address for peer in findings for address in peer.addresses)
    return replace(findings[0], addresses=tuple(addresses))


class Roster:
    def __init__(self) -> None:
        self._peers: dict[PeerKey, Peer] = {}
        self._changed = asyncio.Event()

    def put(self, peer: Peer) -> None:
        """Add the peer, or replace the one of the same key."""
        if self._peers.get(key_of(peer)) != peer:
            self._peers[key_of(peer)] = peer
            self._notify()

    def remove(self, key: PeerKey) -> None:
        """Forget the peer of this key, if there is one."""
        if self._peers.pop(key, None) is not None:
            self._notify()

    def watch(self, wanted: Callable[[Peer], bool] = lambda peer: True) -> Watch:
        """Events about the `wanted` peers: those known first, then changes, for ever."""
        return Watch(self, wanted)

    def recheck(self) -> None:
        """Let watchers ask `wanted` again, whose answer has changed."""
        self._notify()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


class Watch:
    """One watcher's place. Not a generator: it may be dropped anywhere, and goes on after a cancelled wait."""

    def __init__(self, roster: Roster, wanted: Callable[[Peer], bool]) -> None:
        self._roster = roster
        self._wanted = wanted
        self._told: dict[PeerKey, Peer] = {}

    def __aiter__(self) -> Watch:
        return self

    async def __anext__(self) -> DiscoveryEvent:
        while True:
            changed = self._roster._changed
            event = self._next_difference()
            if event is not None:
                return event
            await changed.wait()

    def _next_difference(self) -> DiscoveryEvent | None:
        known = self._roster._peers
        for key, peer in self._told.items():
            if key not in known or not self._wanted(peer):
                del self._told[key]
                return PeerGone(peer)
        for key, peer in known.items():
            if self._told.get(key) != peer and self._wanted(peer):
                self._told[key] = peer
                return PeerSeen(peer)
        return None
