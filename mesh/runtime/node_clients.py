"""The connections that a process keeps to nodes, by address: made when asked for, closed when nobody needs them.

Owned by a node's runtime, or by a fleet. A connection with a stream or a call under way is never closed; of the others
those that were asked for longest ago go first, when there are too many or when they have been idle for long, as to
an address that no node has any more.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from typing import Any

from mesh.errors import Overloaded
from mesh.wire.channel import NodeClient

IDLE_LIMIT_S = 3600.0
"""Longer than any piece of work that holds a client between two calls, such as a deployment."""

Spawn = Callable[[Coroutine[Any, Any, None], str], object]


class NodeClients:
    def __init__(self, spawn: Spawn, limit: int, clock: Callable[[], float] = time.monotonic) -> None:
        """`spawn` runs the closing of what is evicted; at most `limit` are kept."""
        self._spawn = spawn
        self._limit = limit
        self._clock = clock
        self._clients: OrderedDict[str, tuple[NodeClient, float]] = OrderedDict()
        """With the time when it was last asked for, longest ago first."""

    def get(self, address: str) -> NodeClient:
        """To be used at once, not kept. Raises `Overloaded` where as many as the limit are in use."""
        now = self._clock()
        known = self._clients.pop(address, None)
        if known is None:
            self._make_room(now)
        client = known[0] if known is not None else NodeClient(address)
        self._clients[address] = (client, now)
        return client

    def _make_room(self, now: float) -> None:
        surplus = len(self._clients) + 1 - self._limit
        for address, (client, asked_at) in list(self._clients.items()):
            if surplus <= 0 and now - asked_at < IDLE_LIMIT_S:
                return
            if not client.is_busy:
                del self._clients[address]
                self._spawn(client.close(), f"close the connection to {address}")
                surplus -= 1
        if surplus > 0:
            raise Overloaded(f"connections to {self._limit} nodes are in use here, the limit")

    async def close(self) -> None:
        clients = [client for client, _ in self._clients.values()]
        self._clients.clear()
        for client in clients:
            await client.close()
