"""Who is there: watches discovery, asks everyone it heard of, and keeps the connections.

Light enough for a sensor client. A coordinator daemon keeps one for its life; a one-shot command
makes one, lets discovery settle, and asks. Only an answered call counts as alive, so nothing here
is cached but addresses and connections.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from typing import TypeVar

from mesh.control.timing import CALL_TIMEOUT_S
from mesh.core.fleet import Capabilities, NodeState, Peer
from mesh.core.ids import NodeId
from mesh.core.report import DeploymentReport, NodeView
from mesh.discovery.contract import Discovery, PeerGone, PeerSeen
from mesh.errors import MeshError, NodeLost, Timeout
from mesh.runtime.node_clients import NodeClients
from mesh.runtime.supervise import Supervisor
from mesh.wire.channel import NodeClient
from mesh.wire.ended_calls import await_ended_calls

Value = TypeVar("Value")

SETTLE_LEAST_S = 1.2
"""mDNS answers arrive within a second of the question on a healthy LAN."""

SETTLE_QUIET_S = 0.5
"""No newcomer for so long: everybody has answered."""

SETTLE_MOST_S = 3.0
"""The question is repeated after 1 s and 3 s; who has not answered then is found by seeds or not at all."""

GRACE_S = 0.5
"""For nodes to answer after another one has told of what is looked for; on a LAN all answer within milliseconds."""

SILENCE_MEMORY_S = 2.0
"""An address that kept us waiting for nothing is not waited for again for so long: one command asks several times."""

MAX_ADDRESSES_TRIED = 4
"""Of one peer, at the same time; a host with more networks than that lists the likeliest first."""


@dataclass(frozen=True, slots=True)
class Answered:
    """A node that answered, where, and what it holds."""

    view: NodeView
    client: NodeClient
    deployments: tuple[DeploymentReport, ...]
    highest_term: int


MAX_NODE_CLIENTS = 1024
"""Connections that are kept, above any fleet; those to addresses that are gone are closed sooner, by their idleness."""

MAX_ROUNDS = 8
"""Of asking those of whom the ones before told: nobody who makes up nodes keeps us asking."""

MAX_REMEMBERED = 1024
"""Peers and addresses that are remembered besides those that discovery shows; the latest ones."""


class Fleet:
    """Enter with `open_fleet`. `settles` is False where discovery knows everyone at once (seeds only)."""

    def __init__(
        self, discovery: Discovery, clients: NodeClients, *, settles: bool, only: frozenset[NodeId] | None = None
    ) -> None:
        self._discovery = discovery
        self._settles = settles
        self._only = only
        self._peers: dict[str, Peer] = {}
        self._clients = clients
        self._heard_of: dict[str, Peer] = {}
        self._last_known: dict[str, NodeView] = {}
        self._silent_at: dict[str, float] = {}
        self._began = time.monotonic()
        self._newcomer_at = self._began
        self._changed = asyncio.Event()

    # Discovery ------------------------------------------------------------------------------------

    async def watch(self) -> None:
        """Follow discovery for as long as the fleet is open."""
        async for event in self._discovery.watch():
            match event:
                case PeerSeen(peer):
                    if self._key(peer) not in self._peers:
                        self._newcomer_at = time.monotonic()
                    self._peers[self._key(peer)] = peer
                case PeerGone(peer):
                    self._peers.pop(self._key(peer), None)
            self._changed.set()

    @staticmethod
    def _key(peer: Peer) -> str:
        """A node and a coordinator of one identity are two peers."""
        return f"{peer.role} {peer.node_id or peer.addresses[0]}"

    def _nodes(self) -> list[Peer]:
        """Peers that may be nodes and are wanted."""
        return [peer for peer in self._peers.values() if peer.role in ("node", "") and self._is_wanted(peer)]

    def _is_wanted(self, peer: Peer) -> bool:
        return self._only is None or peer.node_id is None or peer.node_id in self._only

    def coordinators(self) -> list[Peer]:
        return [peer for peer in self._peers.values() if peer.role == "coordinator"]

    def seeds(self) -> list[Peer]:
        """Peers of which only an address is known: nodes or coordinators."""
        return [peer for peer in self._peers.values() if not peer.role]

    async def settle(self, enough: Callable[[], bool] | None = None, *, patiently: bool = False) -> None:
        """Give discovery the time it needs; returns at once when that has passed, or `enough()` says so.

        `patiently`: as long as anyone may still answer; for before saying that something is not there.
        """
        if not self._settles:
            await asyncio.sleep(0)  # let the watcher take what is known
        while self._settles and not (enough is not None and enough()):
            now = time.monotonic()
            is_quiet = now - self._began >= SETTLE_LEAST_S and now - self._newcomer_at >= SETTLE_QUIET_S
            if self._peers and is_quiet and not patiently:
                return
            if now - self._began >= SETTLE_MOST_S:
                return
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), SETTLE_QUIET_S / 5)

    # Asking ---------------------------------------------------------------------------------------

    def client(self, address: str) -> NodeClient:
        return self._clients.get(address)

    async def nodes(self) -> list[NodeView]:
        """Everyone who was announced; those who do not answer are marked lost."""
        await self.settle()
        peers = self._nodes()
        answers: list[NodeView] = []
        asked: set[str] = set()
        for _ in range(MAX_ROUNDS):
            asked |= {peer.addresses[0] for peer in peers}
            answers += await asyncio.gather(*(self._describe(peer) for peer in peers))
            # Those of whom only nodes that we know could tell, and then those of whom these tell.
            known = {view.capabilities.node_id for view in answers if not view.is_lost}
            peers = [
                peer
                for peer in self._heard_of.values()
                if peer.node_id not in known and peer.addresses[0] not in asked and self._is_wanted(peer)
            ]
            if not peers:
                break
        return sorted(_without_twins(answers), key=lambda view: view.capabilities.name)

    async def answered(self) -> list[Answered]:
        """Every node that answers, with its deployments."""
        views = [view for view in await self.nodes() if not view.is_lost]
        return [found for found in await asyncio.gather(*map(self._ask, views)) if found is not None]

    async def answered_about(self, name: str) -> list[Answered]:
        """As `answered`; but when one has told of deployment `name`, the others have only `GRACE_S` left to answer.

        Whoever wants to use a deployment must not wait for a frozen node that may have no part in it.
        """
        await self.settle()
        async with asyncio.TaskGroup() as group:
            looked_at = {address: peer for peer in self._nodes() for address in peer.addresses[:1]}
            looks = [group.create_task(self._look(peer)) for peer in looked_at.values()]
            pending: set[asyncio.Task[Answered | None]] = set(looks)
            deadline: float | None = None
            while pending:
                left_s = None if deadline is None else max(0.0, deadline - time.monotonic())
                done, pending = await asyncio.wait(pending, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
                if not done:
                    break
                for peer in self._heard_of.values():
                    if peer.addresses[0] not in looked_at and self._is_wanted(peer):
                        looked_at[peer.addresses[0]] = peer
                        looks.append(group.create_task(self._look(peer)))
                        pending.add(looks[-1])
                if deadline is None and any(_tells_of(look.result(), name) for look in done):
                    deadline = time.monotonic() + GRACE_S
            for look in pending:
                look.cancel()
        return [found for look in looks if not look.cancelled() and (found := look.result()) is not None]

    async def _look(self, peer: Peer) -> Answered | None:
        view = await self._describe(peer)
        return None if view.is_lost else await self._ask(view)

    async def _ask(self, view: NodeView) -> Answered | None:
        client = self.client(view.address)
        try:
            deployments, highest_term = await client.list_deployments()
        except (NodeLost, Timeout):
            return None  # it was there a moment ago; the next look says what became of it
        return Answered(view, client, tuple(deployments), highest_term)

    async def _describe(self, peer: Peer) -> NodeView:
        attempts = [self._try_address(peer, address) for address in peer.addresses[:MAX_ADDRESSES_TRIED]]
        answers = [answer for answer in await asyncio.gather(*attempts) if answer is not None]
        if not answers:
            return self._lost_view(peer)
        view = answers[0]
        _remember(self._last_known, self._key(peer), view)
        return view

    async def _try_address(self, peer: Peer, address: str) -> NodeView | None:
        began = time.monotonic()
        if began - self._silent_at.get(address, -math.inf) < SILENCE_MEMORY_S:
            return None
        try:
            capabilities, introduced = await self.client(address).describe(CALL_TIMEOUT_S)
        except MeshError:
            if time.monotonic() - began > SILENCE_MEMORY_S / 4:
                _remember(self._silent_at, address, time.monotonic())
            return None  # the answer is "lost", which the caller says by name
        if peer.node_id is not None and capabilities.node_id != peer.node_id:
            return None  # another node has taken over that address
        for other in introduced:
            _remember(self._heard_of, str(other.node_id), other)
        view = NodeView(capabilities, address)
        self.client(address).call_it(_describe_peer(view))
        return view

    def _lost_view(self, peer: Peer) -> NodeView:
        known = self._last_known.get(self._key(peer))
        if known is not None:
            capabilities = replace(known.capabilities, state=NodeState.LOST)
        else:
            capabilities = Capabilities(
                node_id=peer.node_id or NodeId(""),
                name=peer.name or peer.addresses[0],
                arch=peer.properties.get("arch", ""),
                cores=0.0,
                memory_bytes=0,
                memory_available_bytes=0,
                disk_available_bytes=0,
                providers=(),
                runtime_version="",
                gflops=0.0,
                memory_gb_per_s=0.0,
                state=NodeState.LOST,
                software_version=peer.properties.get("ver", ""),
            )
        return NodeView(capabilities, peer.addresses[0], is_lost=True)

    async def close(self) -> None:
        await self._clients.close()
        await await_ended_calls()


def _remember(known: dict[str, Value], key: str, value: Value) -> None:
    known.pop(key, None)
    known[key] = value
    if len(known) > MAX_REMEMBERED:
        del known[next(iter(known))]


def _tells_of(answer: Answered | None, name: str) -> bool:
    return answer is not None and any(report.deployment.name == name for report in answer.deployments)


def _describe_peer(view: NodeView) -> str:
    return f"node {view.capabilities.name} at {view.address}"


def _without_twins(views: list[NodeView]) -> list[NodeView]:
    """A node found twice (by mDNS and as a seed) is listed once, alive if either way answers."""
    best: dict[str, NodeView] = {}
    for view in views:
        key = view.capabilities.node_id or view.address
        if key not in best or best[key].is_lost:
            best[key] = view
    return list(best.values())


@contextlib.asynccontextmanager
async def open_fleet(
    discovery: Discovery, tasks: Supervisor, *, settles: bool, only: frozenset[NodeId] | None = None
) -> AsyncIterator[Fleet]:
    """A fleet that watches `discovery` (which it enters) until the block ends."""
    fleet = Fleet(discovery, NodeClients(tasks.spawn, MAX_NODE_CLIENTS), settles=settles, only=only)
    async with discovery:
        watching = tasks.spawn(fleet.watch(), "watch discovery")
        try:
            yield fleet
        finally:
            watching.cancel()
            await fleet.close()
