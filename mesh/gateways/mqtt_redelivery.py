"""What was made of messages that a broker is to send again, so that none enters its source's window twice. Pure.

A message of QoS 1 whose connection was lost before its acknowledgement comes again with its packet id and its bytes.
Its samples are in the window already: processed again they would be passed over, or be there twice. So what there is
to tell of it is kept until it comes again. What did not come again by the connection after the next never will: that
broker has forgotten it.

Owned by the MQTT gateway.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict

from mesh.gateways.mqtt_connection import Sample

MAX_KEPT = 4096
"""Messages: above what brokers send without acknowledgements; the oldest is processed again where it comes again."""

MAX_KEPT_BYTES = 16 << 20
"""Of documents that are still to be told."""

Told = tuple[str, bytes]
"""Topic and document."""

_Key = tuple[str, str, int, bytes]


class Redelivery:
    def __init__(self) -> None:
        self._kept: OrderedDict[_Key, tuple[int, list[Told]]] = OrderedDict()
        self._kept_bytes = 0
        self._connection = 0

    def begin_connection(self) -> None:
        """The broker was reached, and sends again what it has no acknowledgement for."""
        self._connection += 1
        while self._kept and next(iter(self._kept.values()))[0] < self._connection - 1:
            self._forget(next(iter(self._kept)))

    def keep(self, key: tuple[str, str], sample: Sample, told: list[Told]) -> None:
        """`told` is what is still to be told of `sample`; empty where all is."""
        if not sample.qos:
            return  # never comes again
        name = _name(key, sample)
        self._forget(name)
        self._kept[name] = (self._connection, told)
        self._kept_bytes += _size(told)
        while len(self._kept) > MAX_KEPT or self._kept_bytes > MAX_KEPT_BYTES:
            self._forget(next(iter(self._kept)))

    def recall(self, key: tuple[str, str], sample: Sample) -> list[Told] | None:
        """What is still to be told of `sample`, once; None where it comes for the first time."""
        return self._forget(_name(key, sample)) if sample.qos and self._kept else None

    def _forget(self, name: _Key) -> list[Told] | None:
        _, told = self._kept.pop(name, (0, None))
        self._kept_bytes -= _size(told or [])
        return told


def _name(key: tuple[str, str], sample: Sample) -> _Key:
    return (*key, sample.packet_id, hashlib.sha256(sample.payload).digest())


def _size(told: list[Told]) -> int:
    return sum(len(document) for _, document in told)
