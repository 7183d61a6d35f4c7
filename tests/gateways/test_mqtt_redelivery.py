"""What is kept for messages that come again: once, bounded, and not for longer than a broker remembers."""

from __future__ import annotations

import pytest

from mesh.gateways import mqtt_redelivery
from mesh.gateways.mqtt_connection import Sample
from mesh.gateways.mqtt_redelivery import Judged, Redelivery

KEY = ("p", "mic")
TOLD = Judged("1", [("mesh/out/p/mic", b"{}")])
NOTHING = Judged("2", [])


def sample(payload: bytes = b"x", packet_id: int = 1, qos: int = 1) -> Sample:
    return Sample("mesh/in/p/mic", payload, qos, False, "", b"", "", lambda: False, packet_id)


def test_it_is_recalled_once_and_only_by_the_same_message() -> None:
    redelivery = Redelivery()
    redelivery.keep(KEY, sample(), TOLD)
    assert redelivery.recall(KEY, sample(b"y")) is None
    assert redelivery.recall(KEY, sample(packet_id=2)) is None
    assert redelivery.recall(("p", "other"), sample()) is None
    assert redelivery.recall(KEY, sample()) == TOLD
    assert redelivery.recall(KEY, sample()) is None


def test_messages_of_qos_0_never_come_again() -> None:
    redelivery = Redelivery()
    redelivery.keep(KEY, sample(qos=0), TOLD)
    assert redelivery.recall(KEY, sample()) is None


def test_what_did_not_come_again_is_forgotten() -> None:
    redelivery = Redelivery()
    redelivery.keep(KEY, sample(), NOTHING)
    redelivery.begin_connection()
    redelivery.keep(KEY, sample(packet_id=2), NOTHING)
    redelivery.begin_connection()
    assert redelivery.recall(KEY, sample()) is None
    assert redelivery.recall(KEY, sample(packet_id=2)) == NOTHING


@pytest.mark.parametrize(("limit", "most"), [("MAX_KEPT", 2), ("MAX_KEPT_BYTES", 4)])
def test_it_is_bounded(monkeypatch: pytest.MonkeyPatch, limit: str, most: int) -> None:
    monkeypatch.setattr(mqtt_redelivery, limit, most)
    redelivery = Redelivery()
    for packet_id in range(3):
        redelivery.keep(KEY, sample(packet_id=packet_id), TOLD)
    assert [redelivery.recall(KEY, sample(packet_id=each)) for each in range(3)] == [None, TOLD, TOLD]
