"""The connection to an MQTT broker: subscribed, announced, and held for as long as the gateway runs.

Through aiomqtt. At QoS 1 a message is acknowledged when the gateway says so, and not when it arrives: what a broker
has accepted is then answered, or its loss is told, even where the gateway is killed in between. aiomqtt has no public
way to that, so `ManualAcknowledgement` reaches into it; nothing else here does. The session is kept by the broker under
a stable client id, so that messages wait there while the gateway is away.

Owned by the MQTT gateway; runs within one of its tasks.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import aiomqtt
from paho.mqtt.enums import MQTTErrorCode
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from mesh.errors import NodeLost
from mesh.gateways.mqtt_topics import OFFLINE, ONLINE, Topics

RECONNECT_S = 5.0
"""From one attempt to the next at least: a broker that is restarted is not run over by its clients."""

CALL_LIMIT_S = 10.0
"""For the broker to take or acknowledge anything."""

KEEPALIVE_S = 15
"""A broker says that a gateway which is cut off is gone after one and a half of it."""

SESSION_EXPIRY_S = 24 * 3600
"""MQTT 5: how long a broker keeps messages for a gateway that is away. With 3.1.1 the broker's own settings say."""

MAX_PACKET_BYTES = 17 << 20
"""MQTT 5: what the broker may send; just above what pipelines take."""

MAX_SOURCES_AT_ONCE = 2048
"""That publish at once: sources, and drops that are told."""

REFUSED = 128
"""MQTT: what a broker answers to a subscription is a refusal from here on."""

MAX_UNACKNOWLEDGED = 64
"""MQTT 5: messages of QoS 1 that wait here for their answer; the others wait at the broker."""


@dataclass(frozen=True, slots=True)
class Broker:
    host: str
    port: int
    is_version_5: bool
    client_id: str
    username: str = ""
    password: str = ""


@dataclass(frozen=True, slots=True)
class Sample:
    """A message that came in. `acknowledge` it when it is answered or its drop was told.

    That returns False where the connection it came by is gone: at QoS 1 the broker then sends it again.
    """

    topic: str
    payload: bytes
    qos: int
    is_retained: bool
    response_topic: str
    correlation: bytes
    traceparent: str
    acknowledge: Callable[[], bool]
    packet_id: int = 0
    """At QoS 1 the same one when the broker sends a message again."""
    is_repeated: bool = False
    """Whether the broker says that it has sent it before."""


class ManualAcknowledgement:
    """Acknowledges messages of one aiomqtt client by hand, and knows which of them the broker has sent before.

    The only place that reaches into aiomqtt.
    """

    def __init__(self, client: aiomqtt.Client) -> None:
        self._client = client
        self._paho: Any = client._client  # aiomqtt 2 offers no other way
        self._paho.manual_ack_set(True)
        self._pass_on: Any = self._paho.on_message
        self._paho.on_message = self._note
        self._loop = asyncio.get_running_loop()
        self._paho.on_socket_register_write = self._watch_for_writing
        self._repeated: set[int] = set()
        """Packet ids of messages that came with the flag DUP, which aiomqtt leaves out."""
        self._is_over = False

    def _note(self, client: Any, userdata: Any, message: Any) -> None:
        if message.dup and message.qos:
            self._repeated.add(message.mid)
        self._pass_on(client, userdata, message)

    def _watch_for_writing(self, client: Any, userdata: Any, sock: Any) -> None:
        """As aiomqtt does, but for a socket that is closed before its turn comes: its number is nobody's by then, or
        another's."""

        def write() -> None:
            try:
                self._paho.loop_write()
            except Exception as error:  # as aiomqtt does: whatever it is, the connection is lost by it
                if not self._client._disconnected.done():
                    self._client._disconnected.set_exception(error)

        def watch() -> None:
            if sock.fileno() >= 0:
                self._loop.add_writer(sock, write)

        self._loop.call_soon_threadsafe(watch)

    def is_repeated(self, message: aiomqtt.Message) -> bool:
        """Asked once for each message, in the order of their coming."""
        if message.mid not in self._repeated:
            return False
        self._repeated.remove(message.mid)
        return True

    def end(self) -> None:
        """The connection is gone, or about to be."""
        self._is_over = True

    def forget(self) -> None:
        """Why the connection was lost is told elsewhere; else asyncio says that nobody asked for it."""
        lost = self._client._disconnected
        if lost.done() and not lost.cancelled():
            lost.exception()

    def acknowledge(self, message: aiomqtt.Message) -> bool:
        """False, and nothing happens, where the connection is gone: the broker sends the message to the next one."""
        if self._is_over:
            return False
        return not message.qos or self._paho.ack(message.mid, message.qos) == MQTTErrorCode.MQTT_ERR_SUCCESS


def _end_if_cancelled() -> None:
    """Waiting for an answer that comes at that moment may hide a cancellation (`asyncio.wait_for` before 3.12)."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


class MqttConnection:
    """`run` for as long as wanted; `publish` meanwhile."""

    def __init__(
        self,
        broker: Broker,
        topics: Topics,
        subscriptions: tuple[str, ...],
        on_sample: Callable[[Sample], None],
        on_connected: Callable[[], Awaitable[None]],
        say: Callable[[str], None],
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._broker = broker
        self._topics = topics
        self._subscriptions = subscriptions
        self._on_sample = on_sample
        self._on_connected = on_connected
        self._say = say
        self._now = now
        self._client: aiomqtt.Client | None = None
        self._holding: asyncio.Timeout | None = None
        """The connection that is up; who reschedules it to now gives the connection up."""

    async def run(self) -> None:
        """Connect, and again whenever the connection is lost, until cancelled."""
        where = f"{self._broker.host}:{self._broker.port}"
        while True:
            began = self._now()
            try:
                async with self._connected() as client, asyncio.timeout(None) as self._holding:
                    _end_if_cancelled()
                    self._say(f"connected to the MQTT broker at {where}")
                    await self._on_connected()
                    async for message in client.messages:
                        self._take(client, message)
            except (aiomqtt.MqttError, NodeLost, TimeoutError) as error:
                _end_if_cancelled()
                told = str(error) or f"it took nothing for {CALL_LIMIT_S:g} s"
                self._say(f"no connection to the MQTT broker at {where}: {told}; trying again{self._hint(began)}")
            await asyncio.sleep(max(0.0, RECONNECT_S - (self._now() - began)))

    def _hint(self, began: float) -> str:
        if self._holding is None or self._now() - began > 2 * RECONNECT_S:
            return ""
        return f" (if it keeps happening: does another gateway use the client id {self._broker.client_id!r}?)"

    @contextlib.asynccontextmanager
    async def _connected(self) -> AsyncIterator[aiomqtt.Client]:
        client = self._make_client()
        acknowledgement = ManualAcknowledgement(client)
        self._acknowledgement = acknowledgement
        self._holding = None
        async with contextlib.AsyncExitStack() as stack:
            stack.callback(acknowledgement.forget)
            await stack.enter_async_context(client)
            for topic in self._subscriptions:
                for code in await client.subscribe(topic, qos=1, timeout=CALL_LIMIT_S):
                    if getattr(code, "value", code) >= REFUSED:
                        raise aiomqtt.MqttError(f"it refuses the subscription to {topic}: see what it allows this user")
            await client.publish(self._topics.state, ONLINE, qos=1, retain=True, timeout=CALL_LIMIT_S)
            self._client = client
            try:
                yield client
            finally:
                self._client = None
                acknowledgement.end()
                with contextlib.suppress(aiomqtt.MqttError):  # the broker's own word follows where this is lost
                    await client.publish(self._topics.state, OFFLINE, qos=1, retain=True, timeout=1.0)

    def _make_client(self) -> aiomqtt.Client:
        broker = self._broker
        options: dict[str, Any] = {"clean_session": False, "protocol": aiomqtt.ProtocolVersion.V311}
        if broker.is_version_5:
            properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
            properties.SessionExpiryInterval = SESSION_EXPIRY_S
            properties.MaximumPacketSize = MAX_PACKET_BYTES
            properties.ReceiveMaximum = MAX_UNACKNOWLEDGED
            options = {"clean_start": False, "properties": properties, "protocol": aiomqtt.ProtocolVersion.V5}
        client = aiomqtt.Client(
            broker.host,
            broker.port,
            identifier=broker.client_id,
            username=broker.username or None,
            password=broker.password or None,
            will=aiomqtt.Will(self._topics.state, OFFLINE, qos=1, retain=True),
            keepalive=KEEPALIVE_S,
            timeout=CALL_LIMIT_S,
            # Else a result waits up to 40 ms for the broker's word on the message before it.
            socket_options=[(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)],
            **options,
        )
        client.pending_calls_threshold = MAX_SOURCES_AT_ONCE  # else a line in the log for each beyond ten
        return client

    def _take(self, client: aiomqtt.Client, message: aiomqtt.Message) -> None:
        acknowledgement = self._acknowledgement
        told = message.properties
        user = dict(getattr(told, "UserProperty", ()) or ())
        payload = message.payload
        self._on_sample(
            Sample(
                str(message.topic),
                bytes(payload) if isinstance(payload, bytes | bytearray) else b"",
                message.qos,
                message.retain,
                getattr(told, "ResponseTopic", ""),
                getattr(told, "CorrelationData", b""),
                str(user.get("traceparent", "")),
                lambda: acknowledgement.acknowledge(message),
                message.mid,
                bool(message.qos) and acknowledgement.is_repeated(message),
            )
        )

    async def publish(
        self, topic: str, payload: bytes, *, is_retained: bool = False, correlation: bytes = b"", qos: int = 1
    ) -> None:
        """Returns when the broker has it; raises `NodeLost` where there is no broker.

        One that takes nothing while its connection stays up is given up as well: only by a new connection does it
        send again what then stays unacknowledged, and until then that counts against what it may send.
        """
        client = self._client
        if client is None:
            raise NodeLost("there is no connection to the MQTT broker")
        properties: Properties | None = None
        if self._broker.is_version_5:
            properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
            properties.ContentType = "application/json"
            if correlation:
                properties.CorrelationData = correlation
        try:
            async with asyncio.timeout(CALL_LIMIT_S):
                await client.publish(
                    topic, payload, qos=qos, retain=is_retained, properties=properties, timeout=math.inf
                )
        except TimeoutError:
            if self._holding is not None and self._client is client and not self._holding.expired():
                self._holding.reschedule(0)
            raise NodeLost(f"the MQTT broker did not take a message within {CALL_LIMIT_S:g} s") from None
        except aiomqtt.MqttError as error:
            raise NodeLost(f"the MQTT broker did not take a message: {error}") from None
