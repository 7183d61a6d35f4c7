"""The discovery port: who may exist.

A discovery tells about others (`watch`) and about oneself (`advertise`). It says who *may* exist;
only an answered call says who is alive, so nothing here is evidence of life or death: `PeerGone`
means "no longer announced". Implementations: mDNS, static seeds, in-memory (the fake that ships).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from mesh.core.fleet import Peer
from mesh.core.ids import NodeId


@dataclass(frozen=True, slots=True)
class Advertisement:
    """What a daemon tells of itself: static facts only, no secrets, no load values."""

    node_id: NodeId
    name: str
    role: str
    """"node" or "coordinator"."""
    port: int
    addresses: tuple[str, ...]
    """IP addresses that it listens on; empty lets the discovery use those of its interfaces."""
    properties: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class PeerSeen:
    """A peer appeared, or its addresses or properties changed."""

    peer: Peer


@dataclass(frozen=True, slots=True)
class PeerGone:
    """A peer is no longer announced. `peer` is as it was last seen."""

    peer: Peer


DiscoveryEvent = PeerSeen | PeerGone


class Discovery(Protocol):
    """Use as `async with discovery:`; leaving it takes the advertisement back."""

    async def __aenter__(self) -> Discovery: ...

    async def __aexit__(self, *exc_info: object) -> None: ...

    async def advertise(self, advertisement: Advertisement) -> None:
        """Announce, or replace the announcement. Returns once it is on its way, not once others saw it.

        Raises `UsageError` for what the implementation cannot announce.
        """
        ...

    def watch(self) -> AsyncIterator[DiscoveryEvent]:
        """Everyone else: first those known already, then changes, until cancelled. May be called more than once.

        A peer is a node id in a role: a node and a coordinator that share an identity are two. Found under
        several names or ways at once it is still one, with all addresses. A watcher that is slow gets the
        latest state, not every change in between.
        """
        ...
