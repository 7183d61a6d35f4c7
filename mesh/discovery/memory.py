"""Discovery within one process: the fake that ships, for tests, simulations and `mesh demo`.

A `MemoryNetwork` stands for the LAN; every `MemoryDiscovery` made with it sees the others' announcements
at once.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

from mesh.core.fleet import Peer
from mesh.discovery.addresses import format_address
from mesh.discovery.contract import Advertisement, DiscoveryEvent
from mesh.discovery.roster import PeerKey, Roster, key_of

LOOPBACK = "127.0.0.1"


class MemoryNetwork:
    """What all discoveries of one network share. Belongs to one event loop."""

    def __init__(self) -> None:
        self.roster = Roster()


class MemoryDiscovery:
    """`Discovery` on a `MemoryNetwork`."""

    def __init__(self, network: MemoryNetwork) -> None:
        self._network = network
        self._own: PeerKey | None = None

    async def __aenter__(self) -> MemoryDiscovery:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._withdraw()

    async def advertise(self, advertisement: Advertisement) -> None:
        peer = Peer(
            node_id=advertisement.node_id,
            name=advertisement.name,
            role=advertisement.role,
            addresses=tuple(
                format_address(address, advertisement.port) for address in advertisement.addresses or (LOOPBACK,)
            ),
            source="memory",
            properties=dict(advertisement.properties),
        )
        if self._own != key_of(peer):
            self._withdraw()
        self._own = key_of(peer)
        self._network.roster.put(peer)

    def watch(self) -> AsyncIterator[DiscoveryEvent]:
        return self._network.roster.watch(lambda peer: key_of(peer) != self._own)

    def _withdraw(self) -> None:
        if self._own is not None:
            own, self._own = self._own, None
            self._network.roster.remove(own)
