"""Discovery through an MQTT broker: who is there stands in retained messages, where multicast does not reach.

A daemon publishes what it would announce by mDNS, retained, at `mesh/presence/ID/ROLE`, and the broker takes it back
when the daemon's connection is lost (last will: an empty message, which removes a retained one). Everybody else
subscribes. As with mDNS a record is read completely or not at all, and is a hint whom to call, no more. A broker that
goes away takes nobody with it: what was known stays, and the connection is tried again.

Needs addresses that others reach: those that the daemon listens on, or else those of its interfaces.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

from mesh.core.fleet import Peer
from mesh.discovery.addresses import parse_address
from mesh.discovery.contract import Advertisement, DiscoveryEvent
from mesh.discovery.interfaces import Interface, choose_interfaces, list_interfaces
from mesh.discovery.records import MAX_READ_TXT_BYTES, read_record, txt_properties
from mesh.discovery.roster import PeerKey, Roster, is_other, key_of
from mesh.errors import UsageError

_log = logging.getLogger(__name__)

PREFIX = "mesh/presence"

RECONNECT_S = 5.0
KEEPALIVE_S = 15
CALL_LIMIT_S = 10.0

MAX_ADDRESSES = 16
"""Of one record: more than any device has."""

MAX_PEERS = 4096
"""From one broker."""


def presence_topic(advertisement: Advertisement) -> str:
    return f"{PREFIX}/{advertisement.node_id}/{advertisement.role}"


def write_presence(advertisement: Advertisement, interfaces: list[Interface]) -> bytes:
    """The retained message. Raises `UsageError` for what no reader would accept."""
    addresses = advertisement.addresses or tuple(interface.address for interface in interfaces)
    document = {
        "txt": txt_properties(advertisement),
        "port": advertisement.port,
        "addresses": list(addresses[:MAX_ADDRESSES]),
    }
    return json.dumps(document).encode()


def read_presence(topic: str, payload: bytes, interfaces: list[Interface], is_local: bool = False) -> Peer | str:
    """The peer that a message speaks of, or why it is rejected. `is_local`: the broker is on this machine, and so may
    be daemons that listen for this machine alone."""
    if len(payload) > 2 * MAX_READ_TXT_BYTES:
        return f"a presence of {len(payload)} bytes"
    try:
        document = json.loads(payload)
        text, port, addresses = document["txt"], document["port"], document["addresses"]
        pairs = {str(key).encode(): str(value).encode() for key, value in text.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return "not a presence"
    if isinstance(port, bool) or not isinstance(port, int) or not isinstance(addresses, list):
        return "not a presence"
    known = [address for address in addresses[:MAX_ADDRESSES] if isinstance(address, str)]
    size = sum(len(key) + len(value) + 2 for key, value in pairs.items())
    networks = [interface.network for interface in interfaces]
    found = read_record(pairs, size, port, known, networks, is_local)
    if isinstance(found, str):
        return found
    if topic != f"{PREFIX}/{found.node_id}/{found.role}":
        return "a presence at another one's place"
    return Peer(found.node_id, found.name, found.role, found.addresses, "mqtt", found.properties)


class MqttDiscovery:
    """`Discovery` by the retained messages of one broker."""

    def __init__(
        self,
        broker: str,
        list_present: Callable[[], list[Interface]] = list_interfaces,
    ) -> None:
        """`broker`: "host:port". Raises `UsageError` for what is none."""
        try:
            self._host, self._port = parse_address(broker)
        except UsageError as error:
            raise UsageError(f"the broker: {error.message}", hint="MESH_MQTT is HOST:PORT of an MQTT broker") from None
        self._where = broker
        self._is_lost = False
        """And was said to be."""
        self._is_local = self._host in ("localhost", "::1") or self._host.startswith("127.")
        self._list_present = list_present
        self._advertisement: Advertisement | None = None
        self._advertise_again = asyncio.Event()
        self._roster = Roster()
        self._peers: dict[str, PeerKey] = {}
        self._stack = contextlib.AsyncExitStack()
        self.rejected = 0
        """Messages that `read_presence` rejected."""

    async def __aenter__(self) -> MqttDiscovery:
        async with contextlib.AsyncExitStack() as stack:
            group = await stack.enter_async_context(asyncio.TaskGroup())
            stack.callback(group.create_task(self._hold(), name="mqtt discovery").cancel)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        # Without the exception: it is the caller's, and the task group here would wrap it.
        await self._stack.aclose()

    async def advertise(self, advertisement: Advertisement) -> None:
        """Announce from now on. Raises `UsageError` for what no reader would accept."""
        txt_properties(advertisement)
        self._advertisement = advertisement
        self._advertise_again.set()
        self._roster.recheck()

    def watch(self) -> AsyncIterator[DiscoveryEvent]:
        return self._roster.watch(lambda peer: is_other(peer, self._advertisement))

    async def _hold(self) -> None:
        """Connected for as long as there is a broker; anew when there is something else to announce."""
        import aiomqtt

        while True:
            self._advertise_again.clear()
            advertisement = self._advertisement
            try:
                async with self._connect(advertisement) as client:
                    self._is_lost = False
                    await self._serve(client, advertisement)
                    continue
            except* aiomqtt.MqttError as errors:
                self._say_lost(errors.exceptions[0])
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._advertise_again.wait(), RECONNECT_S)

    def _say_lost(self, error: Exception) -> None:
        """Once, until it is back: it is called again, and what was known of others stays."""
        if not self._is_lost:
            _log.warning("no connection to the MQTT broker at %s, which is to tell of the mesh: %s", self._where, error)
        self._is_lost = True

    def _connect(self, advertisement: Advertisement | None) -> Any:
        """A client of aiomqtt, to be entered."""
        import aiomqtt

        will = None
        if advertisement is not None:
            will = aiomqtt.Will(presence_topic(advertisement), b"", qos=1, retain=True)
        return aiomqtt.Client(self._host, self._port, will=will, keepalive=KEEPALIVE_S, timeout=CALL_LIMIT_S)

    async def _serve(self, client: Any, advertisement: Advertisement | None) -> None:
        """Until there is something else to announce; what was announced is then taken back."""
        await client.subscribe(f"{PREFIX}/+/+", qos=1)
        if advertisement is not None:
            presence = write_presence(advertisement, choose_interfaces(self._list_present()))
            await client.publish(presence_topic(advertisement), presence, qos=1, retain=True)
        try:
            await self._read_until_there_is_news(client)
        finally:
            if advertisement is not None:
                import aiomqtt

                with contextlib.suppress(aiomqtt.MqttError):  # then the broker does, by the last will
                    await client.publish(presence_topic(advertisement), b"", qos=1, retain=True, timeout=1.0)

    async def _read_until_there_is_news(self, client: Any) -> None:
        """Raises aiomqtt's error where the connection is lost."""
        async with asyncio.TaskGroup() as group:
            reading = group.create_task(self._read(client), name="mqtt discovery: read")
            waiting = group.create_task(self._advertise_again.wait(), name="mqtt discovery: wait")
            await asyncio.wait({reading, waiting}, return_when=asyncio.FIRST_COMPLETED)
            reading.cancel()
            waiting.cancel()

    async def _read(self, client: Any) -> None:
        interfaces = choose_interfaces(self._list_present())
        async for message in client.messages:
            topic = str(message.topic)
            payload = message.payload if isinstance(message.payload, bytes) else b""
            self._take(topic, payload, interfaces)

    def _take(self, topic: str, payload: bytes, interfaces: list[Interface]) -> None:
        if not payload:
            key = self._peers.pop(topic, None)
            if key is not None:
                self._roster.remove(key)
            return
        found = read_presence(topic, payload, interfaces, self._is_local)
        if isinstance(found, str) or (topic not in self._peers and len(self._peers) >= MAX_PEERS):
            self.rejected += 1
            return
        self._peers[topic] = key_of(found)
        self._roster.put(found)
