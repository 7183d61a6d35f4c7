"""Seeds: addresses that the user names (`--peer host:port`), for networks that carry no multicast.

A seed is reported once and stays; who is behind it shows when it answers. Nothing is announced: whoever
wants to be found this way is named on the other side.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable

from mesh.core.fleet import Peer
from mesh.discovery.addresses import format_address, parse_address
from mesh.discovery.contract import Advertisement, DiscoveryEvent
from mesh.discovery.roster import Roster


class StaticDiscovery:
    """`Discovery` of fixed addresses."""

    def __init__(self, seeds: Iterable[str]) -> None:
        """`seeds`: "host:port" each. Raises `UsageError` for one that makes no sense."""
        self._addresses = tuple(dict.fromkeys(format_address(*parse_address(seed)) for seed in seeds))

    async def __aenter__(self) -> StaticDiscovery:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        return None

    async def advertise(self, advertisement: Advertisement) -> None:
        """Nothing to do: seeds are known by configuration."""

    def watch(self) -> AsyncIterator[DiscoveryEvent]:
        roster = Roster()
        for address in self._addresses:
            roster.put(Peer(node_id=None, name=address, role="", addresses=(address,), source="static"))
        return roster.watch()
