"""An MQTT 3.1.1 broker that a test plays, on loopback: one client at a time, and only what a gateway needs of one.

Written after the standard (sections 2 and 3). It keeps what is not acknowledged, and sends it again to the next
connection, as brokers do for a session that they keep.
"""

from __future__ import annotations

import asyncio
import struct
from dataclasses import dataclass, field

CONNECT, PUBLISH, PUBACK, SUBSCRIBE, PINGREQ, DISCONNECT = 1, 3, 4, 8, 12, 14
CONNACK_BYTES = b"\x20\x02\x00\x00"
PINGRESP_BYTES = b"\xd0\x00"
REFUSAL = 0x80
AT_LEAST_ONCE, DUPLICATE = 0x02, 0x08
"""Flags of PUBLISH, section 3.3.1."""


@dataclass
class PlayedBroker:
    """`start`, and `stop` in any case."""

    granted: int = 1
    """What a subscription is answered."""
    deaf_to: str = ""
    """A topic whose messages are never acknowledged."""
    is_slow: bool = False
    """Acknowledges nothing until `answer`."""
    hang_up_at: str = ""
    """A topic whose messages end the connection."""
    is_losing_acknowledgements: bool = False
    """Hangs up at one, and sends its message again."""
    connections: int = 0
    published: list[tuple[str, bytes]] = field(default_factory=list)
    unacknowledged: dict[int, tuple[str, bytes]] = field(default_factory=dict)
    port: int = 0
    _writer: asyncio.StreamWriter | None = None
    _answers: list[bytes] = field(default_factory=list)

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        self._server.close()
        if self._writer is not None:
            self._writer.close()

    def topics(self) -> list[str]:
        return [topic for topic, _ in self.published]

    def send(self, packet_id: int, topic: str, payload: bytes) -> None:
        """At QoS 1, once more to each later connection until it is acknowledged."""
        self.unacknowledged[packet_id] = (topic, payload)
        self._push(packet_id)

    def answer(self, writer: asyncio.StreamWriter | None = None) -> None:
        """Acknowledge what was not yet."""
        to = writer or self._writer
        assert to is not None
        to.write(b"".join(self._answers))
        self._answers.clear()

    def _push(self, packet_id: int, flags: int = 0) -> None:
        topic, payload = self.unacknowledged[packet_id]
        body = struct.pack("!H", len(topic)) + topic.encode() + struct.pack("!H", packet_id) + payload
        assert self._writer is not None
        assert len(body) < 128, "the length is written as one byte"
        self._writer.write(bytes([PUBLISH << 4 | AT_LEAST_ONCE | flags, len(body)]) + body)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                first = (await reader.readexactly(1))[0]
                if not self._take(first, await reader.readexactly(await _read_length(reader)), writer):
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            writer.close()

    def _take(self, first: int, body: bytes, writer: asyncio.StreamWriter) -> bool:
        """False ends the connection."""
        kind = first >> 4
        if kind == CONNECT:
            self.connections += 1
            self._writer = writer
            writer.write(CONNACK_BYTES)
            for packet_id in self.unacknowledged:
                self._push(packet_id, DUPLICATE)
        elif kind == SUBSCRIBE:
            writer.write(b"\x90\x03" + body[:2] + bytes([self.granted]))
        elif kind == PUBLISH:
            return self._take_message(first >> 1 & 3, body, writer)
        elif kind == PUBACK and self.is_losing_acknowledgements:
            return False
        elif kind == PUBACK:
            self.unacknowledged.pop(struct.unpack("!H", body[:2])[0], None)
        elif kind == PINGREQ:
            writer.write(PINGRESP_BYTES)
        return kind != DISCONNECT

    def _take_message(self, qos: int, body: bytes, writer: asyncio.StreamWriter) -> bool:
        (length,) = struct.unpack("!H", body[:2])
        topic, rest = body[2 : 2 + length].decode(), body[2 + length :]
        if topic == self.hang_up_at:
            return False
        self.published.append((topic, rest[2:] if qos else rest))
        if qos and topic != self.deaf_to:
            self._answers.append(b"\x40\x02" + rest[:2])
            if not self.is_slow:
                self.answer(writer)
        return True


async def _read_length(reader: asyncio.StreamReader) -> int:
    """Section 2.2.3: seven bits a byte, the lowest first."""
    length = shift = 0
    while True:
        byte = (await reader.readexactly(1))[0]
        length |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return length
