"""Who introduced themselves to a node: the ladder's next rung where multicast does not reach.

A node that was given seeds tells them its port every `INTRODUCE_INTERVAL_S`, and counts those that
answer as introduced to it. Whoever asks a node for its capabilities hears of everyone it knows, so
one is enough to find all. As with any discovery, being listed is no proof of life. Pure; owned by the node's service.
"""

from __future__ import annotations

from mesh.core.fleet import Peer
from mesh.core.ids import NodeId
from mesh.errors import Overloaded

INTRODUCE_INTERVAL_S = 20.0
"""A few bytes per interval and seed; a newcomer introduces itself at once, so this only bounds a seed's restart."""

INTRODUCE_RETRY_S = 1.0
"""After a seed that did not answer: most often it starts at this moment, as this node does."""

FORGET_AFTER_S = 70.0
"""Three missed introductions and a little."""

MAX_INTRODUCED = 256
"""As many as mDNS candidates: far above a fleet that one planner handles."""


class Introductions:
    """`now` is handed in, in seconds of a monotonic clock."""

    def __init__(self) -> None:
        self._peers: dict[NodeId, tuple[Peer, float]] = {}

    def add(self, node_id: NodeId, name: str, address: str, now: float) -> None:
        """Remember, or renew; raises `Overloaded` where too many are known."""
        self._forget_old(now)
        if node_id not in self._peers and len(self._peers) >= MAX_INTRODUCED:
            raise Overloaded(f"{MAX_INTRODUCED} nodes have introduced themselves here, the limit")
        self._peers[node_id] = (Peer(node_id, name, "node", (address,), "introduced"), now)

    def known(self, now: float) -> tuple[Peer, ...]:
        self._forget_old(now)
        return tuple(peer for peer, _ in self._peers.values())

    def _forget_old(self, now: float) -> None:
        for node_id in [node_id for node_id, (_, seen_at) in self._peers.items() if now - seen_at > FORGET_AFTER_S]:
            del self._peers[node_id]
