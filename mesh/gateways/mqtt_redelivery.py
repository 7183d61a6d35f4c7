"""What was made of messages that a broker is to send again, so that none enters its source's window twice. Pure.

A message of QoS 1 whose connection was lost before its acknowledgement comes again with its packet id and its bytes.
Its samples are in the window already: processed again they would be passed over, or be there twice. So what was made
of it is kept until it comes again, and told again, with the same ids: a broker that was killed may have lost what it
was told together with the acknowledgement. What did not come again by the connection after the next never will: that
broker has forgotten it.

An acknowledgement may also be written and get lost with its connection, which nobody here learns. So the latest
acknowledged messages are kept too. Packet ids are used again, and sensors repeat themselves: one
of those is taken for the same message only where the broker says so (the flag DUP, MQTT 3.1.1 section 3.3.1.1).

Owned by the MQTT gateway.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from mesh.gateways.mqtt_connection import Sample

MAX_KEPT = 4096
"""Messages: above what brokers send without acknowledgements; older ones are processed again where they come again."""

MAX_KEPT_BYTES = 4 << 20
"""Of documents."""

Told = tuple[str, bytes]
"""Topic and document."""

_Key = tuple[str, str, int, int]


@dataclass(frozen=True, slots=True)
class Judged:
    """What was made of a message, and the id that it was given."""

    identifier: str
    told: list[Told]


@dataclass(frozen=True, slots=True)
class _Kept:
    connection: int
    judged: Judged
    is_acknowledged: bool


class Redelivery:
    def __init__(self) -> None:
        self._kept: OrderedDict[_Key, _Kept] = OrderedDict()
        self._kept_bytes = 0
        self._connection = 0

    def begin_connection(self) -> None:
        """The broker was reached, and sends again what it has no acknowledgement for."""
        self._connection += 1
        while self._kept and next(iter(self._kept.values())).connection < self._connection - 1:
            self._forget(next(iter(self._kept)))

    def keep(self, key: tuple[str, str], sample: Sample, judged: Judged, *, is_acknowledged: bool = False) -> None:
        """`judged` is what was made of `sample`."""
        if not sample.qos:
            return  # never comes again
        name = _name(key, sample)
        self._forget(name)
        self._kept[name] = _Kept(self._connection, judged, is_acknowledged)
        self._kept_bytes += _size(judged)
        while len(self._kept) > MAX_KEPT or self._kept_bytes > MAX_KEPT_BYTES:
            self._forget(next(iter(self._kept)))

    def recall(self, key: tuple[str, str], sample: Sample) -> Judged | None:
        """What was made of `sample`, once; None where it comes for the first time."""
        if not sample.qos or not self._kept:
            return None
        kept = self._forget(_name(key, sample))
        return None if kept is None or (kept.is_acknowledged and not sample.is_repeated) else kept.judged

    def _forget(self, name: _Key) -> _Kept | None:
        kept = self._kept.pop(name, None)
        if kept is not None:
            self._kept_bytes -= _size(kept.judged)
        return kept


def _name(key: tuple[str, str], sample: Sample) -> _Key:
    return (*key, sample.packet_id, hash(sample.payload))  # of 64 bits, kept by the bytes object: computed once


def _size(judged: Judged) -> int:
    return sum(len(document) for _, document in judged.told)
