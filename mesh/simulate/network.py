"""Connections and calls between hosts, with delay, loss, resets and cuts.

A connection behaves as TCP does: what is sent one way arrives in order or not at all, a lost packet is a
delay, and a cut holds everything back until it is healed or somebody gives the connection up. Both ends beat
and judge the other's silence by the shipped `Liveness`. A call may be lost in either direction, and may
arrive twice.
"""

from __future__ import annotations

from collections.abc import Callable

from mesh.control.timing import HEARTBEAT_INTERVAL_S, Liveness
from mesh.core.messages import Heartbeat, Message
from mesh.errors import MeshError, NodeLost
from mesh.simulate.world import Host, Result, World

RETRANSMISSION_S = 0.2
"""What a lost packet costs: the smallest timeout of TCP."""

MAX_DETOUR_S = 0.4
"""A few retransmissions, or a queue in one direction."""

Reply = Callable[[object], None]


class _Closed:
    def __init__(self, error: MeshError | None) -> None:
        self.error = error


class End:
    """One side of a connection. Its owner sets `on_message` and `on_lost`."""

    def __init__(self, network: Network, host: Host) -> None:
        self.host = host
        self.peer: End
        self.is_closed = False
        self.on_message: Callable[[Message], None] = lambda message: None
        self.on_lost: Callable[[MeshError], None] = lambda error: None
        self._network = network
        self._number = network.count()
        self._incarnation = host.incarnation
        self._arrives_at = 0.0
        self._detour_s = network.detour()
        self._stalled: list[Message | _Closed] = []
        self._liveness = Liveness(host.world.now)
        host.after(HEARTBEAT_INTERVAL_S, self._beat)

    def number(self) -> int:
        """Sets of ends have no order that could be repeated; this is one."""
        return self._number

    def send(self, message: Message) -> None:
        if not self.is_closed:
            self._push(message)

    def close(self, error: MeshError | None = None) -> None:
        """Hang up; the other side hears why after everything that was sent before."""
        if not self.is_closed:
            self.is_closed = True
            self._network.ends.discard(self)
            self._push(_Closed(error))

    def lose(self, error: MeshError) -> None:
        """The connection broke, as seen from here."""
        if not self.is_closed:
            self.close(error)
            self.on_lost(error)

    def reset(self) -> None:
        """The process behind this end is gone, and its kernel says so."""
        self.is_closed = True
        self._network.ends.discard(self)
        self._push(_Closed(NodeLost(f"{self.host.name} reset the connection")))

    def heal(self) -> None:
        stalled, self._stalled = self._stalled, []
        for message in stalled:
            self._push(message)

    def _push(self, message: Message | _Closed) -> None:
        if self._stalled or self._network.is_cut(self.host, self.peer.host):
            self._stalled.append(message)
            self._network.stalled.add(self)
            return
        world, peer = self.host.world, self.peer
        self._arrives_at = max(self._arrives_at, world.now + self._detour_s + self._network.transit())
        world.after(self._arrives_at - world.now, lambda: peer._arrive(message))

    def _arrive(self, message: Message | _Closed) -> None:
        host = self.host
        if host.incarnation != self._incarnation or not host.is_up:
            if not host.is_dark and not self.peer.is_closed:
                self.reset()
            return
        host.run(self._incarnation, lambda: self._take(message))

    def _take(self, message: Message | _Closed) -> None:
        if self.is_closed:
            return
        self._liveness.heard(self.host.world.now)
        if isinstance(message, _Closed):
            self.lose(message.error or NodeLost(f"{self.peer.host.name} closed the connection"))
        elif not isinstance(message, Heartbeat):
            self.on_message(message)

    def _beat(self) -> None:
        if self.is_closed:
            return
        if self._liveness.is_lost(self.host.world.now):
            self.lose(NodeLost(f"{self.peer.host.name} has gone silent"))
            return
        self.send(Heartbeat())
        self.host.after(HEARTBEAT_INTERVAL_S, self._beat)


class Network:
    def __init__(self, world: World) -> None:
        self.world = world
        self.delay_s = 0.001
        self.jitter_s = 0.001
        self.loss = 0.0
        self.detours = 0.0
        """Share of one-way connections that are slower than the others."""
        self.duplication = 0.0
        """Of control calls."""
        self.ends: set[End] = set()
        self.stalled: set[End] = set()
        self._counted = 0
        self._cuts: dict[tuple[str, str], int] = {}

    def count(self) -> int:
        self._counted += 1
        return self._counted

    def transit(self) -> float:
        random = self.world.random
        seconds = self.delay_s + random.random() * self.jitter_s
        while self.loss and random.random() < self.loss:
            seconds += RETRANSMISSION_S
        return seconds

    def detour(self) -> float:
        """What one way of one connection takes longer than others: so things overtake each other between links."""
        random = self.world.random
        return random.random() * MAX_DETOUR_S if random.random() < self.detours else 0.0

    def is_cut(self, source: Host, target: Host) -> bool:
        return bool(self._cuts) and self._cuts.get((source.name, target.name), 0) > 0

    def cut(self, source: Host, target: Host) -> None:
        """Nothing gets from `source` to `target`; the other way is as it was. Cuts add up."""
        pair = (source.name, target.name)
        self._cuts[pair] = self._cuts.get(pair, 0) + 1

    def heal(self, source: Host, target: Host) -> None:
        self._cuts[source.name, target.name] -= 1
        stalled, self.stalled = self.stalled, set()
        for end in sorted(stalled, key=End.number):
            end.heal()

    def connect(self, source: Host, target: Host) -> tuple[End, End]:
        """A connection that is being made: what is sent to a host that is down comes back as a reset, or never."""
        near, far = End(self, source), End(self, target)
        near.peer, far.peer = far, near
        self.ends.update((near, far))
        return near, far

    def ends_of(self, host: Host) -> list[End]:
        return sorted((end for end in self.ends if end.host is host), key=End.number)

    def call(
        self, caller: Host, callee: Host, handle: Callable[[Reply], None], timeout_s: float, copies: int = 1
    ) -> Result:
        """Ask `callee` to `handle` something; the reply, or `NodeLost` after `timeout_s`."""
        result, world = Result(), self.world
        lost = NodeLost(f"{callee.name} does not answer")
        lost.address = callee.name
        caller.after(timeout_s, lambda: result.set(lost))

        def reply(value: object) -> None:
            if not self.is_cut(callee, caller):
                world.after(self.transit(), lambda: caller.run(caller.incarnation, lambda: result.set(value)))

        def arrive() -> None:
            if callee.is_up:
                callee.run(callee.incarnation, lambda: handle(reply))
            elif not callee.is_dark:
                reply(lost)

        if world.random.random() < self.duplication:
            copies += 1
        for number in range(copies):
            if not self.is_cut(caller, callee):
                world.after(self.transit() + number * world.random.random() * timeout_s, arrive)
        return result
